"""Primitives that hold functions of their own: jit, remat, custom derivatives, scan, while, cond.

Their bodies are read in place. Loops are read until what is known of the carried values no longer changes. On shrunk
arrays every construct is built anew around the shrunk body, so derivatives, rematerialization and loops stay what they
were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.labels import UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Rule, Site, as_rules
from maskprune.masks.jaxpr.rules.placement import placed


CARRIED = "it is carried together with channels that stay"


def inner(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    del labels
    return equation.read(0, values)


def inner_shrink(site: Site, *arrays: Any) -> list[Any]:
    given = placed(site.params.get("in_shardings"), arrays, site.inputs)
    return placed(site.params.get("out_shardings"), site.run(0, *given), site.outputs)


def remat_shrink(site: Site, *arrays: Any) -> list[Any]:
    run = jax.checkpoint(
        lambda *each: site.run(0, *each), prevent_cse=site.params["prevent_cse"], policy=site.params["policy"]
    )
    return run(*arrays)


def custom_jvp_shrink(site: Site, *arrays: Any) -> list[Any]:
    """The derivative rule the user wrote, shrunk as well."""

    @jax.custom_jvp
    def function(*each: Any) -> list[Any]:
        return site.run(0, *each)

    @function.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        moving = [i for i, x in enumerate(primals) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

        def full(*flat: Any) -> list[Any]:
            given, change = list(flat[: len(primals)]), flat[len(primals) :]

            def of_moving(*some: Any) -> list[Any]:
                return site.bind(*_replaced(given, moving, some))

            out, moved = jax.jvp(of_moving, tuple(given[i] for i in moving), tuple(change))
            return [*out, *moved]

        kept = [*site.inputs, *(site.inputs[i] for i in moving)]
        shapes = [*site.full, *(site.full[i] for i in moving)]
        small = site.shrink(full, kept, [*site.outputs, *site.outputs], shapes)
        found = small(*primals, *(tangents[i] for i in moving))
        return found[: len(site.outputs)], found[len(site.outputs) :]

    return function(*arrays)


def custom_vjp_shrink(site: Site, *arrays: Any) -> list[Any]:
    """The backward pass the user wrote, shrunk as well; it computes the forward pass again."""

    @jax.custom_vjp
    def function(*each: Any) -> list[Any]:
        return site.run(0, *each)

    def backward(saved: Any, cotangents: Any) -> tuple[Any, ...]:
        moving = [i for i, x in enumerate(saved) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

        def full(*flat: Any) -> list[Any]:
            given, change = list(flat[: len(saved)]), list(flat[len(saved) :])
            pull = jax.vjp(lambda *some: site.bind(*_replaced(given, moving, some)), *(given[i] for i in moving))[1]
            return list(pull(change))

        kept = [*site.inputs, *site.outputs]
        small = site.shrink(full, kept, [site.inputs[i] for i in moving], [*site.full, *site.full_outputs])
        found = iter(small(*saved, *cotangents))
        return tuple(next(found) if i in moving else _no_tangent(x) for i, x in enumerate(saved))

    function.defvjp(lambda *each: (function(*each), each), backward)
    return function(*arrays)


def _replaced(values: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    found = list(values)
    for place, value in zip(places, new, strict=True):
        found[place] = value
    return found


def _no_tangent(x: Any) -> np.ndarray:
    return np.zeros(np.shape(x), jax.dtypes.float0)


def _settle(labels: Labels, carry: list[Value], body: Callable[[list[Value]], list[Value]]) -> list[Value]:
    """Runs a loop body on labels until the carried values hold after it what they held before it."""
    before = [_ready(value) for value in carry]
    while True:
        after = body(before)
        joint = [_joint(labels, one, other) for one, other in zip(before, after, strict=True)]
        if all(_known_alike(one, other) for one, other in zip(before, joint, strict=True)):
            return joint
        before = joint


def _ready(value: Value) -> Value:
    """Not a constant any more; its axes come from activations."""
    axes = tuple(axis and Axis(axis.cells, axis.dead) for axis in value.axes)
    if value.const is not None and value.uniform() == value.uniform():
        axes = tuple(axis and Axis(axis.cells, np.full(len(axis.cells), value.uniform())) for axis in axes)
    return Value(value.shape, axes)


def _joint(labels: Labels, one: Value, other: Value) -> Value:
    axes = []
    for a, b in zip(one.axes, other.axes, strict=True):
        joint = labels.same((a, b), CARRIED)
        if joint is not None and a is not None and b is not None:
            joint = Axis(joint.cells, np.where(a.dead == b.dead, a.dead, UNKNOWN))
        axes.append(joint)
    return Value(one.shape, tuple(axes))


def _known_alike(one: Value, other: Value) -> bool:
    pairs = zip(one.axes, other.axes, strict=True)
    return all((a is None) == (b is None) and (a is None or b is None or _same(a.dead, b.dead)) for a, b in pairs)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _row(labels: Labels, equation: Equation, value: Value) -> Value:
    """One step's share of an array that is scanned over."""
    labels.pin(value.axes[0], equation.why("a loop runs over these"))
    return Value(value.shape[1:], value.axes[1:], None, value.weights)


def scan(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    first, second = equation.params["num_consts"], equation.params["num_consts"] + equation.params["num_carry"]
    consts, carry = list(values[:first]), list(values[first:second])
    rows = [_row(labels, equation, value) for value in values[second:]]
    stacked: list[Value] = []

    def body(carried: list[Value]) -> list[Value]:
        found = equation.read(0, [*consts, *carried, *rows])
        stacked[:] = found[len(carry) :]
        return found[: len(carry)]

    done = _settle(labels, carry, body)
    lengths = [shape[:1] for shape in equation.shapes[len(carry) :]]
    return done + [Value((*n, *y.shape), (None, *y.axes)) for n, y in zip(lengths, stacked, strict=True)]


def scan_shrink(site: Site, *arrays: Any) -> list[Any]:
    params = site.params
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts = arrays[:first]

    def body(carried: Any, row: Any) -> Any:
        found = site.run(0, *consts, *carried, *row)
        return found[: params["num_carry"]], found[params["num_carry"] :]

    rest = {name: params[name] for name in ("length", "reverse", "unroll")}
    carried, stacked = jax.lax.scan(body, list(arrays[first:second]), list(arrays[second:]), **rest)
    return [*carried, *stacked]


def while_loop(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    done = _settle(labels, list(values[second:]), lambda c: equation.read(1, [*values[first:second], *c]))
    equation.read(0, [*values[:first], *done])
    return done


def while_shrink(site: Site, *arrays: Any) -> list[Any]:
    first = site.params["cond_nconsts"]
    second = first + site.params["body_nconsts"]
    return jax.lax.while_loop(
        lambda carried: site.run(0, *arrays[:first], *carried)[0],
        lambda carried: site.run(1, *arrays[first:second], *carried),
        list(arrays[second:]),
    )


def cond(labels: Labels, equation: Equation, index: Value, *values: Value) -> list[Value]:
    del index
    branches = [equation.read(number, values) for number in range(len(equation.params["branches"]))]
    found = branches[0]
    for other in branches[1:]:
        found = [_joint(labels, _ready(a), _ready(b)) for a, b in zip(found, other, strict=True)]
    return [_ready(value) for value in found]


def cond_shrink(site: Site, index: Any, *arrays: Any) -> list[Any]:
    numbers = range(len(site.params["branches"]))
    return jax.lax.switch(index, [lambda *each, n=n: site.run(n, *each) for n in numbers], *arrays)


RULES = {
    **as_rules(["jit", "pjit", "closed_call", "core_call"], Rule(inner, inner_shrink)),
    **as_rules(["remat2", "checkpoint"], Rule(inner, remat_shrink)),
    "custom_jvp_call": Rule(inner, custom_jvp_shrink),
    "custom_vjp_call": Rule(inner, custom_vjp_shrink),
    "scan": Rule(scan, scan_shrink),
    "while": Rule(while_loop, while_shrink),
    "cond": Rule(cond, cond_shrink),
}
