"""Why channels stay, in words: which leaf, input or constant they are bound to, and what keeps that one.

The labels remember for every cell that stays what was said of it, and which cell that stayed before it met; where it
met an axis that never shrinks, the function is followed back from the equation to where that axis comes from. All of
this happens after a function was read, and only for what is asked about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskprune.cells import PINNED, Cells
from maskprune.labels import Axis, Value
from maskprune.lines import source_line
from maskprune.reading import Scope, is_literal
from maskprune.rules import RULES
from maskprune.rules.elementwise import elementwise


OTHERS = "channels that stay"  # stands in a reason for what the channels met
SLIDING = (
    "slice",
    "split",
    "dynamic_slice",
    "pad",
    "rev",
    "sort",
    "cumsum",
    "cummax",
    "cumprod",
    "dynamic_update_slice",
)
STEPS = 200  # followed back at most
TRANSPARENT = ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call")
Path = tuple[tuple[Scope, Any], ...]


class Place(NamedTuple):
    """An axis of a variable, and where along it (None: anywhere), in the innermost body of a path."""

    path: Path
    scope: Scope
    variable: Any
    axis: int
    position: int | None


class Reasons:
    """Tells why cells stay.

    Args:
        cells: The cells.
        leaves: `(name, axis)` of the leaf axes by which cells are named, in the order of preference.
        inputs: For every function's body its inputs by name.
    """

    def __init__(self, cells: Cells, leaves: Sequence[tuple[str, Axis]], inputs: Mapping[int, Sequence[str]]) -> None:
        self.cells, self.leaves, self.inputs = cells, leaves, inputs
        self.known: dict[int, str] | None = None

    def of(self, cell: int) -> str:
        """The reason of a cell that stays."""
        why, met = self.cells.cause(cell)
        if OTHERS not in _text(why):
            return str(why)
        what, root = self._leaf(met), self._root(cell)
        if what is None:
            return root
        return f"{str(why).replace(OTHERS, what)}, which stays: {root}"

    def _root(self, cell: int) -> str:
        """The reason at the end of a chain of meetings."""
        why: Any = OTHERS
        for _ in range(STEPS):
            why, met = self.cells.cause(cell)
            if OTHERS not in _text(why):
                return str(why)
            if met is None or self.cells.names(np.array([met]))[0] == PINNED:
                return _put(str(why), _origin(why, cell, self) or OTHERS)
            cell = met
        return str(why)

    def _leaf(self, met: int | None) -> str | None:
        """The leaf axis that the first cell with a leaf in a chain of meetings belongs to."""
        for _ in range(STEPS):
            if met is None:
                return None
            root = int(self.cells.names(np.array([met]))[0])
            if root in self._names():
                return f"`{self._names()[root]}`"
            why, met = self.cells.cause(met) if root != PINNED else ("", None)
            if OTHERS not in _text(why):
                return None
        return None

    def _names(self) -> dict[int, str]:
        if self.known is None:
            self.known = {}
            for name, axis in self.leaves:
                for root in self.cells.names(axis.cells).tolist():
                    self.known.setdefault(root, name)
        return self.known

    def input_name(self, scope: Scope, number: int) -> str | None:
        names = self.inputs.get(id(scope))
        return None if names is None else names[number]


def _put(reason: str, what: str) -> str:
    """A reason with what was met in its place; a source line that both tell is told once."""
    line = reason[reason.rfind(" (") + 2 : -1]
    return reason.replace(OTHERS, what.removesuffix(f" at {line}"))


def _text(why: Any) -> str:
    return getattr(why, "text", why)


def _origin(why: Any, cell: int, reasons: Reasons) -> str | None:
    """What an equation gave `cell` to meet: the other operand whose axis of the same size never shrinks."""
    path = getattr(getattr(why, "equation", None), "path", ())
    if not path:
        return None
    scope, raw = path[-1]
    values = [(atom, scope.value(atom)) for atom in raw.invars]
    root = reasons.cells.names(np.array([cell]))[0]
    mine = _holding(values, lambda cells: reasons.cells.names(cells) == root)
    mine = mine or _holding(values, lambda cells: reasons.cells.find(cells) == PINNED)  # as a part of a pair
    sizes = {size for *_, size in mine}
    others = [
        Place(path[:-1], scope, atom, position, where)
        for number, (atom, value) in enumerate(values)
        for position, size in enumerate(value.shape)
        if size in sizes
        for where in {place for own, _, place, n in mine if n == size and own != number}
        if _stays(value.axes[position], where)
    ]
    others.sort(key=lambda place: place.axis not in {position for _, position, *_ in mine})
    return follow(others[0], reasons) if others else None


def _holding(values: Sequence[tuple[Any, Value]], which: Callable[[np.ndarray], np.ndarray]) -> list[tuple[int, ...]]:
    """`(operand, axis, first position, size)` of the axes that hold such a cell."""
    return [
        (number, position, int(np.argmax(hits)), len(hits))
        for number, (_, value) in enumerate(values)
        for position, axis in enumerate(value.axes)
        if axis is not None and (hits := which(axis.cells)).any()
    ]


def _stays(axis: Axis | None, where: int | None) -> bool:
    """Whether an axis never shrinks, or not at this place."""
    return axis is None or (where is not None and axis.cells[where] == PINNED)


def follow(place: Place, reasons: Reasons) -> str:
    """Where an axis that never shrinks comes from."""
    for _ in range(STEPS):
        before = _before(place)
        if isinstance(before, Place):
            place = before
            continue
        if before is not None:
            return before
        number = place.scope.jaxpr.invars.index(place.variable)
        name = reasons.input_name(place.scope, number)
        return OTHERS if name is None else name.format(axis=place.axis)
    return OTHERS


def _before(place: Place) -> Place | str | None:
    """One step back; in words where that is not known; None at an input of the outermost body."""
    path, scope, variable, axis, _ = place
    if is_literal(variable):
        return "a constant"
    if variable in scope.jaxpr.constvars:
        return "a constant"
    if variable in scope.jaxpr.invars:
        return _outside(place) if path else None
    position, raw = next((i, e) for i, e in enumerate(scope.jaxpr.eqns) if variable in e.outvars)
    name, number = raw.primitive.name, raw.outvars.index(variable)
    inner = scope.inner.get((position, 0))
    if inner is not None and (name in TRANSPARENT or name == "scan"):
        stacked = name == "scan" and number >= raw.params["num_carry"]
        if not (stacked and axis == 0):
            return Place((*path, (scope, raw)), inner, inner.jaxpr.outvars[number], axis - stacked, place.position)
    if name == "iota":
        return "a constant"
    known = _operand(raw, scope, place)
    return known or f"what `{name}` makes at {source_line(*(each for _, each in path), raw)}"


def _outside(place: Place) -> Place | str:
    """From an input of a body to what it is given."""
    (scope, raw), name = place.path[-1], place.path[-1][1].primitive.name
    number = place.scope.jaxpr.invars.index(place.variable)
    axis = place.axis
    if name == "scan":
        axis += number >= raw.params["num_consts"] + raw.params["num_carry"]
    elif name == "cond":
        number += 1
    elif name == "while":
        conds, bodies = raw.params["cond_nconsts"], raw.params["body_nconsts"]
        if place.scope is scope.inner.get((scope.jaxpr.eqns.index(raw), 1)):
            number += conds
        elif number >= conds:
            number += bodies
    elif name not in TRANSPARENT:
        return OTHERS
    return Place(place.path[:-1], scope, raw.invars[number], axis, place.position)


def _operand(raw: Any, scope: Scope, place: Place) -> Place | None:
    """The operand whose axis an equation hands on, if it only moves it."""
    name, params, axis = raw.primitive.name, raw.params, place.axis
    size = place.variable.aval.shape[axis]
    to = lambda number, axis, position=place.position: place._replace(
        variable=raw.invars[number], axis=axis, position=position
    )
    if name == "transpose":
        return to(0, params["permutation"][axis])
    if name == "broadcast_in_dim" and axis in params["broadcast_dimensions"]:
        return to(0, params["broadcast_dimensions"].index(axis))
    if name == "squeeze":
        gone = {n % len(raw.invars[0].aval.shape) for n in params["dimensions"]}
        return to(0, [n for n in range(len(raw.invars[0].aval.shape)) if n not in gone][axis])
    if name.startswith("reduce_") and "axes" in params:
        return to(0, [n for n in range(len(raw.invars[0].aval.shape)) if n not in params["axes"]][axis])
    if name == "concatenate" and axis == params["dimension"]:
        return _part(raw, place, to)
    if name == "dot_general":
        return _factor(raw, axis, to)
    if name == "gather":
        return _gathered(raw, axis, to)
    if name == "reshape":
        return _reshaped(raw, axis, to)
    if name in SLIDING and raw.invars[0].aval.ndim > axis:
        return to(0, axis, None)
    rule = RULES.get(name)
    if (rule is not None and rule.label is elementwise) or name == "concatenate":
        fits = [
            n
            for n, atom in enumerate(raw.invars)
            if np.shape(atom.aval) and len(atom.aval.shape) > axis and atom.aval.shape[axis] == size
            if _stays(scope.value(atom).axes[axis], place.position)
        ]
        fits.sort(key=lambda n: scope.value(raw.invars[n]).weights)
        return to(fits[0], axis) if fits else None
    return None


def _part(raw: Any, place: Place, to: Any) -> Place | None:
    """The operand of a concatenation in which a position lies."""
    start = 0
    for number, atom in enumerate(raw.invars):
        size = atom.aval.shape[place.axis]
        if place.position is None or not isinstance(size, int):
            return None
        if place.position < start + size:
            return to(number, place.axis, place.position - start)
        start += size
    return None


def _factor(raw: Any, axis: int, to: Any) -> Place:
    """The operand of a product whose axis its result has there."""
    summed, batch = raw.params["dimension_numbers"]
    if axis < len(batch[0]):
        return to(0, batch[0][axis])
    axis -= len(batch[0])
    for number in (0, 1):
        rank = len(raw.invars[number].aval.shape)
        free = [n for n in range(rank) if n not in (*summed[number], *batch[number])]
        if axis < len(free):
            return to(number, free[axis])
        axis -= len(free)
    raise AssertionError("a product has the axes of its operands")


def _gathered(raw: Any, axis: int, to: Any) -> Place:
    """Of a gather what was indexed, or the indices."""
    numbers = raw.params["dimension_numbers"]
    if axis not in numbers.offset_dims:
        return to(1, axis - sum(n < axis for n in numbers.offset_dims), None)
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    left = [n for n in range(raw.invars[0].aval.ndim) if n not in gone]
    return to(0, left[numbers.offset_dims.index(axis)], None)


def _reshaped(raw: Any, axis: int, to: Any) -> Place | None:
    """The axis that a reshape leaves as it is, if it does."""
    before, after = raw.invars[0].aval.shape, raw.outvars[0].aval.shape
    same = lambda n: before[n] == after[axis] and math.prod(before[:n]) == math.prod(after[:axis])
    return next((to(0, n) for n in range(len(before)) if same(n)), None)


def used_inputs(scope: Scope, outputs: Sequence[bool] | None = None) -> list[bool]:
    """Of every input of a body whether some output that matters (by default all) is computed from it."""
    matters = [True] * len(scope.jaxpr.outvars) if outputs is None else outputs
    needed = {v for v, wanted in zip(scope.jaxpr.outvars, matters, strict=True) if wanted and not is_literal(v)}
    for position, raw in reversed(list(enumerate(scope.jaxpr.eqns))):
        wanted = [var in needed for var in raw.outvars]
        if any(wanted):
            flags = _used_operands(scope, position, raw, wanted)
            needed.update(a for a, used in zip(raw.invars, flags, strict=True) if used and not is_literal(a))
    return [var in needed for var in scope.jaxpr.invars]


def _used_operands(scope: Scope, position: int, raw: Any, wanted: list[bool]) -> list[bool]:
    name, inner = raw.primitive.name, scope.inner.get((position, 0))
    if inner is not None and name in TRANSPARENT and name != "custom_vjp_call":
        return used_inputs(inner, wanted)
    if inner is not None and name == "scan":
        return used_inputs(inner)
    if inner is not None and name == "cond":
        branches = [used_inputs(scope.inner[position, n]) for n in range(len(raw.params["branches"]))]
        return [True, *(any(flags) for flags in zip(*branches, strict=True))]
    return [True] * len(raw.invars)
