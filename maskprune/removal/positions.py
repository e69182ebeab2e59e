"""When positions inside a function go, as conditions on masks: just as `make_plan` and `shrink` decide it.

A plan cuts a position of a leaf when any mask that it belongs to is disabled. An atom is gone when all leaf positions
that it is a part of are, and a position inside the function when any of its atoms is. So a position made of the same
atoms as some leaf position goes with that; any other one has a cause for each of its atoms, with a clause for each leaf
position of that atom. Knows no jaxpr.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from maskprune.masks.groups import Groups
from maskprune.masks.jaxpr.labels import Axis, Labels
from maskprune.masks.tracing import LeafAxis
from maskprune.removal.conditions import Condition


STAYS = -1  # the number of the condition that never holds


class Positions:
    """Tells the condition of every position of every axis.

    Attributes:
        conditions: Those met so far. Their places in this list are their numbers.
    """

    def __init__(self, labels: Labels, leaves: Sequence[LeafAxis | None], groups: Groups) -> None:
        self.labels, self.conditions = labels, list[Condition]()
        self._leaves = _read(labels, leaves, groups)
        self._flagged = {int(atom) for cells, _ in labels.inexact for atom in labels.cells.atoms(cells)[1]}
        inexact = np.repeat([bool(group.inexact) for group in groups], [group.size for group in groups])
        self._inexact = tuple(np.flatnonzero(inexact).tolist())
        self._numbers: dict[Condition, int] = {(): STAYS}
        self._of_set: dict[int, int] = {0: STAYS}
        self._of_axis: dict[int, np.ndarray] = {}

    def along(self, axis: Axis) -> np.ndarray:
        """int[n], for every position along an axis the number of its condition, or `STAYS`."""
        if id(axis.cells) not in self._of_axis:
            self._of_axis[id(axis.cells)] = self._along(axis)
        return self._of_axis[id(axis.cells)]

    def _along(self, axis: Axis) -> np.ndarray:
        where, atoms = _unique_pairs(*self.labels.cells.atoms(axis.cells))
        mine = atoms < len(self._leaves.marks)  # later ones are no part of any leaf
        where, atoms = where[mine], atoms[mine]
        sets = _sums(self._leaves.marks[atoms], where, len(axis.cells))
        unlike, first, inverse = np.unique(sets, return_index=True, return_inverse=True)
        starts = np.searchsorted(where, [first, first + 1])
        numbers = [self._number(int(s), atoms[a:b]) for s, a, b in zip(unlike, *starts, strict=True)]
        return np.array(numbers, int)[inverse]

    def _number(self, mark: int, atoms: np.ndarray) -> int:
        """Of the condition of a position with this set of atoms."""
        if mark not in self._of_set:
            condition = self._condition(mark, atoms.tolist())
            self._of_set[mark] = self._numbers.setdefault(condition, len(self.conditions))
            if self._of_set[mark] == len(self.conditions):
                self.conditions.append(condition)
        return self._of_set[mark]

    def _condition(self, mark: int, atoms: list[int]) -> Condition:
        known = self._leaves.by_set.get(mark)
        causes = [known] if known else [self._cause(atom) for atom in atoms]
        # An empty cause is none, and neither is one with a clause without masks, which is never met.
        return tuple(sorted({cause for cause in causes if cause and all(cause)}))

    def _cause(self, atom: int) -> tuple[tuple[int, ...], ...]:
        cause = self._leaves.by_atom.get(atom, ())
        if atom in self._flagged and not any(set(clause) <= set(self._inexact) for clause in cause):
            return (*cause, self._inexact)  # it only goes when the plan is inexact
        return cause


class _Leaves(NamedTuple):
    """What the leaf positions say.

    Attributes:
        marks: uint64[atoms], a random number for every atom of a leaf position, else 0: equal sums, equal sets.
        by_set: By sum of marks the clauses of the leaf positions with this set of atoms.
        by_atom: By atom the clauses of all its leaf positions.
    """

    marks: np.ndarray
    by_set: dict[int, tuple[tuple[int, ...], ...]]
    by_atom: dict[int, tuple[tuple[int, ...], ...]]


def _read(labels: Labels, leaves: Sequence[LeafAxis | None], groups: Groups) -> _Leaves:
    where, atoms, count = _places(labels, leaves)
    named, masks = _masks(leaves, groups)
    rng = np.random.default_rng(0)
    marks = np.zeros(int(atoms.max(initial=-1)) + 1, np.uint64)
    marks[atoms] = rng.integers(1, 2**63, len(marks), dtype=np.uint64)[atoms]
    of_masks = rng.integers(1, 2**63, int(masks.max(initial=-1)) + 1, dtype=np.uint64)
    _, first, kind = np.unique(_sums(of_masks[masks], named, count), return_index=True, return_inverse=True)
    starts = np.searchsorted(named, [first, first + 1])
    clauses = [tuple(masks[a:b].tolist()) for a, b in zip(*starts, strict=True)]
    sets = _sums(marks[atoms], where, count)
    return _Leaves(marks, _clauses_by(sets, kind, clauses), _clauses_by(atoms, kind[where], clauses))


def _clauses_by(
    keys: np.ndarray, kinds: np.ndarray, clauses: list[tuple[int, ...]]
) -> dict[int, tuple[tuple[int, ...], ...]]:
    names, number = np.unique(keys, return_inverse=True)
    number, kinds = _unique_pairs(number, kinds)
    starts = np.searchsorted(number, np.arange(len(names) + 1))
    lists = [kinds[a:b].tolist() for a, b in pairwise(starts)]
    return {int(name): tuple(clauses[kind] for kind in each) for name, each in zip(names, lists, strict=True)}


def _places(labels: Labels, leaves: Sequence[LeafAxis | None]) -> tuple[np.ndarray, np.ndarray, int]:
    """Pairs of a leaf position, counted through all axes, and an atom of it; and how many positions there are."""
    count, found = 0, [(np.zeros(0, int), np.zeros(0, int))]
    for leaf in leaves:
        if leaf is not None:
            where, atoms = labels.cells.atoms(leaf.axis.cells)
            found.append((where + count, atoms))
            count += len(leaf.axis.cells)
    return *_unique_pairs(*map(np.concatenate, zip(*found, strict=True))), count


def _masks(leaves: Sequence[LeafAxis | None], groups: Groups) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a leaf position and a mask that it belongs to, masks counted through all groups."""
    starts, count = {}, 0
    for leaf in leaves:
        if leaf is not None:
            starts[leaf.leaf, leaf.number, leaf.state] = count, len(leaf.axis.cells)
            count += len(leaf.axis.cells)
    first, found = 0, [(np.zeros(0, int), np.zeros(0, int))]
    for group in groups:
        for piece in group.slices:
            start, size = starts.get((piece.leaf, piece.axis, piece.role == "state"), (0, None))
            if size is None and len(piece.labels) == 1:  # an only channel never goes
                continue
            if size != len(piece.labels):
                raise ValueError(f"The groups label axis {piece.axis} of `{piece.leaf}`, which never shrinks here.")
            names = np.asarray(piece.labels)
            mine = np.flatnonzero(names >= 0)
            found.append((mine + start, names[mine] + first))
        first += group.size
    return _unique_pairs(*map(np.concatenate, zip(*found, strict=True)))


def _unique_pairs(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of numbers, ascending, each once."""
    if (np.diff(one) > 0).all():
        return one, other
    many = int(other.max(initial=0)) + 1
    first, second = np.divmod(np.unique(one * many + other), many)
    return first, second


def _sums(marks: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros(count, np.uint64)
    np.add.at(found, where, marks)
    return found
