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

from maskprune.groups import Groups


class Extent(NamedTuple):
    """The length of an axis whose positions belong to masks: a position counts while all its masks are enabled.

    Attributes:
        positions: int[P], with `masks` every pair of a position and a mask it belongs to, ordered by position.
        masks: int[P], masks counted through all groups.
        starts: int[size + 1], where the pairs of every position start, and the end.
        by_mask: int[P], the order of the pairs by mask.
        mask_starts: int[M + 1], where the pairs of every mask start in that order, and the end.
    """

    positions: np.ndarray
    masks: np.ndarray
    starts: np.ndarray
    by_mask: np.ndarray
    mask_starts: np.ndarray

    def counts(self, enabled: Any) -> tuple[Any, Any]:
        """Positions that are left, and int[M], how many of them each mask would take along. `enabled` is bool[M]."""
        left = _sums(~enabled[self.masks], self.starts) == 0
        return left.sum(), _sums(left[self.positions[self.by_mask]], self.mask_starts)


def make_extent(size: int, pairs: np.ndarray, masks: int) -> Extent:
    """An axis of `size` positions. `pairs` is int[P, 2]: (position, mask); positions without one always stay."""
    pairs = np.unique(pairs.reshape(-1, 2), axis=0)
    by_mask = np.argsort(pairs[:, 1], kind="stable")
    starts = np.searchsorted(pairs[:, 0], np.arange(size + 1))
    return Extent(pairs[:, 0], pairs[:, 1], starts, by_mask, np.searchsorted(pairs[by_mask, 1], np.arange(masks + 1)))


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
        extents: The lengths that depend on them.
        sums: `{what: parts}`, each the sum of its parts.
    """

    groups: Groups
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
        counts = [[each.astype(float) for each in extent.counts(merged)] for extent in self.extents]
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
    now, without = xp.ones(()), xp.ones(())
    for number in term.extents:
        length, taken = counts[number]
        now, without = now * length, without * (length - taken)
    return now, now - without


def _largest(xp: Any, part: Largest, counts: Sequence[Any], masks: int) -> tuple[Any, Any]:
    found = [_evaluate(xp, each, counts, masks) for each in part.sums]
    now = xp.stack([size for size, _ in found]).max()
    return now, now - xp.stack([size - saved for size, saved in found]).max(axis=0)


def _sums(values: Any, starts: np.ndarray) -> Any:
    """Sums over the stretches of `values` that start at `starts`, the last of which is the end."""
    xp: Any = jnp if isinstance(values, jax.Array) else np
    total = xp.concatenate([np.zeros(1, int), xp.cumsum(values, dtype=int)])
    return total[starts[1:]] - total[starts[:-1]]


class Extents:
    """Collects extents, each once."""

    def __init__(self, masks: int) -> None:
        self.masks, self.found, self._numbers = masks, [], {}

    def number(self, size: int, pairs: np.ndarray) -> int:
        key = (size, pairs.tobytes())
        if key not in self._numbers:
            self._numbers[key] = len(self.found)
            self.found.append(make_extent(size, pairs, self.masks))
        return self._numbers[key]


def times(part: Part, factor: int) -> Part:
    return part._replace(times=part.times * factor)


def gather(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The same sum with like terms put together."""
    found: dict[Any, int] = {}
    for part in parts:
        key = part.extents if isinstance(part, Term) else part._replace(times=1)
        found[key] = found.get(key, 0) + part.times
    return tuple(k._replace(times=n) if isinstance(k, Largest) else Term(n, k) for k, n in found.items() if n)
