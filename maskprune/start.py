"""The long first session, with dead starts drawn again.

Some initial draws never learn: a ReLU at the output that is zero everywhere has no gradient. Such a start is recognised
early in its session, replaced by a new draw, and logged. Knows no pictures and no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from maskprune.session import SessionReport, Watch
from maskprune.train import TrainState


class Start(NamedTuple):
    """A trained start.

    Attributes:
        state: The trained state.
        report: Of its session.
        redrawn: Why each earlier draw was given up.
        steps: Gradient steps of all draws together.
    """

    state: TrainState
    report: SessionReport
    redrawn: tuple[str, ...]
    steps: int


def train_start(
    key: jax.Array,
    draw: Callable[[jax.Array], TrainState],
    train: Callable[..., tuple[TrainState, SessionReport]],
    *,
    trouble: Callable[[TrainState], str],
    look_after: int,
    attempts: int = 8,
    watch: Watch | None = None,
) -> Start:
    """Draws and trains a start until one learns.

    Args:
        key: Root key; every attempt gets keys of its own.
        draw: `draw(key) -> TrainState`, a fresh start.
        train: `train(key, state, watch=...) -> (state, report)`, the long session.
        trouble: Why a state is no use, or "". Asked once in mid-session and once at the end.
        look_after: Steps after which a session is first looked at.
        attempts: Draws before giving up.
        watch: Also called after every chunk, as in `make_session`.

    Raises:
        RuntimeError: No draw learned; the message holds every reason.
    """
    reasons: list[str] = []
    steps = 0
    for attempt in range(attempts):
        draw_key, train_key = jax.random.split(jax.random.fold_in(key, attempt))
        looked = _look_once(trouble, look_after, watch)
        state, report = train(train_key, draw(draw_key), watch=looked)
        steps += len(report.losses)
        reason = report.stopped if not report.finite else trouble(state)
        if not reason:
            return Start(state, report, tuple(reasons), steps)
        reasons.append(f"after {len(report.losses)} steps {reason}")
    raise RuntimeError(f"None of {attempts} starts learned anything: {'; '.join(reasons)}. Try another loss or rate.")


def _look_once(trouble: Callable[[TrainState], str], look_after: int, watch: Watch | None) -> Watch:
    looked: list[None] = []

    def both(state: TrainState, losses: np.ndarray) -> str:
        found = watch(state, losses) if watch is not None else ""
        if found or looked or len(losses) < look_after:
            return found
        looked.append(None)
        return trouble(state)

    return both
