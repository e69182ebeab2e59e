"""The plan that measured best: down a path of ever smaller networks, and up again to one that can be trained.

Masks that nobody misses go first, without training. A network that loses the others one by one is trained all the
while, and in a short session hardly any size keeps a high score; so the way down asks only for a score that a longer
session could mend. Then the networks of the path get that longer session, the smallest first, then larger ones, until
the smallest that passes is found. Knows no training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Sequence

from maskprune.base.checks import strict
from maskprune.minimizer.strategies.base import (
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
from maskprune.minimizer.strategies.grow import exchanges
from maskprune.minimizer.strategies.many import removals
from maskprune.train.step import TrainState


NEAR = 1.5  # times the error that is allowed can be mended: larger errors mean that something is missing
VERY = 1.15  # times that error is so near that
GENTLE = 0.3  # times the usual steps are enough, and do not leave what was found
LONG = 3  # times as long as usual is a session that is to mend,
SETTLING = 2  # and the one of what is left when all went that nobody misses


@strict
def auto(patience: int = 4) -> Plan:
    """Makes the plan to take where nothing else is known.

    Masks that nobody misses go without training (`free`). Then one after another goes as long as the network stays near
    what is required (`dive`), and the smallest network of that path that can be trained is looked for (`climb`). Then
    one mask less is asked for, by many candidates and in turns: other sets of masks, from the network held, from the
    start or from the path, and exchanges of a mask drawn afresh for two others. It ends when `patience` such rounds
    were refused in a row and, with `rules.layers`, no layer may go. Use it with several `rules.candidates`, racing, and
    `rules.early`.

    Raises:
        ValueError: `patience` is negative.
    """
    if patience < 0:
        raise ValueError(f"`patience` is {patience}: use 0 or more.")
    return functools.partial(_auto, patience=patience)


def _auto(view: View, *, patience: int) -> Generator[Proposal, Verdict, str]:
    yield from free(view)
    start = view.state
    verdicts = yield from dive(view)
    path = [start, *(verdict.winner.state for verdict in verdicts)]
    tried = {alive(state.network) for state in path}
    yield from climb(view, path, verdicts, tried)
    while True:
        refused = turn = 0
        while refused < patience and (moves := _one_less(view, path, tried, turn)):
            verdict = yield from attempt(view, moves)
            refused, turn = 0 if verdict.accepted else refused + 1, turn + 1
        layers = [Move({}, name) for name in view.layers()]
        if not layers or not (yield from attempt(view, layers)).accepted:
            return ALL_REFUSED if layers or view.spare() else NOTHING_TO_SPARE
        path = [view.state]  # the others still have that layer


def _one_less(view: View, path: Sequence[TrainState], tried: set[frozenset[Mask]], turn: int) -> list[Move]:
    """Ways to one mask less than are held: in turns other sets, from there, the start, or the path, and exchanges."""
    most, held = 2 * view.rules.candidates, len(alive(view.state.network))
    above = [view.state, *(state for state in path if len(alive(state.network)) > held)] if view.spare() else []
    if above and turn % 2 == 0:
        base = above[turn // 2 % len(above)]
        if sets := _smaller(view, base, held - 1, tried, most):
            return sets
    return exchanges(view, turn // 2, most)


def _smaller(view: View, base: TrainState, size: int, tried: set[frozenset[Mask]], most: int) -> list[Move]:
    """Sets of masks that were not tried and leave so many of a network."""
    gone = len(alive(base.network)) - size
    return [Move(each, base=base) for each in removals(view, gone, tried, base.network, most)]


def free(view: View) -> Generator[Proposal, Verdict, None]:
    """Takes masks that nobody misses, in the selector's order, without any training; then trains what is left."""
    while moves := _children(view, view.state):
        if not (yield Proposal(moves[:1], len(moves), times=0)).accepted:
            break
    if view.spare():
        yield Proposal([Move({}, base=view.state)], 1, enough=math.inf, times=SETTLING)


def dive(view: View) -> Generator[Proposal, Verdict, list[Verdict]]:
    """Down as far as networks stay near what is required: the verdicts on the way, of ever smaller networks."""
    state, path = view.state, list[Verdict]()
    while moves := _children(view, state):
        verdict = yield Proposal(moves[:1], len(moves), enough=near(view))
        if verdict.winner.worth < near(view):
            break
        state = verdict.winner.state
        path.append(verdict)
    return path


def climb(
    view: View, path: Sequence[TrainState], verdicts: Sequence[Verdict], tried: set[frozenset[Mask]]
) -> Generator[Proposal, Verdict, None]:
    """Looks for the smallest size of a path that passes, by longer sessions: the smallest first, and in growing steps
    upwards, then by halving.

    Of every size the network of the path is tried, and then its siblings, which lack another mask of the next larger.

    Args:
        view: The search.
        path: The networks of the path, from the start on.
        verdicts: What became of them, but for the start.
        tried: Enabled sets that were tried before; those that are tried join them.
    """
    low, step = 0, 0  # places are counted from the smallest
    high = next((place for place, verdict in enumerate(reversed(verdicts)) if verdict.accepted), len(verdicts))
    while low < high:
        place = min(low + step, (low + high) // 2)
        larger = path[len(verdicts) - 1 - place]
        verdict = yield from mend(view, verdicts[len(verdicts) - 1 - place])
        size = len(alive(larger.network)) - 1
        if not verdict.accepted and (moves := _smaller(view, larger, size, tried, 2 * view.rules.candidates)):
            verdict = yield from attempt(view, moves)
        if verdict.accepted:
            high = place
        else:
            low, step = place + 1, 2 * step + (place > 0)


def attempt(view: View, moves: Sequence[Move]) -> Generator[Proposal, Verdict, Verdict]:
    """A session of many, and a long one for the best of them if that came near."""
    verdict = yield Proposal(moves, len(moves), enough=near(view))
    return (yield from mend(view, verdict))


def mend(view: View, verdict: Verdict) -> Generator[Proposal, Verdict, Verdict]:
    """Trains a network on that was refused but is near: one long session, a gentle one if it is very near."""
    worth = verdict.winner.worth
    if verdict.accepted or worth < near(view):
        return verdict
    rate = GENTLE if worth >= near(view, VERY) else 1.0
    return (yield Proposal([Move({}, base=verdict.winner.state)], 1, times=LONG, rate=rate))


def near(view: View, times: float = NEAR) -> float:
    """The score at which the error is so many times the one that is allowed: what is missing to 1, or the drop."""
    if view.rules.drop is not None:
        return view.required - (times - 1.0) * view.rules.drop
    return min(view.required, 1.0 - times * (1.0 - view.required))


def _children(view: View, state: TrainState) -> list[Move]:
    """Every single mask that may go from a network, in the selector's order."""
    eligible = view.eligible(state.network)
    order: list[Mask] = [mask for mask in view.order(state.network) if mask in eligible] if eligible else []
    return [Move(pairs_in([mask]), base=state) for mask in order]
