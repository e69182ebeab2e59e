"""Primitives that move entries without computing: reshaping, broadcasting, cutting, joining, padding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from maskprune.masks.jaxpr.labels import UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Rule, Site, inside, select, take


def broadcast_in_dim(labels: Labels, equation: Equation, value: Value) -> Value:
    shape, places = equation.shapes[0], equation.params["broadcast_dimensions"]
    fill = value.uniform()
    axes: list[Axis | None] = [None] * len(shape)
    for position, size in enumerate(shape):
        source = places.index(position) if position in places else None
        if source is not None and value.shape[source] == size:
            axes[position] = value.axes[source]
        else:
            new = labels.axis(size, dead=fill)
            axes[position] = new and dataclasses.replace(new, copies=True)
    return Value(shape, tuple(axes), None, value.weights)


def blocks(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of two shapes that hold equally many entries. Axes of size 1 belong to none."""
    old = [i for i, size in enumerate(before) if not (isinstance(size, int) and size == 1)]
    new = [i for i, size in enumerate(after) if not (isinstance(size, int) and size == 1)]
    found = []
    while old or new:
        left, right = _shortest(before, old, after, new)
        found.append((old[:left], new[:right]))
        old, new = old[left:], new[right:]
    return found


def _shortest(before: tuple[Any, ...], old: list[int], after: tuple[Any, ...], new: list[int]) -> tuple[int, int]:
    for both in range(2, len(old) + len(new) + 1):
        for left in range(max(1, both - len(new)), min(len(old), both - 1) + 1):
            if math.prod(before[i] for i in old[:left]) == math.prod(after[i] for i in new[: both - left]):
                return left, both - left
    return len(old), len(new)


def reshape(labels: Labels, equation: Equation, value: Value) -> Value:
    shape = equation.shapes[0]
    axes: list[Axis | None] = [None] * len(shape)
    why = equation.why("a reshape cuts across these channels")
    needed = equation.why("one of these copies is needed to make the others")
    if 0 in shape or equation.params.get("dimensions") is not None:
        labels.pin_all([value], why)
        return Value(shape, tuple(axes), None, value.weights)
    for left, right in blocks(value.shape, shape):
        if not all(isinstance(value.shape[i], int) for i in left):
            for i in left:
                labels.pin(value.axes[i], why)
            continue
        whole = labels.merge([value.axes[i] for i in left], [value.shape[i] for i in left], needed)
        for place, rest in zip(right[:-1], range(1, len(right)), strict=True):
            inner = math.prod(shape[i] for i in right[rest:])
            axes[place], whole = labels.split(whole, shape[place], inner, why)
        if right:
            axes[right[-1]] = whole
    return Value(shape, tuple(axes), None, value.weights)


def reshape_shrink(site: Site, array: Any) -> Any:
    """Copies that go one by one leave no grid of rows and columns: they are picked, block by block."""
    before = list(zip(site.full[0], site.inputs[0], strict=True))
    after = list(zip(site.full_outputs[0], site.outputs[0], strict=True))
    if all(kept is None for _, kept in (*before, *after)):
        return site.bind(array, new_sizes=site.shapes[0])
    runs = blocks(site.full[0], site.full_outputs[0])
    sources = [_sources([before[i] for i in left], [after[i] for i in right]) for left, right in runs]
    if any(source is not None for source in sources):
        array = array.reshape([math.prod(array.shape[i] for i in left) for left, _ in runs])
        for axis, source in enumerate(sources):
            array = array if source is None else select(array, source, axis)
    return site.bind(array, new_sizes=site.shapes[0])


def _sources(before: list[tuple[Any, Any]], after: list[tuple[Any, Any]]) -> np.ndarray | None:
    """Where among the flattened entries of a cut block those of the new one stand; None if they are the same.

    Takes `(size, kept)` for each axis. A place that is not kept is a copy of any other along its axis.
    """
    if all(kept is None for _, kept in (*before, *after)):
        return None
    grid = np.ix_(*(np.arange(size) if kept is None else kept for size, kept in after))
    wanted = np.ravel_multi_index(grid, [size for size, _ in after]).ravel()
    places, sizes = [], []
    for along, (size, kept) in zip(np.unravel_index(wanted, [size for size, _ in before]), before, strict=True):
        sizes.append(size if kept is None else len(kept))
        places.append(along if kept is None else np.maximum(inside(None, kept, along), 0))
    found = np.asarray(np.ravel_multi_index(places, sizes)) if len(wanted) else wanted
    return None if np.array_equal(found, np.arange(math.prod(sizes))) else found


def transpose(labels: Labels, equation: Equation, value: Value) -> Value:
    del labels
    order = equation.params["permutation"]
    return Value(equation.shapes[0], tuple(value.axes[i] for i in order), None, value.weights)


def squeeze(labels: Labels, equation: Equation, value: Value) -> Value:
    del labels
    gone = [position % len(value.shape) for position in equation.params["dimensions"]]
    axes = tuple(axis for position, axis in enumerate(value.axes) if position not in gone)
    return Value(equation.shapes[0], axes, None, value.weights)


def concatenate(labels: Labels, equation: Equation, *values: Value) -> Value:
    shape, along = equation.shapes[0], equation.params["dimension"]
    why = equation.why("it is joined with channels that stay")
    axes: list[Axis | None] = []
    for position in range(len(shape)):
        mine = [value.axes[position] for value in values]
        if position != along:
            axes.append(_same_dead(labels.same(mine, why), mine))
        elif all(axis is None for axis in mine):
            axes.append(None)
        else:
            axes.append(_chain(labels, mine, [value.shape[position] for value in values], why))
    return Value(shape, tuple(axes), None, all(value.weights for value in values))


def _same_dead(joint: Axis | None, parts: list[Axis | None]) -> Axis | None:
    """Where every part holds the same value when gone, so does the whole."""
    if joint is None:
        return None
    deads = np.array([part.dead for part in parts if part is not None])
    return Axis(joint.cells, np.where((deads == deads[0]).all(axis=0), deads[0], UNKNOWN), joint.leaves)


def _chain(labels: Labels, parts: list[Axis | None], sizes: list[Any], why: Any) -> Axis | None:
    if not all(isinstance(size, int) for size in sizes):
        for part in parts:
            labels.pin(part, why)
        return None
    stays = np.zeros(1, int)  # the pinned cell
    cells = [np.repeat(stays, n) if a is None else a.cells for a, n in zip(parts, sizes, strict=True)]
    dead = [np.full(n, UNKNOWN) if a is None else a.dead for a, n in zip(parts, sizes, strict=True)]
    leaves = frozenset().union(*(part.leaves for part in parts if part is not None))
    return Axis(labels.apart(np.concatenate(cells), np.concatenate(dead)), np.concatenate(dead), leaves)


def concatenate_shrink(site: Site, *arrays: Any) -> Any:
    along = site.params["dimension"]
    after, start, parts = site.outputs[0][along], 0, []
    for array, full, before in zip(arrays, site.full, site.inputs, strict=True):
        if after is not None:
            wanted = after[(after >= start) & (after < start + full[along])] - start
            source = inside(wanted, before[along], np.arange(full[along]))
            same = len(source) == array.shape[along]  # the places that stay are in order
            array, start = array if same else select(array, source, along), start + full[along]
        parts.append(array)
    return site.bind(*parts)


def reindexed(labels: Labels, value: Value, shape: tuple[Any, ...], sources: dict[int, np.ndarray], why: Any) -> Value:
    """A value whose entries along some axes are picked by constant positions."""
    axes = list(value.axes)
    for position, source in sources.items():
        axes[position] = labels.pick(axes[position], source, why=why)
    return Value(shape, tuple(axes), None, value.weights)


def _cuts(params: Mapping[str, Any], shape: tuple[Any, ...]) -> dict[int, np.ndarray]:
    """Of a slice: for every axis that it cuts, and whose size is a number, the positions it takes."""
    strides = params["strides"] or (1,) * len(shape)
    limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cuts = {}
    for axis, (start, limit, stride) in enumerate(limits):
        ints = all(isinstance(number, int) for number in (start, limit, stride, shape[axis]))
        if ints and (start, limit, stride) != (0, shape[axis], 1):
            cuts[axis] = np.arange(start, limit, stride)
    return cuts


def slice_label(labels: Labels, equation: Equation, value: Value) -> Value:
    cuts = _cuts(equation.params, value.shape)
    return reindexed(labels, value, equation.shapes[0], cuts, equation.why("a single channel is picked out"))


def slice_shrink(site: Site, array: Any) -> Any:
    cuts = _cuts(site.params, site.full[0])
    labelled = {axis: source for axis, source in cuts.items() if site.inputs[0][axis] is not None}
    for axis, source in labelled.items():
        array = select(array, inside(site.outputs[0][axis], site.inputs[0][axis], source), axis)
    starts = [0 if axis in labelled else start for axis, start in enumerate(site.params["start_indices"])]
    whole = [axis in labelled or (axis not in cuts and site.inputs[0][axis] is not None) for axis in range(array.ndim)]
    limits = [array.shape[axis] if whole[axis] else limit for axis, limit in enumerate(site.params["limit_indices"])]
    strides = site.params["strides"]
    strides = strides and [1 if axis in labelled else stride for axis, stride in enumerate(strides)]
    return site.bind(
        array, start_indices=tuple(starts), limit_indices=tuple(limits), strides=strides and tuple(strides)
    )


def rev(labels: Labels, equation: Equation, value: Value) -> Value:
    turned = {a: np.arange(value.shape[a])[::-1] for a in equation.params["dimensions"] if value.axes[a] is not None}
    return reindexed(labels, value, equation.shapes[0], turned, equation.why("reversed"))


def split(labels: Labels, equation: Equation, value: Value) -> list[Value]:
    along, start, found = equation.params["axis"], 0, []
    for size, shape in zip(equation.params["sizes"], equation.shapes, strict=True):
        positions = np.arange(start, start + int(size))
        found.append(
            reindexed(labels, value, shape, {along: positions}, equation.why("a single channel is picked out"))
        )
        start += int(size)
    return found


def split_shrink(site: Site, array: Any) -> list[Any]:
    along = site.params["axis"]
    return site.bind(array, sizes=tuple(shape[along] for shape in site.shapes))


def _padded(config: Any, size: int) -> np.ndarray | None:
    """Where every padded position comes from, -1 for padding; None with gaps between positions."""
    low, high, interior = (int(number) for number in config)
    if interior:
        return None
    source = np.concatenate([np.full(max(low, 0), -1), np.arange(size), np.full(max(high, 0), -1)])
    return source[max(-low, 0) : len(source) - max(-high, 0)]


def pad(labels: Labels, equation: Equation, value: Value, filling: Value) -> Value:
    axes = list(value.axes)
    fill = filling.uniform()
    for position, config in enumerate(equation.params["padding_config"]):
        axis = axes[position]
        if axis is None or tuple(config) == (0, 0, 0):
            continue
        source = _padded(config, value.shape[position])
        if source is None:
            labels.pin(axis, equation.why("padding goes between these channels"))
            axes[position] = None
        else:
            axes[position] = labels.pick(axis, source, why=equation.why("a single channel is picked out"), fill=fill)
    dirty = any(tuple(config) != (0, 0, 0) for config in equation.params["padding_config"])
    if dirty:  # what is added along one axis is a new entry of the others too
        axes = [axis and Axis(axis.cells, np.where(axis.dead == fill, fill, UNKNOWN), axis.leaves) for axis in axes]
    return Value(equation.shapes[0], tuple(axes), None, value.weights and filling.weights)


def pad_shrink(site: Site, array: Any, filling: Any) -> Any:
    config = [tuple(each) for each in site.params["padding_config"]]
    for axis, each in enumerate(config):
        if site.inputs[0][axis] is None and site.outputs[0][axis] is None:
            continue
        if each == (0, 0, 0):
            continue
        source = _padded(each, site.full[0][axis])
        assert source is not None, "a padded axis with gaps never shrinks"
        wanted = inside(site.outputs[0][axis], site.inputs[0][axis], source)
        front = int(np.argmax(wanted >= 0)) if (wanted >= 0).any() else len(wanted)
        middle = wanted[wanted >= 0]
        array = select(array, middle, axis)
        config[axis] = (front, len(wanted) - front - len(middle), 0)
    return site.bind(array, filling, padding_config=tuple(config))


def tile(labels: Labels, equation: Equation, value: Value) -> Value:
    axes: list[Axis | None] = []
    for size, times, axis in zip(value.shape, equation.params["reps"], value.axes, strict=True):
        if times == 1:
            axes.append(axis)
        elif isinstance(size, int) and size == 1:
            new = labels.axis(times, dead=value.uniform())
            axes.append(new and dataclasses.replace(new, copies=True))
        else:
            axes.append(axis and labels.pick(axis, np.tile(np.arange(size), times), why=""))
    return Value(equation.shapes[0], tuple(axes), None, value.weights)


def tile_shrink(site: Site, array: Any) -> Any:
    reps = []
    for axis, (size, times) in enumerate(zip(site.full[0], site.params["reps"], strict=True)):
        before, after = site.inputs[0][axis], site.outputs[0][axis]
        if times == 1 or (before is None and after is None):
            reps.append(times)
        elif size == 1:
            reps.append(site.shapes[0][axis])
        else:
            array = select(array, inside(after, before, np.tile(np.arange(size), times)), axis)
            reps.append(1)
    return site.bind(array, reps=tuple(reps))


def stack(labels: Labels, equation: Equation, *values: Value) -> Value:
    """The new axis stays whole."""
    along, why = equation.params["axis"], equation.why("it is stacked with channels that stay")
    axes: list[Axis | None] = []
    for position in range(len(equation.shapes[0]) - 1):
        mine = [value.axes[position] for value in values]
        axes.append(_same_dead(labels.same(mine, why), mine))
    axes.insert(along, None)
    return Value(equation.shapes[0], tuple(axes), None, all(value.weights for value in values))


def made(labels: Labels, equation: Equation, *values: Value) -> Value:
    """Numbers made from nothing but their place: they are made in full, then cut."""
    del values
    return labels.fresh(equation.shapes[0], weights=equation.name == "iota")


def made_shrink(site: Site, *arrays: Any) -> Any:
    return take(site.bind(*arrays), site.outputs[0])


RULES = {
    "broadcast_in_dim": Rule(broadcast_in_dim, lambda site, x: site.bind(x, shape=site.shapes[0])),
    "reshape": Rule(reshape, reshape_shrink),
    "transpose": Rule(transpose),
    "squeeze": Rule(squeeze),
    "concatenate": Rule(concatenate, concatenate_shrink),
    "slice": Rule(slice_label, slice_shrink),
    "rev": Rule(rev),
    "split": Rule(split, split_shrink),
    "pad": Rule(pad, pad_shrink),
    "tile": Rule(tile, tile_shrink),
    "stack": Rule(stack),
    "iota": Rule(made, made_shrink),
    "random_bits": Rule(made, made_shrink),
}
