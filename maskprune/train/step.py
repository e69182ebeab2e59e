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

from maskprune.base.checks import check_leaves, strict
from maskprune.base.returned import loss_and_state, loss_value, pair
from maskprune.masks.model_state import run_holding
from maskprune.masks.network import Network, effective_params, on_device, strongly_typed, trainable, trained_leaves
from maskprune.train.freezing import held, hold
from maskprune.train.objective import offers


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

    Frozen and disabled entries come out bit-identical under any optimizer, those of the model state as well; a loss on
    an adapter's `training` also normalizes held channels by their stored statistics (`docs/tracing.md`). The
    learning-rate schedule may read `progress` (see `scale_by_progress`), and `rate`. Every update is multiplied by
    `rate`: where the learning rate is the optimizer's last factor, as in all of optax's own, that is another learning
    rate.

    Args:
        loss: `loss(params, batch) -> float32[]`; `params` are the effective parameters. With `stateful`,
            `loss(params, batch, model_state, key) -> (float32[], model_state)`.
        optimizer: Any optax optimizer. Freezing is added here, never by the caller. It sees effective parameters, so
            what disabled masks store is no concern of it, and is offered `value`, `grad`, `value_fn`, `grad_fn`,
            `obj_fn`, `progress`, `rate` and `trainable` as extra arguments: the loss of this very batch and key, also
            as a function of parameters, of which held entries stay where they are.
        stateful: Whether `loss` has the second form.

    Raises:
        TypeError, ValueError: When a step is called or compiled: `optimizer` wants something else (the gradient of
            every example, parameters in a form of its own, numbers on the host); the error says what.
        TypeError: When it is traced: `loss` gives something else than one number, or another form of model state.

    Example:
        step = make_train_step(loss, optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()))
    """

    def full_loss(params: Any, batch: Any, state: TrainState, key: jax.Array | None) -> tuple[jax.Array, Any]:
        if not stateful:
            return loss_value(loss(params, batch)), state.model_state
        call = lambda given: pair(loss(params, batch, given, key))
        return loss_and_state(run_holding(state.network, state.model_state, call), state.model_state)

    def step(
        state: TrainState, batch: Any, *, key: jax.Array | None = None, progress: Any = 0.0, rate: Any = 1.0
    ) -> Any:
        of = lambda params: full_loss(params, batch, state, key)
        found, grads = _gradients(of, state.network)
        measured = Measured(lambda params: of(params)[0], found[0], grads)
        return take_updates(optimizer, state, grads, measured, found[1], rate=rate, arguments={"progress": progress})

    return step


class Measured(NamedTuple):
    """A loss, and what it and its gradient are before a step.

    Attributes:
        loss: `loss(params) -> float[]`, of effective parameters.
        value: float[].
        grads: A pytree like the parameters.
    """

    loss: Callable[[Any], jax.Array]
    value: jax.Array
    grads: Any


def take_updates(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    updates: Any,
    measured: Measured,
    model_state: Any,
    *,
    rate: Any,
    arguments: dict[str, Any],
) -> tuple[TrainState, StepInfo]:
    """What every kind of step ends with: the optimizer's updates, applied where entries may move.

    The optimizer sees effective parameters, so what disabled masks store is no concern of it.

    Args:
        optimizer: Made `state`.
        state: Before the step.
        updates: What the optimizer is given, such as gradients.
        measured: The loss before the step.
        model_state: After the step.
        rate: Multiplies what the optimizer returns; it is told as well.
        arguments: Further extra arguments of its `update`.
    """
    network, moves = state.network, trainable(state.network)
    params = effective_params(network)
    told = offers(measured.loss, measured.value, hold(measured.grads, moves), params, moves)
    updates, opt_state = held(optimizer, trained_leaves(network)).update(
        updates, state.opt_state, params, trainable=moves, rate=rate, **told, **arguments
    )
    updates = jax.tree.map(lambda update: update * jnp.asarray(rate, update.dtype), updates)
    # Adding zero is not quite nothing (-0.0, subnormals): held entries are selected, not added to.
    moved = jax.tree.map(jnp.where, moves, optax.apply_updates(params, updates), network.params)
    network = dataclasses.replace(network, params=moved)
    after = TrainState(network=network, opt_state=opt_state, model_state=model_state, step=state.step + 1)
    seen = jax.tree.map(lambda moves, leaf: jnp.where(moves, leaf, 0), moves, moved)  # held ones may store NaN
    return after, StepInfo(loss=measured.value, finite=jnp.isfinite(measured.value) & _all_finite(seen))


@partial(jax.jit, static_argnums=0)
def _fresh(optimizer: optax.GradientTransformation, network: Network) -> Any:
    return jax.tree.map(strongly_typed, held(optimizer, trained_leaves(network)).init(effective_params(network)))


def _gradients(loss: Callable[[Any], tuple[jax.Array, Any]], network: Network) -> Any:
    """Value and gradients with respect to the leaves that train; zeros for the others, which may be integers."""
    leaves, structure = jax.tree.flatten(effective_params(network))
    trains = jax.tree.leaves(trained_leaves(network))

    def of_trained(moving: list[jax.Array]) -> Any:
        moved = iter(moving)
        return loss(structure.unflatten([next(moved) if t else leaf for leaf, t in zip(leaves, trains, strict=True)]))

    moving = [leaf for leaf, t in zip(leaves, trains, strict=True) if t]
    value, grads = jax.value_and_grad(of_trained, has_aux=True)(moving)
    given = iter(grads)
    every = [next(given) if t else jnp.zeros_like(leaf) for leaf, t in zip(leaves, trains, strict=True)]
    return value, structure.unflatten(every)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
