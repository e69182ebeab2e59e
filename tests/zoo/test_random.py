"""Random architectures and random masks: masked is compacted, bit for bit on integers.

A network is a list of layers, drawn step by step; each reads its parameters in order and knows the shape it is given.
Everything is exact on integers: ReLU, max pooling, sums of four, batch norm with variances of 1 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from maskprune import make_plan, trace
from zoo import check
from zoo.entry import Built, Entry
from zoo.plain_layers import array


Shape = tuple[int, ...]


class Layer(NamedTuple):
    """`run(params, x)`, the shapes of its parameters, and the shape of what it gives, batch left out."""

    run: Callable[[Any, jax.Array], jax.Array]
    params: Any
    shape: Shape


def _last(shape: Shape, size: int) -> Shape:
    return (*shape[:-1], size)


def conv(draw: Any, shape: Shape) -> Layer:
    groups = draw(st.sampled_from([g for g in (1, 2, 3, shape[-1]) if shape[-1] % g == 0]))
    outputs = groups * draw(st.integers(1, 3 if groups > 1 else 6))
    size, stride = draw(st.sampled_from([1, 3])), draw(st.sampled_from([1, 1, 2]))
    params = {"kernel": array(size, size, shape[-1] // groups, outputs), "bias": array(outputs)}

    def run(p: Any, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, p["kernel"], (stride,) * 2, "SAME", dimension_numbers=dims, feature_group_count=groups
        )
        return y + p["bias"]

    return Layer(run, params, (-(-shape[0] // stride), -(-shape[1] // stride), outputs))


def dense(draw: Any, shape: Shape) -> Layer:
    outputs = draw(st.integers(1, 8))
    params = {"kernel": array(shape[-1], outputs), "bias": array(outputs)}
    return Layer(lambda p, x: x @ p["kernel"] + p["bias"], params, _last(shape, outputs))


def relu(draw: Any, shape: Shape) -> Layer:
    return Layer(lambda p, x: jax.nn.relu(x), {}, shape)


def batch_norm(draw: Any, shape: Shape) -> Layer:
    params = {name: array(shape[-1]) for name in ("mean", "scale", "bias")}
    factor = draw(st.sampled_from([1.0, 2.0]))
    return Layer(lambda p, x: (x - p["mean"]) * factor * p["scale"] + p["bias"], params, shape)


def lift(draw: Any, shape: Shape) -> Layer:
    """An activation that is not zero at zero: a disabled mask counts, unless what reads it leaves it out."""
    return Layer(lambda p, x: jax.nn.relu(x) + 1, {}, shape)


def compare(draw: Any, shape: Shape) -> Layer:
    """Less the sum of all channels, or the largest of them: exact only where a disabled mask adds nothing to it."""
    combine = draw(st.sampled_from([jax.numpy.sum, jax.numpy.max]))
    return Layer(lambda p, x: x - combine(x, axis=-1, keepdims=True), {}, shape)


def pool(draw: Any, shape: Shape) -> Layer:
    largest, window = draw(st.booleans()), (1, 2, 2, 1)
    start, combine = (-np.inf, lax.max) if largest else (0.0, lax.add)
    run = lambda p, x: lax.reduce_window(x, np.asarray(start, x.dtype)[()], combine, window, window, "SAME")
    return Layer(run, {}, (-(-shape[0] // 2), -(-shape[1] // 2), shape[-1]))


def residual(draw: Any, shape: Shape) -> Layer:
    """x + f(x), or with a dense layer on each side."""
    inner = chain(draw, shape, [dense, relu, batch_norm], draw(st.integers(1, 2)))
    back = {"kernel": array(inner.shape[-1], shape[-1])}
    run = lambda p, x: x + inner.run(p["inner"], x) @ p["back"]["kernel"]
    return Layer(run, {"inner": inner.params, "back": back}, shape)


def branches(draw: Any, shape: Shape) -> Layer:
    """Two dense branches and the input itself, concatenated."""
    one, two = dense(draw, shape), dense(draw, shape)
    width = shape[-1] + one.shape[-1] + two.shape[-1]
    run = lambda p, x: jax.numpy.concatenate([one.run(p["one"], x), x, two.run(p["two"], x)], axis=-1)
    return Layer(run, {"one": one.params, "two": two.params}, _last(shape, width))


def split(draw: Any, shape: Shape) -> Layer:
    """The product of the two halves of the channels, as in a gate, or else the first part alone."""
    first = draw(st.integers(1, shape[-1] - 1)) if shape[-1] > 1 else 1
    if 2 * first == shape[-1]:
        return Layer(lambda p, x: x[..., :first] * x[..., first:], {}, _last(shape, first))
    return Layer(lambda p, x: x[..., :first], {}, _last(shape, first))


def turn(draw: Any, shape: Shape) -> Layer:
    """Space to depth, in either order of channel and place."""
    h, w, c = shape
    if h % 2 or w % 2:
        return relu(draw, shape)
    order = draw(st.sampled_from([(0, 1, 3, 2, 4, 5), (0, 1, 3, 5, 2, 4)]))
    run = lambda p, x: x.reshape(-1, h // 2, 2, w // 2, 2, c).transpose(order).reshape(-1, h // 2, w // 2, 4 * c)
    return Layer(run, {}, (h // 2, w // 2, 4 * c))


def shuffle(draw: Any, shape: Shape) -> Layer:
    """The channels of two or three groups in turn (Zhang et al. 2018), or all of them backwards."""
    parts = [n for n in (2, 3) if shape[-1] % n == 0]
    if not parts or draw(st.booleans()):
        return Layer(lambda p, x: x[..., ::-1], {}, shape)
    n = draw(st.sampled_from(parts))
    run = lambda p, x: x.reshape(*x.shape[:-1], n, -1).swapaxes(-1, -2).reshape(x.shape)
    return Layer(run, {}, shape)


def flatten(draw: Any, shape: Shape) -> Layer:
    return Layer(lambda p, x: x.reshape(x.shape[0], -1), {}, (int(np.prod(shape)),))


def flatten_channels_first(draw: Any, shape: Shape) -> Layer:
    run = lambda p, x: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    return Layer(run, {}, (int(np.prod(shape)),))


def total(draw: Any, shape: Shape) -> Layer:
    return Layer(lambda p, x: x.sum(axis=(1, 2)), {}, shape[-1:])


def chain(draw: Any, shape: Shape, kinds: list[Callable[..., Layer]], length: int) -> Layer:
    layers: list[Layer] = []
    for _ in range(length):
        layers.append(draw(st.sampled_from(kinds))(draw, layers[-1].shape if layers else shape))

    def run(params: Any, x: jax.Array) -> jax.Array:
        for layer, p in zip(layers, params, strict=True):
            x = layer.run(p, x)
        return x

    return Layer(run, [layer.params for layer in layers], layers[-1].shape)


ANYWHERE = [dense, relu, lift, compare, batch_norm, residual, branches, split, shuffle]
WITH_PLACES = [*ANYWHERE, conv, conv, pool, turn]
TO_VECTORS = [flatten, flatten_channels_first, total]


@st.composite
def cases(draw: Any) -> check.Case:
    """Convolutions, from places to vectors, dense layers; the first layer a convolution and the last a dense one."""
    parts, shape = [], (4, 6, 2)
    for kinds, length in (([conv], 1), (WITH_PLACES, draw(st.integers(1, 5))), (TO_VECTORS, 1)):
        parts.append(chain(draw, shape, kinds, length))
        shape = parts[-1].shape
    for kinds, length in ((ANYWHERE, draw(st.integers(1, 3))), ([dense], 1)):
        parts.append(chain(draw, shape, kinds, length))
        shape = parts[-1].shape

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for part, p in zip(parts, params, strict=True):
            x = part.run(p, x)
        return x

    params = [part.params for part in parts]
    built = Built(apply, params, (array(2, 4, 6, 2),))
    groups = trace(apply, params, *built.inputs)
    return check.Case(Entry("random", "plain", lambda: built, integer=True), built, groups)


@pytest.fixture(autouse=True)
def users_settings() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def check_case(case: check.Case, seed: int) -> None:
    if not len(case.groups):
        return
    enabled = (check.without_a_group if seed % 4 == 0 else check.index_set)(seed, case.groups)
    plan = make_plan(case.groups, enabled)
    draw = check.wide(check.integers(seed, case.ordinary))
    check.check_sizes(case, enabled, draw.cut(plan))
    with jax.enable_x64(True):
        params = check.zeroed(case.groups, enabled, draw.params)
        expected = check.compiled(case.built.apply)(params, *draw.args[1:])
        found = check.compiled(case.shrunk(plan))(*draw.cut(plan).args)
    assert check.largest(expected) < 2**53
    assert check.difference(expected, found) == 0


SETTINGS = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=25, **SETTINGS)
@given(cases(), st.integers(0, 2**16))
def test_random_networks(case, seed):
    check_case(case, seed)


@pytest.mark.slow
@settings(max_examples=400, **SETTINGS)
@given(cases(), st.integers(0, 2**16))
def test_many_random_networks(case, seed):
    check_case(case, seed)
