"""Minimizing a network: which masks can go while it still does its job?

The loop is plain Python: a generator that yields one `Round` after another, so logging, saving, plotting and stopping
are ordinary code around it. A round selects masks, disables them, trains on with a fresh optimizer, and judges.
Stepping back is using the earlier state, which nothing has touched. Knows no pictures, no framework and no model:
training, evaluation and selection are handed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import optax

from maskprune.base.checks import strict
from maskprune.base.returned import measured, words
from maskprune.masks.alterations import disable
from maskprune.masks.network import Network, Params, count_enabled
from maskprune.minimizer import strategies
from maskprune.minimizer.rounds import Limits, Rival, Round, Rules, name_masks, name_tried
from maskprune.minimizer.strategies.base import Move, Plan, Proposal, Remove, Verdict, View, apply_move, begun, proposed
from maskprune.select.base import Scores, Selector, rank, scores_of, unscored
from maskprune.train.early import Early
from maskprune.train.halving import (
    NO_SESSION,
    Candidate,
    Evaluate,
    TrainShare,
    best,
    joined,
    network_of,
    race,
    trained,
)
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState, init_state


Train = Callable[[jax.Array, TrainState], tuple[TrainState, Any]]  # a SessionReport, or the losses


class NoReference(ValueError):
    """The network to minimize has no score that smaller ones could be compared with."""


@strict
def minimize(
    key: jax.Array,
    state: TrainState,
    *,
    train: Train,
    evaluate: Evaluate,
    optimizer: optax.GradientTransformation,
    selector: Selector,
    batch: Any = None,
    rules: Rules | None = None,
    limits: Limits | None = None,
    train_many: TrainShare | None = None,
    plan: Plan = strategies.one_by_one,
    remove: Remove | None = None,
    init: Callable[[jax.Array], Params] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Round]:
    """Minimizes the size of a trained network, mask by mask.

    Args:
        key: Root key. Selection and training of every round get keys of their own, by `fold_in`.
        state: A trained network.
        train: `train(key, state) -> (state, report)`: one short session. The report is a `SessionReport`, as
            `make_session` gives it, or, from a loop of your own, the losses of all steps, float[steps].
        evaluate: `evaluate(state) -> {"score": ..., ...}`; `"score"` decides, higher is better. A `"flat"` of 1 says
            that the output is the same everywhere, which is then told with the verdict. It should run what
            `judged(apply, state.network)` gives, so that masks whose removal is not exact are judged by the network
            without them.
        optimizer: For fresh optimizer states; the one `train` was built with.
        selector: Scores masks, the lowest goes first. Which may go at all is decided here: enabled, not frozen, not
            among the last `min_enabled` of a group. Masks it scores with NaN go last, and infinities where they stand:
            the round's reason names them.
        batch: Sample of training data for the selector, and for `remove`.
        rules: How candidates are chosen and judged.
        limits: When to stop early.
        train_many: `train_many(keys, states, *, share) -> [(state, report), ...]`: short sessions side by side, up to
            that share of their length, for `rules.candidates`. By default `train` one after another, which cannot race.
            Where a plan asks for other sessions (`Proposal.times`, `Proposal.rate`) it gets `times` and `rate`, too;
            `of_length` makes such a function.
        plan: What is tried next, from `maskprune.strategies`.
        remove: `remove(network, chosen, batch) -> Network` switches masks off, from `maskprune.repair`; by default
            `disable`, which repairs nothing.
        init: `init(key) -> params` draws masks that a plan brings back; by default they come back as they were.
        clock: Seconds from any beginning on, for `limits.seconds` and `Round.seconds`; see `Memory.clock`.

    Yields:
        A `Round` for the network as given, then one after another. The last one says why the search ended. Where a
        loss, an update or a score was not finite, the round is refused, and its reason names the step; of rivals, and
        of the control, the masks as well. The state held is then that of before, bit for bit.

    Raises:
        NoReference: The network as given has no finite score, or none that `rules` can take a share of.
        ValueError: See `Rules.least`, and `select.rank`.
        TypeError: A function that was handed in returns something else than is said above.
    """
    rules = rules or Rules()
    for option in ("racing", "early") if train_many is None else ():
        if getattr(rules, option) not in (False, None):
            raise ValueError(f"`rules.{option}` needs `train_many`, which can stop a session half way and go on.")
    if train_many is None:
        train_many = _in_turn(train, optimizer)
    take = disable
    if remove is not None:
        take = lambda network, chosen: network_of(remove(network, chosen, batch), "remove")
    keyed = lambda purpose, number: jax.random.fold_in(jax.random.fold_in(key, purpose), number)
    scores = lambda number, network: scores_of(selector, keyed(0, number), network, batch)
    search = _Search(state, rules, limits or Limits(), plan=plan, scores=scores, clock=clock)
    early = None if rules.early is None else Early(rules.early)
    yield search.begin(measured(evaluate(state)))
    while not search.stop:
        began, number, proposal = clock(), search.number + 1, search.proposal
        put = partial(apply_move, keyed(2, number), remove=take, init=init)
        bases = [move.base or search.state for move in proposal.moves]
        fresh = [
            init_state(put(move, base.network), optimizer, base.model_state)
            for move, base in zip(proposal.moves, bases, strict=True)
        ]
        racing = rules.racing if proposal.racing is None else proposal.racing
        enough = search.required if proposal.enough is None else proposal.enough
        unusual = (
            {"times": proposal.times, "rate": proposal.rate} if (proposal.times, proposal.rate) != (1, 1.0) else {}
        )
        found = race(
            keyed(1, number),
            fresh,
            train=partial(train_many, **unusual),
            evaluate=evaluate,
            racing=racing,
            early=early,
            required=enough,
        )
        control, steps = search.reference_state, sum(len(each.report.losses) for each in found)
        if rules.control:
            again = init_state(control.network, optimizer, control.model_state)
            after, report = trained(train(keyed(1, number), again), again)
            steps += len(report.losses)
            tried = Candidate(after, report, measured(evaluate(after)))
            if trouble := tried.trouble or search.rules.no_reference(tried.worth):
                search.remarks.append(f"the control stays as it was: {trouble}")
            else:
                control, search.reference_score = after, tried.worth
        yield search.judge(found, control=control, steps=steps, began=began)


def _in_turn(train: Train, optimizer: optax.GradientTransformation) -> TrainShare:
    """Sessions one after another. `train` knows one kind: several times the length is several, a rate is ignored."""

    def one(key: jax.Array, state: TrainState, times: int) -> tuple[TrainState, SessionReport]:
        report = NO_SESSION
        for number in range(times):
            if number:
                key, state = jax.random.fold_in(key, number), init_state(state.network, optimizer, state.model_state)
            state, more = trained(train(key, state), state)
            report = joined(report, more)
            if not report.finite:
                break
        return state, report

    return lambda keys, states, share, times=1, rate=1.0: [one(*each, times) for each in zip(keys, states, strict=True)]


class _Search:
    """What never rolls back: the round number, the plan, the reference, the budget spent."""

    def __init__(
        self,
        state: TrainState,
        rules: Rules,
        limits: Limits,
        *,
        plan: Plan,
        scores: Callable[[int, Network], Scores],
        clock: Callable[[], float],
    ) -> None:
        self.rules, self.limits, self.clock = rules, limits, clock
        self.number, self.steps, self.began = 0, 0, clock()
        self.reference_state, self.reference_score, self.held_score = state, math.nan, math.nan
        self.remarks: list[str] = []  # what the next verdict has to tell besides
        self._scores = scores
        self._view = View(state, rules, scores=self._order)
        self._plan = begun(plan(self._view))
        self.proposal = Proposal([], 0)
        self.stop = ""

    @property
    def state(self) -> TrainState:
        return self._view.state

    @property
    def required(self) -> float:
        return self.rules.required(self.reference_score)

    def begin(self, metrics: dict[str, float]) -> Round:
        self.reference_score = score = float(metrics["score"])
        if not math.isfinite(score):
            raise NoReference(f"The network to minimize scores {score}: train it first.")
        if why := self.rules.no_reference(score):
            raise NoReference(f"The network to minimize cannot be a reference: {why}.")
        self.held_score = score
        self._go_on(None)
        required, left = self.required, self.proposal.left
        return Round(
            number=0,
            chosen={},
            accepted=True,
            reason="the network to minimize",
            score=score,
            held_score=score,
            reference=score,
            required=required,
            metrics=metrics,
            state=self.state,
            judged=self.state.network,
            steps=0,
            seconds=0.0,
            left=left,
            stop=self.stop,
        )

    def judge(self, found: list[Candidate], *, control: TrainState, steps: int, began: float) -> Round:
        proposed, reference = self.proposal.moves, self.reference_score
        required = self.required
        winner = best(found, required, saved=[move.saved for move in proposed])
        move, score = proposed[found.index(winner)], float(winner.metrics["score"])
        accepted, reason = _verdict(winner, required, self.proposal.enough)
        if accepted:
            self._accept(winner.state, score, control)
        self.number, self.steps = self.number + 1, self.steps + steps
        remarks, self.remarks = self.remarks, []
        self._go_on(Verdict(accepted, winner, found, required))
        rivals = [_rival(each, other) for each, other in zip(proposed, found, strict=True) if other is not winner]
        remarks = [*(f"{name_tried(each)}: {each.trouble}" for each in rivals if each.trouble), *remarks]
        reason = f"best of {len(proposed)}: {reason}" if rivals else reason
        return Round(
            number=self.number,
            chosen=move.chosen,
            bypassed=move.bypassed,
            regrown=move.regrown,
            accepted=accepted,
            reason="; ".join([reason, *dict.fromkeys(remarks)]),
            score=score,
            held_score=self.held_score,
            reference=reference,
            required=required,
            metrics=winner.metrics,
            state=self.state,
            judged=winner.state.network,
            steps=steps,
            seconds=self.clock() - began,
            left=self.proposal.left,
            stop=self.stop,
            rivals=tuple(rivals),
        )

    def _order(self, network: Network) -> list[tuple[str, int]]:
        """The selector's order, with a remark where it gave no number."""
        scores = self._scores(self.number + 1, network)
        if nameless := unscored(scores, network):
            self.remarks.append(f"the selector gave no finite number for {name_masks(nameless)}")
        return rank(scores, network)

    def _accept(self, candidate: TrainState, score: float, control: TrainState) -> None:
        self._view.state, self.held_score = candidate, score
        self.reference_state = control
        kind = self.rules.reference
        if kind == "previous" or (kind == "best" and score >= self.reference_score):
            self.reference_state, self.reference_score = candidate, score

    def _go_on(self, verdict: Verdict | None) -> None:
        """Tells the plan, and takes what it proposes next; or finds out why the search ends."""
        self.stop, self._view.required = self._target(), self.required
        if self.stop:
            self.proposal = Proposal([], 0)
            return
        try:
            self.proposal = proposed(next(self._plan) if verdict is None else self._plan.send(verdict))
            self.stop = self._limit()
        except StopIteration as end:
            self.proposal, self.stop = Proposal([], 0), words(end.value, "plan") or "the plan has ended"

    def _target(self) -> str:
        most, enabled = self.limits.masks, sum(count_enabled(self.state.network).values())
        return "" if most is None or enabled > most else f"the target of {most} masks is reached"

    def _limit(self) -> str:
        limits, spent = self.limits, self.clock() - self.began
        if limits.rounds is not None and self.number >= limits.rounds:
            return f"the limit of {limits.rounds} rounds is reached"
        if limits.steps is not None and self.steps >= limits.steps:
            return f"the limit of {limits.steps} steps is reached"
        if limits.seconds is not None and spent >= limits.seconds:
            return f"the limit of {limits.seconds:g} seconds is reached"
        return ""


def _rival(move: Move, candidate: Candidate) -> Rival:
    score = float(candidate.metrics["score"])
    return Rival(move.chosen, move.bypassed, score, len(candidate.report.losses), move.regrown, candidate.trouble)


def _verdict(found: Candidate, required: float, enough: float | None) -> tuple[bool, str]:
    if found.trouble:
        return False, found.trouble
    score, flat = found.worth, ": its output is the same everywhere" if found.metrics.get("flat") == 1 else ""
    if score >= required:
        return True, f"{score:.4f} reaches {required:.4f}{flat}"
    near = ", but is near" if enough is not None and score >= enough else ""  # the plan may go on from there
    return False, f"{score:.4f} stays below {required:.4f}{near}{flat}"
