"""The plan that measured best: how many masks may go is bisected, then one mask less is asked for again and again."""

from __future__ import annotations

import functools
from collections.abc import Generator

from maskprune.moves.base import ALL_REFUSED, NOTHING_TO_SPARE, Mask, Move, Plan, Proposal, Verdict, View
from maskprune.moves.grow import exchanges
from maskprune.moves.many import bisect, removals


def auto(patience: int = 2) -> Plan:
    """Makes the plan to take where nothing else is known.

    Bisects, then asks for one mask less: by other sets of masks than before, and by exchanging a mask for a fresh one.
    It ends when `patience` rounds in a row were refused. Use it with several `rules.candidates`, racing.
    """
    if patience < 1:
        raise ValueError(f"`patience` is {patience}: one refused round at least ends the search.")
    return functools.partial(_auto, patience=patience)


def _auto(view: View, *, patience: int) -> Generator[Proposal, Verdict, str]:
    tried: set[frozenset[Mask]] = set()
    yield from bisect(view, tried)
    refused = 0
    while refused < patience and view.spare():
        moves = _one_less(view, tried, turn=refused)
        if not moves:
            return ALL_REFUSED
        verdict = yield Proposal(moves, len(moves))
        refused = 0 if verdict.accepted else refused + 1
    return ALL_REFUSED if view.spare() else NOTHING_TO_SPARE


def _one_less(view: View, tried: set[frozenset[Mask]], *, turn: int) -> list[Move]:
    """Up to `rules.candidates` ways to one mask less: at least half of them exchanges, which are new every time."""
    most = view.rules.candidates
    others = removals(view, 1, tried)[: most // 2]
    swaps = exchanges(view, turn, most - len(others))
    return [Move(each) for each in others] + swaps
