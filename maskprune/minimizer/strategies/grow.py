"""The other way round: from few masks to enough, and masks given back in exchange for others."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.alterations import disable, enable
from maskprune.masks.network import Network, choose
from maskprune.minimizer.strategies.base import (
    ALL_REFUSED,
    NOTHING_TO_SPARE,
    Mask,
    Move,
    Proposal,
    Verdict,
    View,
    pairs_in,
)


@strict
def grow(view: View) -> Generator[Proposal, Verdict, str]:
    """From the fewest masks upwards: the smallest network is trained, then grows by one mask a round until it passes.

    Masks come back drawn afresh, in the reverse of the order in which the selector would remove them;
    `rules.candidates` of them are tried side by side.
    """
    gone = _removed(view, view.state.network, view.spare())
    if not gone:
        return NOTHING_TO_SPARE
    verdict = yield Proposal([Move(pairs_in(gone))], len(gone))
    while not verdict.accepted and len(gone) > 1:
        base = verdict.winner.state
        back = gone[::-1][: view.rules.candidates]
        moves = [Move({}, regrown=pairs_in([mask]), base=base) for mask in back]
        verdict = yield Proposal(moves, len(gone))
        gone.remove(back[list(verdict.found).index(verdict.winner)])
    return "it has grown to what is enough" if verdict.accepted else ALL_REFUSED


@strict
def regrow(view: View) -> Generator[Proposal, Verdict, str]:
    """One mask less by exchange: a mask is drawn afresh, and two others go, until no exchange passes.

    A network from which no single mask may go can still hold the wrong ones. One disabled mask of every group comes
    back in turn, and the selector says which two of the others go.
    """
    turn = 0
    while moves := exchanges(view, turn, view.rules.candidates):
        verdict = yield Proposal(moves, len(moves))
        if not verdict.accepted:
            return ALL_REFUSED
        turn += 1
    return NOTHING_TO_SPARE


def exchanges(view: View, turn: int, most: int) -> list[Move]:
    """Up to `most` moves that bring back a mask of one group and take two others, groups in turn.

    Masks drawn afresh are all alike, so it is the turn that says which of a group comes back.
    """
    network = view.state.network
    off = {name: np.flatnonzero(~np.asarray(flags)).tolist() for name, flags in network.enabled.items()}
    ways = [_for_one(view, (name, masks[turn % len(masks)]), most) for name, masks in off.items() if masks]
    in_turn = [way[place] for place in range(most) for way in ways if place < len(way)]
    return in_turn[:most]


def _for_one(view: View, fresh: Mask, most: int) -> list[Move]:
    """Up to `most` different pairs that may go once `fresh` is back."""
    back = pairs_in([fresh])
    network = enable(view.state.network, choose(view.state.network, back))
    order = [mask for mask in view.order(network) if mask != fresh]
    found: list[Move] = []
    for skipped in range(len(order)):
        chosen = view.first(network, order[skipped:], 2, but=[fresh])
        if len(found) < most and sum(map(len, chosen.values())) == 2:
            found.append(Move(chosen, regrown=back))
    return found


def _removed(view: View, network: Network, count: int) -> list[Mask]:
    """Masks in the order in which they would go, scored again after each."""
    gone: list[Mask] = []
    while len(gone) < count:
        small = disable(network, choose(network, pairs_in(gone)))
        chosen = view.first(small, view.order(small), 1)
        gone += [(name, number) for name, numbers in chosen.items() for number in numbers]
        if not chosen:
            break
    return gone
