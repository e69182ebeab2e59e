"""Primitives that compute every output entry from the input entries at the same place.

Operands of size 1 along an axis are broadcast, as JAX does. The NumPy functions serve twice: they fold constants, and
they say what a disabled position holds after the operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maskprune.labels import BROKEN, UNKNOWN, Axis, Labels, Value
from maskprune.rules.base import Equation, Rule


def _divide(a: Any, b: Any) -> Any:
    if np.asarray(a).dtype.kind in "iu" and np.asarray(b).dtype.kind in "iu":
        return np.trunc(a / b).astype(np.asarray(a).dtype)
    return a / b


def _special(name: str) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        import scipy.special  # late: it takes a noticeable part of a second, and few networks need it

        return getattr(scipy.special, name)(x)

    return function


# Each takes arrays; what it lacks of JAX's behaviour (dtypes) is put right by whoever calls it.
NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "acos": np.arccos,
    "acosh": np.arccosh,
    "add": np.add,
    "add_any": np.add,
    "and": np.bitwise_and,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "copy": np.positive,
    "copy_p": np.positive,
    "cos": np.cos,
    "cosh": np.cosh,
    "digamma": _special("digamma"),
    "div": _divide,
    "eq": np.equal,
    "erf": _special("erf"),
    "erf_inv": _special("erfinv"),
    "erfc": _special("erfc"),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "ge": np.greater_equal,
    "gt": np.greater,
    "is_finite": np.isfinite,
    "le": np.less_equal,
    "lgamma": _special("gammaln"),
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "nextafter": np.nextafter,
    "or": np.bitwise_or,
    "pow": np.power,
    "rem": np.fmod,
    "round": np.round,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: np.choose(np.asarray(which, int), cases),
    "sign": np.sign,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "tan": np.tan,
    "tanh": np.tanh,
    "xor": np.bitwise_xor,
}

# These take a parameter, or are of no use for constants: their dead values stay unknown unless a line below says more.
OTHERS = [
    "bessel_i0e",
    "bessel_i1e",
    "bitcast_convert_type",
    "clz",
    "complex",
    "conj",
    "convert_element_type",
    "device_put",
    "igamma",
    "igammac",
    "imag",
    "integer_pow",
    "mesh_cast",
    "name",
    "not",
    "optimization_barrier",
    "population_count",
    "polygamma",
    "real",
    "reduce_precision",
    "regularized_incomplete_beta",
    "sharding_constraint",
    "shift_left",
    "shift_right_arithmetic",
    "shift_right_logical",
    "zeta",
    "random_fold_in",
    "random_wrap",
    "random_unwrap",
]


def function_of(equation: Equation) -> Callable[..., Any] | None:
    """The NumPy function of an elementwise equation, or None."""
    if equation.name == "integer_pow":
        return lambda x: np.power(x, float(equation.params["y"]))
    if equation.name in ("convert_element_type", "device_put", "name", "optimization_barrier", "reduce_precision"):
        return lambda x: x
    if equation.name == "not":
        return lambda x: np.logical_not(x) if np.asarray(x).dtype == bool else np.invert(x)
    return NUMPY.get(equation.name)


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
    known = ~np.any([np.isnan(operand) for operand in operands], axis=0)
    function = function_of(equation)
    found = np.full(len(known), UNKNOWN)
    if function is not None and known.any():
        found[known] = _evaluate(function, equation.name, [operand[known] for operand in operands])
    if equation.name in ("mul", "div"):  # zero times what we do not know
        zero = (operands[0] == 0) | ((operands[1] == 0) & (equation.name == "mul"))
        found[~known & zero & ~np.any([np.isinf(operand) for operand in operands], axis=0)] = 0
    found[np.any([operand == BROKEN for operand in operands], axis=0)] = BROKEN
    if equation.name == "select_n":
        cases = np.array(operands[1:])
        found[~known & (cases == cases[0]).all(axis=0)] = cases[0][~known & (cases == cases[0]).all(axis=0)]
    return found


def _alike(values: np.ndarray) -> bool:
    return bool((values == values[0]).all()) or bool(np.isnan(values).all())


def _evaluate(function: Callable[..., Any], name: str, operands: list[np.ndarray]) -> np.ndarray:
    logical = name in ("and", "or", "xor", "not")
    with np.errstate(all="ignore"):
        result = function(*(operand.astype(bool) if logical else operand for operand in operands))
    result = np.asarray(result, float)
    return np.where(np.isnan(result), BROKEN, result)


def fold(equation: Equation, constants: list[np.ndarray]) -> np.ndarray | None:
    """The result for constant operands, or None if it is not known how to compute it."""
    function = function_of(equation)
    if function is None or len(equation.shapes) != 1:
        return None
    with np.errstate(all="ignore"):
        return np.broadcast_to(np.asarray(function(*constants)), equation.shapes[0])


RULES = dict.fromkeys([*NUMPY, *OTHERS], Rule(elementwise))
