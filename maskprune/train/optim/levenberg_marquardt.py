"""Levenberg-Marquardt: sessions of few, dear steps that see the curvature, for small networks and squared errors.

Every step solves for the minimum of a damped quadratic model of one large batch, takes it if the loss of that batch
falls, and sets the damping by how much of the promised fall came true. The step has the form of `make_train_step`'s, so
sessions and populations run it unchanged. Knows no pictures, no framework and no selection.

References:
    Marquardt, An Algorithm for Least-Squares Estimation of Nonlinear Parameters, 1963. Nielsen, Damping Parameter in
    Marquardt's Method, IMM-REP-1999-05.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskprune.base.checks import NotNegative, strict
from maskprune.train.curvature import Quadratic, Residuals, flatten, gauss_newton
from maskprune.train.step import Measured, Step, StepInfo, TrainState, take_updates


LEAST, MOST = 1e-6, 1e3  # damping stays between: below float32 cannot tell, beyond nothing moves
TAKEN = 1e-3  # the share of the promised fall from which on a step is taken
FLOOR = 1e-7  # added to the diagonal, relative to its largest entry: dead masks have no curvature


class LevenbergState(NamedTuple):
    """float32[] each: the damping, relative to the diagonal, and what the next refused step multiplies it with."""

    damping: jax.Array
    growth: jax.Array


@strict
def levenberg(damping: NotNegative = 1e-2) -> optax.GradientTransformationExtraArgs:
    """The memory of `make_levenberg_step`, as an optax transform: hands every step on, and keeps the damping.

    Chain it with what steps are to pass through: `land_on_average` (a batch is never large enough to be trusted alone)
    or `scale_by_progress`.

    Args:
        damping: At the start of a session, relative to the diagonal of the Gauss-Newton matrix.
    """

    def init(params: Any) -> LevenbergState:
        del params
        return LevenbergState(jnp.full((), damping, jnp.float32), jnp.full((), 2.0, jnp.float32))

    def update(updates: Any, state: Any, params: Any = None, *, trust: Any = None, **extra_args: Any) -> Any:
        del state, params, extra_args
        if trust is None:
            raise ValueError("`levenberg` needs `update(..., trust=state)`: train with `make_levenberg_step`.")
        return updates, trust

    return optax.GradientTransformationExtraArgs(init, update)


@strict
def make_levenberg_step(
    residuals: Residuals, optimizer: optax.GradientTransformation, *, examples: int | None = None
) -> Step:
    """Makes `step(state, batch, *, key=None, progress=0.0, rate=1.0) -> (state, info)`, for `make_session`.

    The loss is the mean square of the residuals. A step needs batches of several residuals for every entry that trains,
    or it fits their noise. A refused step leaves the parameters as they are and costs as much as another. Frozen and
    disabled entries come out bit-identical; entries without curvature, as in dead masks, stay where they are.

    Args:
        residuals: `residuals(params, batch) -> float[R]`, such as `PictureTask.residuals`.
        optimizer: `levenberg()`, or a chain with it; the same one goes to `init_state`.
        examples: How many examples of a batch are held in memory as a Jacobian, see `gauss_newton`.
    """

    def step(
        state: TrainState, batch: Any, *, key: jax.Array | None = None, progress: Any = 0.0, rate: Any = 1.0
    ) -> tuple[TrainState, StepInfo]:
        del key
        trust, flat = _trust_of(state), flatten(state.network)
        loss = lambda params: jnp.mean(jnp.square(residuals(params, batch)))
        value = loss(flat.unflatten(flat.vector))
        model = gauss_newton(residuals, state.network, batch, examples=examples)
        found = _minimum(model, trust.damping)
        fallen = value - loss(flat.unflatten(flat.vector + found))
        better, trust = _judged(trust, fallen / _promised(model, found))
        updates = flat.unflatten(jnp.where(better, found, 0.0))
        measured, arguments = (
            Measured(loss, value, flat.unflatten(model.gradient)),
            {"progress": progress, "trust": trust},
        )
        return take_updates(optimizer, state, updates, measured, state.model_state, rate=rate, arguments=arguments)

    return step


def _trust_of(state: TrainState) -> LevenbergState:
    found = [optax.tree.get(state.opt_state, name) for name in LevenbergState._fields]
    if None in found:
        raise ValueError("`state` was not made by `init_state(network, levenberg())`, or by a chain with `levenberg`.")
    return LevenbergState(*found)


def _minimum(model: Quadratic, damping: jax.Array) -> jax.Array:
    diagonal = jnp.diagonal(model.matrix)
    floor = FLOOR * jnp.max(diagonal) + jnp.finfo(diagonal.dtype).tiny
    damped = model.matrix + jnp.diag(damping * diagonal + floor)
    return -jax.scipy.linalg.solve(damped, model.gradient, assume_a="pos")


def _promised(model: Quadratic, step: jax.Array) -> jax.Array:
    """By how much the model falls: without the damping, which is no part of the loss."""
    return -(model.gradient @ step + step @ model.matrix @ step / 2)


def _judged(trust: LevenbergState, gain: jax.Array) -> tuple[jax.Array, LevenbergState]:
    """Whether a step with this gain is taken, and the damping of the next one. A gain that is no number is none."""
    better = gain > TAKEN
    eased = jnp.maximum(1 / 3, 1 - (2 * gain - 1) ** 3)
    damping = jnp.clip(trust.damping * jnp.where(better, eased, trust.growth), LEAST, MOST)
    growth = jnp.where(better, 2.0, jnp.minimum(2 * trust.growth, MOST))
    return better, LevenbergState(damping, growth)
