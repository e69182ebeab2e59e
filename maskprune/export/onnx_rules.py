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

from maskprune.export.programs import Uncovered


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


def transpose(graph: Any, value: Any, order: Sequence[int]) -> Any:
    if list(order) == sorted(order):
        return value
    if isinstance(value, np.ndarray):
        return np.transpose(value, order)
    return graph.op("Transpose", value, perm=list(order))


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


def padded(graph: Any, value: Any, widths: Sequence[tuple[Any, Any]], filler: Any) -> Any:
    """Negative widths cut, as in JAX; ONNX's Pad does the same."""
    widths = list(widths)
    return graph.op("Pad", value, graph.ints(*(low for low, _ in widths), *(high for _, high in widths)), filler)


def iota(graph: Any, equation: Any, *sizes: Any) -> Any:
    shape, axis = equation.outvars[0].aval.shape, equation.params["dimension"]
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    line = cast(graph, graph.op("Range", zero, graph.size(shape[axis]), one), equation.params["dtype"])
    middle = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    return graph.op("Expand", resized(graph, line, middle), graph.ints(*shape))


def dim_as_value(graph: Any, equation: Any) -> Any:
    return cast(graph, graph.size(equation.params["dim"]), equation.outvars[0].aval.dtype)


def gather(graph: Any, equation: Any, value: Any, places: Any) -> Any:
    """Whole slices along one axis, as `jnp.take` makes them."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    axis = numbers.start_index_map[0] if len(numbers.start_index_map) == 1 else -1
    whole = axis >= 0 and tuple(sizes) == (*shape[:axis], 1, *shape[axis + 1 :])
    rank = len(equation.invars[1].aval.shape) - 1  # of the indices, less their last axis of one
    moved = (*range(axis), *range(axis + rank, len(out)))
    if not whole or numbers.collapsed_slice_dims != (axis,) or tuple(numbers.offset_dims) != moved:
        raise Uncovered("a `gather` that is no `take` along one axis")
    if numbers.operand_batching_dims:
        raise Uncovered("a `gather` with batch axes")
    flat = graph.op("Squeeze", places, np.array([-1]))
    if equation.params["mode"] == lax.GatherScatterMode.CLIP:
        last = np.array(shape[axis] - 1, equation.invars[1].aval.dtype)
        flat = graph.op("Min", graph.op("Max", flat, np.zeros_like(last)), last)
    return graph.op("Gather", value, flat, axis=axis)


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


def convolution(graph: Any, equation: Any, left: Any, kernel: Any) -> Any:
    params = equation.params
    numbers = params["dimension_numbers"]
    if params["batch_group_count"] != 1:
        raise Uncovered("a convolution with batch groups")
    left = transpose(graph, left, numbers.lhs_spec)
    kernel = transpose(graph, kernel, numbers.rhs_spec)
    run = _transposed_convolution if any(d != 1 for d in params["lhs_dilation"]) else _plain_convolution
    sizes = [equation.invars[1].aval.shape[axis] for axis in numbers.rhs_spec[2:]]
    produced = run(graph, equation, left, kernel, sizes)
    return transpose(graph, produced, np.argsort(numbers.out_spec).tolist())


def _plain_convolution(graph: Any, equation: Any, left: Any, kernel: Any, sizes: Sequence[int]) -> Any:
    params = equation.params
    left, pads = _pads(graph, left, params["padding"], np.zeros((), equation.outvars[0].aval.dtype))
    return graph.op(
        "Conv",
        left,
        kernel,
        pads=pads,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
        kernel_shape=list(sizes),
    )


def _transposed_convolution(graph: Any, equation: Any, left: Any, kernel: Any, sizes: Sequence[int]) -> Any:
    """A convolution of a picture with zeros between its pixels: ONNX's ConvTranspose, with the kernel turned round."""
    params = equation.params
    reach = [(size - 1) * step for size, step in zip(sizes, params["rhs_dilation"], strict=True)]
    if params["feature_group_count"] != 1 or any(step != 1 for step in params["window_strides"]):
        raise Uncovered("a transposed convolution with groups or strides")
    if not isinstance(kernel, np.ndarray):
        raise Uncovered("a transposed convolution whose kernel is no constant")
    if not all(isinstance(width, int) for pair in params["padding"] for width in pair):
        raise Uncovered("a transposed convolution whose padding depends on the size")
    cuts = [(r - low, r - high) for r, (low, high) in zip(reach, params["padding"], strict=True)]
    turned = np.flip(kernel, tuple(range(2, kernel.ndim))).swapaxes(0, 1)
    produced = graph.op(
        "ConvTranspose",
        left,
        turned,
        strides=list(params["lhs_dilation"]),
        dilations=list(params["rhs_dilation"]),
        kernel_shape=list(sizes),
    )
    if not any(cut for pair in cuts for cut in pair):
        return produced
    widths = [(0, 0), (0, 0), *((-low, -high) for low, high in cuts)]
    return padded(graph, produced, widths, np.zeros((), equation.outvars[0].aval.dtype))


def _pads(graph: Any, value: Any, padding: Sequence[tuple[Any, Any]], filler: np.ndarray) -> tuple[Any, list[int]]:
    """Padding of the spatial axes as an attribute, or as a node of its own where a width is a symbol or negative."""
    if all(isinstance(width, int) and width >= 0 for pair in padding for width in pair):
        return value, [low for low, _ in padding] + [high for _, high in padding]
    return padded(graph, value, [(0, 0), (0, 0), *padding], filler), [0] * (2 * len(padding))


def pooling(kind: str) -> Rule:
    def rule(graph: Any, equation: Any, value: Any) -> Any:
        params, dtype = equation.params, equation.outvars[0].aval.dtype
        rank = len(equation.outvars[0].aval.shape)
        if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
            raise Uncovered(f"a `{equation.primitive.name}` with dilation")
        if not jnp.issubdtype(dtype, jnp.floating) or rank < 3:
            raise Uncovered(f"a `{equation.primitive.name}` over {rank} axes of {dtype}")
        order = _channels_first(params, rank)
        pick = lambda name: [params[name][axis] for axis in order[2:]]
        value = transpose(graph, value, order)
        filler = np.array({"sum": 0, "max": -np.inf, "min": -np.inf}[kind], dtype)
        value = graph.op("Neg", value) if kind == "min" else value
        # A node of its own wherever there is padding: runtimes differ in how they pad averages.
        padding = pick("padding")
        if any(isinstance(width, int) is False or width for pair in padding for width in pair):
            value = padded(graph, value, [(0, 0), (0, 0), *padding], filler)
        window, strides = pick("window_dimensions"), pick("window_strides")
        found = graph.op("AveragePool" if kind == "sum" else "MaxPool", value, kernel_shape=window, strides=strides)
        if kind == "sum":
            found = graph.op("Mul", found, np.array(np.prod(window), dtype))
        found = graph.op("Neg", found) if kind == "min" else found
        return transpose(graph, found, np.argsort(order).tolist())

    return rule


def _channels_first(params: Any, rank: int) -> list[int]:
    """An order of axes whose first two no window slides over."""
    still = [
        axis
        for axis in range(rank)
        if params["window_dimensions"][axis] == params["window_strides"][axis] == 1
        and tuple(params["padding"][axis]) == (0, 0)
    ]
    if len(still) < 2:
        raise Uncovered("a window that slides over all axes but one")
    first = [still[0], still[-1]]
    return first + [axis for axis in range(rank) if axis not in first]


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
