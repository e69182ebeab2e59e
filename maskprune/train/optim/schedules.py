"""Learning rates by the share of a session that is done, whatever its length.

Knows optax and pytrees, no network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskprune.base.checks import BelowOne, Few, NotNegative, Positive, Share, strict


@strict
def scale_by_progress(schedule: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformationExtraArgs:
    """Scales updates by a schedule over the *share of the session done*, in [0, 1).

    A schedule over step counts would need another compiled step for every session length; this one serves them all.
    `update` takes the extra argument `progress`, a float32 scalar; without it the schedule stands at 0.

    Args:
        schedule: Maps progress, float32[], to a factor, float32[].
    """

    def update(updates: Any, state: Any, params: Any = None, *, progress: Any = 0.0, **extra_args: Any) -> Any:
        del params, extra_args
        factor = schedule(jnp.asarray(progress, jnp.float32))
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@strict
def cosine(progress: jax.Array, *, warmup: Share = 0.02) -> jax.Array:
    """Linear warm-up over the first `warmup` of a session, then half a cosine from 1 to 0."""
    return level(progress, warmup=warmup) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


@strict
def level(progress: jax.Array, *, warmup: Share = 0.02) -> jax.Array:
    """Linear warm-up over the first `warmup` of a session, then 1 to its end: for `land_on_average`."""
    return jnp.minimum(progress / warmup, 1.0) if warmup > 0 else jnp.ones_like(progress)


@strict
def plateau(progress: jax.Array, *, warmup: Share = 0.02, until: BelowOne = 0.7) -> jax.Array:
    """Linear warm-up, then 1 up to a share `until` of the session, then straight down to 0.

    References:
        Hägele et al., Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations, NeurIPS 2024.
    """
    return level(progress, warmup=warmup) * jnp.minimum(1.0, (1.0 - progress) / (1.0 - until))


@strict
def restarts(
    cycles: Few = 3,
    *,
    growth: Positive = 2.0,
    decay: NotNegative = 1.0,
    warmup: Share = 0.02,
) -> Callable[[jax.Array], jax.Array]:
    """A schedule of several half cosines, one after another: every new one leaves the valley the last one settled in.

    Args:
        cycles: How many, at least 1; with 1 it is `cosine`.
        growth: How many times as long as the one before a cycle is, positive.
        decay: What a restart multiplies the peak with.
        warmup: Share of the *session* over which the first cycle rises. Restarts begin at their peak: the optimizer's
            moments are warm by then.

    Returns:
        `schedule(progress) -> factor`, for `scale_by_progress`.

    Raises:
        ValueError: `cycles` or `growth` is out of range.

    References:
        Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, ICLR 2017.
    """
    lengths = growth ** np.arange(cycles, dtype=np.float64)
    ends = np.cumsum(lengths) / np.sum(lengths)
    begins = np.concatenate([[0.0], ends[:-1]])

    def schedule(progress: jax.Array) -> jax.Array:
        now = jnp.sum(progress >= jnp.asarray(begins[1:], jnp.float32))  # how many restarts are behind us
        begin, end = (jnp.asarray(each, jnp.float32)[now] for each in (begins, ends))
        return level(progress, warmup=warmup) * decay**now * cosine((progress - begin) / (end - begin), warmup=0.0)

    return schedule
