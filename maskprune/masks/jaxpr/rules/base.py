"""The form of a rule: what one primitive says of its labels, and how to run it on shrunk arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.labels import Labels, Value


Kept = tuple[np.ndarray | None, ...]  # for every axis the positions that stay, or None for all


class Equation(NamedTuple):
    """One equation of a function, as rules see it.

    Attributes:
        name: Of the primitive.
        params: Its parameters.
        shapes: The full shapes of the outputs.
        where: Called for the source line, as in `"model.py:31"`.
        read: `read(number, values) -> values` reads the equation's inner function of that number.
        raw: The equation itself.
        path: `(scope, equation)` of the equations it lies in, outermost first, and last its own.
    """

    name: str
    params: Mapping[str, Any]
    shapes: list[tuple[Any, ...]]
    where: Callable[[], str]
    read: Callable[..., list[Value]]
    raw: Any
    path: tuple[tuple[Any, Any], ...] = ()

    def why(self, text: str, *, quiet: bool = False) -> Why:
        return Why(text, self, quiet)


class Why(NamedTuple):
    """A reason that finds its source line only when somebody reads it. A `quiet` one is nothing to report."""

    text: str
    equation: Equation
    quiet: bool = False

    def __str__(self) -> str:
        return f"{self.text} ({self.equation.where()})"


class Site(NamedTuple):
    """One equation at the moment it runs on shrunk arrays.

    Attributes:
        name, params: Of the primitive.
        inputs: What is kept of every input.
        outputs: What is kept of every output.
        full: Full input shapes.
        full_outputs: Full output shapes.
        shapes: Output shapes, shrunk.
        constants: Inputs that are known constants, in full.
        run: `run(number, *arrays) -> arrays` runs the equation's inner function of that number, shrunk.
        bind: `bind(*arrays, **changed) -> array or arrays` runs the primitive with changed parameters.
        shrink: `shrink(function, inputs, outputs, shapes) -> function` shrinks any function of flat full arrays.
    """

    name: str
    params: Mapping[str, Any]
    inputs: list[Kept]
    outputs: list[Kept]
    full: list[tuple[Any, ...]]
    full_outputs: list[tuple[Any, ...]]
    shapes: list[tuple[Any, ...]]
    constants: list[np.ndarray | None]
    run: Callable[..., list[Any]]
    bind: Callable[..., Any]
    shrink: Callable[..., Callable[..., list[Any]]]


def rebind(site: Site, *arrays: Any) -> Any:
    """Runs the primitive as it is: for all that read no sizes from their parameters."""
    return site.bind(*arrays)


class Rule(NamedTuple):
    """What the tracer needs to know of one primitive.

    Attributes:
        label: `label(labels, equation, *values) -> Value or list of Values`: says through `labels` which positions must
            be equal, which stay, and describes the outputs.
        shrink: `shrink(site, *arrays) -> array or list`: runs the primitive on shrunk arrays.
    """

    label: Callable[..., Value | list[Value]]
    shrink: Callable[..., Any] = rebind


def unknown(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """Protects whatever touches a primitive without a rule."""
    labels.pin_all(values, equation.why(f"unknown primitive `{equation.name}`"))
    weights = all(value.weights for value in values)
    return [labels.whole(shape, weights=weights) for shape in equation.shapes]


def take(array: Any, kept: Kept) -> Any:
    """The kept part of a full array."""
    for axis, positions in enumerate(kept):
        if positions is not None and len(positions) < array.shape[axis]:
            array = select(array, positions, axis)
    return array


def select(array: Any, positions: np.ndarray, axis: int) -> Any:
    """Constant positions along one axis: a slice where they are a range, which compiles to less."""
    if isinstance(array, np.ndarray):
        return np.take(array, positions, axis=axis)
    steps = np.diff(positions)
    if len(positions) and (len(steps) == 0 or (steps[0] > 0 and (steps == steps[0]).all())):
        cut = [slice(None)] * array.ndim
        cut[axis] = slice(int(positions[0]), int(positions[-1]) + 1, int(steps[0]) if len(steps) else 1)
        return array[tuple(cut)]
    return jnp.take(array, np.asarray(positions, np.int32), axis=axis, mode="clip")


def inside(kept_out: np.ndarray | None, kept_in: np.ndarray | None, source: np.ndarray) -> np.ndarray:
    """Where the kept outputs of an index map lie among the kept inputs; -1 stays -1."""
    wanted = source if kept_out is None else source[kept_out]
    if kept_in is None:
        return wanted
    place = np.full(int(max(kept_in.max(initial=-1), wanted.max(initial=-1))) + 2, -1)
    place[kept_in] = np.arange(len(kept_in))
    return np.where(wanted < 0, -1, place[wanted])


def as_rules(names: Sequence[str], rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names, rule)
