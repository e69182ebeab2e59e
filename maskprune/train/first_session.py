"""The long first session, with dead starts drawn again.

Some initial draws never learn: a ReLU at the output that is zero everywhere has no gradient. Such a start is recognised
early in its session, replaced by a new draw, and logged. Knows no pictures and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from maskprune.base.checks import Count, Share, strict
from maskprune.base.returned import words
from maskprune.train.halving import state_of, trained
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState


class NothingLearned(RuntimeError):
    """No draw learned; the message holds every reason."""


class Start(NamedTuple):
    """A trained start.

    Attributes:
        state: The trained state.
        redrawn: Why each earlier draw was given up.
        steps: Gradient steps of all draws together.
    """

    state: TrainState
    redrawn: tuple[str, ...]
    steps: int


@strict
def train_start(
    key: jax.Array,
    draw: Callable[[jax.Array], TrainState],
    train: Callable[..., tuple[TrainState, SessionReport]],
    *,
    trouble: Callable[[TrainState], str],
    look_at: Share = 0.25,
    attempts: Count = 8,
) -> Start:
    """Draws and trains a start until one learns.

    Args:
        key: Root key; every attempt gets keys of its own.
        draw: `draw(key) -> TrainState`, a fresh start.
        train: `train(key, state, *, share) -> (state, report)`: the long session up to that share of its length, from
            wherever the state stands.
        trouble: Why a state is no use, or "". Asked once in mid-session and once at the end.
        look_at: Share of the session after which a start is first looked at.
        attempts: Draws before giving up.

    Raises:
        NothingLearned: No draw learned; the message holds every reason.
        TypeError: One of the functions returns something else.
    """
    reasons: list[str] = []
    steps = 0
    for attempt in range(attempts):
        draw_key, train_key = split_key(jax.random.fold_in(key, attempt), 2)
        state, taken, reason = state_of(draw(draw_key), "draw"), 0, ""
        for share in (look_at, 1.0):
            state, report = trained(train(train_key, state, share=share), state)
            taken += len(report.losses)
            reason = report.stopped if not report.finite else words(trouble(state), "trouble")
            if reason or report.stopped:
                break
        steps += taken
        if not reason:
            return Start(state, tuple(reasons), steps)
        reasons.append(f"after {taken} steps {reason}")
    raise NothingLearned(f"None of {attempts} starts learned anything: {'; '.join(reasons)}. Try another loss or rate.")


@partial(jax.jit, static_argnums=1)
def split_key(key: jax.Array, count: int) -> tuple[jax.Array, ...]:
    """`jax.random.split` as a tuple: taking an array of keys apart would be a program of its own."""
    return tuple(jax.random.split(key, count))
