"""What is known of a value inside a traced function: which positions go together, and what a position holds when gone.

`Axis` and `Value` are the words in which a rule speaks of one primitive; `Labels` offers what rules need: making axes
equal, protecting them, cutting and joining them, and the check that a sum over channels stays exact. The numbers
`dead` carry the proof of exactness: the value that every entry at a position has, whatever the data, while its mask is
disabled. This file knows no primitive.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maskprune.masks.jaxpr.union_find import PINNED, Cells, Ids


UNKNOWN = np.nan  # a `dead` value: depends on the data
BROKEN = np.inf  # a `dead` value: not finite, such as 0 / 0


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One axis that may shrink.

    Attributes:
        cells: int[n], what stays and goes together (see `Cells`).
        dead: float[n], what entries at a position are while its mask is disabled: a number, `UNKNOWN` or `BROKEN`.
        leaves: Numbers of the leaf axes it comes from, as long as nothing but parameters went into the value.
        copies: Whether the value is the same at all positions, so that any of them may stand for any other.
    """

    cells: Ids
    dead: np.ndarray
    leaves: frozenset[int] = frozenset()
    copies: bool = False


class Value(NamedTuple):
    """An array inside the function.

    Attributes:
        shape: Its full shape; a symbolic size is not an `int`.
        axes: For every axis an `Axis`, or None where it never shrinks.
        const: The array itself where it depends on no parameter and no input and is small; else None.
        weights: Whether it depends on parameters and constants only.
        slack: Of a constant: by how much, relatively, it may differ where it is computed in another way.
    """

    shape: tuple[Any, ...]
    axes: tuple[Axis | None, ...]
    const: np.ndarray | None = None
    weights: bool = False
    slack: float = 0.0

    def uniform(self) -> float:
        """The one number that all entries are, if they are known and equal; else `UNKNOWN`."""
        if self.const is None or self.const.size == 0:
            return UNKNOWN
        entry = self.const.flat[0]
        first = float(entry)
        if first != first:
            return BROKEN if (self.const != self.const).all() else UNKNOWN
        alike = self.const.size == 1 or bool((self.const == entry).all())
        return first if alike and self.const.dtype.type(first) == entry else UNKNOWN


class Labels:
    """Everything known so far while a function is read. Rules call its methods.

    Attributes:
        cells: Which positions are equal.
        inexact: Pairs `(cells, why)`: positions whose sum over channels is not exact, where these are only flagged.
        reads: Numbers of the leaf axes that read other masks (contracted against activations).
        makes: Numbers of the leaf axes along which activations got their channels; some do both.
    """

    def __init__(self, *, flag_inexact: bool = False) -> None:
        self.cells = Cells()
        self.flag_inexact = flag_inexact
        self.inexact: list[tuple[Ids, Any]] = []
        self.reads: set[int] = set()
        self.makes: set[int] = set()

    def axis(self, size: Any, *, dead: float = UNKNOWN, leaves: frozenset[int] = frozenset()) -> Axis | None:
        """A new axis, equal to nothing yet; None for sizes 1 and symbolic ones, which never shrink."""
        if not isinstance(size, int) or size < 2:
            return None
        return Axis(self.cells.fresh(size), np.full(size, dead), leaves)

    def fresh(self, shape: Sequence[Any], *, dead: float = UNKNOWN, const: Any = None, weights: bool = False) -> Value:
        return Value(tuple(shape), tuple(self.axis(size, dead=dead) for size in shape), const, weights)

    def whole(self, shape: Sequence[Any], *, weights: bool = False) -> Value:
        """A value that never shrinks."""
        return Value(tuple(shape), (None,) * len(shape), None, weights)

    def pin(self, axis: Axis | None, why: Any) -> None:
        if axis is not None:
            self.cells.pin(axis.cells, why)

    def pin_all(self, values: Sequence[Value], why: Any) -> None:
        for value in values:
            for axis in value.axes:
                self.pin(axis, why)

    def same(self, axes: Sequence[Axis | None], why: Any) -> Axis | None:
        """Makes axes equal, position by position, and gives the joint one (its `dead` is the first's)."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            for axis in known:
                self.pin(axis, why)
            return None
        for axis in known[1:]:
            if axis.cells is not known[0].cells:
                self.cells.unify(known[0].cells, axis.cells, why)
        leaves, copies = frozenset().union(*(axis.leaves for axis in known)), all(axis.copies for axis in known)
        return dataclasses.replace(known[0], leaves=leaves, copies=copies)

    def pick(self, axis: Axis | None, positions: np.ndarray, *, why: Any, fill: float = UNKNOWN) -> Axis | None:
        """The axis at these positions; -1 stands for a new position that holds `fill`."""
        if axis is None:
            return None
        new = positions < 0
        cells = np.where(new, self.cells.fresh(len(positions)), axis.cells[positions])
        if len(cells) < 2:
            self.cells.pin(cells, why)
            return None
        dead = np.where(new, fill, axis.dead[positions])
        return Axis(self.apart(cells, dead, inner=bool((np.diff(positions) >= 0).all())), dead, axis.leaves)

    def apart(self, cells: Ids, dead: np.ndarray, *, inner: bool = False) -> Ids:
        """Lets places that hold the same thing go one by one, where no proof rests on what they hold when that is gone.

        The cell of a place becomes a pair with a cell of its own: the inner one, or else the outer one.
        """
        free = np.isnan(dead)
        if not free.any():
            return cells
        _, number, counts = np.unique(cells, return_inverse=True, return_counts=True)
        free &= (counts[number] > 1) & (cells != PINNED)
        own, found = self.cells.fresh(int(free.sum())), cells.copy()
        found[free] = self.cells.pair(cells[free], own) if inner else self.cells.pair(own, cells[free])
        return found

    def summed(self, axis: Axis | None, neutral: float, why: Any) -> None:
        """Declares that an operation combines all positions of an axis, to which only `neutral` adds nothing."""
        if axis is not None:
            self._demand(axis.cells, axis.dead == neutral, why)

    def activations(self, axes: Sequence[Axis | None]) -> list[Axis | None]:
        """The axes of a value that parameters and inputs went into: from here on they are no leaf's."""
        self.makes.update(*(axis.leaves for axis in axes if axis is not None))
        return [axis and Axis(axis.cells, axis.dead) for axis in axes]

    def contract(
        self, sides: tuple[Axis | None, Axis | None], weights: tuple[bool, bool], why: Any, *, meets: Any = None
    ) -> None:
        """Declares that products over two axes are summed.

        Args:
            sides: The axes.
            weights: Which of them depend on parameters and constants only.
            why: The reason where the sum is not exact.
            meets: The reason where one of them stays; `why` by default.
        """
        left, right = sides
        reader = right if weights[1] else left if weights[0] else None
        self.reads |= frozenset() if reader is None else reader.leaves
        if all(weights) and left is not None and right is not None and not (left.leaves and right.leaves):
            self.pin(left, "a constant is folded into the weights along this axis")
        joint = self.same(sides, why if meets is None else meets)
        if joint is None or left is None or right is None:
            return
        gone = (left.dead == 0) & ~np.isinf(right.dead) | (right.dead == 0) & ~np.isinf(left.dead)
        self._demand(joint.cells, gone, why)

    def split(self, axis: Axis | None, outer: int, inner: int, why: Any) -> tuple[Axis | None, Axis | None]:
        """One axis seen as two, the second fastest."""
        if axis is None:
            return None, None
        dead = axis.dead.reshape(outer, inner)
        tables = self.cells.split(axis.cells, outer, inner, why)
        found = []
        for cells, values in zip(tables, (dead, dead.T), strict=True):
            if cells is not None and len(cells) < 2:
                self.cells.pin(cells, why)
                cells = None
            found.append(None if cells is None else Axis(cells, _agreed(values), axis.leaves))
        return found[0], found[1]

    def merge(self, axes: Sequence[Axis | None], sizes: Sequence[Any], why: Any = "") -> Axis | None:
        """Several axes flattened into one, the last fastest. What was copied along one of them may go copy by copy."""
        known = [axis for axis in axes if axis is not None]
        if not known:
            return None
        if len(known) == 1 and all(axis is not None or size == 1 for axis, size in zip(axes, sizes, strict=True)):
            return known[0]
        cells = self._merged(axes, sizes, why)
        dead = np.full(sizes, UNKNOWN)
        shape = [1] * len(sizes)
        for number, (position, axis) in enumerate((p, a) for p, a in enumerate(axes) if a is not None):
            along = axis.dead.reshape([*shape[:position], -1, *shape[position + 1 :]])
            dead = np.broadcast_to(along, sizes) if number == 0 else np.where(dead == along, dead, UNKNOWN)
        return Axis(cells, dead.ravel(), frozenset().union(*(axis.leaves for axis in known)))

    def _merged(self, axes: Sequence[Axis | None], sizes: Sequence[Any], why: Any) -> Ids:
        if not any(axis is not None and axis.copies for axis in axes):
            cells = self.cells.merge([None if axis is None else axis.cells for axis in axes], list(sizes))
            assert cells is not None
            return cells
        grid, parts = np.indices(sizes).reshape(len(sizes), -1), []
        for axis, places in zip(axes, grid, strict=True):
            if axis is not None and axis.copies:
                self.cells.pin(axis.cells[:1], why)  # one copy is needed to make the others from
                parts.append(self.cells.fresh(grid.shape[1]))
            elif axis is not None:
                parts.append(axis.cells[places])
        return functools.reduce(self.cells.pair, parts)

    def _demand(self, cells: Ids, exact: np.ndarray, why: Any) -> None:
        wrong = cells[~exact]
        wrong = wrong[self.cells.find(wrong) != PINNED]
        if not len(wrong):
            return
        if self.flag_inexact:
            self.inexact.append((wrong, why))
        else:
            self.cells.pin(wrong, why)


def _agreed(values: np.ndarray) -> np.ndarray:
    """Row by row the common value, or `UNKNOWN`."""
    return np.where((values == values[:, :1]).all(axis=1), values[:, 0], UNKNOWN)
