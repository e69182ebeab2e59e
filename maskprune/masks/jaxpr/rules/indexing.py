"""Primitives that read or write at given places: channels may move only where the places are constants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.labels import UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Rule, Site, as_rules, inside, select


DATA = "these channels are indexed by data"


class _Take(NamedTuple):
    """A gather that picks constant positions along one axis, which becomes axis `out` of the result."""

    axis: int
    positions: np.ndarray
    out: int


def _offset_axes(params: Mapping[str, Any], rank: int) -> dict[int, int]:
    """Operand axis -> output axis, for the axes of which a window is copied."""
    numbers = params["dimension_numbers"]
    hidden = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    return dict(zip([axis for axis in range(rank) if axis not in hidden], numbers.offset_dims, strict=True))


def _as_take(params: Mapping[str, Any], shape: tuple[Any, ...], indices: np.ndarray | None) -> _Take | None:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    if indices is None or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None
    axis = numbers.start_index_map[0]
    whole = all(size == shape[other] for other, size in enumerate(sizes) if other != axis)
    if not whole or not isinstance(shape[axis], int):
        return None
    rank = len(numbers.offset_dims) + indices.ndim - 1
    if axis in numbers.collapsed_slice_dims and indices.ndim == 2:
        (out,) = set(range(rank)) - set(numbers.offset_dims)
        positions = indices[:, 0]
    elif axis not in numbers.collapsed_slice_dims and indices.ndim == 1:  # one range
        out = _offset_axes(params, len(shape))[axis]
        positions = int(np.clip(indices[0], 0, shape[axis] - sizes[axis])) + np.arange(sizes[axis])
    else:
        return None
    return _Take(axis, positions, out) if ((positions >= 0) & (positions < shape[axis])).all() else None


def gather(labels: Labels, equation: Equation, value: Value, indices: Value) -> Value:
    params, shape = equation.params, equation.shapes[0]
    numbers = params["dimension_numbers"]
    axes: list[Axis | None] = [None] * len(shape)
    constant = _as_take(params, value.shape, indices.const)
    for axis, out in _offset_axes(params, len(value.shape)).items():
        if params["slice_sizes"][axis] == value.shape[axis]:
            axes[out] = value.axes[axis]
    for axis in range(len(value.shape)):
        read = axis in numbers.start_index_map and params["slice_sizes"][axis] != value.shape[axis]
        if (read or axis in numbers.operand_batching_dims) and not (constant and axis == constant.axis):
            labels.pin(value.axes[axis], equation.why(DATA))
    if constant is None:
        axes = [axis and _filled(axis, equation) for axis in axes]
        batch = [position for position in range(len(shape)) if position not in numbers.offset_dims]
        for position, axis in zip(batch, indices.axes[:-1], strict=True):
            axes[position] = axis and Axis(axis.cells, np.full(len(axis.cells), UNKNOWN))
        for axis in indices.axes[-1:]:
            labels.pin(axis, equation.why(DATA))
    else:
        picked = labels.pick(value.axes[constant.axis], constant.positions, why=equation.why("a channel is picked out"))
        axes[constant.out] = picked
    weights = value.weights and indices.weights
    if value.weights and not weights:
        axes = labels.activations(axes)
    return Value(shape, tuple(axes), None, weights)


def _filled(axis: Axis, equation: Equation) -> Axis:
    """An index outside brings in the fill value, in disabled positions too; NaN spoils both networks alike.

    Without a fill value JAX takes NaN, of integers the lowest or (unsigned) the largest.
    """
    fill, dtype = equation.params["fill_value"], equation.raw.outvars[0].aval.dtype
    spoils = jnp.issubdtype(dtype, jnp.inexact) if fill is None else fill == 0 or np.isnan(fill)
    if "FILL" not in str(equation.params["mode"]) or spoils:
        return axis
    return Axis(axis.cells, np.full(len(axis.cells), UNKNOWN), axis.leaves)


def gather_shrink(site: Site, array: Any, indices: Any) -> Any:
    moved = _moved_axis(site)
    if moved is not None:
        wanted = inside(site.outputs[0][moved.out], site.inputs[0][moved.axis], moved.positions)
        return jnp.moveaxis(select(array, wanted, moved.axis), moved.axis, moved.out)
    sizes = list(site.params["slice_sizes"])
    for axis, size in enumerate(sizes):
        if size == site.full[0][axis]:
            sizes[axis] = array.shape[axis]
    return site.bind(array, indices, slice_sizes=tuple(sizes))


def _moved_axis(site: Site) -> _Take | None:
    """The constant take behind a gather whose axis shrinks on either side."""
    found = _as_take(site.params, site.full[0], site.constants[1])
    if found is None:
        return None
    shrinks = site.inputs[0][found.axis] is not None or site.outputs[0][found.out] is not None
    return found if shrinks else None


def dynamic_slice(labels: Labels, equation: Equation, value: Value, *starts: Value) -> Value:
    axes = list(value.axes)
    for position, size in enumerate(equation.params["slice_sizes"]):
        if size == value.shape[position] or axes[position] is None:
            continue
        source = _range(starts[position].const, size, value.shape[position])
        if source is None:
            labels.pin(axes[position], equation.why(DATA))
            axes[position] = None
        else:
            axes[position] = labels.pick(axes[position], source, why=equation.why("a single channel is picked out"))
    return Value(equation.shapes[0], tuple(axes), None, value.weights and all(start.weights for start in starts))


def _range(start: np.ndarray | None, size: int, whole: int) -> np.ndarray | None:
    return None if start is None else int(np.clip(start, 0, whole - size)) + np.arange(size)


def dynamic_slice_shrink(site: Site, array: Any, *starts: Any) -> Any:
    sizes, starts_left = list(site.params["slice_sizes"]), list(starts)
    for position, size in enumerate(site.params["slice_sizes"]):
        whole, kept_in, kept_out = site.full[0][position], site.inputs[0][position], site.outputs[0][position]
        if kept_in is None and kept_out is None:
            continue
        source = np.arange(whole) if size == whole else _range(site.constants[1 + position], size, whole)
        assert source is not None, "an axis that is sliced by data never shrinks"
        array = select(array, inside(kept_out, kept_in, source), position)
        sizes[position], starts_left[position] = array.shape[position], jnp.zeros_like(starts[position])
    return site.bind(array, *starts_left, slice_sizes=tuple(sizes))


def dynamic_update_slice(labels: Labels, equation: Equation, value: Value, update: Value, *starts: Value) -> Value:
    del starts
    axes: list[Axis | None] = []
    for position, size in enumerate(value.shape):
        mine = [value.axes[position], update.axes[position]]
        if update.shape[position] != size:
            for axis in mine:
                labels.pin(axis, equation.why(DATA))
            axes.append(None)
            continue
        joint = labels.same(mine, equation.why("written over channels that stay"))
        axes.append(joint and Axis(joint.cells, _common(*mine), joint.leaves))
    return Value(equation.shapes[0], tuple(axes), None, value.weights and update.weights)


def _common(one: Axis | None, other: Axis | None) -> np.ndarray:
    assert one is not None and other is not None
    return np.where(one.dead == other.dead, one.dead, UNKNOWN)


def scatter(labels: Labels, equation: Equation, value: Value, indices: Value, updates: Value) -> Value:
    """Axes that are written whole pass; those that are written at places stay."""
    numbers = equation.params["dimension_numbers"]
    hidden = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    windows = dict(
        zip([a for a in range(len(value.shape)) if a not in hidden], numbers.update_window_dims, strict=True)
    )
    labels.pin_all([indices], equation.why(DATA))
    axes: list[Axis | None] = []
    for position, size in enumerate(value.shape):
        window = windows.get(position)
        written = position in numbers.scatter_dims_to_operand_dims and not (
            window is not None and updates.shape[window] == size
        )
        if window is None or written or updates.shape[window] != size:
            labels.pin(value.axes[position], equation.why(DATA))
            axes.append(None)
            continue
        mine = [value.axes[position], updates.axes[window]]
        joint = labels.same(mine, equation.why("written over channels that stay"))
        axes.append(joint and Axis(joint.cells, _written(equation.name, *mine), joint.leaves))
    for position in set(range(len(updates.shape))) - set(numbers.update_window_dims):
        labels.pin(updates.axes[position], equation.why(DATA))
    return Value(equation.shapes[0], tuple(axes), None, value.weights and updates.weights)


def _written(name: str, one: Axis | None, other: Axis | None) -> np.ndarray:
    common = _common(one, other)
    return common if name == "scatter" else np.where(common == 0, 0.0, UNKNOWN)


RULES = {
    "gather": Rule(gather, gather_shrink),
    "dynamic_slice": Rule(dynamic_slice, dynamic_slice_shrink),
    "dynamic_update_slice": Rule(dynamic_update_slice),
    **as_rules(["scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max"], Rule(scatter)),
}
