"""Constants computed while a function is read: indices, masks and tables, which then shrink by plain selection.

Moving data is left to NumPy. Arithmetic is that of JAX: see `evaluation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.rules import elementwise
from maskprune.masks.jaxpr.rules.base import Equation
from maskprune.masks.jaxpr.rules.evaluation import Computed, evaluate, is_number


LARGEST = 1 << 16  # entries of a constant that is worth knowing


def _broadcast(params: Mapping[str, Any], shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    expanded = [1] * len(shape)
    for source, place in enumerate(params["broadcast_dimensions"]):
        expanded[place] = x.shape[source]
    return np.broadcast_to(x.reshape(expanded), shape)


def _slice(params: Mapping[str, Any], shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    del shape
    strides = params["strides"] or (None,) * x.ndim
    cuts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*cut) for cut in cuts)]


def _same(params: Mapping[str, Any], shape: tuple[int, ...], x: np.ndarray) -> np.ndarray:
    del params, shape
    return x


MOVES: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "reshape": lambda params, shape, x: x.reshape(shape),
    "transpose": lambda params, shape, x: x.transpose(params["permutation"]),
    "squeeze": lambda params, shape, x: x.reshape(shape),
    "rev": lambda params, shape, x: np.flip(x, params["dimensions"]),
    "concatenate": lambda params, shape, *xs: np.concatenate(xs, params["dimension"]),
    "tile": lambda params, shape, x: np.tile(x, params["reps"]),
    "stack": lambda params, shape, *xs: np.stack(xs, params["axis"]),
    **dict.fromkeys((*elementwise.PASSED_ON, "device_put", "mesh_cast", "sharding_constraint"), _same),
}
_FURTHER = """
    reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin cumsum cummax cummin
    cumprod cumlogsumexp sort gather dynamic_slice dynamic_update_slice scatter scatter-add scatter_add scatter_mul
    scatter_min scatter_max dot_general iota
"""
COMPUTED = elementwise.COMPUTED | frozenset(_FURTHER.split())


def fold(equation: Equation, dtype: Any, constants: Sequence[np.ndarray], slacks: Sequence[float]) -> Computed | None:
    """The result of an equation on constants.

    None where it is too large, of a kind that is not computed, or not the same wherever it is computed.
    """
    if len(equation.shapes) != 1 or not all(isinstance(size, int) for size in equation.shapes[0]):
        return None
    if int(np.prod(equation.shapes[0])) > LARGEST or jnp.issubdtype(dtype, jax.dtypes.extended):
        return None
    if not all(is_number(each) for each in (dtype, *(c.dtype for c in constants))):
        return None
    if equation.name in MOVES:
        moved = MOVES[equation.name](equation.params, equation.shapes[0], *constants)
        return Computed(moved, max(slacks))
    return evaluate(equation.raw, constants, slacks) if equation.name in COMPUTED else None
