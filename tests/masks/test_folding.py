"""Constants and dead values are what XLA computes, or are not given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import maskprune
from maskprune.masks.jaxpr.labels import Labels
from maskprune.masks.jaxpr.reader import read_jaxpr, to_jaxpr
from maskprune.masks.jaxpr.rules import folding


INTEGERS = ["int8", "uint8", "int32", "uint32"]
HALVES = ["float16", "bfloat16"]
LATER = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float16", "bfloat16", "int8", "int32", "uint32")]
DTYPES = ["float32", "uint8", *LATER]


def awkward(dtype):
    """Two arrays of every pair of awkward values."""
    if jnp.issubdtype(dtype, np.integer):
        limits = jnp.iinfo(dtype)
        values = [0, 1, 2, 3, 7, 31, 100, int(limits.max), int(limits.max) - 1, int(limits.min), int(limits.min) + 1]
    else:
        limits = jnp.finfo(dtype)
        small, large = float(limits.smallest_normal), float(limits.max)
        values = [0.0, -0.0, 0.5, 1.0, 1.5, 2.5, -0.5, -1.0, -2.5, 3.0, 100.7, 255.9, -300.2, 3e4, 1e-3]
        values += [np.inf, -np.inf, np.nan, small, large, -large]
    line = np.array(values).astype(dtype)
    return tuple(part.ravel() for part in np.meshgrid(line, line, indexing="ij"))


UNARY = [lax.neg, jnp.square, lambda x: lax.integer_pow(x, 3)]
SIGNED = [lax.abs, lax.sign]
UNARY_FLOAT = [
    *(lax.floor, lax.ceil, lax.round, lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), lax.is_finite),
    *(lax.sqrt, lax.rsqrt, lax.exp, lax.exp2, lax.expm1, lax.log, lax.log1p, lax.logistic, lax.tanh, lax.sin, lax.cos),
    *(lax.tan, lax.asin, lax.acos, lax.atan, lax.sinh, lax.cosh, lax.asinh, lax.acosh, lax.atanh, lax.cbrt),
    *(lax.erf, lax.erfc, lax.erf_inv, lax.lgamma, lax.digamma, lax.bessel_i0e, lax.bessel_i1e),
    *(lambda x: lax.integer_pow(x, -2), lambda x: lax.reduce_precision(x, 5, 3)),
]
UNARY_INTEGER = [lax.bitwise_not, lax.clz, lax.population_count, lambda x: lax.integer_pow(x, 2)]
BINARY = [
    *(lax.add, lax.sub, lax.mul, lax.max, lax.min, lax.eq, lax.ne, lax.lt, lax.le, lax.gt, lax.ge),
    *(lambda x, y: lax.select(x < y, x, y), lambda x, y: lax.clamp(x, y, x)),
]
BINARY_FLOAT = [lax.div, lax.rem, lax.pow, lax.atan2, lax.nextafter]
DIVISIONS = [lax.div, lax.rem]  # a compiler that folds a whole division by zero ends the process
BINARY_INTEGER = [
    *(lax.bitwise_and, lax.bitwise_or, lax.bitwise_xor),
    *(lax.shift_left, lax.shift_right_logical, lax.shift_right_arithmetic),
]
WHOLE = [  # of all entries
    *(jnp.sum, jnp.max, jnp.min, jnp.prod, jnp.argmax, jnp.argmin, lax.cumsum, lax.cummax, lax.cummin, lax.cumprod),
    *(jnp.sort, lambda x: x @ x, lambda x: x[jnp.array([3, 0, -1, 10**6])], lambda x: lax.dynamic_slice(x, (2,), (3,))),
    *(lambda x: x.at[jnp.array([1, 4])].set(x[:2]), lambda x: x.at[jnp.array([1, 1])].add(x[:2])),
    *(lambda x: jnp.flip(x).reshape(-1, 1).T, lambda x: jnp.tile(x, 2), lambda x: jnp.concatenate([x, x])),
]
CASTS = [
    *((lambda x, to=to: lax.convert_element_type(x, to)) for to in [*INTEGERS, *HALVES, "float32", "bool"]),
]


def of_dtype(dtype):
    x, y = awkward(dtype)
    given = (x, y, np.unique(x[np.isfinite(x.astype(np.float64))]))
    integer = jnp.issubdtype(dtype, np.integer)
    unary, binary = (UNARY_INTEGER, BINARY_INTEGER) if integer else (UNARY_FLOAT, BINARY_FLOAT)

    divisor = np.where((y.astype(np.float64) == 0) | (y.astype(np.float64) == -1), 3, y).astype(dtype)
    signed = [] if jnp.issubdtype(dtype, np.unsignedinteger) else SIGNED

    def every():
        x, y, line = map(jnp.asarray, given)
        found = [f(x) for f in [*UNARY, *signed, *unary, *CASTS]] + [f(x, y) for f in [*BINARY, *binary]]
        found += [f(x, jnp.asarray(divisor)) for f in DIVISIONS]
        found += [f(each) for f in WHOLE for each in (line, x)]
        return [*found, lax.iota(dtype, 300), lax.broadcasted_iota(dtype, (2, 3), 1)]

    return every


def read(function):
    jaxpr, _ = to_jaxpr(function)
    return jaxpr, read_jaxpr(jaxpr, Labels(), [])


@pytest.mark.rotating
@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_are_what_the_compiled_function_gives(dtype):
    every = of_dtype(dtype)
    _, reading = read(every)
    known = 0
    for number, (value, compiled) in enumerate(zip(reading.outputs, jax.jit(every)(), strict=True)):
        if value.const is None:
            continue
        known += 1
        assert value.const.dtype == compiled.dtype, number
        a, b = value.const.astype(np.float64), np.asarray(compiled, np.float64)  # which holds every number of 32 bits
        if value.slack == 0:
            np.testing.assert_array_equal(a, b, str(number))
        else:
            np.testing.assert_allclose(a, b, rtol=value.slack, atol=1e-6, err_msg=str(number))
    assert known > len(reading.outputs) / 3


def test_every_primitive_that_is_computed_is_tried():
    tried = set()

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            tried.add(equation.primitive.name)
            for inner in maskprune.masks.jaxpr.internals.bodies(equation):
                walk(maskprune.masks.jaxpr.internals.opened(inner)[0])

    for dtype in ("float32", "int32"):
        walk(read(of_dtype(dtype))[0].jaxpr)
    special = {"zeta", "polygamma", "igamma", "igammac", "regularized_incomplete_beta", "cumlogsumexp", "and", "or"}
    other_names = {"add_any", "scatter_add", "scatter-add", "square"}
    left = folding.COMPUTED - tried - special - other_names
    assert left <= {
        *("bitcast_convert_type", "dynamic_update_slice", "reduce_and", "reduce_or", "reduce_xor"),
        *("scatter_max", "scatter_min", "scatter_mul"),
    }


def known(function):
    (value,) = read(function)[1].outputs
    return value.const


@pytest.mark.parametrize(
    "function",
    [
        lambda: (1.0 / jnp.arange(4, dtype=jnp.float32)).astype(jnp.int32),
        lambda: jnp.array([1.0, jnp.nan]).astype(jnp.int8),
        lambda: jnp.array([-1.0, 3.0]).astype(jnp.uint8),
        lambda: jnp.array([256.0, 3.0]).astype(jnp.uint8),
        lambda: lax.div(jnp.array([4, 5]), jnp.array([0, 2])),
        lambda: lax.rem(jnp.array([4, 5]), jnp.array([0, 2])),
        lambda: lax.div(jnp.array([-128, 5], jnp.int8), jnp.array([-1, 2], jnp.int8)),
        lambda: lax.shift_left(jnp.array([1, 2]), jnp.array([40, 2])),
        lambda: jnp.array([6e4, 1.0], jnp.float16) * 2,
        lambda: jnp.array([1e-40, 1.0]) > 0,
        lambda: jnp.array([0, 1]).at[jnp.array([1, 1])].set(jnp.array([5, 6]), unique_indices=False),
        lambda: jnp.floor(jnp.array([0.7, 1.0]) * 10 / 7).astype(jnp.int32),
        lambda: (jnp.exp(jnp.log(jnp.array([3.0, 2.0]))) == jnp.array([3.0, 2.0])).astype(jnp.int32),
        lambda: 1 / (jnp.array([0.1, 1.0]) + 0.2 - jnp.array([0.3, 0.0])),
    ],
)
def test_what_machines_may_compute_differently_proves_nothing(function):
    assert known(function) is None


@pytest.mark.parametrize(
    ("function", "right"),
    [
        (lambda: lax.round(jnp.array([0.5, 1.5, -0.5])), [1.0, 2.0, -1.0]),
        (lambda: jnp.array([3, 250], jnp.uint8) + jnp.array([253, 10], jnp.uint8), [0, 4]),
        (lambda: (jnp.arange(7, dtype=jnp.float32) / 2).astype(jnp.int32), [0, 0, 1, 1, 2, 2, 3]),
        (lambda: jnp.floor((jnp.arange(6) + 0.5) * 0.5).astype(jnp.int32), [0, 0, 1, 1, 2, 2]),
        (lambda: (jnp.array([0.5, -2.5]) * 255).astype(jnp.int32), [127, -637]),
        (lambda: jnp.repeat(jnp.arange(2), 2, total_repeat_length=4), [0, 0, 1, 1]),
        (lambda: jnp.array([0.1, 0.9], jnp.bfloat16) > 0.5, [False, True]),
    ],
)
def test_what_every_machine_computes_alike_is_known(function, right):
    np.testing.assert_array_equal(known(function), right)


def test_a_setting_of_the_user_does_not_disturb():
    with jax.debug_nans(True), jax.transfer_guard("disallow"):
        assert known(lambda: jnp.log(np.array([-1.0, 1.0], np.float32)) > 0) is not None


MEANS = {
    "uint8": lambda h: (jax.nn.sigmoid(h) * 255).astype(jnp.uint8).astype(jnp.float32) - 127,
    "uint8, half": lambda h: (jax.nn.sigmoid(h) * 255).astype(jnp.uint8).astype(jnp.float32) - 127.5,
    "bool": lambda h: jax.nn.sigmoid(h).astype(bool).astype(jnp.float32) - 1,
    "bool, half": lambda h: jax.nn.sigmoid(h).astype(bool).astype(jnp.float32) - 0.5,
    "bfloat16": lambda h: (jax.nn.sigmoid(h) + 256).astype(jnp.bfloat16).astype(jnp.float32) - 256.5,
    "round": lambda h: lax.round(jax.nn.sigmoid(h)) - 1,
    "round, even": lambda h: jnp.round(jax.nn.sigmoid(h) + 1) - 1,
    "wraps": lambda h: ((h > 0).astype(jnp.uint8) - jnp.uint8(1)).astype(jnp.float32) - 255,
    "shifts": lambda h: ((h >= 0).astype(jnp.int32) << 40).astype(jnp.float32),
    "divides": lambda h: lax.div((h >= 0).astype(jnp.int32), (h < 0).astype(jnp.int32)).astype(jnp.float32) + 1,
    "overflows": lambda h: (jax.nn.sigmoid(h).astype(jnp.float16) * 6e4 * 4 < jnp.inf).astype(jnp.float32),
    "reduce_precision": lambda h: lax.reduce_precision(jax.nn.sigmoid(h) + 2, 5, 1) - 2.5,
    "not a number": lambda h: jnp.where(jnp.isnan(jnp.sqrt(h - h - 1)), 1.0, h),
    "filled": lambda h: (h > 0).astype(jnp.int32).at[jnp.array([0, 9]), :].get(mode="fill").astype(jnp.float32),
}


@pytest.mark.parametrize("name", MEANS)
@pytest.mark.parametrize("summed", [jnp.mean, jnp.max, jnp.min], ids=["mean", "max", "min"])
def test_a_sum_over_channels_is_exact_or_refused(name, summed, rng):
    params = {"a": rng.normal(size=(3, 6)), "b": rng.normal(size=(1, 2))}
    params = {k: v.astype(np.float32) for k, v in params.items()}
    x = rng.normal(size=(4, 3)).astype(np.float32)

    def function(p, x):
        return summed(MEANS[name](x @ p["a"]), axis=-1, keepdims=True) / 100 @ p["b"]

    for group in (groups := maskprune.trace(function, params, x)):
        network = maskprune.init_network(params, groups)
        network = maskprune.disable(network, maskprune.choose(network, {group.name: [0, 2]}))
        small, left = maskprune.compact(function, network)
        masked = function(maskprune.effective_params(network), x)
        np.testing.assert_allclose(masked, small(left, x), rtol=1e-5, atol=1e-6)


def test_values_that_pass_a_barrier_stay_apart():
    def function(p, x):
        one, other = lax.optimization_barrier((x @ p["a"], x @ p["b"]))
        return jnp.tanh(one) @ p["c"] + jnp.tanh(other) @ p["d"]

    params = {"a": np.ones((2, 3)), "b": np.ones((2, 3)), "c": np.ones((3, 2)), "d": np.ones((3, 2))}
    assert [group.size for group in maskprune.trace(function, params, np.ones((1, 2)))] == [3, 3]


@pytest.mark.parametrize("dtype", [np.bool_, np.int32, np.uint8])
@pytest.mark.parametrize("combine", [lax.reduce_and, lax.reduce_or, lax.reduce_xor], ids=["and", "or", "xor"])
@pytest.mark.parametrize("axes", [(1,), (0,)], ids=["over channels", "beside them"])
def test_bits_are_combined_exactly_or_refused(dtype, combine, axes, rng):
    params = {"a": rng.normal(size=(3, 6)), "b": rng.normal(size=(1, 2))}
    params = {k: v.astype(np.float32) for k, v in params.items()}
    x = rng.normal(size=(4, 3)).astype(np.float32)

    def function(p, x):
        bits = combine((x @ p["a"] >= 0).astype(dtype), axes).astype(jnp.float32)
        return jnp.sum(bits).reshape(1, 1) @ p["b"]

    for group in (groups := maskprune.trace(function, params, x)):
        network = maskprune.init_network(params, groups)
        network = maskprune.disable(network, maskprune.choose(network, {group.name: [1]}))
        small, left = maskprune.compact(function, network)
        np.testing.assert_allclose(function(maskprune.effective_params(network), x), small(left, x), rtol=1e-5)
