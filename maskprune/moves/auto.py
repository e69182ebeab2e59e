"""The plan that measured best: down a path of ever smaller networks, and up again to one that can be trained.

A network that loses masks one by one is trained all the while, and in a short session hardly any size keeps a high
score; so the way down asks only for a score that a longer session could mend. Then the networks of the path get that
longer session, the smallest first, then by halving, until the smallest that passes is found. Knows no training.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence

from maskprune.moves.base import (
    ALL_REFUSED,
    NOTHING_TO_SPARE,
    Mask,
    Move,
    Plan,
    Proposal,
    Verdict,
    View,
    alive,
    pairs_in,
)
from maskprune.moves.grow import exchanges
from maskprune.moves.many import removals
from maskprune.train import TrainState


NEAR = 1.5  # times the error that is allowed can be mended: larger errors mean that something is missing
LONG = 3  # times as long as usual is a session that is to mend it,
GENTLE = 0.3  # and so much smaller its steps: it should not leave what it has found


def auto(patience: int = 4) -> Plan:
    """Makes the plan to take where nothing else is known.

    One mask after another goes as long as the network stays near what is required (`dive`). Then one mask less is asked
    for, by many candidates and in turns: other sets of masks, all at once from the start or from a network of the path,
    and exchanges of a mask drawn afresh for two others. It ends when `patience` such rounds were refused in a row. Use
    it with several `rules.candidates`, racing, and `rules.early`.

    Raises:
        ValueError: `patience` is negative.
    """
    if patience < 0:
        raise ValueError(f"`patience` is {patience}: use 0 or more.")
    return functools.partial(_auto, patience=patience)


def _auto(view: View, *, patience: int) -> Generator[Proposal, Verdict, str]:
    path = yield from dive(view)
    tried = {alive(state.network) for state in path}
    refused = turn = 0
    while refused < patience and (moves := _one_less(view, path, tried, turn)):
        verdict = yield Proposal(moves, len(moves), enough=near(view))
        verdict = yield from mend(view, verdict)
        refused, turn = 0 if verdict.accepted else refused + 1, turn + 1
    return ALL_REFUSED if view.spare() else NOTHING_TO_SPARE


def _one_less(view: View, path: Sequence[TrainState], tried: set[frozenset[Mask]], turn: int) -> list[Move]:
    """Ways to one mask less than are held: in turns other sets, from the start or down the path, and exchanges."""
    most, held = 2 * view.rules.candidates, len(alive(view.state.network))
    above = [state for state in path if len(alive(state.network)) > held] if view.spare() else []
    if above and turn % 2 == 0:
        base = above[turn // 2 % len(above)]
        gone = len(alive(base.network)) - held + 1
        if sets := removals(view, gone, tried, base.network, 2 * most):
            return [Move(each, base=base) for each in sets]
    return exchanges(view, turn // 2, most)


def dive(view: View) -> Generator[Proposal, Verdict, list[TrainState]]:
    """Down as far as networks stay near what is required, then up to the smallest that passes after a long session.

    On the way down the selector's first choice is tried alone, and only if it is not near, `rules.candidates` others.
    Returns the networks of the path, the largest first.
    """
    state = start = view.state
    path = list[tuple[TrainState, Verdict]]()
    while moves := _children(view, state):
        verdict = yield Proposal(moves[:1], len(moves), enough=near(view))
        for first in range(1, len(moves), view.rules.candidates):
            if verdict.winner.worth >= near(view):
                break
            some = moves[first : first + view.rules.candidates]
            verdict = yield Proposal(some, len(moves) - first, enough=near(view))
        if verdict.winner.worth < near(view):
            break
        state = verdict.winner.state
        path.append((state, verdict))
    yield from climb(view, [verdict for _, verdict in reversed(path)])
    return [start, *(state for state, _ in path)]


def climb(view: View, path: Sequence[Verdict]) -> Generator[Proposal, Verdict, None]:
    """Finds the smallest network of a path that a long session mends: the smallest first, then by halving the rest.

    Args:
        view: Of the search.
        path: The smallest network first; those from the first accepted one on are held already.
    """
    low, high = 0, next((at for at, verdict in enumerate(path) if verdict.accepted), len(path))
    at = 0
    while low < high:
        if (yield from mend(view, path[at])).accepted:
            high = at
        else:
            low = at + 1
        at = (low + high) // 2


def mend(view: View, verdict: Verdict) -> Generator[Proposal, Verdict, Verdict]:
    """Trains a network on that was refused but is near: one long session."""
    if verdict.accepted or verdict.winner.worth < near(view):
        return verdict
    return (yield Proposal([Move({}, base=verdict.winner.state)], 1, times=LONG, rate=GENTLE))


def near(view: View) -> float:
    """The score from which on a long session may mend what is missing."""
    return min(view.required, 1.0 - NEAR * (1.0 - view.required))


def _children(view: View, state: TrainState) -> list[Move]:
    """Every single mask that may go from a network, in the selector's order."""
    eligible = view.eligible(state.network)
    order: list[Mask] = [mask for mask in view.order(state.network) if mask in eligible] if eligible else []
    return [Move(pairs_in([mask]), base=state) for mask in order]
