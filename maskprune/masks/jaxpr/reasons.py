"""Why channels stay, in words: which leaf, input or constant they are bound to, and what keeps that one.

The labels remember for every cell that stays what was said of it, and which cell that stayed before it met; where it
met an axis that never shrinks, the function is followed back from the equation to where that axis comes from. All of
this happens after a function was read, and only for what is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maskprune.masks.jaxpr.labels import Axis, Value
from maskprune.masks.jaxpr.origins import STEPS, UNTOLD, Place, follow, stays
from maskprune.masks.jaxpr.union_find import PINNED, Cells


OTHERS = "channels that stay"  # stands in a reason for what the channels met


class Reasons:
    """Tells why cells stay.

    Args:
        cells: The cells.
        leaves: `(name, axis)` of the leaf axes by which cells are named, in the order of preference.
        inputs: For every function's body its inputs by name.
    """

    def __init__(self, cells: Cells, leaves: Sequence[tuple[str, Axis]], inputs: Mapping[int, list[str]]) -> None:
        self.cells, self.leaves, self.inputs = cells, leaves, inputs
        self.known: dict[int, str] | None = None
        self.steps: dict[int, tuple[Any, int | None, str]] = {}

    def of(self, cell: int) -> str:
        """The reason of a cell that stays."""
        why, met, text = self._next(cell)
        if met is None:
            return text
        leaf = ""
        for _ in range(STEPS):
            leaf = leaf or self._names().get(int(self.cells.names(np.array([met]))[0]), "")
            _, further, text = self._next(met)
            if further is None:
                break
            met = further
        return f"{_put(str(why), f'`{leaf}`')}, which stays: {text}" if leaf else text

    def _next(self, cell: int) -> tuple[Any, int | None, str]:
        """Why a cell stays: the reason, with the cell that it met and that stayed before, or else in words."""
        root = int(self.cells.names(np.array([cell]))[0])
        if root not in self.steps:
            self.steps[root] = self._step(cell)
        return self.steps[root]

    def _step(self, cell: int) -> tuple[Any, int | None, str]:
        why, met = self.cells.cause(cell)
        if OTHERS not in _text(why):
            return why, None, str(why)
        if met is not None and self.cells.names(np.array([met]))[0] != PINNED:
            return why, met, ""
        origin = self._origin(why, cell)
        return (why, origin, "") if isinstance(origin, int) else (why, None, _put(str(why), origin))

    def _origin(self, why: Any, cell: int) -> str | int:
        """What an equation gave `cell` to meet: the other operand whose axis of the same size never shrinks."""
        path = getattr(getattr(why, "equation", None), "path", ())
        if not path:
            return UNTOLD
        scope, raw = path[-1]
        values = [(atom, scope.value(atom)) for atom in raw.invars]
        root = self.cells.names(np.array([cell]))[0]
        mine = _holding(values, lambda cells: self.cells.names(cells) == root)
        mine = mine or _holding(values, lambda cells: self.cells.find(cells) == PINNED)  # as a part of a pair
        sizes = {size for *_, size in mine}
        others = [
            Place(path[:-1], scope, atom, position, where)
            for number, (atom, value) in enumerate(values)
            for position, size in enumerate(value.shape)
            if size in sizes
            for where in {place for own, _, place, n in mine if n == size and own != number}
            if stays(value.axes[position], where)
        ]
        others.sort(key=lambda place: place.axis not in {position for _, position, *_ in mine})
        return follow(others[0], self.cells, self.inputs) if others else UNTOLD

    def _names(self) -> dict[int, str]:
        if self.known is None:
            self.known = {}
            for name, axis in self.leaves:
                for root in self.cells.names(axis.cells).tolist():
                    self.known.setdefault(root, name)
        return self.known


def _put(reason: str, what: str) -> str:
    """A reason with what was met in its place; a source line that both tell is told once."""
    line = reason[reason.rfind(" (") + 2 : -1]
    return reason.replace(OTHERS, what.removesuffix(f" at {line}"))


def _text(why: Any) -> str:
    return getattr(why, "text", why)


def _holding(values: Sequence[tuple[Any, Value]], which: Callable[[np.ndarray], np.ndarray]) -> list[tuple[int, ...]]:
    """`(operand, axis, first position, size)` of the axes that hold such a cell."""
    return [
        (number, position, int(np.argmax(hits)), len(hits))
        for number, (_, value) in enumerate(values)
        for position, axis in enumerate(value.axes)
        if axis is not None and (hits := which(axis.cells)).any()
    ]
