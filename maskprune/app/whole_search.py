"""A whole search: a long first session, the rounds, and a last session for what was found.

Joins `train_start` and `minimize`, keeps the books, and survives an interruption with what is known so far. Training
is handed in, so that the same search runs alone or as one of many (`run_together`). Knows no pictures and no framework.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import optax

from maskprune.app import record
from maskprune.app.outcome import Outcome
from maskprune.base.checks import strict
from maskprune.base.returned import measured
from maskprune.masks.network import Network, Params
from maskprune.minimizer import strategies
from maskprune.minimizer.loop import minimize
from maskprune.minimizer.rounds import Limits, Round, Rules
from maskprune.minimizer.strategies.base import Plan, Remove
from maskprune.select.base import Selector
from maskprune.train.first_session import split_key, train_start
from maskprune.train.halving import Candidate, Evaluate, all_trained, state_of
from maskprune.train.session import TrainMany, of_length
from maskprune.train.step import TrainState, init_state


class Lengths(NamedTuple):
    """Steps of the three kinds of session: the first one, those of the rounds, the last one. 0: no such session."""

    first: int
    short: int
    last: int


class Listener(Protocol):
    """Who is told how the search goes, such as a `Display`."""

    upcoming: str

    def say(self, text: str) -> None: ...

    def verdict(self, found: Round, row: record.Row) -> None: ...


@strict
def search(
    key: jax.Array,
    draw: Callable[[jax.Array], TrainState],
    *,
    train: TrainMany,
    evaluate: Evaluate,
    trouble: Callable[[TrainState], str],
    optimizer: optax.GradientTransformation,
    selector: Callable[[Network], Selector],
    lengths: Lengths,
    show: Listener,
    batch: Any = None,
    rules: Rules | None = None,
    limits: Limits | None = None,
    size: record.Size = record.fcn_size,
    plan: Plan = strategies.one_by_one,
    remove: Remove | None = None,
    init: Callable[[jax.Array], Params] | None = None,
    latest: Callable[[], TrainState | None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome | None:
    """Trains a network, minimizes it, and trains what was found once more.

    Args:
        key: Root key.
        draw: `draw(key) -> TrainState`, a fresh start, or the network to start from.
        train: `train(keys, states, *, steps, share=1.0)`, from `train_alone`, `train_many` or `run_together`.
        evaluate: `evaluate(state) -> {"score": ...}`.
        trouble: Why a trained start is no use, or "".
        optimizer: The one that `train` was built with.
        selector: Makes the selector for the network that is minimized.
        lengths: Of the sessions. The result of the last one is kept if it is better.
        show: Is told of every verdict.
        batch: Sample of training data for the selector.
        rules: How candidates are chosen and judged.
        limits: When to stop early.
        size: Counts parameters and multiply-adds of a compacted network.
        plan: What is tried next, see `minimize`.
        remove: How masks are switched off, see `minimize`.
        init: Draws masks that a plan brings back, see `minimize`.
        latest: The state that training has reached in mid-session, for the case of an interruption.
        clock: Seconds from any beginning on, see `minimize`.

    Returns:
        What was found; with `interrupted` set if somebody stopped it. None if that was before anything was learned.
    """
    began, books = clock(), _Books()
    first_key, search_key, last_key = split_key(key, 3)
    train = books.counting(train)
    one = partial(_one, train)
    try:
        show.upcoming = "first session"
        if lengths.first:
            long_session = partial(one, steps=lengths.first)
            start = train_start(first_key, draw, long_session, trouble=trouble)
            for reason in start.redrawn:
                show.say(f"A start was drawn again: {reason}.")
            state = start.state
        else:
            state = state_of(draw(first_key), "draw")
        books.initial, books.state = state.network, state
        show.upcoming = "round 1"
        rounds = minimize(
            search_key,
            state,
            train=partial(one, steps=lengths.short),
            train_many=of_length(train, lengths.short),
            evaluate=evaluate,
            optimizer=optimizer,
            selector=selector(state.network),
            batch=batch,
            rules=rules,
            limits=limits,
            plan=plan,
            remove=remove,
            init=init,
            clock=clock,
        )
        for each in rounds:
            row = record.history_row(each, size=size, spent=books.steps - each.steps)
            books.rows.append(row)
            books.state, books.stop, books.score = each.state, each.stop, each.held_score
            show.verdict(each, row)
        if lengths.last:
            show.upcoming = "last session"
            fresh = init_state(books.state.network, optimizer, books.state.model_state)
            row = books.finish(fresh, *one(last_key, fresh, steps=lengths.last), evaluate=evaluate, size=size)
            show.say(f"last session: {row['reason']}" + _error(row))
    except KeyboardInterrupt:
        books.interrupt(latest())
        if books.state is None:
            return None
        show.say("Interrupted: writing what is known so far.")
    return books.outcome(clock() - began)


def _one(train: TrainMany, key: jax.Array, state: TrainState, *, steps: int, share: float = 1.0) -> Any:
    (found,) = train([key], [state], steps=steps, share=share)
    return found


def _error(row: record.Row) -> str:
    return f", relative RMSE {row['relative_rmse']:.3f}" if "relative_rmse" in row else ""


class _Books:
    """What is known so far, so that an interrupted search can still be written down."""

    def __init__(self) -> None:
        self.initial: Network | None = None
        self.state: TrainState | None = None
        self.rows: list[record.Row] = []
        self.steps, self.stop, self.interrupted, self.score = 0, "", False, math.nan
        self.training_seconds = self.compile_seconds = 0.0

    def counting(self, train: TrainMany) -> TrainMany:
        def counted(keys: Any, states: Any, **session: Any) -> Any:
            found = all_trained(train(keys, states, **session), states)
            self.steps += sum(len(report.losses) for _, report in found)
            self.training_seconds += sum(report.seconds - report.compile_seconds for _, report in found)
            self.compile_seconds += sum(report.compile_seconds for _, report in found)
            return found

        return counted

    def finish(self, fresh: TrainState, after: TrainState, report: Any, *, evaluate: Evaluate, size: Any) -> record.Row:
        """Keeps the last session's result if it is better."""
        before, now = measured(evaluate(fresh)), measured(evaluate(after))
        trouble = Candidate(after, report, now).trouble
        better = not trouble and now["score"] > before["score"]
        reason = trouble or f"{now['score']:.4f} after the last session, {before['score']:.4f} before it"
        reason += "" if better else "; not kept"
        spent = self.steps - len(report.losses)
        self.state, self.score = (after, float(now["score"])) if better else (self.state, float(before["score"]))
        books = {"number": len(self.rows), "held_score": self.score, "spent": spent}
        row = record.final_row(after, now, report, reason=reason, size=size, **books)
        self.rows.append(row)
        return row

    def interrupt(self, reached: TrainState | None) -> None:
        if self.initial is None and reached is not None:
            self.initial, self.state = reached.network, reached
        self.interrupted, self.stop = True, self.stop or "it was interrupted"

    def outcome(self, seconds: float) -> Outcome:
        assert self.initial is not None and self.state is not None
        return Outcome(
            initial=self.initial,
            state=self.state,
            rows=self.rows,
            steps=self.steps,
            seconds=seconds,
            stop=self.stop,
            interrupted=self.interrupted,
            training_seconds=self.training_seconds,
            compile_seconds=self.compile_seconds,
            score=self.score,
        )
