"""Several networks of each size are held, and the best children of all of them go on."""

from __future__ import annotations

import functools
from collections.abc import Generator, Sequence

from maskprune.base.checks import strict
from maskprune.minimizer.strategies.base import (
    ALL_REFUSED,
    NOTHING_TO_SPARE,
    Move,
    Plan,
    Proposal,
    Verdict,
    View,
    alive,
    pairs_in,
)
from maskprune.train.step import TrainState


@strict
def beam(width: int = 4) -> Plan:
    """Makes a plan that holds up to `width` networks of each size.

    Every one of them loses its first `rules.candidates` masks in turn, in the selector's order, each set once. The
    children that reach what is required go on; the search itself holds the best of them. Children are not raced.

    Raises:
        ValueError: `width` is below 1.
    """
    if width < 1:
        raise ValueError(f"`width` is {width}: hold one network of each size, or more.")
    return functools.partial(_beam, width=width)


def _beam(view: View, *, width: int) -> Generator[Proposal, Verdict, str]:
    held: Sequence[TrainState] = [view.state]
    while moves := _children(view, held):
        verdict = yield Proposal(moves, len(moves), racing=False)
        passed = [each for each in verdict.found if each.worth >= verdict.required]
        if not passed:
            return ALL_REFUSED
        held = [each.state for each in sorted(passed, key=lambda each: -each.worth)[:width]]
    return NOTHING_TO_SPARE


def _children(view: View, held: Sequence[TrainState]) -> list[Move]:
    found: dict[frozenset, Move] = {}  # by what stays enabled
    for state in held:
        whole, eligible = alive(state.network), view.eligible(state.network)
        first = [mask for mask in view.order(state.network) if mask in eligible][: view.rules.candidates]
        for mask in first:
            found.setdefault(whole - {mask}, Move(pairs_in([mask]), base=state))
    return list(found.values())
