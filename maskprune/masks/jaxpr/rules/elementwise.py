"""Primitives that compute every output entry from the input entries at the same place.

Operands of size 1 along an axis are broadcast, as JAX does. What a disabled position holds after the operation is
computed from what it held before, as XLA computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.labels import BROKEN, UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Rule
from maskprune.masks.jaxpr.rules.evaluation import evaluate, is_number


PASSED_ON = ("copy", "copy_p", "name", "stop_gradient")
_COMPUTED = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil
    clamp clz convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or polygamma population_count
    pow reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square sub tan tanh xor zeta
"""
COMPUTED = frozenset(_COMPUTED.split())
NOT_COMPUTED = ("complex", "conj", "imag", "real", "random_fold_in", "random_wrap", "random_unwrap")
COMPARISONS = ("eq", "ge", "gt", "le", "lt", "ne")
# What these make of a number may jump, so numbers at the edge prove nothing.
STEPS = ("ceil", "convert_element_type", "floor", "nextafter", "rem", "round", "sign", *COMPARISONS)
_REMEMBERED: dict[Any, np.ndarray] = {}  # what single numbers become: networks ask for the same ones again and again
FEW_STEPS = 4  # in the last place: by how much a number may differ from one way of computing it to another


def elementwise(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """Axes of one size are equal; a position's dead value is computed from the operands'."""
    return [_joined(labels, equation, shape, values) for shape in equation.shapes]


def _joined(labels: Labels, equation: Equation, shape: tuple[Any, ...], values: Sequence[Value]) -> Value:
    weights = all(value.weights for value in values)
    full = [value for value in values if len(value.shape) == len(shape)]
    axes = []
    for position, size in enumerate(shape):
        mine = [value.axes[position] for value in full if value.shape[position] == size]
        if size == 1 or all(axis is None for axis in mine):
            axes.append(None)
            continue
        joint = labels.same(mine, equation.why("it meets channels that stay"))
        axes.append(joint and Axis(joint.cells, _dead(equation, position, size, values), joint.leaves))
    if not weights:
        axes = labels.activations(axes)
    return Value(shape, tuple(axes), None, weights)


def _dead(equation: Equation, position: int, size: int, values: Sequence[Value]) -> np.ndarray:
    operands = []
    for value in values:
        axis = value.axes[position] if len(value.shape) > position else None
        if axis is not None and value.shape[position] == size:
            operands.append(axis.dead)
        else:
            operands.append(np.full(size, value.uniform()))
    return combine(equation, operands)


def combine(equation: Equation, operands: list[np.ndarray]) -> np.ndarray:
    """Dead values after an elementwise equation from those before it."""
    size = len(operands[0])
    if size > 1 and all(_alike(operand) for operand in operands):
        return np.full(size, combine(equation, [operand[:1] for operand in operands])[0])
    if equation.name in PASSED_ON:
        return operands[0]
    if equation.name == "select_n":
        return _selected(operands[0], np.array(operands[1:]))
    known = ~np.any([np.isnan(operand) for operand in operands], axis=0)
    found = np.full(len(known), UNKNOWN)
    if known.any():
        found[known] = _computed(equation, np.array([operand[known] for operand in operands]))
    if equation.name in ("mul", "div"):  # zero times what we do not know
        zero = (operands[0] == 0) | ((operands[1] == 0) & (equation.name == "mul"))
        found[~known & zero & ~np.any([np.isinf(operand) for operand in operands], axis=0)] = 0
    found[np.any([operand == BROKEN for operand in operands], axis=0)] = BROKEN
    return found


def _selected(which: np.ndarray, cases: np.ndarray) -> np.ndarray:
    """The case that is chosen. Where that is unknown, what all cases are."""
    broken, alike = (cases == BROKEN).any(axis=0), (cases == cases[0]).all(axis=0)
    open_ = np.where(alike, cases[0], np.where(broken, BROKEN, UNKNOWN))
    known = np.isfinite(which)
    chosen = cases[np.where(known, which, 0).astype(int), np.arange(len(which))]
    return np.where(known, chosen, open_)


def _computed(equation: Equation, operands: np.ndarray) -> np.ndarray:
    """What known numbers become, float[operand, n] to float[n], in the dtypes of the equation."""
    if equation.name not in COMPUTED:
        return np.full(operands.shape[1], UNKNOWN)
    if operands.shape[1] > 1:
        rows, back = np.unique(operands, axis=1, return_inverse=True)
        return _answers(equation, rows)[back.ravel()]
    atoms = equation.raw.invars
    about = tuple((atom.aval.dtype, atoms.index(atom)) for atom in atoms)
    key = (equation.name, equation.raw.outvars[0].aval.dtype, about, str(equation.params), operands.tobytes())
    if key not in _REMEMBERED:
        if len(_REMEMBERED) > 1 << 12:
            _REMEMBERED.clear()
        _REMEMBERED[key] = _answers(equation, operands)
    return _REMEMBERED[key]


def _answers(equation: Equation, operands: np.ndarray) -> np.ndarray:
    dtypes = [atom.aval.dtype for atom in equation.raw.invars]
    to = equation.raw.outvars[0].aval.dtype
    if not all(is_number(dtype) for dtype in (*dtypes, to)):
        return np.full(operands.shape[1], UNKNOWN)
    slacks = [_slack(dtype) if equation.name in STEPS else 0.0 for dtype in dtypes]
    given = [row.astype(dtype) for row, dtype in zip(operands, dtypes, strict=True)]
    computed = evaluate(equation.raw, given, slacks)
    if computed is None:
        return np.full(operands.shape[1], BROKEN if jnp.issubdtype(to, np.floating) else UNKNOWN)
    numbers = computed.array.astype(np.float64) + 0.0  # no negative zeros
    return np.where(numbers.astype(to) == computed.array, numbers, np.where(np.isnan(numbers), BROKEN, UNKNOWN))


def _slack(dtype: Any) -> float:
    return FEW_STEPS * float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, np.floating) else 0.0


def _alike(values: np.ndarray) -> bool:
    return bool((values == values[0]).all()) or bool(np.isnan(values).all())


def barrier(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """Every value comes out as it was."""
    del labels, equation
    return list(values)


RULES = {
    **dict.fromkeys([*COMPUTED, *PASSED_ON, *NOT_COMPUTED], Rule(elementwise)),
    "optimization_barrier": Rule(barrier),
}
