"""Minimizing a network: which masks can go while it still does its job?

The loop is plain Python: a generator that yields one `Round` after another, so logging, saving, plotting and stopping
are ordinary code around it. A round selects masks, disables them, trains on with a fresh optimizer, and judges.
Stepping back is using the earlier state, which nothing has touched. Knows no pictures, no framework and no model:
training, evaluation and selection are handed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from maskprune.alter import bypass, disable, why_no_bypass
from maskprune.network import Network, choose, count_enabled
from maskprune.race import Candidate, Evaluate, TrainShare, best, race
from maskprune.rounds import Limits, Rival, Round, Rules
from maskprune.select.base import Selector, rank
from maskprune.session import SessionReport
from maskprune.train import TrainState, init_state


Train = Callable[[jax.Array, TrainState], tuple[TrainState, SessionReport]]


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
) -> Iterator[Round]:
    """Minimizes the size of a trained network, mask by mask.

    Args:
        key: Root key. Selection and training of every round get keys of their own, by `fold_in`.
        state: A trained network.
        train: `train(key, state) -> (state, report)`: one short session.
        evaluate: `evaluate(state) -> {"score": ..., ...}`; `"score"` decides, higher is better. It should run what
            `judged(apply, state.network)` gives, so that masks whose removal is not exact are judged by the network
            without them.
        optimizer: For fresh optimizer states; the one `train` was built with.
        selector: Scores masks, the lowest goes first. Which may go at all is decided here: enabled, not frozen, not
            refused, not among the last `min_enabled` of a group.
        batch: Sample of training data for the selector.
        rules: How candidates are chosen and judged.
        limits: When to stop early.
        train_many: `train_many(keys, states, *, share) -> [(state, report), ...]`: short sessions side by side, up to
            that share of their length, for `rules.candidates`. By default `train` one after another, which cannot race.

    Yields:
        A `Round` for the network as given, then one after another. The last one says why the search ended.
    """
    search = _Search(state, rules or Rules(), limits or Limits())
    if train_many is None and search.rules.racing:
        raise ValueError("`rules.racing` needs `train_many`, which can stop a session half way and go on.")
    if train_many is None:
        train_many = lambda keys, states, share: [train(*each) for each in zip(keys, states, strict=True)]
    yield search.begin(dict(evaluate(state)))
    while not search.stop:
        began = time.perf_counter()
        number = search.number + 1
        select_key, train_key = (jax.random.fold_in(jax.random.fold_in(key, purpose), number) for purpose in (0, 1))
        moves = search.moves(rank(selector(select_key, search.state.network, batch), search.state.network))
        fresh = [init_state(move.apply(search.state.network), optimizer, search.state.model_state) for move in moves]
        found = race(train_key, fresh, train=train_many, evaluate=evaluate, racing=search.rules.racing)
        control, steps = search.reference_state, sum(len(each.report.losses) for each in found)
        if search.rules.control:
            trained, control_report = train(train_key, _afresh(control, optimizer))
            steps += len(control_report.losses)
            if control_report.finite:
                control = trained
                search.measure_reference(float(evaluate(control)["score"]))
        yield search.judge(moves, found, control=control, steps=steps, began=began)


def _pairs(chosen: Mapping[str, list[int]]) -> set[tuple[str, int]]:
    return {(name, number) for name, numbers in chosen.items() for number in numbers}


def _afresh(state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    return init_state(state.network, optimizer, state.model_state)


class _Move(NamedTuple):
    """What a round tries: masks to disable, or a layer to bypass."""

    chosen: dict[str, list[int]]
    layer: str = ""

    def apply(self, network: Network) -> Network:
        return bypass(network, self.layer) if self.layer else disable(network, choose(network, self.chosen))


class _Search:
    """What never rolls back: the round number, the refused masks, the reference, the budget spent."""

    def __init__(self, state: TrainState, rules: Rules, limits: Limits) -> None:
        self.state, self.rules, self.limits = state, rules, limits
        self.reference_state, self.reference_score = state, math.nan
        self.number, self.count, self.steps, self.began = 0, rules.count, 0, time.perf_counter()
        self.refused: set[tuple[str, int]] = set()
        self.refused_layers: set[str] = set()
        self.least = self.rules.least(state.network.groups)
        self.stop = ""

    def begin(self, metrics: dict[str, float]) -> Round:
        self.reference_score = float(metrics["score"])
        if not math.isfinite(self.reference_score):
            raise ValueError(f"The network to minimize scores {self.reference_score}: train it first.")
        self.stop = self._stop()
        required = self.rules.threshold * self.reference_score
        said = "the network to minimize"
        score = self.reference_score
        left = len(self._eligible())
        return Round(0, {}, True, said, score, score, required, metrics, self.state, 0, 0.0, left, self.stop)

    def moves(self, order: list[tuple[str, int]]) -> list[_Move]:
        """What to try next, no mask twice: masks, and whole layers when no mask may go."""
        most = self.rules.candidates
        if not self._eligible():
            return [_Move({}, layer) for layer in self._layers()[:most]]
        taken: set[tuple[str, int]] = set()
        found = []
        while len(found) < most and (chosen := self._pick(order, taken)):
            taken |= _pairs(chosen)
            found.append(_Move(chosen))
        return found

    def _pick(self, order: list[tuple[str, int]], taken: set[tuple[str, int]]) -> dict[str, list[int]]:
        """The first `count` eligible masks of the order that are not taken."""
        eligible, left = self._eligible() - taken, count_enabled(self.state.network)
        chosen: dict[str, list[int]] = {}
        for name, number in order:
            if sum(map(len, chosen.values())) == self.count:
                break
            if (name, number) in eligible and left[name] > self.least[name]:
                chosen.setdefault(name, []).append(number)
                left[name] -= 1
        return chosen

    def judge(
        self, moves: list[_Move], found: list[Candidate], *, control: TrainState, steps: int, began: float
    ) -> Round:
        winner = best(found)
        move = moves[found.index(winner)]
        score, reference = float(winner.metrics["score"]), self.reference_score
        required = self.rules.threshold * reference
        accepted, reason = _verdict(score, required, winner.report)
        if accepted:
            self._accept(winner.state, score, control)
        else:
            self.refused |= {pair for each in moves for pair in _pairs(each.chosen)}
            self.refused_layers |= {each.layer for each in moves} - {""}
        self.number, self.steps = self.number + 1, self.steps + steps
        self._halve_count()
        self.stop = self._stop()
        rivals = [
            Rival(each.chosen, each.layer, float(other.metrics["score"]), len(other.report.losses))
            for each, other in zip(moves, found, strict=True)
            if other is not winner
        ]
        return Round(
            number=self.number,
            chosen=move.chosen,
            bypassed=move.layer,
            accepted=accepted,
            reason=f"best of {len(moves)}: {reason}" if rivals else reason,
            score=score,
            reference=reference,
            required=required,
            metrics=winner.metrics,
            state=self.state,
            steps=steps,
            seconds=time.perf_counter() - began,
            left=len(self._eligible()),
            stop=self.stop,
            rivals=tuple(rivals),
        )

    def measure_reference(self, score: float) -> None:
        """Takes the control's score as the reference, unless it is not finite."""
        if math.isfinite(score):
            self.reference_score = score

    def _accept(self, candidate: TrainState, score: float, control: TrainState) -> None:
        self.state = candidate
        self.reference_state = control
        if self.rules.retry == "accepted":
            self.refused, self.refused_layers = set(), set()
        kind = self.rules.reference
        if kind == "previous" or (kind == "best" and score >= self.reference_score):
            self.reference_state, self.reference_score = candidate, score

    def _halve_count(self) -> None:
        if self.count > 1 and not self._eligible():
            self.count //= 2
            if self._eligible(but=set()):
                self.refused = set()

    def _eligible(self, but: set[tuple[str, int]] | None = None) -> set[tuple[str, int]]:
        """Masks that may go: enabled, not frozen, not refused, not among the last of their group."""
        network, left = self.state.network, count_enabled(self.state.network)
        found = set()
        for name, flags in network.enabled.items():
            free = np.asarray(flags) & ~np.asarray(network.frozen[name])
            if left[name] > self.least[name]:
                found |= {(name, int(number)) for number in np.flatnonzero(free)}
        return found - (self.refused if but is None else but)

    def _layers(self) -> list[str]:
        """Layers that may be bypassed, the first one first."""
        network = self.state.network
        if not self.rules.layers:
            return []
        allowed = [group.name for group in network.groups if self.rules.allows(group)]
        return [name for name in allowed if name not in self.refused_layers and not why_no_bypass(network, name)]

    def _stop(self) -> str:
        limits, spent = self.limits, time.perf_counter() - self.began
        enabled = sum(count_enabled(self.state.network).values())
        if limits.masks is not None and enabled <= limits.masks:
            return f"the target of {limits.masks} masks is reached"
        if not self._eligible() and not self._layers():
            return "every mask that may go was refused" if self.refused else "no group has a mask to spare"
        if limits.rounds is not None and self.number >= limits.rounds:
            return f"the limit of {limits.rounds} rounds is reached"
        if limits.steps is not None and self.steps >= limits.steps:
            return f"the limit of {limits.steps} steps is reached"
        if limits.seconds is not None and spent >= limits.seconds:
            return f"the limit of {limits.seconds:g} seconds is reached"
        return ""


def _verdict(score: float, required: float, report: SessionReport) -> tuple[bool, str]:
    if not report.finite:
        return False, f"training failed: {report.stopped}"
    if not math.isfinite(score):
        return False, f"the score is {score}"
    if score >= required:
        return True, f"{score:.4f} reaches {required:.4f}"
    return False, f"{score:.4f} stays below {required:.4f}"
