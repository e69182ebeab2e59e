"""Freezing that holds under any optax optimizer.

Zeroing gradients does not freeze: momentum, old Adam moments and decoupled weight decay still move the weights.
`held` therefore closes the chain with a transform that selects update or zero, entry by entry, from arrays that
arrive with each `update` call, so changing masks recompiles nothing. The same transform stands at the front, so that
clipping norms and second moments never see the gradients of held entries. Knows optax and pytrees, no network.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from maskprune.train.objective import informed


def hold_untrainable() -> optax.GradientTransformationExtraArgs:
    """Selects the update where `trainable` is True and exactly zero elsewhere.

    `update` needs the extra argument `trainable`: a pytree like the updates of bool arrays that broadcast against
    them. Entries are selected, not multiplied: a NaN in a held entry does not pass.
    """

    def update(updates: Any, state: Any, params: Any = None, *, trainable: Any = None, **extra_args: Any) -> Any:
        del params, extra_args
        if trainable is None:
            raise ValueError("`hold_untrainable` needs `update(..., trainable=flags)`; `make_train_step` passes it.")
        return hold(updates, trainable), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def hold(updates: Any, moves: Any) -> Any:
    """The updates where entries may move, and elsewhere nothing."""
    # Negative zero: added to a weight it keeps every bit of it, where -0.0 + 0.0 would be 0.0.
    return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.asarray(-0.0, u.dtype)), updates, moves)


def held(optimizer: optax.GradientTransformation, trained_leaves: Any) -> optax.GradientTransformationExtraArgs:
    """Wraps any optimizer so that held entries stay bit-identical.

    `optax.masked` keeps whole leaves that never train out of the optimizer, so they cost no optimizer state. It passes
    their raw gradients through as updates; the closing transform makes them zero. Extra arguments that are trees
    like the parameters lose the same leaves.

    Args:
        optimizer: Any optax optimizer.
        trained_leaves: Pytree like the parameters of Python booleans, False for leaves that never train.
    """
    whole = optax.masked(informed(optimizer), trained_leaves, mask_compatible_extra_args=True)
    return optax.chain(hold_untrainable(), whole, hold_untrainable())
