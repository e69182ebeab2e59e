"""Primitives that combine entries: products, convolutions, reductions, windows, running sums, sorting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.conv import OWN, Way, conv2d
from maskprune.masks.jaxpr.internals import opened, parameters
from maskprune.masks.jaxpr.labels import BROKEN, UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Rule, Site, as_rules
from maskprune.masks.jaxpr.rules.elementwise import elementwise


# What adds nothing to a reduction; None: every entry counts.
NEUTRAL = {
    "reduce_sum": 0.0,
    "reduce_max": -np.inf,
    "reduce_min": np.nan,  # a dead value of infinity may as well be no number, which counts
    "reduce_prod": 1.0,
    "reduce_and": 1.0,
    "reduce_or": 0.0,
    "reduce_xor": 0.0,
    "argmax": np.nan,
    "argmin": np.nan,
    "cumsum": 0.0,
    "cummax": -np.inf,
    "cummin": np.nan,
    "cumprod": 1.0,
    "cumlogsumexp": -np.inf,
}
WORDS = {"sum": "summed", "max": "compared by a maximum", "min": "compared by a minimum", "prod": "multiplied up"}


MEETS = "it is multiplied with channels that stay"


def _why(equation: Equation, name: str) -> Any:
    done = next((word for end, word in WORDS.items() if name.endswith(end)), f"combined by `{name}`")
    return equation.why(f"these channels are {done} while a disabled one would still count")


def _still(axis: Axis | None, keeps: tuple[float, ...]) -> Axis | None:
    """An axis beside the one that is combined: these dead values come out as they were, what is not finite stays so."""
    if axis is None:
        return None
    lost = np.where(np.isinf(axis.dead), BROKEN, UNKNOWN)
    return Axis(axis.cells, np.where(np.isin(axis.dead, keeps), axis.dead, lost), axis.leaves)


def reduce(labels: Labels, equation: Equation, value: Value) -> Value:
    neutral, gone = NEUTRAL[equation.name], equation.params["axes"]
    dtype = equation.raw.outvars[0].aval.dtype
    if equation.name == "reduce_and" and dtype != np.bool_:  # bit by bit
        neutral = float(np.invert(np.zeros((), dtype)))
    for position in gone:
        labels.summed(value.axes[position], neutral, _why(equation, equation.name))
    keeps = {"reduce_sum": (0.0,), "reduce_xor": (0.0,), "reduce_prod": (0.0, 1.0)}.get(equation.name)
    axes = [axis for position, axis in enumerate(value.axes) if position not in gone]
    if equation.name in ("argmax", "argmin"):
        axes = [_still(axis, ()) for axis in axes]
    elif keeps is not None:
        axes = [_still(axis, keeps) for axis in axes]
    return Value(equation.shapes[0], tuple(axes), None, value.weights)


def cumulate(labels: Labels, equation: Equation, value: Value) -> Value:
    along, neutral = equation.params["axis"], NEUTRAL[equation.name]
    labels.summed(value.axes[along], neutral, _why(equation, equation.name))
    # Along the axis a disabled position shows the sum so far; along the others zero stays zero.
    keeps = {"cumsum": (0.0,), "cumprod": (0.0, 1.0), "cumlogsumexp": ()}.get(equation.name)
    axes = [
        _still(axis, ()) if position == along else (_still(axis, keeps) if keeps is not None else axis)
        for position, axis in enumerate(value.axes)
    ]
    return Value(equation.shapes[0], tuple(axes), None, value.weights)


def sort(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    along = equation.params["dimension"]
    axes: list[Axis | None] = []
    for position in range(len(equation.shapes[0])):
        mine = [value.axes[position] for value in values]
        if position == along:
            for axis in mine:
                labels.pin(axis, equation.why("these channels are sorted"))
        joint = None if position == along else labels.same(mine, equation.why("sorted beside channels that stay"))
        axes.append(joint if len(values) == 1 else _still(joint, ()))
    weights = all(value.weights for value in values)
    return [Value(shape, tuple(axes), None, weights) for shape in equation.shapes]


def top_k(labels: Labels, equation: Equation, value: Value) -> list[Value]:
    labels.pin(value.axes[-1], equation.why("the largest of these channels are picked"))
    axes = (*(_still(axis, ()) for axis in value.axes[:-1]), None)
    return [Value(shape, axes, None, value.weights) for shape in equation.shapes]


def window(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """Pooling. The window must be a single position along channels."""
    arrays = [value for value in values if value.shape]
    found = []
    for value, shape in zip(arrays, equation.shapes, strict=True):
        axes = list(value.axes)
        for position, axis in enumerate(axes):
            if axis is None:
                continue
            if not _single(equation.params, position):
                labels.pin(axis, equation.why("a window slides over these channels"))
                axes[position] = None
        keeps = {"reduce_window_sum": (0.0,), "reduce_window_max": None, "reduce_window_min": None}
        kept = keeps.get(equation.name, ())
        axes = [axis if kept is None else _still(axis, kept) for axis in axes]
        found.append(Value(shape, tuple(axes), None, value.weights))
    return found


def _single(params: Mapping[str, Any], position: int) -> bool:
    ones = (params[name][position] == 1 for name in ("window_dimensions", "window_strides", "base_dilation"))
    return all(ones) and params["window_dilation"][position] == 1 and tuple(params["padding"][position]) == (0, 0)


def dot_general(labels: Labels, equation: Equation, left: Value, right: Value) -> Value:
    (summed_left, summed_right), (batch_left, batch_right) = equation.params["dimension_numbers"]
    weights = (left.weights, right.weights)
    for i, j in zip(summed_left, summed_right, strict=True):
        labels.contract((left.axes[i], right.axes[j]), weights, _why(equation, "sum"), meets=equation.why(MEETS))
    axes: list[Axis | None] = []
    for i, j in zip(batch_left, batch_right, strict=True):
        joint = labels.same((left.axes[i], right.axes[j]), equation.why("it meets channels that stay"))
        axes.append(joint and Axis(joint.cells, _product(left.axes[i], right.axes[j]), joint.leaves))
    for value, used in ((left, {*summed_left, *batch_left}), (right, {*summed_right, *batch_right})):
        axes += [_still(axis, (0.0,)) for position, axis in enumerate(value.axes) if position not in used]
    if not all(weights):
        axes = labels.activations(axes)
    return Value(equation.shapes[0], tuple(axes), None, all(weights))


def _product(left: Axis | None, right: Axis | None) -> np.ndarray:
    assert left is not None and right is not None
    broken = np.isinf(left.dead) | np.isinf(right.dead)
    return np.where(broken, BROKEN, np.where((left.dead == 0) | (right.dead == 0), 0.0, UNKNOWN))


def convolution(labels: Labels, equation: Equation, left: Value, right: Value) -> Value:
    numbers, groups = equation.params["dimension_numbers"], equation.params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    shape = equation.shapes[0]
    if equation.params["batch_group_count"] != 1:
        labels.pin_all([left, right], equation.why("a convolution with batch groups"))
        return labels.whole(shape)
    for value, spec in ((left, lhs), (right, rhs)):
        for position in spec[2:]:
            labels.pin(
                value.axes[position], equation.why("a convolution slides over these channels", quiet=value.weights)
            )
    inputs, kernel, produced = left.axes[lhs[1]], right.axes[rhs[1]], _still(right.axes[rhs[0]], (0.0,))
    weights, why, meets = (left.weights, right.weights), _why(equation, "sum"), equation.why(MEETS)
    if groups == 1:
        labels.contract((inputs, kernel), weights, why, meets=meets)
    else:
        inner, wide = right.shape[rhs[1]], right.shape[rhs[0]] // groups
        apart = equation.why("a grouped convolution cuts across these channels")
        group, within = labels.split(inputs, groups, inner, apart)
        group_out, made = labels.split(produced, groups, wide, apart)
        if inner > 1:
            labels.contract((within, kernel), weights, why, meets=meets)
        joint = labels.same((group, group_out), meets)
        group = joint and Axis(joint.cells, _product(group, group_out), joint.leaves)
        produced = labels.merge((group, made), (groups, wide))
    axes: list[Axis | None] = [None] * len(shape)
    axes[out[0]], axes[out[1]] = _still(left.axes[lhs[0]], (0.0,)), produced
    if not all(weights):
        axes = labels.activations(axes)
    return Value(shape, tuple(axes), None, all(weights))


def convolution_shrink(site: Site, left: Any, right: Any) -> Any:
    numbers = site.params["dimension_numbers"]
    channels, inner = left.shape[numbers.lhs_spec[1]], right.shape[numbers.rhs_spec[1]]
    if channels == 0 or inner == 0:  # nothing to sum
        return jnp.zeros(site.shapes[0], site.params["preferred_element_type"] or left.dtype)
    whole = site.full[0][numbers.lhs_spec[1]] == channels
    return site.bind(
        left, right, feature_group_count=site.params["feature_group_count"] if whole else channels // inner
    )


def own_convolution(labels: Labels, equation: Equation, left: Value, right: Value, *bias: Value) -> Value:
    """`conv2d` in a way that XLA's primitive does not show: [N, H, W, I] and [k, l, I, O] to [N, H, W, O]."""
    last = SimpleNamespace(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1), out_spec=(0, 3, 1, 2))
    params = {"dimension_numbers": last, "feature_group_count": 1, "batch_group_count": 1}
    found = convolution(labels, equation._replace(params=params), left, right)
    for each in bias:
        spread = Value((1, 1, 1, *each.shape), (None, None, None, *each.axes), None, each.weights)
        (found,) = elementwise(labels, _plain(equation, jax.lax.add), found, spread)
    if OWN[equation.params["name"]].relu:
        zero = Value((), (), np.zeros(()), True)
        (found,) = elementwise(labels, _plain(equation, jax.lax.max), found, zero)
    return found


def _plain(equation: Equation, function: Callable[..., Any]) -> Equation:
    """An equation of two scalars of the same type, in the place of a part of this one."""
    scalar = jax.ShapeDtypeStruct((), equation.raw.outvars[0].aval.dtype)
    raw = jax.make_jaxpr(function)(scalar, scalar).eqns[0]
    return equation._replace(name=raw.primitive.name, params=parameters(raw), raw=raw)


def own_convolution_shrink(site: Site, *arrays: Any, way: Way | None = None) -> Any:
    body, _ = opened(site.params["jaxpr"])
    products = (parameters(e)["precision"] for e in body.eqns if e.primitive.name == "dot_general")
    own = OWN[site.params["name"]]
    return conv2d(*arrays, relu=own.relu, way=way or own.way, precision=next(products, "highest"))


RULES = {
    **as_rules([f"jit:{name}" for name in OWN], Rule(own_convolution, own_convolution_shrink)),
    **as_rules([name for name in NEUTRAL if not name.startswith("cum")], Rule(reduce)),
    **as_rules([name for name in NEUTRAL if name.startswith("cum")], Rule(cumulate)),
    **as_rules(["reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"], Rule(window)),
    "sort": Rule(sort),
    "top_k": Rule(top_k),
    "dot_general": Rule(dot_general),
    "conv_general_dilated": Rule(convolution, convolution_shrink),
}
