"""Which positions of which axes stay or go together: a union-find over cells.

Every position along an axis of an array is a *cell*. A cell is an atom (one thing that can go), a pair (gone as soon
as either part is: a head and a place within every head), or pinned (never gone, with the reason). Equations between
axes merge cells; reshapes build pairs and take them apart. All work is on whole axes at once, in NumPy. Knows no jaxpr
and no weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


PINNED = 0  # the cell of every position that never goes

Ids = np.ndarray  # int64[n], cells


def unique(cells: Ids) -> Ids:
    """`np.unique` by sorting: ten times as fast on small arrays as the hash table of NumPy 2.3 and later."""
    ordered = np.sort(cells)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])] if len(cells) else ordered


class Meeting(NamedTuple):
    """The reason of cells that were made equal to cells that stay: what was said of it, and both sides."""

    why: Any
    one: Ids
    other: Ids


class Cells:
    """Equalities between cells, growing as a function is read. The one mutable thing of a trace."""

    def __init__(self) -> None:
        self._parent = np.arange(1024)
        self._parts = np.full((1024, 2), -1)  # of a pair: its outer and its inner cell
        self._why = np.zeros(1024, np.int64)  # 0: not pinned; else the number of the reason
        self._count = 1
        self.reasons: list[Any] = ["", "it is not a channel of weights"]
        self._why[PINNED] = 1

    def fresh(self, size: int) -> Ids:
        """New atoms, equal to nothing yet."""
        start, self._count = self._count, self._count + size
        while self._count > len(self._parent):
            old = len(self._parent)
            self._parent = np.concatenate([self._parent, np.arange(old, 2 * old)])
            self._parts = np.concatenate([self._parts, np.full((old, 2), -1)])
            self._why = np.concatenate([self._why, np.zeros(old, np.int64)])
        return np.arange(start, start + size)

    def pair(self, outer: Ids, inner: Ids) -> Ids:
        """Cells that are gone where `outer` or `inner` is gone (arrays of one length)."""
        cells = self.fresh(len(outer))
        self._parts[cells, 0], self._parts[cells, 1] = outer, inner
        return self.find(cells)

    def find(self, cells: Ids) -> Ids:
        """The standing name of every cell: equal cells have equal names, pinned ones are `PINNED`."""
        roots = self._roots(cells)
        while (paired := self._parts[roots, 0] >= 0).any():
            outer, inner = self._roots(self._parts[roots, 0]), self._roots(self._parts[roots, 1])
            shorter = np.where(self._gone_pins(outer), inner, np.where(self._gone_pins(inner), outer, roots))
            shorter = np.where(paired & (outer == inner), outer, np.where(paired, shorter, roots))
            if np.array_equal(shorter, roots):
                break
            roots = shorter
        return np.where(self._why[roots] > 0, PINNED, roots)

    def pin(self, cells: Ids, why: Any) -> None:
        """Makes cells stay for good, both parts of pairs."""
        left = unique(self.find(cells))
        left = left[left != PINNED]
        if not len(left):
            return
        number = len(self.reasons)
        self.reasons.append(why)
        while len(left):
            parts = self._parts[left].ravel()
            self._why[left] = number
            left = unique(self._roots(parts[parts >= 0]))
            left = left[self._why[left] == 0]

    def why_pinned(self, cells: Ids) -> Any:
        """Why the first of these cells that stays does, as given to `pin`; None if all may go."""
        pinned = cells[self.find(cells) == PINNED]
        return self.cause(pinned[0])[0] if len(pinned) else None

    def names(self, cells: Ids) -> Ids:
        """Like `find`, but cells that stay keep names of their own: equal ones that were made equal before."""
        return self._roots(cells)

    def cause(self, cell: int) -> tuple[Any, int | None]:
        """Why a cell stays, as given to `pin` or `unify`, and in the second case the cell it met that stayed before."""
        root = self._pinned_root(int(cell))
        reason = self.reasons[self._why[root]]
        if not isinstance(reason, Meeting):
            return reason, None
        for mine, met in ((reason.one, reason.other), (reason.other, reason.one)):
            roots = self._roots(mine)[:, None]
            parts = self._parts[roots[:, 0]]  # -1 in cells that are no pairs
            family = np.concatenate([roots, self._roots(np.where(parts < 0, roots, parts))], axis=1)
            hits = np.flatnonzero((family == root).any(axis=1))
            if len(hits):
                return reason.why, int(met[hits[0]])
        return reason.why, None

    def unify(self, one: Ids, other: Ids, why: Any) -> None:
        """Makes cells equal, position by position. What meets a pinned cell is pinned, for the reason `why`."""
        if one is other:
            return
        met = one, other
        one, other = self.find(one), self.find(other)
        differ = one != other
        if not differ.any():
            return
        one, other = one[differ], other[differ]
        stays = (one == PINNED) | (other == PINNED)
        if stays.any():
            meeting = Meeting(why, *(each[differ][stays] for each in met))
            self.pin(np.concatenate([one[stays], other[stays]]), meeting)
            return self.unify(one[~stays], other[~stays], why)
        pairs = self._parts[one, 0] >= 0, self._parts[other, 0] >= 0
        if (both := pairs[0] & pairs[1]).any():
            for side in (0, 1):
                self.unify(self._parts[one[both], side], self._parts[other[both], side], why)
            return self.unify(one[~both], other[~both], why)
        swap = pairs[0]  # the atom comes first
        atoms, targets = np.where(swap, other, one), np.where(swap, one, other)
        if not self._join(atoms, targets):
            for a, b in zip(one, other, strict=True):
                self._unify_one(a, b, why)

    def atoms(self, cells: Ids) -> tuple[Ids, Ids]:
        """What the cells are made of: `(position, atom)` pairs as two arrays, pinned atoms left out."""
        positions, names = np.arange(len(cells)), self.find(cells)
        found: list[tuple[Ids, Ids]] = []
        while len(names):
            whole = self._parts[names, 0] < 0
            if not found and whole.all():
                real = names != PINNED
                return positions[real], names[real]
            found.append((positions[whole], names[whole]))
            parts = self._parts[names[~whole]]
            names, positions = self.find(parts.ravel()), np.repeat(positions[~whole], 2)
        where, what = (np.concatenate([f[i] for f in found]) if found else np.zeros(0, int) for i in (0, 1))
        real = what != PINNED
        return where[real], what[real]

    def merge(self, axes: list[Ids | None], sizes: list[int]) -> Ids | None:
        """The cells of several axes flattened into one, the last fastest. None stands for an axis that stays whole."""
        cells: Ids | None = None
        before = 1
        for axis, size in zip(axes, sizes, strict=True):
            if axis is None:
                cells = None if cells is None else np.repeat(cells, size)
            elif cells is None:
                cells = axis if before == 1 else np.tile(axis, before)
            else:
                cells = self.pair(np.repeat(cells, size), np.tile(axis, before))
            before *= size
        return cells

    def split(self, cells: Ids, outer: int, inner: int, why: Any) -> tuple[Ids | None, Ids | None]:
        """One axis seen as two, the second fastest, so that what goes is whole rows and whole columns."""
        table = self.find(cells).reshape(outer, inner)
        if (table == PINNED).all():
            return None, None
        if (table == table[0]).all():
            return None, table[0]
        if (table == table[:, :1]).all():
            return table[:, 0], None
        rows, columns = self._rectangle(table)
        if rows is None or columns is None:
            rows, columns = self.fresh(outer), self.fresh(inner)
            self.unify(table.ravel(), self.pair(np.repeat(rows, inner), np.tile(columns, outer)), why)
        return rows, columns

    def _rectangle(self, table: np.ndarray) -> tuple[Ids | None, Ids | None]:
        parts = self._parts[table]  # [outer, inner, 2]
        if (parts < 0).any():
            return None, None
        rows, columns = self.find(parts[:, :, 0].ravel()), self.find(parts[:, :, 1].ravel())
        rows, columns = rows.reshape(table.shape), columns.reshape(table.shape)
        if (rows == rows[:, :1]).all() and (columns == columns[0]).all():
            return rows[:, 0], columns[0]
        return None, None

    def _roots(self, cells: Ids) -> Ids:
        roots = self._parent[cells]
        above = self._parent[roots]
        if (above == roots).all():  # nearly always
            return roots
        while not (above == roots).all():
            roots, above = above, self._parent[above]
        self._parent[cells] = roots
        return roots

    def _gone_pins(self, roots: Ids) -> np.ndarray:
        return self._why[roots] > 0

    def _join(self, atoms: Ids, targets: Ids) -> bool:
        """Points atoms at targets, all at once. False, and nothing done, if some depend on one another."""
        if len(unique(atoms)) < len(atoms):
            _, first = np.unique(atoms * self._count + targets, return_index=True)
            atoms, targets = atoms[first], targets[first]
        inside = self.atoms(targets)[1]
        if len(unique(atoms)) < len(atoms) or np.isin(atoms, inside).any():
            if (self._parts[targets, 0] >= 0).any() or len(unique(targets)) < len(targets):
                return False
            if np.isin(atoms, targets).any():
                return False
            atoms, targets = targets, atoms  # many to one, the other way round
        self._parent[atoms] = targets
        return True

    def _unify_one(self, one: int, other: int, why: Any) -> None:
        a, b = (int(x) for x in self.find(np.array([one, other])))
        if a == b:
            return
        if PINNED in (a, b):
            return self.pin(np.array([a, b]), Meeting(why, np.array([one]), np.array([other])))
        if self._parts[a, 0] >= 0 and self._parts[b, 0] >= 0:
            self._unify_one(self._parts[a, 0], self._parts[b, 0], why)
            return self._unify_one(self._parts[a, 1], self._parts[b, 1], why)
        if self._parts[a, 0] >= 0:
            a, b = b, a
        inside = self.atoms(np.array([b]))[1]
        if a in inside and a != b:  # gone with a part of itself: then all its parts go together
            for part in inside:
                self._unify_one(a, int(part), why)
        else:
            self._parent[a] = b

    def reason_numbers(self, cells: Ids) -> Ids:
        """For cells that stay the numbers of their reasons: equal where they were pinned at once."""
        numbers = self._why[self._roots(cells)]
        for position in np.flatnonzero(numbers == 0):  # pairs of which both parts stay
            numbers[position] = self._why[self._pinned_root(int(cells[position]))]
        return numbers

    def _pinned_root(self, cell: int) -> int:
        """The cell that was pinned: this one, or the first pinned part of a pair."""
        left = [cell]
        while left:
            root = int(self._roots(np.array([left.pop()]))[0])
            if self._why[root] > 0:
                return root
            left += [int(part) for part in self._parts[root] if part >= 0]
        return PINNED
