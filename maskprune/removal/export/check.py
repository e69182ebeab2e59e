"""Whether what was written computes what the function does, up to rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.removal.export.dead import equations
from maskprune.removal.export.errors import ExportError, first_line


def compare(
    name: str,
    program: Callable[..., Any],
    apply: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    tolerance: float,
    unit: float,
) -> float:
    """The largest difference between a program that was read back and the function.

    Args:
        name: Of the file, for errors.
        program: What was read back: `program(*inputs)`.
        apply: The function: `apply(params, *inputs)`.
        arguments: Its parameters and inputs, arrays all.
        tolerance: Largest difference allowed, relative to the largest output magnitude (1 if that is smaller).
        unit: Rounding of the coarsest type that the function computes in, see `coarsest`.

    Raises:
        ValueError: The function does not run on its inputs.
        ExportError: The program does not run, gives other shapes, or other numbers by more than rounding explains.
    """
    run = jax.jit(apply)
    try:
        expected = _numbers(run(*arguments))
    except Exception as error:  # whatever a function does with these numbers
        raise ValueError(f"The function does not run on these inputs: {first_line(error)}") from error
    try:
        found = _numbers(program(*arguments[1:]))
    except Exception as error:  # each runtime has its own
        raise ExportError(f"`{name}` was written and does not run: {first_line(error)}. It was removed.") from error
    shapes = [[array.shape for array in arrays] for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ExportError(f"`{name}` gives the shapes {shapes[0]}, the function {shapes[1]}; it was removed.")
    worst, scale = _distance(expected, found), max([1.0, *map(_largest, expected)])
    if worst > max(tolerance, unit) * scale and worst > 10 * _rounding(run, arguments, unit):
        raise ExportError(f"`{name}` computed other numbers than the function, by {worst:.3g}; it was removed.")
    return worst


def coarsest(jaxpr: Any) -> float:
    """The unit in the last place of the coarsest floating-point type that a closed jaxpr computes in."""
    kinds = {getattr(var.aval, "dtype", None) for each in equations(jaxpr.jaxpr) for var in each.outvars}
    floats = [kind for kind in kinds if kind is not None and jnp.issubdtype(kind, jnp.inexact)]
    return max((float(jnp.finfo(kind).eps) for kind in floats), default=0.0)


def _rounding(run: Callable[..., Any], arguments: Sequence[Any], unit: float) -> float:
    """How far the outputs move when every number that goes in is moved by one unit in its last place, up or down."""
    rng = np.random.default_rng(0)

    def nudge(leaf: Any) -> Any:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        signs = unit * rng.choice([-1.0, 1.0], np.shape(leaf))
        return jnp.asarray(np.asarray(leaf, np.float64) * (1 + signs), jnp.result_type(leaf))

    moved = run(*jax.tree.map(nudge, tuple(arguments)))
    return _distance(_numbers(run(*arguments)), _numbers(moved), finite=True)


def _distance(left: list[np.ndarray], right: list[np.ndarray], *, finite: bool = False) -> float:
    """The largest difference; 0 between the same infinities and where both are no number."""
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        both = np.isfinite(a) & np.isfinite(b)
        worst = max(worst, float(np.max(np.abs(a[both] - b[both]), initial=0.0)))
        same = both | (a == b) | (np.isnan(a) & np.isnan(b))
        worst = worst if finite or same.all() else np.inf
    return worst


def _largest(array: np.ndarray) -> float:
    return float(np.max(np.abs(array[np.isfinite(array)]), initial=0.0))


def _numbers(outputs: Any) -> list[np.ndarray]:
    arrays = map(np.asarray, jax.tree.leaves(outputs))
    return [array.astype(complex if array.dtype.kind == "c" else np.float64) for array in arrays]
