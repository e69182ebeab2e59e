"""Many masks at once: how many may go, found by halving the interval; and sets of masks to try together."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from maskprune.base.checks import strict
from maskprune.masks.alterations import disable
from maskprune.masks.network import Network, choose
from maskprune.minimizer.strategies.base import (
    NOTHING_TO_SPARE,
    Mask,
    Masks,
    Move,
    Proposal,
    Verdict,
    View,
    alive,
    pairs_in,
    pairs_of,
)


@strict
def bisect(view: View, tried: set[frozenset[Mask]] | None = None) -> Generator[Proposal, Verdict, str]:
    """Binary search over how many masks go at once, from the network held.

    Every number is tried by `rules.candidates` different sets of masks. It supposes that where so many masks may not
    go, no larger number may: about log2 of the masks to spare rounds instead of one for every mask.
    """
    tried = set() if tried is None else tried
    few, many = 0, view.spare() + 1  # so many are gone; so many are too many
    if many == 1:
        return NOTHING_TO_SPARE
    while many - few > 1:
        middle = (few + many) // 2
        verdict = yield Proposal([Move(each) for each in removals(view, middle - few, tried)], many - few - 1)
        few, many = (middle, many) if verdict.accepted else (few, middle)
    return f"{few} masks may go, {many} may not" if many <= few + view.spare() else NOTHING_TO_SPARE


def removals(
    view: View, count: int, tried: set[frozenset[Mask]], network: Network | None = None, most: int | None = None
) -> list[Masks]:
    """Different sets of `count` masks of a network, that may go together.

    The first is the greedy one: the mask that the selector would remove first goes, what is left is scored again, and
    so on, without training. The others are greedy, too, after a mask that is not the first choice.

    Args:
        view: The search.
        count: Masks to remove.
        tried: Enabled sets, as from `alive`, that were tried before; those that are found join them.
        network: By default the one held.
        most: At most so many sets; by default `rules.candidates`.
    """
    found: list[Masks] = []
    network = view.state.network if network is None else network
    most, whole = view.rules.candidates if most is None else most, alive(network)
    seen: dict[frozenset[Mask], list[Mask]] = {}
    for start in _starts(view, network, seen):
        chosen = _greedy(view, network, count, start, seen)
        if len(chosen) == count and whole - chosen not in tried:
            tried.add(whole - chosen)
            found.append(pairs_in(chosen))
        if len(found) == most:
            break
    return found


def _starts(view: View, network: Network, seen: dict[frozenset[Mask], list[Mask]]) -> Iterator[list[Mask]]:
    """Beginnings of a removal: none, then every single mask, then every pair, in the selector's order."""
    yield []
    order = [mask for mask in _ordered(view, network, frozenset(), seen) if mask in view.eligible(network)]
    yield from ([mask] for mask in order[1:])
    yield from ([one, other] for i, other in enumerate(order) for one in order[:i])


def _greedy(
    view: View, network: Network, count: int, start: list[Mask], seen: dict[frozenset[Mask], list[Mask]]
) -> frozenset[Mask]:
    gone = frozenset(start[:count])
    while len(gone) < count:
        small = disable(network, choose(network, pairs_in(gone)))
        chosen = pairs_of(view.first(small, _ordered(view, small, gone, seen), 1))
        if not chosen:
            break
        gone |= chosen
    counted = view.first(network, sorted(gone), count)  # a start may take too many of one group
    return gone if pairs_of(counted) == gone else frozenset()


def _ordered(
    view: View, network: Network, gone: frozenset[Mask], seen: dict[frozenset[Mask], list[Mask]]
) -> list[Mask]:
    if gone not in seen:
        seen[gone] = list(view.order(network))
    return seen[gone]
