"""ONNX rules for what slides over pictures: convolutions and pooling. ONNX wants the channels first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskprune.removal.export.errors import Uncovered


Rule = Callable[..., Any]


def transpose(graph: Any, value: Any, order: Sequence[int]) -> Any:
    if list(order) == sorted(order):
        return value
    if isinstance(value, np.ndarray):
        return np.transpose(value, order)
    return graph.op("Transpose", value, perm=list(order))


def padded(graph: Any, value: Any, widths: Sequence[tuple[Any, Any]], filler: Any) -> Any:
    """Negative widths cut, as in JAX; ONNX's Pad does the same."""
    widths = list(widths)
    return graph.op("Pad", value, graph.ints(*(low for low, _ in widths), *(high for _, high in widths)), filler)


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
