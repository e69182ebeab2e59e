"""Training: one step, as a pure function `(state, batch) -> (state, info)`.

Masks, learning-rate progress and the rate itself are data, so one compilation serves a whole run; `jit` and `vmap` are
left to the caller (`session.py`). Knows no pictures, no framework and no selection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskprune._answers import loss_and_state, loss_value
from maskprune._strict import check_leaves, strict
from maskprune.hold import held
from maskprune.network import Network, effective_params, on_device, strongly_typed, trainable, trained_leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes and that stepping back restores. Build it with `init_state`.

    Attributes:
        network: The network.
        opt_state: The optimizer's memory; fresh after every alteration, because `init_state` makes it.
        model_state: Non-trained variables such as batch statistics, or None.
        step: int32[], steps since `init_state`.
    """

    network: Network
    opt_state: Any
    model_state: Any
    step: jax.Array


class StepInfo(NamedTuple):
    """What one step reports: the loss before the update, and whether it and the new parameters are finite."""

    loss: jax.Array
    finite: jax.Array


Loss = Callable[[Any, Any], jax.Array]
Step = Callable[..., tuple[TrainState, StepInfo]]


@strict
def init_state(network: Network, optimizer: optax.GradientTransformation, model_state: Any = None) -> TrainState:
    """Starts training: a fresh optimizer for a network. The only way from an altered network back to a `TrainState`.

    Raises:
        TypeError: A leaf of `model_state` is no array.
    """
    opt_state = _fresh(optimizer, network)
    check_leaves("model_state", jax.tree.leaves(model_state))
    model_state = jax.tree.map(strongly_typed, model_state)
    return TrainState(network=network, opt_state=opt_state, model_state=model_state, step=on_device(np.int32(0)))


@strict
def make_train_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, *, stateful: bool = False
) -> Step:
    """Makes `step(state, batch, *, key=None, progress=0.0, rate=1.0) -> (state, info)`, ready for `jit` and `vmap`.

    Frozen and disabled entries come out bit-identical under any optimizer. The learning-rate schedule may read
    `progress` (see `scale_by_progress`), and `rate`. Every update is multiplied by `rate`: where the learning rate is
    the optimizer's last factor, as in all of optax's own, that is another learning rate.

    Args:
        loss: `loss(params, batch) -> float32[]`; `params` are the effective parameters. With `stateful`,
            `loss(params, batch, model_state, key) -> (float32[], model_state)`.
        optimizer: Any optax optimizer. Freezing is added here, never by the caller.
        stateful: Whether `loss` has the second form.

    Raises:
        TypeError: When it is traced: `loss` gives something else than one number, or another form of model state.
    """

    def full_loss(network: Network, batch: Any, model_state: Any, key: jax.Array | None) -> tuple[jax.Array, Any]:
        params = effective_params(network)
        if stateful:
            return loss_and_state(loss(params, batch, model_state, key), model_state)
        return loss_value(loss(params, batch)), model_state

    def step(
        state: TrainState, batch: Any, *, key: jax.Array | None = None, progress: Any = 0.0, rate: Any = 1.0
    ) -> Any:
        (value, model_state), grads = _gradients(full_loss, state, batch, key)
        found, arguments = (value, model_state), {"progress": progress}
        return take_updates(optimizer, state, grads, found=found, rate=rate, arguments=arguments)

    return step


def take_updates(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    updates: Any,
    *,
    found: tuple[jax.Array, Any],
    rate: Any,
    arguments: dict[str, Any],
) -> tuple[TrainState, StepInfo]:
    """What every kind of step ends with: the optimizer's updates, applied where entries may move.

    Args:
        optimizer: Made `state`.
        state: Before the step.
        updates: What the optimizer is given, such as gradients.
        found: The loss before the step, and the model state after it.
        rate: Multiplies what the optimizer returns; it is told as well.
        arguments: Further extra arguments of its `update`.
    """
    network, moves = state.network, trainable(state.network)
    updates, opt_state = held(optimizer, trained_leaves(network)).update(
        updates, state.opt_state, network.params, trainable=moves, rate=rate, **arguments
    )
    updates = jax.tree.map(lambda update: update * jnp.asarray(rate, update.dtype), updates)
    # Adding zero is not quite nothing (-0.0, subnormals): held entries are selected, not added to.
    params = jax.tree.map(jnp.where, moves, optax.apply_updates(network.params, updates), network.params)
    network = dataclasses.replace(network, params=params)
    (value, model_state), step = found, state.step + 1
    after = TrainState(network=network, opt_state=opt_state, model_state=model_state, step=step)
    moved = jax.tree.map(lambda moves, leaf: jnp.where(moves, leaf, 0), moves, params)  # held ones may store NaN
    return after, StepInfo(loss=value, finite=jnp.isfinite(value) & _all_finite(moved))


@partial(jax.jit, static_argnums=0)
def _fresh(optimizer: optax.GradientTransformation, network: Network) -> Any:
    return held(optimizer, trained_leaves(network)).init(network.params)


def _gradients(full_loss: Callable[..., Any], state: TrainState, batch: Any, key: jax.Array | None) -> Any:
    """Value and gradients with respect to the leaves that train; zeros for the others, which may be integers."""
    leaves, structure = jax.tree.flatten(state.network.params)
    trains = jax.tree.leaves(trained_leaves(state.network))

    def of_trained(moving: list[jax.Array]) -> Any:
        moved = iter(moving)
        params = structure.unflatten([next(moved) if t else leaf for leaf, t in zip(leaves, trains, strict=True)])
        return full_loss(dataclasses.replace(state.network, params=params), batch, state.model_state, key)

    moving = [leaf for leaf, t in zip(leaves, trains, strict=True) if t]
    value, grads = jax.value_and_grad(of_trained, has_aux=True)(moving)
    given = iter(grads)
    every = [next(given) if t else jnp.zeros_like(leaf) for leaf, t in zip(leaves, trains, strict=True)]
    return value, structure.unflatten(every)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
