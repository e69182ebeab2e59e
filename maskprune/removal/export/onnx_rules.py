"""One ONNX rule for each JAX primitive: `rule(graph, equation, *values) -> value or list of values`.

Values are NumPy arrays while they are known, or names of tensors. A rule that meets a form it does not cover raises
`Uncovered` and never guesses.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from onnx import helper

from maskprune.removal.export.errors import Uncovered
from maskprune.removal.export.onnx_windows import convolution, padded, pooling, transpose


Rule = Callable[..., Any]

# Functions within functions, by the parameter that holds them.
INLINE = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
    "checkpoint": "jaxpr",
}


def simple(kind: str) -> Rule:
    return lambda graph, equation, *values: graph.op(kind, *values)


def logical(kind: str) -> Rule:
    def rule(graph: Any, equation: Any, *values: Any) -> Any:
        if equation.outvars[0].aval.dtype != np.bool_:
            raise Uncovered(f"a bitwise `{equation.primitive.name}`")
        return graph.op(kind, *values)

    return rule


def with_one(kind: str, first: str) -> Rule:
    """`kind` of the value and one, before or after `first`: log1p, expm1, erfc."""

    def rule(graph: Any, equation: Any, value: Any) -> Any:
        one = np.ones((), equation.outvars[0].aval.dtype)
        if first == "Add":
            return graph.op(kind, graph.op("Add", value, one))
        return (
            graph.op("Sub", graph.op(kind, value), one) if first == "" else graph.op("Sub", one, graph.op(kind, value))
        )

    return rule


def integer_pow(graph: Any, equation: Any, value: Any) -> Any:
    power = equation.params["y"]
    if power == 2:
        return graph.op("Mul", value, value)
    return graph.op("Pow", value, np.array(power, equation.outvars[0].aval.dtype))


def maximum(graph: Any, equation: Any, left: Any, right: Any) -> Any:
    if isinstance(right, np.ndarray) and not right.any() and jnp.issubdtype(right.dtype, jnp.floating):
        shape = equation.outvars[0].aval.shape
        if right.ndim == 0 or np.shape(right) == shape:
            return graph.op("Relu", left)
    return graph.op("Max", left, right)


def select_n(graph: Any, equation: Any, which: Any, *cases: Any) -> Any:
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise Uncovered("a `select_n` among more than two")
    if equation.outvars[0].aval.dtype == np.bool_:  # onnxruntime has no `Where` of booleans
        return graph.op("Or", graph.op("And", which, cases[1]), graph.op("And", graph.op("Not", which), cases[0]))
    return graph.op("Where", which, cases[1], cases[0])


def clamp(graph: Any, equation: Any, low: Any, value: Any, high: Any) -> Any:
    return graph.op("Min", graph.op("Max", value, low), high)


def convert(graph: Any, equation: Any, value: Any) -> Any:
    return cast(graph, value, equation.params["new_dtype"])


def cast(graph: Any, value: Any, dtype: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(dtype)
    return graph.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def round_(graph: Any, equation: Any, value: Any) -> Any:
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise Uncovered("a `round` away from zero")
    return graph.op("Round", value)


def negated(kind: str) -> Rule:
    return lambda graph, equation, *values: graph.op("Not", graph.op(kind, *values))


def is_finite(graph: Any, equation: Any, value: Any) -> Any:
    return graph.op("Not", graph.op("Or", graph.op("IsNaN", value), graph.op("IsInf", value)))


def reshape(graph: Any, equation: Any, value: Any) -> Any:
    if equation.params.get("dimensions") is not None:
        raise Uncovered("a `reshape` in another order")
    return resized(graph, value, equation.outvars[0].aval.shape)


def resized(graph: Any, value: Any, shape: Sequence[Any]) -> Any:
    return graph.op("Reshape", value, graph.ints(*shape), allowzero=1)


def broadcast(graph: Any, equation: Any, value: Any) -> Any:
    shape, places = equation.outvars[0].aval.shape, equation.params["broadcast_dimensions"]
    inner = equation.invars[0].aval.shape
    middle = [1] * len(shape)
    for place, size in zip(places, inner, strict=True):
        middle[place] = size
    if len(middle) != len(inner):
        value = value.reshape(middle) if isinstance(value, np.ndarray) else resized(graph, value, middle)
    return value if tuple(middle) == tuple(shape) else graph.op("Expand", value, graph.ints(*shape))


def squeeze(graph: Any, equation: Any, value: Any) -> Any:
    axes = equation.params["dimensions"]
    return graph.op("Squeeze", value, graph.ints(*axes)) if axes else value


def concatenate(graph: Any, equation: Any, *values: Any) -> Any:
    return graph.op("Concat", *values, axis=equation.params["dimension"])


def split(graph: Any, equation: Any, value: Any) -> Any:
    sizes, axis = equation.params["sizes"], equation.params["axis"]
    if len(sizes) == 1:
        return [value]
    return graph.op("Split", value, graph.ints(*sizes), outputs=len(sizes), axis=axis)


def slice_(graph: Any, equation: Any, value: Any) -> Any:
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or [1] * len(starts)
    return graph.op(
        "Slice", value, graph.ints(*starts), graph.ints(*ends), graph.ints(*range(len(starts))), graph.ints(*steps)
    )


def reverse(graph: Any, equation: Any, value: Any) -> Any:
    axes = equation.params["dimensions"]
    last, before_first = [-1] * len(axes), [np.iinfo(np.int64).min] * len(axes)
    return graph.op("Slice", value, graph.ints(*last), graph.ints(*before_first), graph.ints(*axes), graph.ints(*last))


def pad(graph: Any, equation: Any, value: Any, filler: Any) -> Any:
    config = equation.params["padding_config"]
    if any(interior for _, _, interior in config):
        raise Uncovered("a `pad` between the entries")
    return padded(graph, value, [(low, high) for low, high, _ in config], filler)


def iota(graph: Any, equation: Any, *sizes: Any) -> Any:
    shape, axis = equation.outvars[0].aval.shape, equation.params["dimension"]
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    line = cast(graph, graph.op("Range", zero, graph.size(shape[axis]), one), equation.params["dtype"])
    middle = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    return graph.op("Expand", resized(graph, line, middle), graph.ints(*shape))


def dim_as_value(graph: Any, equation: Any) -> Any:
    return cast(graph, graph.size(equation.params["dim"]), equation.outvars[0].aval.dtype)


def gather(graph: Any, equation: Any, value: Any, places: Any) -> Any:
    """Entries at given places along some axes, all of the others: what `jnp.take` and strided slices make."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    axes = tuple(numbers.start_index_map)
    if np.ndim(places) == 1 and isinstance(places, np.ndarray) and not numbers.operand_batching_dims:
        return _one_slice(graph, value, axes, places.tolist(), sizes, numbers.collapsed_slice_dims)
    rank = len(equation.invars[1].aval.shape) - 1  # of the places, less their last axis
    whole = all(sizes[axis] == (1 if axis in axes else shape[axis]) for axis in range(len(shape)))
    if not whole or tuple(numbers.collapsed_slice_dims) != tuple(sorted(axes)) or numbers.operand_batching_dims:
        raise Uncovered("a `gather` of more than single entries")
    if equation.params["mode"] == lax.GatherScatterMode.CLIP:
        last = np.array([shape[axis] - 1 for axis in axes], equation.invars[1].aval.dtype)
        places = graph.op("Min", graph.op("Max", places, np.zeros_like(last)), last)
    others = [axis for axis in range(len(shape)) if axis not in axes]
    if len(axes) == 1:
        found = graph.op(
            "Gather", transpose(graph, value, [*axes, *others]), graph.op("Squeeze", places, np.array([-1])), axis=0
        )
    else:
        found = graph.op("GatherND", transpose(graph, value, [*axes, *others]), cast(graph, places, np.int64))
    # What was found has the axes of the places first; JAX says where the others go.
    offset = list(numbers.offset_dims)
    order = [i for i in range(len(out)) if i not in offset] + offset
    return transpose(graph, found, np.argsort(order).tolist()) if rank or offset else found


def _one_slice(
    graph: Any, value: Any, axes: Sequence[int], starts: list[int], sizes: Sequence[Any], gone: Sequence[int]
) -> Any:
    """A slice at a known place; JAX makes it a gather where other sizes are symbols."""
    ends = [start + sizes[axis] for axis, start in zip(axes, starts, strict=True)]
    found = graph.op("Slice", value, graph.ints(*starts), graph.ints(*ends), graph.ints(*axes))
    return graph.op("Squeeze", found, graph.ints(*gone)) if gone else found


def reduction(kind: str) -> Rule:
    def rule(graph: Any, equation: Any, value: Any) -> Any:
        return graph.op(kind, value, graph.ints(*equation.params["axes"]), keepdims=0, noop_with_empty_axes=1)

    return rule


def boolean_reduction(kind: str) -> Rule:
    def rule(graph: Any, equation: Any, value: Any) -> Any:
        numbers = graph.op(kind, cast(graph, value, np.int32), graph.ints(*equation.params["axes"]), keepdims=0)
        return cast(graph, numbers, np.bool_)

    return rule


def arg_reduction(kind: str) -> Rule:
    def rule(graph: Any, equation: Any, value: Any) -> Any:
        found = graph.op(kind, value, axis=equation.params["axes"][0], keepdims=0)
        return cast(graph, found, equation.params["index_dtype"])

    return rule


def cumsum(graph: Any, equation: Any, value: Any) -> Any:
    axis = np.array(equation.params["axis"], np.int64)
    return graph.op("CumSum", value, axis, reverse=int(equation.params["reverse"]))


def dot_general(graph: Any, equation: Any, left: Any, right: Any) -> Any:
    (sum_left, sum_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    ranks = [len(atom.aval.shape) for atom in equation.invars]
    plain = (
        not batch_left
        and ranks[0] > 1
        and ranks[1] == 2
        and (tuple(sum_left), tuple(sum_right)) == ((ranks[0] - 1,), (0,))
    )
    dtype = equation.outvars[0].aval.dtype
    left, right = (
        v if a.aval.dtype == dtype else cast(graph, v, dtype)
        for v, a in zip((left, right), equation.invars, strict=True)
    )
    if plain:
        return graph.op("MatMul", left, right)
    letters = iter(string.ascii_lowercase)
    names = [[""] * ranks[0], [""] * ranks[1]]
    for i, j in [*zip(batch_left, batch_right, strict=True), *zip(sum_left, sum_right, strict=True)]:
        names[0][i] = names[1][j] = next(letters)
    batch = [names[0][i] for i in batch_left]
    free = []
    for side in names:
        for i, letter in enumerate(side):
            if not letter:
                side[i] = next(letters)
                free.append(side[i])
    words = f"{''.join(names[0])},{''.join(names[1])}->{''.join(batch + free)}"
    return graph.op("Einsum", left, right, equation=words)


UNARY = {
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "logistic": "Sigmoid", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg",
    "sign": "Sign", "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin",
    "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "erf": "Erf", "copy": "Identity",
    "copy_p": "Identity", "stop_gradient": "Identity",
}  # fmt: skip
BINARY = {
    "add": "Add",
    "add_any": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "min": "Min",
    "pow": "Pow",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
LOGICAL = {"and": "And", "or": "Or", "xor": "Xor", "not": "Not"}  # fmt: skip

RULES: dict[str, Rule] = {
    **{name: simple(kind) for name, kind in (UNARY | BINARY).items()},
    **{name: logical(kind) for name, kind in LOGICAL.items()},
    "ne": negated("Equal"),
    "max": maximum,
    "rsqrt": lambda graph, equation, value: graph.op("Reciprocal", graph.op("Sqrt", value)),
    "square": lambda graph, equation, value: graph.op("Mul", value, value),
    "log1p": with_one("Log", "Add"),
    "expm1": with_one("Exp", ""),
    "erfc": with_one("Erf", "Sub"),
    "rem": lambda graph, equation, left, right: graph.op("Mod", left, right, fmod=1),
    "integer_pow": integer_pow,
    "round": round_,
    "is_finite": is_finite,
    "select_n": select_n,
    "clamp": clamp,
    "convert_element_type": convert,
    "reshape": reshape,
    "squeeze": squeeze,
    "expand_dims": reshape,
    "broadcast_in_dim": broadcast,
    "transpose": lambda graph, equation, value: transpose(graph, value, equation.params["permutation"]),
    "concatenate": concatenate,
    "split": split,
    "slice": slice_,
    "rev": reverse,
    "pad": pad,
    "iota": iota,
    "dim_as_value": dim_as_value,
    "gather": gather,
    "reduce_sum": reduction("ReduceSum"),
    "reduce_max": reduction("ReduceMax"),
    "reduce_min": reduction("ReduceMin"),
    "reduce_prod": reduction("ReduceProd"),
    "reduce_and": boolean_reduction("ReduceMin"),
    "reduce_or": boolean_reduction("ReduceMax"),
    "argmax": arg_reduction("ArgMax"),
    "argmin": arg_reduction("ArgMin"),
    "cumsum": cumsum,
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "reduce_window_max": pooling("max"),
    "reduce_window_min": pooling("min"),
    "reduce_window_sum": pooling("sum"),
}
