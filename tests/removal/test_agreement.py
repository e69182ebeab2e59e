"""Equal networks pass for equal whatever they compute in, and others do not: mixed precision, whole numbers, flags.

The networks are small, random and many; a wrong one has a single wrong channel, or one that is off by a little.
"""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import mlir

from maskprune import CompactionError, check_same, choose, compact, disable, init_network, trace
from maskprune.masks.jaxpr.rules import ELEMENTWISE, RULES
from maskprune.removal.agreement import Run, agree, gap
from maskprune.removal.compaction import compact_params
from maskprune.removal.double_precision import FINEST, Double


HALF, SMALL, INT8 = jnp.bfloat16, jnp.float16, jnp.int8


def layered(dot, head=lambda h, w: h.astype(jnp.float32) @ w.astype(jnp.float32), first=lambda x: x):
    """Two layers of `dot` and ReLU, and a head."""

    def apply(params, x):
        hidden = first(x)
        for name in "ab":
            hidden = jax.nn.relu(dot(hidden, params[name]))
        return head(hidden, params["c"])

    return apply


def inside(dtype):
    return layered(lambda h, w: h @ w.astype(dtype), first=lambda x: x.astype(dtype))


def quantized(x, step):
    return jnp.clip(jnp.round(x / step), -127, 127).astype(INT8)


def int8_product(h, w):
    whole = lax.dot(quantized(h, 0.03), quantized(w, 0.01), preferred_element_type=jnp.int32)
    return whole.astype(jnp.float32) * 0.0003


def repeated(params, x):
    hidden = jax.nn.relu(x.astype(HALF) @ params["a"].astype(HALF))
    carried, _ = lax.scan(lambda h, _: (jax.nn.relu(h @ params["u"].astype(HALF)), None), hidden, None, length=3)
    carried = lax.cond(carried.sum() > 0, lambda h: h * 2, lambda h: h, carried)
    return (carried @ params["b"].astype(HALF)).astype(jnp.float32) @ params["c"]


FORMATS = {
    "bfloat16": inside(HALF),
    "half products of single numbers": layered(lambda h, w: lax.dot(h, w, preferred_element_type=HALF)),
    "products of a coarse algorithm": layered(
        lambda h, w: lax.dot(h, w, precision=lax.DotAlgorithmPreset.BF16_BF16_F32)
    ),
    "float8": layered(lambda h, w: h.astype(jnp.float8_e4m3fn).astype(h.dtype) @ w),
    "float16, reduced": layered(lambda h, w: lax.reduce_precision(h @ w, 8, 7), first=lambda x: x.astype(SMALL)),
    "whole numbers inside": layered(int8_product),
    "scan and cond": repeated,
}
PARAMS = {"a": (16, 32), "u": (32, 32), "b": (32, 24), "c": (24, 5)}


def masked(apply, seed, *, off=10, dtype=np.float32):
    rng = np.random.default_rng(seed)
    params = {name: (rng.normal(size=s) * 1.5 / s[0] ** 0.5).astype(dtype) for name, s in PARAMS.items()}
    x = rng.normal(size=(48, 16)).astype(np.float32)
    groups = [group for group in trace(apply, params, x) if group.size > 5 and group.name in "ab"]
    network = init_network(params, trace(apply, params, x))
    chosen = {group.name: rng.choice(group.size, off, replace=False).tolist() for group in groups}
    return disable(network, choose(network, chosen)), x


def one_channel_off(params, name, factor):
    return {**params, name: params[name].at[4].multiply(factor)}


@pytest.mark.rotating
@pytest.mark.parametrize("apply", FORMATS.values(), ids=FORMATS.keys())
def test_equal_networks_are_never_refused_and_one_wrong_channel_always_is(apply):
    for seed in range(2):
        network, x = masked(apply, seed)
        small_apply, small = compact(apply, network, x)
    for name, factor in (("a", 0), ("b", 1.2)):
        wrong = one_channel_off(small, name, factor)
        with pytest.raises(CompactionError, match="more than rounding explains"):
            check_same(apply, network, wrong, x, small_apply=small_apply)


def test_coarse_parameters_do_not_excuse_a_fine_computation():
    """float32 arithmetic on bfloat16 weights: their unit in the last place is no rounding of the computation."""
    apply = layered(lambda h, w: h @ w.astype(jnp.float32))
    network, x = masked(apply, 0, dtype=HALF)
    small_apply, small = compact(apply, network, x)
    for factor in (1.01, 0.99):
        wrong = {**small, "c": small["c"].at[3].multiply(factor)}
        assert not np.array_equal(wrong["c"], small["c"])
        with pytest.raises(CompactionError):
            check_same(apply, network, wrong, x, small_apply=small_apply)


def with_64_bits(test):
    def run():
        with jax.enable_x64(True):
            test()

    return run


@with_64_bits
def test_double_precision_is_held_to_the_tolerance_given():
    apply = layered(lambda h, w: h @ w, head=lambda h, w: h @ w)
    network, x = masked(apply, 0, dtype=np.float64)
    small_apply, small = compact(apply, network, x, tolerance=1e-13)
    wrong = {**small, "c": small["c"] * (1 + 1e-9)}
    with pytest.raises(CompactionError):
        check_same(apply, network, wrong, x, small_apply=small_apply, tolerance=1e-11)


def every_kind(h, w):
    found = h @ w.astype(HALF)
    return {
        "the largest of near ties": jnp.argmax(found, -1),
        "flags": found > 0,
        "a picture": jnp.clip(jnp.round(found * 99), 0, 255).astype(jnp.uint8),
        "sorted": lax.top_k(found, 2),
        "some not finite": found.at[:, 0].set(-jnp.inf).at[:, 1].set(jnp.nan),
        "complex": lax.complex(found.astype(jnp.float32), jnp.ones(found.shape)),
        "keys and nothing": (jax.random.key(3), jnp.zeros((0, 2)), None, ()),
    }


def test_outputs_of_any_kind():
    apply = layered(lambda h, w: h @ w.astype(HALF), head=every_kind, first=lambda x: x.astype(HALF))
    network, x = masked(apply, 0)
    small_apply, small = compact(apply, network, x)
    for name in ("the largest of near ties", "some not finite"):
        alone = lambda p, x, name=name: apply(p, x)[name]
        only = lambda p, x, name=name: small_apply(p, x)[name]
        with pytest.raises(CompactionError):
            check_same(alone, network, {**small, "a": jnp.roll(small["a"], 1, axis=1)}, x, small_apply=only)


def test_a_large_output_does_not_hide_a_small_one():
    apply = lambda p, x: (jnp.arange(4) + 10**8, 1e6 * x, jax.nn.relu(x @ p["a"]) @ p["b"] @ p["c"])
    network, x = masked(apply, 0)
    small_apply, small = compact(apply, network, x)
    with pytest.raises(CompactionError):
        check_same(apply, network, {**small, "c": small["c"] * 1.001}, x, small_apply=small_apply)


def test_what_is_not_finite_in_one_of_the_two_only_is_a_difference():
    apply = lambda p, x: jnp.where(p["c"][0] > 100, jnp.inf, jax.nn.relu(x @ p["a"]) @ p["b"] @ p["c"])
    network, x = masked(apply, 0)
    small = compact_params(network)
    with pytest.raises(CompactionError, match="by inf"):
        check_same(apply, network, {**small, "c": small["c"].at[0, 1].set(101)}, x)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, np.nan, np.inf], [1.5, np.nan, np.inf], 0.5),
        ([1.0, -np.inf], [1.0, np.inf], np.inf),
        ([np.nan], [1.0], np.inf),
        ([1 + 1j], [1 - 2j], 3.0),
        ([True, False], [True, True], 1.0),
        ([2**62], [2**62 + 1], 1.0),  # the same number in float64
        ([0], [7], 7.0),
        ([], [], 0.0),
    ],
)
def test_differences_by_hand(one, other, expected):
    assert gap(np.array(one), np.array(other)) == expected


def only_float32():
    """A primitive of somebody's own whose kernel is written for one number format, which it finds out when compiled."""

    def kernel(x):
        if x.dtype != np.float32:
            raise NotImplementedError("float32 only")
        return x * lax.cos(x)

    primitive = jex.Primitive("only_float32")
    primitive.def_abstract_eval(lambda x: x)
    mlir.register_lowering(primitive, mlir.lower_fun(kernel, multiple_results=False))
    return primitive


def test_where_double_precision_is_not_to_be_had_rounding_is_measured():
    primitive = only_float32()
    head = lambda h, w: primitive.bind(h.astype(jnp.float32) @ w)
    apply = layered(lambda h, w: h @ w.astype(HALF), head=head, first=lambda x: x.astype(HALF))
    rng = np.random.default_rng(1)
    params = {name: (rng.normal(size=s) * 1.5 / s[0] ** 0.5).astype("f") for name, s in PARAMS.items()}
    x = rng.normal(size=(48, 16)).astype(np.float32)
    rules = {**RULES, "only_float32": ELEMENTWISE}
    network = init_network(params, trace(apply, params, x, rules=rules))
    network = disable(network, choose(network, {"a": range(10), "b": [1, 4, 6]}))
    small_apply, small = compact(apply, network, x, rules=rules)
    wrong = {**small, "b": jnp.roll(small["b"], 1, axis=1)}
    with pytest.raises(CompactionError, match="more than rounding explains"):
        check_same(apply, network, wrong, x, small_apply=small_apply)


X = np.random.default_rng(0).normal(size=(4, 6)).astype("f")
WIDE = {
    "loops": lambda x: lax.fori_loop(0, 3, lambda i, c: c * 1.5, lax.cumsum(x)),
    "convolution": lambda x: lax.conv(x[None, None], x[None, None, :2, :2], (1, 1), "SAME"),
    "reductions of one's own": lambda x: lax.reduce(x, HALF(1), lambda a, b: a * b + a, (0,)),
    "windows": lambda x: lax.reduce_window(x, HALF(0), lambda a, b: jnp.maximum(a, b) + 0, (2, 1), (1, 1), "VALID"),
    "scatter": lambda x: x.at[jnp.array([0, 2])].add(1).at[1].multiply(2).at[0].set(3),
    "derivatives": lambda x: jax.grad(lambda x: jax.nn.silu(jax.nn.relu(x)).sum())(x),
    "remat": lambda x: jax.checkpoint(lambda x: jnp.sin(x).astype(jnp.float8_e5m2).astype(HALF))(x),
    "noise": lambda x: x + jax.random.normal(jax.random.key(0), x.shape, x.dtype),
    "noise and whole numbers": lambda x: (jnp.argmax(x), x.astype(jnp.int32)),
}


def test_everything_is_computed_in_double_precision():
    function = lambda x: {name: each(x) for name, each in WIDE.items()}
    x = jnp.asarray(X, HALF)
    double = Double(function, x)
    for own, fine in zip(jax.tree.leaves(jax.jit(function)(x)), jax.tree.leaves(double(x)), strict=True):
        assert fine.dtype == (np.float64 if jnp.issubdtype(own.dtype, jnp.floating) else own.dtype)
        np.testing.assert_allclose(np.asarray(own, float), np.asarray(fine, float), rtol=0.1, atol=0.1)
    assert double.epsilon == FINEST


AS_IT_IS = {
    "solvers": lambda x: jnp.linalg.solve(jnp.eye(4) * 3, x.astype(jnp.float32)),
    "callbacks": lambda x: jax.pure_callback(lambda v: np.asarray(v) * 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    "bits": lambda x: lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32),
}


@pytest.mark.parametrize("function", AS_IT_IS.values(), ids=AS_IT_IS.keys())
def test_what_cannot_be_so_computed_runs_as_it_is_and_says_how_coarse_that_is(function):
    x = jnp.asarray(X, jnp.float32)
    double = Double(function, x)
    np.testing.assert_allclose(jax.jit(function)(x), double(x), rtol=1e-6)
    assert double.epsilon == np.finfo(np.float32).eps


def test_exactly_what_the_tolerance_allows_is_the_same():
    run = lambda number: Run(lambda p, x: p * x, jnp.float32(number), (jnp.ones(2, jnp.float32),))
    verdict = lambda number: agree(run(1), run(number), (run(1).numbers(), run(number).numbers()), tolerance=0.25)
    assert verdict(1.25).same and verdict(0.75).same and not verdict(1.2500002).same
    assert verdict(1.5) == (False, 0.5, 1.0, verdict(1.5).rounding)
