"""One after another: the plan of the source document, and its variants by the rules.

Masks are tried in the selector's order. `rules.count` of them go at once, half as many when every choice was refused;
`rules.candidates` choices are tried side by side; `rules.retry` says when refused masks have another chance, and
`rules.layers` whether whole layers are tried, too.
"""

from __future__ import annotations

from collections.abc import Generator

from maskprune.base.checks import strict
from maskprune.minimizer.strategies.base import (
    ALL_REFUSED,
    NOTHING_TO_SPARE,
    Mask,
    Move,
    Proposal,
    Verdict,
    View,
    pairs_of,
)


@strict
def one_by_one(view: View) -> Generator[Proposal, Verdict, str]:
    """The next masks in the selector's order, until all that may go were refused.

    With one candidate whole layers are tried when no mask may go any more; with several, beside the masks.
    """
    refused: set[Mask] = set()
    layers: set[str] = set()  # those refused
    count = view.rules.count
    while moves := _moves(view, count, refused, layers):
        verdict = yield Proposal(moves, len(view.eligible() - refused))
        if not verdict.accepted:
            refused |= {mask for move in moves for mask in pairs_of(move.chosen)}
            layers |= {move.bypassed for move in moves} - {""}
        elif view.rules.retry == "accepted":
            refused, layers = set(), set()
        if count > 1 and not view.eligible() - refused:
            count //= 2
            refused = set() if view.eligible() else refused
    return ALL_REFUSED if refused else NOTHING_TO_SPARE


def _moves(view: View, count: int, refused: set[Mask], layers: set[str]) -> list[Move]:
    """What to try next, no mask twice."""
    most, taken, found = view.rules.candidates, set(refused), []
    order = view.order() if view.eligible() - refused else []
    while len(found) < most and (chosen := view.first(view.state.network, order, count, but=taken)):
        taken |= pairs_of(chosen)
        found.append(Move(chosen))
    if found and most == 1:
        return found
    return found + [Move({}, name) for name in view.layers() if name not in layers][: most if not found else None]
