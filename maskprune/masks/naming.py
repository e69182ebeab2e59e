"""From what is known of every leaf axis to named groups, and to a reason for whatever is in none.

Cells that lie in the same leaf axes, side by side, become the masks of one group. Everything else is accounted for: it
stays for a reason, can only go all together, or is used by nothing. Knows no jaxpr.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.jaxpr.labels import Axis, Labels
from maskprune.masks.jaxpr.overlaps import distinct
from maskprune.masks.jaxpr.union_find import unique


UNUSED = "no given function uses it"
TOGETHER = "its channels can only go all together"
UNMADE = "no parameter makes what it reads: constants, codes or padding"


class LeafAxis(NamedTuple):
    """One axis of one leaf, in the parameters or (with `state`) in the model state."""

    leaf: str
    number: int
    state: bool
    axis: Axis

    @property
    def name(self) -> str:
        return f"{self.leaf}[{self.number}]"


class Leaf(NamedTuple):
    """A leaf of the parameters as a whole: whether anything uses it, and why none of its axes may shrink, or ""."""

    path: str
    shape: tuple[Any, ...]
    used: bool
    why: str


class Namer:
    """Turns what is known of the leaves into groups and refusals.

    Args:
        labels: What is equal and what stays.
        leaves: The axes of all leaves, None for those that never shrink.
        order: Numbers of the axes in the order in which they are used.
        whole: The leaves of the parameters.
        reason: `reason(cell)` tells why a cell stays.
    """

    def __init__(
        self,
        labels: Labels,
        leaves: Sequence[LeafAxis | None],
        order: Sequence[int],
        whole: Sequence[Leaf],
        reason: Callable[[int], str],
    ) -> None:
        self.labels, self.order, self.whole, self.reason = labels, order, whole, reason
        self.leaves = {number: leaf for number, leaf in enumerate(leaves) if leaf is not None}
        self.used = {leaf.path for leaf in whole if leaf.used}

    def groups(self) -> Groups:
        found = [self.labels.cells.atoms(self.leaves[number].axis.cells) for number in self.order]
        numbers = np.repeat(self.order, [len(positions) for positions, _ in found]).astype(int)
        positions, members = (np.concatenate([np.zeros(0, int), *(f[i] for f in found)]) for i in (0, 1))
        places = np.stack([numbers, positions], axis=1)  # (leaf axis, position) of every atom, in network order
        kept = distinct(places, members, self._makes())
        places, members = places[kept], members[kept]
        groups: list[Group] = []
        offered = np.zeros(len(members), bool)
        why = np.full(len(members), "", object)  # no masks
        for rows in _classes(places, members):
            made = self._group(places[rows], members[rows])
            if isinstance(made, Group):
                groups.append(made)
                offered[rows] = True
            else:
                why[rows] = made
        told, rest = self._refused(places[offered], places[~offered], why[~offered])
        return Groups(tuple(_unique_names(groups)), told, rest)

    def _group(self, places: np.ndarray, members: np.ndarray) -> Group | str:
        """The group of atoms that stand side by side, or why they are no masks."""
        _, first, member = np.unique(members, return_index=True, return_inverse=True)
        masks = np.argsort(np.argsort(first))[member]  # numbered as they first appear
        slices = []
        starts = np.flatnonzero(np.diff(places[:, 0], prepend=-1))  # rows of one leaf axis stand together
        for mine in map(slice, starts, [*starts[1:], len(places)]):
            number = int(places[mine.start, 0])
            leaf = self.leaves[number]
            for labels in _label_rows(places[mine, 1], masks[mine], len(leaf.axis.cells)):
                slices.append(Slice(leaf.leaf, leaf.number, tuple(labels.tolist()), self._role(number)))
        own = [piece for piece in slices if piece.role == "out"]
        if not any(piece.leaf in self.used for piece in slices if piece.role != "state"):
            return UNUSED
        if not own:
            return UNMADE
        if len(first) == 1 and any(all(label == 0 for label in piece.labels) for piece in slices):
            return TOGETHER
        name = own[0].leaf.rpartition("/")[0] or own[0].leaf
        return Group(name, len(first), tuple(slices), self._inexact(members))

    def _makes(self) -> np.ndarray:
        """bool[leaf axes], those whose positions are made here, rather than read or kept as a state."""
        count = max(self.leaves, default=-1) + 1
        return np.array([number in self.leaves and self._role(number) == "out" for number in range(count)], bool)

    def _role(self, number: int) -> Any:
        if self.leaves[number].state:
            return "state"
        return "in" if number in self.labels.reads and number not in self.labels.makes else "out"

    def _inexact(self, members: np.ndarray) -> str:
        for cells, why in self.labels.inexact:
            if np.isin(self.labels.cells.atoms(cells)[1], members).any():
                return str(why)
        return ""

    def _refused(self, offered: np.ndarray, free: np.ndarray, why_free: np.ndarray) -> tuple[Any, Any]:
        """What is in no group, with the reason: what is worth telling, and the rest."""
        told, rest, whole = [], [], []
        taken, spare = _by_axis(offered), _by_axis(free)
        masked = {self.leaves[number].leaf for number in taken if not self.leaves[number].state}
        for leaf in self.whole:
            if not leaf.used and leaf.path not in masked:
                whole.append(leaf.path)
                told.append((leaf.path, UNUSED))
            elif leaf.why:
                told.append((leaf.path, leaf.why))
            rest += [(f"{leaf.path}[{n}]", "its size is no number") for n in _unsized(leaf)]
        first = []
        for number in self.order:
            leaf = self.leaves[number]
            if leaf.state or leaf.leaf in whole:
                continue
            left = np.ones(len(leaf.axis.cells), bool)
            if number in taken:
                left[offered[taken[number], 1]] = False
            if left.any():
                rows = spare.get(number, slice(0, 0))
                why, quiet = self._account(leaf, left, dict(zip(free[rows, 1].tolist(), why_free[rows], strict=True)))
                (rest if quiet or self._role(number) == "in" else first).append((leaf.name, why))
        return (*first, *told), tuple(rest)

    def _account(self, leaf: LeafAxis, left: np.ndarray, free: dict[int, str]) -> tuple[str, bool]:
        """Why these positions of an axis are in no group, and whether that goes without saying."""
        found: dict[str, list[int]] = {}
        for position, why in free.items():
            if left[position]:
                found.setdefault(why, []).append(position)
        stays = np.flatnonzero(left)
        stays = stays[~np.isin(stays, list(free))] if free else stays
        numbers, quiet = self.labels.cells.reason_numbers(leaf.axis.cells[stays]), []
        for number in unique(numbers):
            mine = stays[numbers == number]
            cell = int(leaf.axis.cells[mine[0]])
            quiet.append(getattr(self.labels.cells.cause(cell)[0], "quiet", False))
            found.setdefault(self.reason(cell), []).extend(mine.tolist())
        if len(found) == 1 and left.all():
            return next(iter(found)), all(quiet) and bool(quiet)
        return "; ".join(f"{_ranges(sorted(each))}: {why}" for why, each in found.items()), False


def _by_axis(places: np.ndarray) -> dict[int, slice]:
    """The rows of every leaf axis, which stand together."""
    starts = np.flatnonzero(np.diff(places[:, 0], prepend=-1)).tolist()
    ends = [*starts[1:], len(places)]
    return {int(places[start, 0]): slice(start, end) for start, end in zip(starts, ends, strict=False)}


def _unsized(leaf: Leaf) -> Iterator[int]:
    return (n for n, size in enumerate(leaf.shape) if not isinstance(size, int) and not leaf.why)


def _ranges(positions: list[int]) -> str:
    """Positions in words, ascending."""
    low, high = positions[0], positions[-1]
    if low == high:
        return f"position {low}"
    if len(positions) == high - low + 1:
        return f"positions {low} to {high}"
    return f"{len(positions)} positions from {low} to {high}"


def _label_rows(positions: np.ndarray, masks: np.ndarray, size: int) -> list[np.ndarray]:
    """Labels along an axis; more than one row where a position goes with either of several masks of the group."""
    found = []
    while len(positions):
        first = np.unique(positions, return_index=True)[1] if (np.diff(positions) <= 0).any() else slice(None)
        labels = np.full(size, -1)
        labels[positions[first]] = masks[first]
        found.append(labels)
        rest = np.delete(np.arange(len(positions)), first)
        positions, masks = positions[rest], masks[rest]
    return found


def _classes(places: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Rows of atoms that stand side by side: in the same leaf axes, and never at one position."""
    if not len(members):
        return []
    _, atom = np.unique(members, return_inverse=True)
    leaves = int(places[:, 0].max()) + 1
    pairs = unique(atom * leaves + places[:, 0])
    marks = np.random.default_rng(0).integers(1, 2**63, leaves, dtype=np.uint64)
    sums = np.zeros(atom.max() + 1, np.uint64)  # of random marks: equal sums, equal sets of leaf axes
    np.add.at(sums, pairs // leaves, marks[pairs % leaves])
    signature = np.unique(sums, return_inverse=True)[1]
    depth = _depths(places, signature[atom], atom)
    _, first, kind = np.unique((signature * (depth.max() + 1) + depth)[atom], return_index=True, return_inverse=True)
    rows = np.split(np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))[:-1])
    return [rows[number] for number in np.argsort(first)]


def _depths(places: np.ndarray, signature: np.ndarray, atom: np.ndarray) -> np.ndarray:
    """For every atom which one it is among those of its signature that share its first position: 0 the outermost."""
    first = np.unique(atom, return_index=True)[1]
    mine = np.flatnonzero(places[:, 0] == places[first, 0][atom])  # in the leaf axis where the atom is met first
    position = places[mine, 0] * (places[:, 1].max() + 1) + places[mine, 1]
    key = position * (signature.max() + 1) + signature[mine]
    order = np.argsort(key, kind="stable")
    same = np.concatenate([[False], key[order][1:] == key[order][:-1]])
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    depth = np.zeros(atom.max() + 1, int)
    np.maximum.at(depth, atom[mine[order]], rank)
    return depth


def _unique_names(groups: list[Group]) -> list[Group]:
    """Tells groups of one layer apart by the axis of their first own slice, then by a number."""
    names = [group.name for group in groups]
    full = []
    for group, name in zip(groups, names, strict=True):
        axis = group.with_role("out")[0].axis
        full.append(name if names.count(name) == 1 else f"{name}[{axis}]")
    done: list[Group] = []
    for group, name in zip(groups, full, strict=True):
        number = full[: len(done)].count(name) + 1
        label = name if full.count(name) == 1 else f"{name}#{number}"
        done.append(Group(label, group.size, group.slices, group.inexact))
    return done
