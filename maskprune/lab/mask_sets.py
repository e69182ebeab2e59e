"""Which masks of a network are alive, as text: "01101 11100" is two groups, whose masks 0, 3, 4 and 3, 4 are gone.

Text is what tables are indexed by, and what a ledger and a reader understand. A mask is named by where its digit stands
in the text. A set is usable if every group keeps a mask. Knows strings only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from maskprune.base.checks import Count, Natural, strict


Alive = str


@strict
def spell(flags: Iterable[Sequence[bool] | np.ndarray]) -> Alive:
    """The text of flags, bool[C] for each group: `spell([[True, False], [True]])` is "10 1"."""
    return " ".join("".join("1" if flag else "0" for flag in np.asarray(group).tolist()) for group in flags)


@strict
def read(alive: Alive) -> tuple[np.ndarray, ...]:
    """The inverse of `spell`: bool[C] for each group.

    Raises:
        ValueError: The text holds something else than groups of 0 and 1.
    """
    if not alive or set(alive) - set("01 ") or not all(alive.split(" ")):
        raise ValueError(f'`alive` is {alive!r}: write groups of 0 and 1 with a space between, such as "011 10".')
    return tuple(np.array([digit == "1" for digit in group]) for group in alive.split(" "))


@strict
def full(sizes: Sequence[Count]) -> Alive:
    """Every mask of groups of these sizes."""
    return spell([True] * size for size in sizes)


@strict
def first(sizes: Sequence[Count], shape: Sequence[Natural]) -> Alive:
    """The first masks of every group, as many as the shape says: one set to stand for all of a shape.

    Raises:
        ValueError: `sizes` and `shape` differ in length.
    """
    if len(sizes) != len(shape):
        raise ValueError(f"`sizes` has {len(sizes)} groups and `shape` {len(shape)}: give one number of each.")
    return spell([number < kept for number in range(size)] for size, kept in zip(sizes, shape, strict=True))


@strict
def shape(alive: Alive) -> tuple[int, ...]:
    """How many masks each group has left."""
    return tuple(group.count("1") for group in alive.split(" "))


@strict
def count(alive: Alive) -> int:
    """How many masks are left in all."""
    return alive.count("1")


@strict
def every(sizes: Sequence[Count], *, most: Natural | None = None) -> list[Alive]:
    """All usable sets, those with the fewest masks first, and one shape after another.

    Args:
        sizes: Masks of each group.
        most: Only sets of at most so many masks.

    Returns:
        Without `most` prod(2^size - 1) texts: 961 for two groups of five.
    """
    groups = [["".join(digits) for digits in itertools.product("01", repeat=size)][1:] for size in sizes]
    found = (" ".join(each) for each in itertools.product(*groups))
    return sorted(
        (each for each in found if most is None or count(each) <= most), key=lambda a: (count(a), shape(a), a)
    )


@strict
def shapes(sizes: Sequence[Count], *, most: Natural | None = None) -> list[tuple[int, ...]]:
    """All shapes of usable sets, small ones first: 25 for two groups of five."""
    found = itertools.product(*(range(1, size + 1) for size in sizes))
    return sorted((each for each in found if most is None or sum(each) <= most), key=lambda each: (sum(each), each))


@strict
def removable(alive: Alive, *, least: Natural = 1) -> list[int]:
    """The masks that may go, first to last: alive, and not among the last `least` of their group."""
    found, start = [], 0
    for group in alive.split(" "):
        if group.count("1") > least:
            found += [start + number for number, digit in enumerate(group) if digit == "1"]
        start += len(group) + 1
    return found


@strict
def without(alive: Alive, mask: Natural) -> Alive:
    """The set after one mask more is gone."""
    return f"{alive[:mask]}0{alive[mask + 1 :]}"
