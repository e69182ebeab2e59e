"""Why sizes of inputs had to be fixed, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from maskprune.masks.groups import leaf_path


Axis = tuple[int, int]  # which leaf of the inputs, and which axis of it


class Misfit(NamedTuple):
    """Why a function does not run on a size.

    Attributes:
        leaves: The parameters that the failing operation read, in words.
        place: The line of the user's code; "" where none is known.
        error: What was raised.
        decides: Whether it runs on other sizes, and fails only where a size is no number.
    """

    leaves: tuple[str, ...]
    place: str
    error: str
    decides: bool = False

    def told(self, axes: str = "") -> str:
        of = f" of {axes}" if axes else ""
        if self.decides and self.place:
            return f"the code at {self.place} needs the number{of or ' of a size'}"
        if self.leaves:
            fits = "fits" if len(self.leaves) == 1 else "fit"
            return f"{' and '.join(self.leaves)} {fits} no other size{of}" + (
                f", at {self.place}" if self.place else ""
            )
        return f"the code at {self.place} fits no other size{of}" if self.place else self.error


def note_of(misfits: Mapping[Axis, Misfit], free: Mapping[Axis, int], names: Sequence[str]) -> str:
    """What is fixed, or must be a multiple, and why; "" where nothing is told."""
    fixed = {axis: why for axis, why in misfits.items() if axis not in free}
    parts = []
    if fixed:
        parts.append(f"{_extent(fixed, free)} fixed: {_reasons(fixed, names)}")
    for multiple in sorted({m for m in free.values() if m > 1}):
        axes = [axis for axis, m in free.items() if m == multiple]
        parts.append(f"{words_of(axes, names)} must be multiples of {multiple}: {misfits[axes[0]].told()}")
    return "; ".join(parts)


def _extent(fixed: Mapping[Axis, Misfit], free: Mapping[Axis, int]) -> str:
    if not free:
        return "all sizes are"
    batch = all(axis for _, axis in fixed) and not any(axis for _, axis in free)
    return "all sizes but the batch are" if batch else "some sizes are"


def _reasons(fixed: Mapping[Axis, Misfit], names: Sequence[str]) -> str:
    groups: dict[Misfit, list[Axis]] = {}
    for axis, why in fixed.items():
        groups.setdefault(why._replace(error="") if why.place or why.leaves else why, []).append(axis)
    return "; ".join(why.told(words_of(axes, names)) for why, axes in groups.items())


def words_of(axes: Iterable[Axis], names: Sequence[str]) -> str:
    """Axes in words: "axes 1 and 2 of the input"."""
    by_leaf: dict[int, list[int]] = {}
    for leaf, axis in axes:
        by_leaf.setdefault(leaf, []).append(axis)
    return " and ".join(f"{_listed(sorted(numbers))} of {names[leaf]}" for leaf, numbers in by_leaf.items())


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"axis {numbers[0]}"
    return f"axes {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def inputs_named(leaves: Sequence[Any], structure: Any) -> list[str]:
    """What to call the leaves of the inputs: "the input", or "input 1/mask"."""
    if len(leaves) == 1:
        return ["the input"]
    paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(structure, range(len(leaves))))
    return [f"input {leaf_path(path)}" for path, _ in paths]
