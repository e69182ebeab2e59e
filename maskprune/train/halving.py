"""Several candidates of one round, trained side by side: which of them is best?

With `racing`, by successive halving: all run the first part of their session, the better half of them goes on to twice
that, and so on, until one is left and finishes. A session that was stopped and resumed is bit for bit the session that
was not, so the winner is what it would have been alone.

References:
    Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from maskprune.base.returned import measured, refuse
from maskprune.masks.network import Network
from maskprune.train.early import Early
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState


TrainShare = Callable[..., list[tuple[TrainState, SessionReport]]]
Evaluate = Callable[[TrainState], Mapping[str, float]]

NO_SESSION = SessionReport(np.zeros(0, np.float32), True, "", 0.0)


@dataclasses.dataclass(eq=False)
class Candidate:
    """How far a candidate got.

    Attributes:
        state: Its state.
        report: Of its session so far.
        metrics: What `evaluate` said of it.
        share: The part of the race it was in, up to 1.
        scores: Its worth at every look, by the share of the race.
    """

    state: TrainState
    report: SessionReport
    metrics: dict[str, float]
    share: float = 0.0
    scores: dict[float, float] = dataclasses.field(default_factory=dict)

    @property
    def trouble(self) -> str:
        """What was not finite, in words, or ""."""
        score = float(self.metrics.get("score", 0.0))
        if not self.report.finite:
            return f"training failed: {self.report.stopped}"
        return "" if math.isfinite(score) else f"the score is {score}"

    @property
    def worth(self) -> float:
        """Its score; minus infinity where training or the score was not finite."""
        score = float(self.metrics.get("score", math.nan))
        return score if self.report.finite and math.isfinite(score) else -math.inf


def race(
    key: jax.Array,
    states: Sequence[TrainState],
    *,
    train: TrainShare,
    evaluate: Evaluate,
    racing: bool,
    early: Early | None = None,
    required: float = math.inf,
) -> list[Candidate]:
    """Trains and measures candidates.

    Args:
        key: Key of the session, the same for all: they see the same batches.
        states: Fresh states.
        train: `train(keys, states, *, share) -> [(state, report), ...]`: sessions up to that share of their length,
            from wherever the states stand.
        evaluate: `evaluate(state) -> {"score": ...}`.
        racing: Whether the worse half drops out at every doubling.
        early: Ends the race when a candidate reaches `required`, be it before any training, and drops those that hardly
            will. It learns from the sessions that run to their end.
        required: The score that is enough.

    Returns:
        The candidates in the order of `states`; those that dropped out as they were then.
    """
    every = [Candidate(state, NO_SESSION, {}) for state in states]
    halvings = [0.5**turn for turn in range(math.ceil(math.log2(len(every))), 0, -1)] if racing else []
    running = every
    if early and _some_pass_untrained(every, evaluate, required):
        return every
    for share in sorted({*halvings, *(early.looks if early else ()), 1.0}):
        going = [each for each in running if not each.report.stopped]
        before = [each.state for each in going]
        found = all_trained(train([key] * len(going), before, share=share), before) if going else []
        for each, (state, report) in zip(going, found, strict=True):
            each.state, each.report, each.metrics = state, joined(each.report, report), measured(evaluate(state))
            each.scores[share] = each.worth
        for each in running:
            each.share = share
        running = [each for each in running if each.report.finite]
        if early and (passed := [each for each in running if each.worth >= required]):
            for each in passed:
                each.share = 1.0
            break
        if early:
            running = [each for each in running if not early.hopeless(share, each.worth, required)]
        if share in halvings:
            running = sorted(running, key=lambda each: -each.worth)[: math.ceil(len(running) / 2)]
        if not running:
            break
    if early:
        for each in every:
            if 1.0 in each.scores:
                early.remember(each.scores, each.worth)
    return every


def _some_pass_untrained(every: Sequence[Candidate], evaluate: Evaluate, required: float) -> bool:
    """Whether some need no training; those have run their race."""
    for each in every:
        each.metrics = measured(evaluate(each.state))
        each.share = float(each.worth >= required)
    return any(each.share for each in every)


def best(candidates: Sequence[Candidate], required: float = -math.inf, saved: Sequence[int] = ()) -> Candidate:
    """The one to judge.

    Of those that got farthest: the one that saves most of those that reach what is required, or if none does, of all
    of them; where several save as much, the one of most worth, and of these the first.
    """
    saves = dict(zip(map(id, candidates), saved or [0] * len(candidates), strict=True))

    def merit(each: Candidate) -> tuple[float, ...]:
        reaches = each.worth >= required
        return (each.share, reaches, saves[id(each)] if reaches else 0, each.worth)

    return max(candidates, key=merit)


def joined(first: SessionReport, second: SessionReport) -> SessionReport:
    """The report of two sessions, or of two parts of one, that followed one another."""
    return second._replace(
        losses=np.concatenate([first.losses, second.losses]),
        seconds=first.seconds + second.seconds,
        compile_seconds=first.compile_seconds + second.compile_seconds,
    )


# What training gives back.

REPORTED = "`(state, report)`, where the report is a `SessionReport`, as of `make_session`, or the losses of all steps"


def trained(found: object, before: TrainState, name: str = "train") -> tuple[TrainState, SessionReport]:
    """The state and the report of a session. The losses of its steps, float[steps], can stand for a report.

    Raises:
        TypeError: `train` returned something else.
    """
    if not (isinstance(found, tuple | list) and len(found) == 2):
        refuse(name, found, REPORTED)
    state, report = state_of(found[0], name), found[1]
    if state.network.groups != before.network.groups:
        refuse(name, found, "the state it was given, trained on: this one has other groups of masks")
    return state, report if isinstance(report, SessionReport) else _report(found, report, name)


def _report(found: object, losses: object, name: str) -> SessionReport:
    try:
        values = np.asarray(losses, np.float32)
    except (TypeError, ValueError):
        values = np.zeros(())
    if values.ndim != 1:
        refuse(name, found, REPORTED)
    finite = bool(np.isfinite(values).all())
    return SessionReport(values, finite, "" if finite else "a loss was not finite", 0.0)


def all_trained(found: object, before: Sequence[TrainState]) -> list[tuple[TrainState, SessionReport]]:
    """The same of several sessions, as `train_many` gives them."""
    if not isinstance(found, list | tuple) or len(found) != len(before):
        refuse("train_many", found, f"a list with one pair (state, report) for each of {len(before)} states")
    return [trained(each, state, "train_many") for each, state in zip(found, before, strict=True)]


def state_of(found: object, name: str) -> TrainState:
    if not isinstance(found, TrainState):
        refuse(name, found, "a `TrainState`, such as the one it was given")
    return found


def network_of(found: object, name: str) -> Network:
    if not isinstance(found, Network):
        refuse(name, found, "a `Network`, such as the one it was given")
    return found
