"""Larger batches, when they are worth it: several gradients averaged into one update.

Early in a session every gradient points downhill well enough; late, what is left is mostly the noise of the batches,
and it falls with their size. A batch of another size would be another program; to wait for several of the same size is
not. Knows optax and pytrees, no network.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskprune.base.checks import BelowOne, Natural, strict
from maskprune.train.objective import informed


class AccumulateState(NamedTuple):
    """The optimizer's state, the means of the gradients and losses that wait, and int32[], how many these are."""

    inner: Any
    mean: Any
    value: jax.Array
    waiting: jax.Array


@strict
def accumulate(
    optimizer: optax.GradientTransformation, batches: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Updates once for every `batches(progress)` gradients, with their mean; the steps between change nothing.

    `optax.MultiSteps` counts updates; this one goes by the share of the session that is done, as all schedules here,
    so one compilation serves every length. Gradients that wait when a session ends are lost.

    Args:
        optimizer: What is given the means, of the loss as well (`value`). A line search looks along the mean gradient
            at the loss of the last batch, shifted to that mean. `grad_fn`, which knows the last batch only, is not
            handed on.
        batches: Maps progress, float32[] in [0, 1), to how many gradients make an update; `doubling()` is one.
    """
    optimizer = informed(optimizer)

    def init(params: Any) -> AccumulateState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AccumulateState(optimizer.init(params), zeros, jnp.zeros(()), jnp.zeros((), jnp.int32))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        progress: Any = 0.0,
        value: Any = None,
        value_fn: Any = None,
        grad_fn: Any = None,
        **extra_args: Any,
    ) -> tuple[Any, AccumulateState]:
        del grad_fn
        waiting, last = state.waiting + 1, 0.0 if value is None else value
        mean = jax.tree.map(lambda m, u: m + (u - m) / waiting.astype(u.dtype), state.mean, updates)
        loss = state.value + (last - state.value) / waiting
        nothing = jax.tree.map(jnp.zeros_like, updates)
        of_loss = {} if value is None else {"value": loss}
        if value_fn is not None:
            of_loss["value_fn"] = _shifted(value_fn, loss - last)

        def full() -> tuple[Any, AccumulateState]:
            found, inner = optimizer.update(mean, state.inner, params, progress=progress, **of_loss, **extra_args)
            return found, AccumulateState(inner, nothing, jnp.zeros_like(loss), jnp.zeros_like(waiting))

        wait = lambda: (nothing, AccumulateState(state.inner, mean, loss, waiting))
        return jax.lax.cond(waiting >= batches(jnp.asarray(progress, jnp.float32)), full, wait)

    return optax.GradientTransformationExtraArgs(init, update)


def _shifted(value_fn: Callable[..., jax.Array], by: jax.Array) -> Callable[..., jax.Array]:
    @functools.wraps(value_fn)  # line searches read the names of its arguments
    def shifted(*arguments: Any, **others: Any) -> jax.Array:
        return value_fn(*arguments, **others) + by

    return shifted


@strict
def doubling(times: Natural = 3, *, start: BelowOne = 0.5) -> Callable[[jax.Array], jax.Array]:
    """A schedule for `accumulate`: 1 up to a share `start` of the session, then 2, 4, ... 2**times, equally long.

    Raises:
        ValueError: `times` is negative or `start` out of range.
    """

    def batches(progress: jax.Array) -> jax.Array:
        turns = jnp.ceil(times * (progress - start) / (1 - start))
        return 2 ** jnp.clip(turns, 0, times).astype(jnp.int32)

    return batches
