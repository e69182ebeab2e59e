"""The average of the weights over the end of a session, on which the session lands with its last step.

Near a minimum an optimizer with a step of some length circles around it, driven by the noise of its batches; the
average of where it was lies closer to the middle. The average is part of the optimizer's memory and the landing is an
update like any other, so steps, sessions, populations and stepping back need not know of it. Knows optax and pytrees,
no network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskprune.base.checks import strict


class AverageState(NamedTuple):
    """Steps so far, how many of them were averaged, and the average: a pytree like the parameters."""

    steps: jax.Array
    averaged: jax.Array
    mean: Any


@strict
def land_on_average(start: float = 0.75) -> optax.GradientTransformationExtraArgs:
    """Lets an optimizer pass until the last step of a session, which moves the parameters onto their average.

    The average is that of the parameters as every step leaves them, the first of them at a share `start` of the session
    and the last as it would have been without the landing. Put it at the end of an `optax.chain`: it must see updates
    as they are applied. The schedule before it should not come to rest long before `start`.

    `update` reads the extra arguments `progress`, the share of the session that is done, and `rate`, by which
    `make_train_step` multiplies what it returns. A session that is ended before its time does not land.

    Args:
        start: Share of the session at which averaging begins, in [0, 1).

    Raises:
        ValueError: `start` is out of range.

    References:
        Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992. Izmailov et al., Averaging
        Weights Leads to Wider Optima and Better Generalization, UAI 2018.
    """
    if not 0 <= start < 1:
        raise ValueError(f"`start` is {start}: averaging begins at a share of the session in [0, 1).")

    def init(params: Any) -> AverageState:
        zero = jnp.zeros((), jnp.int32)
        return AverageState(zero, zero, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: Any, state: Any, params: Any = None, *, progress: Any = 0.0, rate: Any = 1.0, **extra_args: Any
    ) -> tuple[Any, AverageState]:
        del extra_args
        if params is None:
            raise ValueError("`land_on_average` needs `update(updates, state, params)`; `make_train_step` passes them.")
        progress = jnp.asarray(progress, jnp.float32)
        averaged = state.averaged + (progress >= start)
        share = 1.0 / jnp.maximum(averaged, 1)

        def average(mean: jax.Array, param: jax.Array, update: jax.Array) -> jax.Array:
            return mean + (param + update * jnp.asarray(rate, update.dtype) - mean) * share.astype(mean.dtype)

        mean = jax.tree.map(average, state.mean, params, updates)
        lands, scale = is_last_step(state.steps, progress), jnp.where(rate == 0, 1.0, rate)
        onto = lambda m, p, u: jnp.where(lands, (m - p) / jnp.asarray(scale, u.dtype), u)
        return jax.tree.map(onto, mean, params, updates), AverageState(state.steps + 1, averaged, mean)

    return optax.GradientTransformationExtraArgs(init, update)


def is_last_step(done: jax.Array, progress: jax.Array) -> jax.Array:
    """Whether the session ends with this step. Steps done and the share that they are tell how many there are.

    The quotient of float32 is within a quarter of the whole number up to a million steps.
    """
    every = jnp.round(done / jnp.where(progress > 0, progress, 1.0))
    return (progress > 0) & (done + 1 >= every)
