"""Constants computed while a function is read: indices, masks and tables, which then shrink by plain selection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.rules import elementwise
from maskprune.rules.base import Equation


LARGEST = 1 << 16  # entries of a constant that is worth knowing


def _broadcast(params: dict[str, Any], shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    expanded = [1] * len(shape)
    for source, place in enumerate(params["broadcast_dimensions"]):
        expanded[place] = x.shape[source]
    return np.broadcast_to(x.reshape(expanded), shape)


def _iota(params: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    along = params["dimension"]
    line = np.arange(shape[along]).reshape([-1 if axis == along else 1 for axis in range(len(shape))])
    return np.broadcast_to(line, shape)


def _slice(params: dict[str, Any], shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    del shape
    strides = params["strides"] or (None,) * x.ndim
    cuts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*cut) for cut in cuts)]


def _dynamic_slice(params: dict[str, Any], shape: tuple[int, ...], x: np.ndarray, *starts: np.ndarray) -> np.ndarray:
    first = [int(np.clip(s, 0, n - m)) for s, n, m in zip(starts, x.shape, params["slice_sizes"], strict=True)]
    return x[tuple(slice(s, s + m) for s, m in zip(first, shape, strict=True))]


def _cumsum(params: dict[str, Any], x: np.ndarray) -> np.ndarray:
    along = params["axis"]
    return np.flip(np.flip(x, along).cumsum(along), along) if params["reverse"] else x.cumsum(along)


def _scatter(params: dict[str, Any], x: np.ndarray, indices: np.ndarray, updates: np.ndarray, add: bool) -> Any:
    """Single entries of a vector, as `jnp.repeat` writes them; None for anything else."""
    numbers = params["dimension_numbers"]
    if x.ndim != 1 or numbers.update_window_dims or "FILL" not in str(params["mode"]):
        return None
    rows, values = indices.reshape(-1), np.broadcast_to(updates, indices.shape[:-1]).reshape(-1)
    inside, found = (rows >= 0) & (rows < len(x)), x.copy()
    if add:
        np.add.at(found, rows[inside], values[inside])
    else:
        found[rows[inside]] = values[inside]
    return found


FOLDS: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "reshape": lambda params, shape, x: x.reshape(shape),
    "transpose": lambda params, shape, x: x.transpose(params["permutation"]),
    "squeeze": lambda params, shape, x: x.reshape(shape),
    "rev": lambda params, shape, x: np.flip(x, params["dimensions"]),
    "concatenate": lambda params, shape, *xs: np.concatenate(xs, params["dimension"]),
    "reduce_sum": lambda params, shape, x: x.sum(params["axes"]),
    "reduce_max": lambda params, shape, x: x.max(params["axes"]),
    "reduce_min": lambda params, shape, x: x.min(params["axes"]),
    "reduce_and": lambda params, shape, x: x.all(params["axes"]),
    "reduce_or": lambda params, shape, x: x.any(params["axes"]),
    "tile": lambda params, shape, x: np.tile(x, params["reps"]),
    "scatter": lambda params, shape, *xs: _scatter(params, *xs, add=False),
    "scatter-add": lambda params, shape, *xs: _scatter(params, *xs, add=True),
    "stack": lambda params, shape, *xs: np.stack(xs, params["axis"]),
    "cumsum": lambda params, shape, x: _cumsum(params, x),
}
KINDS = "biuf"


def fold(equation: Equation, dtype: Any, constants: list[np.ndarray]) -> np.ndarray | None:
    """The result of an equation on constants, or None where it is not computed: too large, or no function for it."""
    if len(equation.shapes) != 1 or not all(isinstance(size, int) for size in equation.shapes[0]):
        return None
    shape = equation.shapes[0]
    if int(np.prod(shape)) > LARGEST or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    if np.dtype(dtype).kind not in KINDS or any(c.dtype.kind not in KINDS for c in constants):
        return None
    if equation.name in FOLDS:
        found = FOLDS[equation.name](equation.params, shape, *constants)
    else:
        found = elementwise.fold(equation, constants)
    return None if found is None else np.asarray(found).astype(dtype)
