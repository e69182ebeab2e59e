"""How large a network is, as a formula in its masks.

Parameters, bytes and multiply-adds are all sums of products of axis lengths, and masks decide how long an axis is: so
one formula tells the size with any masks enabled, and exactly what each mask would save, without building a network.
Knows no function and no primitive: who reads a function writes its formula down in these terms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.groups import Groups
from maskprune.removal.conditions import Conditions, Stretches, by_number


class Extent(NamedTuple):
    """The length of an axis: the positions that always stay, and those that stay while their condition does not hold.

    Attributes:
        stays: How many positions have no condition.
        conditions: int[K], the conditions that others have.
        counts: int[K], how many positions have each.
        pairs: int[P], the pairs of these conditions and a mask, by their number in `Conditions`.
        weights: int[P], how many positions go with the condition of each pair.
        by_mask: The pairs of every mask.
    """

    stays: int
    conditions: np.ndarray
    counts: np.ndarray
    pairs: np.ndarray
    weights: np.ndarray
    by_mask: Stretches

    def lengths(self, holds: Any, completes: Any) -> tuple[Any, Any]:
        """The length, and int[M], how many positions each mask would take along."""
        left = self.stays + (self.counts * ~holds[self.conditions]).sum()
        return left, self.by_mask.sums(self.weights * completes[self.pairs])


def make_extent(stays: int, named: np.ndarray, counts: np.ndarray, conditions: Conditions, masks: int) -> Extent:
    """The length of an axis with `stays` positions that never go, and `counts[i]` that go with condition `named[i]`."""
    starts, ends = np.searchsorted(conditions.pairs[:, 0], [named, named + 1])
    sizes = ends - starts
    pairs = np.repeat(ends - np.cumsum(sizes), sizes) + np.arange(sizes.sum())
    weights = np.repeat(counts, sizes)
    return Extent(stays, named, counts, pairs, weights, by_number(conditions.pairs[pairs, 1], masks))


class Term(NamedTuple):
    """A product: `times` the lengths of some extents, given by their numbers."""

    times: int
    extents: tuple[int, ...] = ()


class Largest(NamedTuple):
    """`times` the largest of several sums."""

    times: int
    sums: tuple[tuple[Term | Largest, ...], ...]


Part = Term | Largest


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Formulas over the same masks.

    Attributes:
        groups: What the masks are.
        conditions: When positions go.
        extents: The lengths that depend on the masks.
        sums: `{what: parts}`, each the sum of its parts.
    """

    groups: Groups
    conditions: Conditions
    extents: tuple[Extent, ...]
    sums: Mapping[str, tuple[Part, ...]]

    def evaluate(self, enabled: Mapping[str, Any], what: str) -> tuple[Any, dict[str, Any]]:
        """The size of a network, and by how much each further mask would lower it.

        Args:
            enabled: `{group: bool[C]}`. NumPy arrays give exact numbers (up to 2**53), JAX arrays float32 ones, also
                under `jit`.
            what: One of `sums`.

        Returns:
            `(size, {group: float[C]})`, 0 at masks that are disabled already.
        """
        flags = [enabled[group.name] for group in self.groups]
        xp: Any = jnp if any(isinstance(each, jax.Array) for each in flags) else np
        merged = xp.concatenate([*flags, np.zeros(0, bool)])
        state = self.conditions.evaluate(merged)
        counts = [[each.astype(float) for each in extent.lengths(*state)] for extent in self.extents]
        size, saved = _evaluate(xp, self.sums[what], counts, len(merged))
        ends = np.cumsum([0, *(group.size for group in self.groups)])
        return size, {g.name: saved[a:b] for g, a, b in zip(self.groups, ends, ends[1:], strict=False)}


def _evaluate(xp: Any, parts: Sequence[Part], counts: Sequence[Any], masks: int) -> tuple[Any, Any]:
    """The sum and what each mask saves. Part by part: the difference of two totals would drown in rounding."""
    size, saved = xp.zeros(()), xp.zeros(masks)
    for part in parts:
        now, less = _largest(xp, part, counts, masks) if isinstance(part, Largest) else _product(xp, part, counts)
        size, saved = size + part.times * now, saved + part.times * less
    return size, saved


def _product(xp: Any, term: Term, counts: Sequence[Any]) -> tuple[Any, Any]:
    now, less = xp.ones(()), xp.zeros(())
    for number in term.extents:
        length, taken = counts[number]
        # With a mask gone, (now - less) (length - taken) is left: no difference of large numbers is taken.
        now, less = now * length, less * length + (now - less) * taken
    return now, less


def _largest(xp: Any, part: Largest, counts: Sequence[Any], masks: int) -> tuple[Any, Any]:
    found = [_evaluate(xp, each, counts, masks) for each in part.sums]
    now = xp.stack([size for size, _ in found]).max()
    return now, now - xp.stack([size - saved for size, saved in found]).max(axis=0)


class Lengths:
    """Collects the lengths of axes, each once."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._axes: list[tuple[int, np.ndarray, np.ndarray]] = []

    def number(self, stays: int, conditions: np.ndarray) -> int:
        """Of the length of an axis: `stays` positions without a condition, and one more for each that is named."""
        named, counts = np.unique(conditions, return_counts=True)
        number = self._numbers.setdefault((stays, named.tobytes(), counts.tobytes()), len(self._axes))
        if number == len(self._axes):
            self._axes.append((stays, named, counts))
        return number

    def extents(self, conditions: Conditions, groups: Groups) -> tuple[Extent, ...]:
        masks = sum(group.size for group in groups)
        return tuple(make_extent(*axis, conditions, masks) for axis in self._axes)


def times(part: Part, factor: int) -> Part:
    return part._replace(times=part.times * factor)


def gather(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same sum with like terms put together."""
    found: dict[Any, int] = {}
    for part in parts:
        key = part.extents if isinstance(part, Term) else part._replace(times=1)
        found[key] = found.get(key, 0) + part.times
    return tuple(k._replace(times=n) if isinstance(k, Largest) else Term(n, k) for k, n in found.items() if n)
