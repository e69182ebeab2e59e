"""A plan: which positions of which leaves stay, as data.

It is what the enabled masks of a network say of every leaf, and nothing else: it can be printed, saved as JSON, and
applied to any checkpoint of the same model without tracing it again. A plan is checked wholly before anything changes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.groups import Groups, leaf_path, leaves_by_path


FORMAT = "maskprune plan 1"


class Cut(NamedTuple):
    """What stays along one axis of one leaf.

    Attributes:
        leaf: Path of the leaf.
        axis: Which axis.
        size: Its full size.
        kept: Positions that stay, ascending.
        state: Whether the leaf lies in the model state rather than in the parameters.
    """

    leaf: str
    axis: int
    size: int
    kept: tuple[int, ...]
    state: bool = False


class Dropped(NamedTuple):
    """A leaf that is left out wholly: the kernel (`identity`) or the zero bias of a layer that was bypassed.

    Attributes:
        leaf: Path of the leaf.
        shape: Its cut shape.
        dtype: Its type, by name.
        reads: Of a kernel the axis that reads channels, else -1.
        writes: Of a kernel the axis that gives channels, else -1.
    """

    leaf: str
    shape: tuple[int, ...]
    dtype: str
    reads: int = -1
    writes: int = -1

    def values(self) -> np.ndarray:
        """What the leaf held: the identity in the middle of its window, or zeros."""
        found = np.zeros(self.shape, self.dtype)
        if self.reads >= 0:
            table = np.moveaxis(found, (self.reads, self.writes), (-2, -1))
            table[tuple(size // 2 for size in table.shape[:-2])] = np.eye(table.shape[-1])
        return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every axis that shrinks. Make it with `make_plan`.

    Attributes:
        cuts: One for every axis that loses positions.
        inexact: Whether it removes masks of groups that are not exact.
        dropped: Leaves of bypassed layers, which become None.
    """

    cuts: tuple[Cut, ...]
    inexact: bool = False
    dropped: tuple[Dropped, ...] = ()

    def cut(self, tree: Any, *, state: bool = False) -> Any:
        """The tree with every leaf cut.

        Args:
            tree: Pytree of full arrays: parameters, or with `state` the model state. Abstract arrays
                (`jax.ShapeDtypeStruct`) give abstract ones.
            state: Which of the two it is.

        Raises:
            ValueError: The tree lacks a leaf, or a leaf has another size. Nothing is changed then.
        """
        mine = self._of(state)
        self._check(mine, leaves_by_path(tree))
        gone = set() if state else {each.leaf for each in self.dropped}

        def cut(path: Any, leaf: Any) -> Any:
            return None if leaf_path(path) in gone else _cut(leaf, mine.get(leaf_path(path), []))

        return jax.tree_util.tree_map_with_path(cut, tree)

    def cut_leaf(self, path: str, leaf: Any, *, state: bool = False) -> Any:
        """An array of the shape of the parameter at `path` (or of the state), such as its momentum, cut like it."""
        mine = self._of(state)
        self._check({path: mine.get(path, [])}, {path: leaf})
        return _cut(leaf, mine.get(path, []))

    def full_shape(self, path: str, shape: tuple[int, ...], *, state: bool = False) -> tuple[int, ...]:
        """The shape that a cut leaf had before."""
        sizes = {cut.axis: cut.size for cut in self.cuts if cut.leaf == path and cut.state == state}
        return tuple(sizes.get(axis, size) for axis, size in enumerate(shape))

    def to_json(self) -> str:
        cuts = [cut._asdict() for cut in self.cuts]
        dropped = [each._asdict() for each in self.dropped]
        return json.dumps({"format": FORMAT, "inexact": self.inexact, "cuts": cuts, "dropped": dropped}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Raises a `ValueError` for anything but what `to_json` wrote."""
        try:
            found = json.loads(text)
            if found["format"] != FORMAT:
                raise ValueError(f"it has the format {found['format']!r}, not {FORMAT!r}")
            dropped = tuple(Dropped(**{**each, "shape": tuple(each["shape"])}) for each in found["dropped"])
            return cls(tuple(_read_cut(each) for each in found["cuts"]), bool(found["inexact"]), dropped)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"This text is no plan: {error}.") from error

    def __str__(self) -> str:
        rows = [("leaf", "axis", "from", "to")]
        rows += [(c.leaf + " (state)" * c.state, str(c.axis), str(c.size), str(len(c.kept))) for c in self.cuts]
        rows += [(each.leaf, "all", "x".join(map(str, each.shape)), "none") for each in self.dropped]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def _of(self, state: bool) -> dict[str, list[Cut]]:
        found: dict[str, list[Cut]] = {}
        for cut in self.cuts:
            if cut.state == state:
                found.setdefault(cut.leaf, []).append(cut)
        return found

    def _check(self, mine: Mapping[str, list[Cut]], leaves: Mapping[str, Any]) -> None:
        for path, cuts in mine.items():
            if path not in leaves:
                raise ValueError(f"The plan cuts `{path}`, which this tree lacks. Its leaves are {', '.join(leaves)}.")
            shape = tuple(leaves[path].shape)
            for cut in cuts:
                if cut.axis >= len(shape) or shape[cut.axis] != cut.size:
                    raise ValueError(
                        f"The plan cuts axis {cut.axis} of `{path}` from {cut.size} to {len(cut.kept)}, but the leaf "
                        f"has the shape {shape}: another model, or cut already?"
                    )


@strict
def make_plan(
    groups: Groups, enabled: Mapping[str, Any], *, round_to: int = 1, scores: Mapping[str, Any] | None = None
) -> Plan:
    """What the enabled masks say of every leaf.

    Args:
        groups: What the masks are.
        enabled: `{group: bool[C]}`. Read from the device.
        round_to: Keeps the width of every group on this grid, such as 8, by adding back disabled masks, as far as there
            are any. In effective parameters these hold zeros, so the network still computes the same.
        scores: `{group: float[C]}`, from a selector: the highest are added back first; without, the first ones.

    Raises:
        ValueError: `enabled` lacks a group, or it or `scores` has another number of masks.
        ValueError: `round_to` is below 1.
    """
    _check_flags(groups, enabled, scores or {})
    flags = {
        name: np.append(round_up(values, round_to, (scores or {}).get(name)), True) for name, values in enabled.items()
    }
    kept: dict[tuple[str, int, bool], np.ndarray] = {}
    for group in groups:
        for piece in group.slices:
            key = (piece.leaf, piece.axis, piece.role == "state")
            stays = flags[group.name][np.asarray(piece.labels, int)]
            kept[key] = kept.get(key, True) & stays
    cuts = [
        Cut(leaf, axis, len(stays), tuple(np.flatnonzero(stays).tolist()), state)
        for (leaf, axis, state), stays in kept.items()
        if not stays.all()
    ]
    inexact = any(group.inexact and not flags[group.name].all() for group in groups)
    return Plan(tuple(cuts), inexact)


def _check_flags(groups: Groups, enabled: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    for name, of in (("enabled", enabled), ("scores", scores)):
        for group in groups:
            found = np.shape(of[group.name]) if group.name in of else None
            if found != (group.size,) and (found or of is enabled):
                raise ValueError(f"`{name}[{group.name!r}]` has the shape {found}: give {group.size} masks.")


def round_up(enabled: Any, to: int, scores: Any = None) -> np.ndarray:
    """Adds back disabled masks until the count is a multiple of `to`, or all are enabled: the highest scores first."""
    if to < 1:
        raise ValueError(f"`round_to` is {to}: use 1 (any width) or a larger grid, such as 8.")
    flags = np.array(enabled, bool)
    missing = -int(flags.sum()) % to
    values = np.zeros(len(flags)) if scores is None else np.asarray(scores, float)
    order = np.argsort(-np.where(flags, -np.inf, values), kind="stable")
    flags[order[: min(missing, int((~flags).sum()))]] = True
    return flags


def _cut(leaf: Any, cuts: list[Cut]) -> Any:
    if not cuts:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        sizes = {cut.axis: len(cut.kept) for cut in cuts}
        return jax.ShapeDtypeStruct([sizes.get(axis, size) for axis, size in enumerate(leaf.shape)], leaf.dtype)
    small = np.asarray(leaf)  # in NumPy, and put as it is: JAX would compile every cut anew for every new shape
    for cut in cuts:
        small = np.take(small, np.asarray(cut.kept, int), axis=cut.axis)
    return jax.device_put(small)


def _read_cut(found: Mapping[str, Any]) -> Cut:
    cut = Cut(str(found["leaf"]), int(found["axis"]), int(found["size"]), tuple(found["kept"]), bool(found["state"]))
    ascending = list(cut.kept) == sorted(set(cut.kept)) and all(
        isinstance(k, int) and 0 <= k < cut.size for k in cut.kept
    )
    if not ascending or cut.axis < 0:
        raise ValueError(f"the kept positions of `{cut.leaf}` are not ascending numbers below {cut.size}")
    return cut
