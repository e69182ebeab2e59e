"""Following a function back: where an axis that never shrinks comes from, and which inputs matter.

Works on bodies that were read, through calls, loops and whatever only moves entries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from maskprune.masks.jaxpr.internals import parameters
from maskprune.masks.jaxpr.labels import Axis
from maskprune.masks.jaxpr.lines import source_line
from maskprune.masks.jaxpr.reader import Scope, is_literal
from maskprune.masks.jaxpr.rules import RULES
from maskprune.masks.jaxpr.rules.elementwise import elementwise
from maskprune.masks.jaxpr.union_find import PINNED, Cells


UNTOLD = "what never shrinks"
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


def follow(place: Place, cells: Cells, inputs: Mapping[int, list[str]]) -> str | int:
    """Where an axis that never shrinks comes from, in words; or the cell of parameters that made it stay."""
    for _ in range(STEPS):
        value = None if is_literal(place.variable) else place.scope.value(place.variable)
        axis = None if value is None or len(value.axes) <= place.axis else value.axes[place.axis]
        if axis is not None:
            cell = int(axis.cells[place.position or 0])
            if cell != PINNED and cells.find(np.array([cell]))[0] == PINNED:
                return cell
        before = _before(place)
        if isinstance(before, str):
            return before
        if before is None:
            names = inputs.get(id(place.scope))
            number = place.scope.jaxpr.invars.index(place.variable)
            return UNTOLD if names is None else names[number].format(axis=place.axis)
        place = before
    return UNTOLD


def stays(axis: Axis | None, where: int | None) -> bool:
    """Whether an axis never shrinks, or not at this place."""
    return axis is None or (where is not None and axis.cells[where] == PINNED)


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
        stacked = name == "scan" and number >= parameters(raw)["num_carry"]
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
        axis += number >= parameters(raw)["num_consts"] + parameters(raw)["num_carry"]
    elif name == "cond":
        number += 1
    elif name == "while":
        conds, bodies = parameters(raw)["cond_nconsts"], parameters(raw)["body_nconsts"]
        if place.scope is scope.inner.get((scope.jaxpr.eqns.index(raw), 1)):
            number += conds
        elif number >= conds:
            number += bodies
    elif name not in TRANSPARENT:
        return UNTOLD
    return Place(place.path[:-1], scope, raw.invars[number], axis, place.position)


def _operand(raw: Any, scope: Scope, place: Place) -> Place | None:
    """The operand whose axis an equation hands on, if it only moves it."""
    name, params, axis = raw.primitive.name, parameters(raw), place.axis
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
            if stays(scope.value(atom).axes[axis], place.position)
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
    summed, batch = parameters(raw)["dimension_numbers"]
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
    numbers = parameters(raw)["dimension_numbers"]
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
        branches = [used_inputs(scope.inner[position, n]) for n in range(len(parameters(raw)["branches"]))]
        return [True, *(any(flags) for flags in zip(*branches, strict=True))]
    return [True] * len(raw.invars)
