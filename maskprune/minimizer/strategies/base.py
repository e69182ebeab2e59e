"""What a plan of search is: a generator that proposes moves and is told what became of them.

`minimize` trains and judges; a plan decides what is tried next. It is written as the algorithm it is, with a `yield`
where a round takes place:

    verdict = yield Proposal([Move({"conv1": [3]})], left=4)

and ends by returning why. Plans follow one another with `yield from`. They look at the search through a `View`, and
know no training, no pictures and no framework.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from maskprune.base.checks import strict
from maskprune.base.returned import refuse
from maskprune.masks.alterations import bypass, enable, reinitialize, why_no_bypass
from maskprune.masks.network import Network, choose, count_enabled, list_masks
from maskprune.minimizer.rounds import Rules
from maskprune.train.halving import Candidate
from maskprune.train.step import TrainState


Mask = tuple[str, int]
Masks = dict[str, list[int]]
Remove = Callable[[Network, Any, Any], Network]


class Move(NamedTuple):
    """Something to try.

    Attributes:
        chosen: Masks to switch off, `{group: [numbers]}`.
        bypassed: A layer to do without, or "".
        regrown: Masks to switch on again, drawn afresh, before the others are switched off.
        base: What is altered; None for the state the search holds.
    """

    chosen: Masks
    bypassed: str = ""
    regrown: Masks = {}  # noqa: RUF012  (a NamedTuple's default is never written to)
    base: TrainState | None = None

    @property
    def saved(self) -> int:
        """Masks that go, less those that come back."""
        return sum(map(len, self.chosen.values())) - sum(map(len, self.regrown.values()))


class Proposal(NamedTuple):
    """A round to take place: moves that are tried side by side, of which one is judged.

    Attributes:
        moves: One or more.
        left: Masks, or moves, that may still be tried before the plan gives up, these included.
        racing: Whether the worse half may drop out at every doubling; None for what the rules say.
        enough: With `rules.early`, the score at which sessions may end early; None for what is required.
        times: How many times as long as usual the session is; 0 for none, where the network is judged as it is.
        rate: What its updates are multiplied with.
    """

    moves: Sequence[Move]
    left: int
    racing: bool | None = None
    enough: float | None = None
    times: int = 1
    rate: float = 1.0


class Verdict(NamedTuple):
    """What became of a proposal.

    Attributes:
        accepted: Whether the winner is now the state the search holds.
        winner: The candidate that was judged.
        found: All of them, in the order of the moves.
        required: The score that had to be reached.
    """

    accepted: bool
    winner: Candidate
    found: Sequence[Candidate]
    required: float


Plan = Callable[["View"], Generator[Proposal, Verdict, str]]

NOTHING_TO_SPARE = "no group has a mask to spare"
ALL_REFUSED = "every mask that may go was refused"


class View:
    """A search as its plan sees it.

    Attributes:
        state: The state held now.
        rules: By which it is judged.
        least: How many masks of every group must stay, `{group: count}`.
        required: The score that must be reached; it moves where the rules let the reference move.
    """

    def __init__(self, state: TrainState, rules: Rules, *, scores: Callable[[Network], Sequence[Mask]]) -> None:
        self.state, self.rules, self.least = state, rules, rules.least(state.network.groups)
        self.required = math.nan
        self._scores = scores

    def order(self, network: Network | None = None) -> Sequence[Mask]:
        """All masks in the order in which the selector would remove them from a network, by default the one held."""
        return self._scores(self.state.network if network is None else network)

    def eligible(self, network: Network | None = None) -> set[Mask]:
        """Masks that may go: enabled, not frozen, not among the last of their group."""
        network = self.state.network if network is None else network
        left, found = count_enabled(network), set()
        for name, flags in network.enabled.items():
            free = np.asarray(flags) & ~np.asarray(network.frozen[name])
            if left[name] > self.least[name]:
                found |= {(name, int(number)) for number in np.flatnonzero(free)}
        return found

    def spare(self) -> int:
        """How many masks of the network held may go, all in all."""
        left, free = count_enabled(self.state.network), pairs_in(self.eligible())
        return sum(min(left[name] - self.least[name], len(numbers)) for name, numbers in free.items())

    def layers(self) -> list[str]:
        """Layers that may be bypassed, the first one first."""
        if not self.rules.layers:
            return []
        network = self.state.network
        allowed = [group.name for group in network.groups if self.rules.allows(group)]
        return [name for name in allowed if not why_no_bypass(network, name)]

    def first(self, network: Network, order: Iterable[Mask], count: int, but: Iterable[Mask] = ()) -> Masks:
        """The first `count` masks of an order that may go together; fewer if there are no more."""
        eligible, left = self.eligible(network) - set(but), count_enabled(network)
        chosen: Masks = {}
        for name, number in order:
            if sum(map(len, chosen.values())) == count:
                break
            if (name, number) in eligible and left[name] > self.least[name]:
                chosen.setdefault(name, []).append(number)
                left[name] -= 1
        return chosen


def begun(plan: Any) -> Generator[Proposal, Verdict, str]:
    """What a plan gave, if it is a generator."""
    if not isinstance(plan, Generator):
        refuse("plan", plan, "a generator of proposals, as `strategies.one_by_one` does")
    return plan


def proposed(found: Any) -> Proposal:
    """What a plan proposed, if that can be tried."""
    moves = found.moves if isinstance(found, Proposal) else ()
    if not isinstance(moves, list | tuple) or not moves or not all(isinstance(move, Move) for move in moves):
        refuse("plan", found, "(it yields) a `Proposal` of one `Move` or more")
    return found


@strict
def chain(*plans: Plan) -> Plan:
    """One plan after another; the last one says why the search ended."""

    def chained(view: View) -> Generator[Proposal, Verdict, str]:
        said = NOTHING_TO_SPARE
        for plan in plans:
            said = yield from plan(view)
        return said

    return chained


def pairs_of(masks: Mapping[str, Iterable[int]]) -> set[Mask]:
    return {(name, number) for name, numbers in masks.items() for number in numbers}


def pairs_in(pairs: Iterable[Mask]) -> Masks:
    """The inverse of `pairs_of`, sorted."""
    found: Masks = {}
    for name, number in sorted(pairs):
        found.setdefault(name, []).append(number)
    return found


def alive(network: Network) -> frozenset[Mask]:
    """The enabled masks."""
    return frozenset(pairs_of(list_masks(network.enabled)))


def apply_move(
    key: jax.Array, move: Move, network: Network, *, remove: Callable[[Network, Any], Network], init: Any
) -> Network:
    """The network a move leads to; `init(key) -> params` draws what is grown again, None: as it was stored."""
    if move.bypassed:
        return bypass(network, move.bypassed)
    if move.regrown:
        back = choose(network, move.regrown)
        network = enable(network if init is None else reinitialize(key, network, back, init), back)
    return remove(network, choose(network, move.chosen)) if move.chosen else network
