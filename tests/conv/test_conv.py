"""`conv2d` against a sum over kernel taps in NumPy, in every way it is computed, with its derivatives and refusals."""

import os
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import BUILT, NATIVE

from maskprune import conv2d
from maskprune.conv import blocked, default_way, describe_way, native


WAYS = [NATIVE, "blocked", "xla"]
SIDES = [(1, 1), (3, 3), (5, 5), (7, 7), (9, 9), (3, 5), (7, 1), (1, 41)]
PICTURES = [(1, 1), (2, 3), (5, 7), (13, 16), (32, 32)]

run = jax.jit(conv2d, static_argnames=("relu", "padding", "way"))


def reference(inputs: jax.typing.ArrayLike, kernel: jax.typing.ArrayLike) -> np.ndarray:
    """Zero padding, stride 1, in float64: one shifted picture for every tap of the kernel."""
    x, k = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    (tall, wide), (_, height, width, _) = k.shape[:2], x.shape
    padded = np.pad(x, ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    taps = ((i, j) for i in range(tall) for j in range(wide))
    return np.sum([padded[:, i : i + height, j : j + width] @ k[i, j] for i, j in taps], axis=0)


def numbers(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.rotating
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("way", WAYS)
def test_agrees_with_the_sum_over_taps(rng, way, sides):
    for n, (height, width) in enumerate(PICTURES[1:3] if way == "xla" else PICTURES):
        before, after = 1 + (n + sides[0]) % 6, 1 + (5 * n + sides[1]) % 6
        inputs, kernel = numbers(rng, 2, height, width, before), numbers(rng, *sides, before, after)
        found = run(inputs, kernel, way=way)
        assert found.shape == (2, height, width, after)
        np.testing.assert_allclose(found, reference(inputs, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", ["blocked", "xla", None])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("bfloat16", 5e-2), ("float16", 5e-3)])
def test_keeps_the_number_format(rng, way, dtype, tolerance):
    with jax.enable_x64(True):
        inputs = jnp.asarray(rng.uniform(size=(1, 6, 5, 2)), dtype)
        kernel = jnp.asarray(rng.uniform(size=(3, 3, 2, 3)), dtype)
        found = run(inputs, kernel, jnp.zeros(3, dtype), way=way)
        assert found.dtype == dtype
        expected = reference(inputs, kernel)
        np.testing.assert_allclose(np.float64(found), expected, rtol=tolerance)


@pytest.mark.parametrize("way", WAYS)
def test_integers_come_out_exact(rng, way):
    inputs, kernel = rng.integers(-9, 10, (2, 7, 6, 3)), rng.integers(-9, 10, (5, 3, 3, 4))
    found = run(jnp.float32(inputs), jnp.float32(kernel), way=way)
    assert np.array_equal(found, reference(inputs, kernel))


@pytest.mark.parametrize("way", [NATIVE, "blocked"])
@pytest.mark.parametrize("sides", [(1, 1), (5, 5), (3, 7)])
def test_gradients_are_those_of_xla(rng, way, sides):
    inputs, kernel, bias = numbers(rng, 2, 6, 9, 3), numbers(rng, *sides, 3, 2), numbers(rng, 2)
    weights = numbers(rng, 2, 6, 9, 2)
    loss = lambda x, k, b, **options: jnp.sum(weights * run(x, k, b, **options))
    for relu in (False, True):
        slopes = [
            jax.jit(jax.grad(partial(loss, relu=relu, way=each), argnums=(0, 1, 2)))(inputs, kernel, bias)
            for each in (way, "xla")
        ]
        for one, other in zip(*slopes, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        if not relu:  # the kernel's gradient at one tap is the sum of products that tap made
            middle = jnp.einsum("nhwi,nhwo->io", inputs, weights, precision="highest")
            np.testing.assert_allclose(slopes[0][1][sides[0] // 2, sides[1] // 2], middle, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [NATIVE, "blocked"])
def test_forward_derivatives_are_those_of_xla(rng, way):
    given = numbers(rng, 2, 6, 9, 3), numbers(rng, 3, 5, 3, 2), numbers(rng, 2)
    moved = tuple(numbers(rng, *each.shape) for each in given)
    one, other = (jax.jvp(partial(conv2d, relu=True, way=each), given, moved) for each in (way, "xla"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.rotating
@pytest.mark.parametrize("way", [NATIVE, "blocked"])
@pytest.mark.parametrize("relu", [False, True])
def test_second_derivatives_are_those_of_xla(rng, way, relu):
    inputs, kernel, bias = numbers(rng, 1, 3, 4, 1), numbers(rng, 3, 3, 1, 2), numbers(rng, 2)
    loss = lambda k, x, way: jnp.sum(jnp.tanh(run(x, k, bias, relu=relu, way=way)))
    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):  # forward over reverse, reverse over reverse
        found = [jax.jit(hessian(partial(loss, way=way)))(kernel, inputs) for way in (way, "xla")]
        assert found[0].shape == kernel.shape * 2
        np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
        flat = found[0].reshape(kernel.size, kernel.size)
        np.testing.assert_allclose(flat, flat.T, atol=1e-5)
    mixed = [jax.jit(jax.jacrev(jax.grad(partial(loss, way=way)), argnums=1))(kernel, inputs) for way in (way, "xla")]
    np.testing.assert_allclose(mixed[0], mixed[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_populations_of_pictures_and_kernels(rng, way, axes):
    inputs, kernels = numbers(rng, 3, 2, 5, 6, 2), numbers(rng, 3, 3, 3, 2, 4)
    given = [data if axis == 0 else data[0] for data, axis in zip((inputs, kernels), axes, strict=True)]
    together = jax.jit(jax.vmap(partial(conv2d, way=way), in_axes=axes))(*given)
    for i in range(3):
        x, k = (data[i] if axis == 0 else data for data, axis in zip(given, axes, strict=True))
        np.testing.assert_allclose(together[i], reference(x, k), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_bias_relu_and_valid_padding(rng, way):
    inputs, kernel, bias = numbers(rng, 2, 7, 9, 2), numbers(rng, 3, 5, 2, 3), jnp.array([1.0, -2.0, 3.0])
    found = run(inputs, kernel, bias, padding="VALID", way=way)
    assert found.shape == (2, 5, 5, 3)
    expected = reference(inputs, kernel)[:, 1:-1, 2:-2] + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    found = run(inputs, kernel, bias, relu=True, padding="VALID", way=way)
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)
    assert (np.asarray(found) == 0).any()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_valid_padding_of_pictures_smaller_than_the_kernel(size):
    found = run(jnp.ones((1, size, 9, 1)), jnp.ones((5, 5, 1, 1)), padding="VALID")
    assert found.shape == (1, max(0, size - 4), 5, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("before", "after"), [(0, 3), (2, 0), (0, 0)])
def test_layers_without_channels(way, before, after):
    bias = jnp.arange(after, dtype=jnp.float32)
    layer = lambda kernel: run(jnp.ones((2, 4, 5, before)), kernel, bias, way=way)
    kernel = jnp.ones((3, 3, before, after))
    np.testing.assert_array_equal(layer(kernel), np.broadcast_to(np.arange(after), (2, 4, 5, after)))
    assert jax.grad(lambda k: jnp.sum(layer(k)))(kernel).shape == kernel.shape


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_pixel_stays_where_it_is_seen(rng, way):
    """A block is one product over its window, so in the blocked way 0 * NaN spoils the block, and no more than that."""
    beyond = blocked.BLOCK - 1 if way == "blocked" else 0
    inputs = np.asarray(numbers(rng, 2, 24, 24, 2)).copy()
    clean = run(jnp.asarray(inputs), numbers(rng, 5, 5, 2, 3), way=way)
    inputs[1, 10, 13, 0] = np.nan
    spoiled = np.isnan(run(jnp.asarray(inputs), jnp.ones((5, 5, 2, 3)), way=way))
    assert np.all(np.isfinite(clean))
    assert not spoiled[0].any()
    assert spoiled[1, 8:13, 11:16].all()
    rows, columns = np.nonzero(spoiled[1].any(axis=-1))
    assert np.abs(rows - 10).max() <= 2 + beyond
    assert np.abs(columns - 13).max() <= 2 + beyond


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_weight_stays_in_its_channel(rng, way):
    kernel = numbers(rng, 3, 3, 2, 4).at[1, 1, 0, 2].set(jnp.nan)
    found = np.isfinite(run(numbers(rng, 1, 6, 6, 2), kernel, way=way))
    assert found.all(axis=(0, 1, 2)).tolist() == [True, True, False, True]


def test_the_default_is_one_of_the_ways(rng):
    inputs, kernel = numbers(rng, 1, 5, 5, 1), numbers(rng, 3, 3, 1, 2)
    assert np.array_equal(run(inputs, kernel), run(inputs, kernel, way=default_way()))
    assert describe_way().startswith(default_way())
    assert default_way(jnp.bfloat16) != "native"
    if jax.default_backend() == "cpu":
        assert default_way() == ("blocked" if native.LEVEL is None else "native")


@BUILT
@pytest.mark.parametrize(("before", "after"), [(13, 7), (7, 13), (1, 8), (8, 1)])
def test_many_channels_are_those_of_xla(rng, before, after):
    given = numbers(rng, 2, 9, 21, before), numbers(rng, 3, 5, before, after), numbers(rng, after)
    loss = lambda x, k, b, way: jnp.sum(run(x, k, b, relu=True, way=way) ** 2)
    slopes = [jax.grad(partial(loss, way=way), argnums=(0, 1, 2))(*given) for way in ("native", "xla")]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-2)


@BUILT
def test_pictures_that_stay_get_no_gradient(rng):
    """Of two layers only the second one gives a gradient of its inputs, alone, in a population and in a loop."""
    inputs, kernels = numbers(rng, 1, 6, 7, 2), (numbers(rng, 3, 3, 2, 3), numbers(rng, 3, 3, 3, 1))

    def loss(kernels, x):
        for kernel in kernels:
            x = conv2d(x, kernel, relu=True, way="native")
        return jnp.sum(x**2)

    step = lambda kernels, x: jax.tree.map(jnp.subtract, kernels, jax.grad(loss)(kernels, x))
    loop = lambda kernels, x: jax.lax.scan(lambda k, _: (jax.jit(step)(k, x), None), kernels, length=2)[0]
    many = jax.vmap(loop, (None, 0))
    for steps, x in ((step, inputs), (loop, inputs), (many, inputs[None])):
        found = str(jax.make_jaxpr(steps)(kernels, x))
        assert sorted(re.findall(r"wanted=(\w+)", found)) == ["False", "True"]
        assert len(re.findall("= conv2d_(?!backward)", found)) == 2  # and no call beside these and the layers
    both = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(kernels, inputs))
    assert re.findall(r"wanted=(\w+)", both) == ["True", "True"]


@pytest.mark.parametrize("way", WAYS)
def test_no_slope_where_the_output_is_zero(rng, way):
    inputs = jnp.asarray(rng.integers(-1, 2, (2, 7, 19, 1)), jnp.float32)
    weights = jnp.asarray(rng.integers(1, 9, inputs.shape), jnp.float32)
    loss = lambda x, k, b: jnp.sum(weights * run(x, k, b, relu=True, way=way))
    dx, dk, db = jax.grad(loss, argnums=(0, 1, 2))(inputs, jnp.ones((1, 1, 1, 1)), jnp.zeros(1))
    passed = jnp.where(inputs > 0, weights, 0)
    assert (inputs == 0).any()
    np.testing.assert_array_equal(dx, passed)
    assert db == passed.sum() and dk == jnp.sum(inputs * passed)


@BUILT
@pytest.mark.parametrize("relu", [False, True])
def test_the_backward_call_transposed_is_the_slope(rng, relu):
    given = numbers(rng, 1, 6, 9, 3), numbers(rng, 3, 5, 3, 2), numbers(rng, 2)
    moved = tuple(numbers(rng, *each.shape) for each in given)
    layer = partial(conv2d, relu=relu, way="native")
    outputs, pull = jax.vjp(layer, *given)
    (found,) = jax.linear_transpose(pull, outputs)(moved)
    np.testing.assert_allclose(found, jax.jvp(layer, given, moved)[1], rtol=1e-5, atol=1e-5)
    zero = jax.tree.map(jnp.zeros_like, moved)
    for i in range(3):  # any of them moves alone
        only = tuple(one if i == j else other for j, (one, other) in enumerate(zip(moved, zero, strict=True)))
        alone = jax.jvp(lambda x, i=i: layer(*given[:i], x, *given[i + 1 :]), (given[i],), (moved[i],))[1]
        np.testing.assert_allclose(alone, jax.jvp(layer, given, only)[1], rtol=1e-5, atol=1e-5)


def layer_and_slopes(x, k, b):
    """The outputs of a layer and the gradients of the sum of their squares."""
    outputs, pull = jax.vjp(partial(conv2d, relu=True, way="native"), x, k, b)
    return outputs, *pull(2 * outputs)


@BUILT
@pytest.mark.parametrize(
    ("shape", "after"), [((4, 2, 33, 20, 3), 2), ((4, 2, 33, 20, 2), 3), ((3, 1, 5, 3, 1), 5), ((700, 1, 16, 3, 5), 5)]
)
def test_a_member_of_a_population_gets_the_bits_of_a_single_run(rng, shape, after):
    size, *_, before = shape
    given = numbers(rng, *shape), numbers(rng, size, 5, 5, before, after), numbers(rng, size, after)
    many, single = jax.jit(jax.vmap(layer_and_slopes)), jax.jit(layer_and_slopes)
    clean = many(*given)
    for i in {0, 2, size // 2, size - 1}:
        for together, alone in zip(clean, single(*(each[i] for each in given)), strict=True):
            np.testing.assert_array_equal(together[i], alone)
    for n in range(2):  # members with a bad pixel or weight are lost, and nobody else notices
        bad = list(given)
        bad[n] = given[n].at[1::2, 0, 0, 0, 0].set(jnp.nan)
        found = many(*bad)
        assert all(np.isnan(found[0][i]).any() for i in range(1, size, 2))
        for one, other in zip(clean, found, strict=True):
            np.testing.assert_array_equal(one[::2], other[::2])


@BUILT
@pytest.mark.parametrize("sides", [(1, 1), (3, 1), (1, 5), (5, 5)])
@pytest.mark.parametrize(("before", "after"), [(3, 4), (4, 3)])
def test_what_an_earlier_call_left_does_not_matter(rng, before, after, sides):
    lost = jnp.full((3, 64, 64, 6), jnp.nan), numbers(rng, 3, 3, 6, 6), numbers(rng, 6)
    for calls in (layer_and_slopes, partial(conv2d, relu=True, way="native")):
        assert np.isnan(jax.tree.leaves(jax.jit(calls)(*lost))[0]).all()
    given = numbers(rng, 3, 13, 21, before), numbers(rng, *sides, before, after), numbers(rng, after)
    assert all(np.isfinite(each).all() for each in jax.jit(layer_and_slopes)(*given))


@BUILT
def test_populations_of_populations(rng):
    inputs, kernels = numbers(rng, 2, 2, 33, 20, 3), numbers(rng, 4, 5, 5, 3, 2)
    twice = jax.vmap(jax.vmap(partial(conv2d, way="native"), (None, 0)), (0, None))(inputs, kernels)
    assert twice.shape == (2, 4, 2, 33, 20, 2)
    np.testing.assert_array_equal(twice[1, 3], conv2d(inputs[1], kernels[3], way="native"))


ELSEWHERE = """
import os, sys
if sys.argv[1]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from maskprune import conv2d
from maskprune.conv import native
assert native.LEVEL == sys.argv[2], native.LEVEL
rng = np.random.default_rng(1)
x, k, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 70, 91, 7), (5, 3, 7, 8), (8,)))
loss = lambda x, k, b: jnp.sum(conv2d(x, k, b, relu=True, way="native") ** 2)
found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(x, k, b)
np.savez(sys.argv[3], *jax.tree.leaves(found))
"""


@BUILT
def test_one_processor_gives_the_same_bits_and_older_ones_the_same_numbers(tmp_path):
    levels = ["baseline", "avx2", "avx512"]
    levels = levels[: levels.index(native.LEVEL) + 1]
    found = {}
    for single, level in [("", native.LEVEL), *(("yes", level) for level in levels)]:
        path = tmp_path / f"{single}{level}.npz"
        environment = os.environ | {"MASKPRUNE_NATIVE": level, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", ELSEWHERE, single, level, str(path)], env=environment, check=True)
        with np.load(path) as file:
            found[single, level] = [file[name] for name in file.files]
    for level in levels:
        for a, b in zip(found["", native.LEVEL], found["yes", level], strict=True):
            if level == native.LEVEL and a.ndim == 4:  # what is ours; XLA's own sum of the loss may differ
                np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2)


def test_without_the_library_another_way_is_taken(monkeypatch, rng):
    monkeypatch.setattr(native, "LEVEL", None)
    assert default_way() == "blocked" and describe_way() == "blocked"
    with pytest.raises(ValueError, match=r"has no compiled convolution .*: use \"blocked\""):
        conv2d(numbers(rng, 1, 5, 5, 1), numbers(rng, 3, 3, 1, 2), way="native")


@BUILT
def test_the_native_way_says_what_it_cannot_do():
    ones = partial(jnp.ones, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="the arrays are bfloat16"):
        conv2d(ones((1, 5, 5, 1)), ones((3, 3, 1, 2)), way="native")
    environment = os.environ | {"MASKPRUNE_NATIVE": "mmx"}
    done = subprocess.run(
        [sys.executable, "-c", "import maskprune; maskprune.conv"], env=environment, capture_output=True, text=True
    )
    assert "MASKPRUNE_NATIVE is 'mmx'" in done.stderr


@pytest.mark.parametrize(
    ("inputs", "kernel", "options", "message"),
    [
        ((1, 4, 4, 2), (3, 3, 3, 1), {}, r"`inputs` has shape \(1, 4, 4, 2\) and `kernel` \(3, 3, 3, 1\)"),
        ((4, 4, 2), (3, 3, 2, 1), {}, r"use \[N, H, W, I\] and \[k, l, I, O\]"),
        ((1, 4, 4, 2), (3, 2, 1), {}, r"use \[N, H, W, I\] and \[k, l, I, O\]"),
        ((1, 4, 4, 2), (4, 3, 2, 1), {}, r"`kernel` has shape \(4, 3, 2, 1\).*odd"),
        ((1, 4, 4, 2), (3, 2, 2, 1), {}, r"first two sides must be odd"),
        ((1, 4, 4, 2), (3, 3, 2, 1), {"padding": "same"}, r"`padding` is 'same': use \"SAME\" or \"VALID\""),
        ((1, 4, 4, 2), (3, 3, 2, 1), {"way": "fast"}, r"`way` is 'fast': use \"native\", \"blocked\" or"),
        ((1, 4, 4, 2), (3, 3, 2, 1), {"way": ""}, r"`way` is ''"),
    ],
)
def test_refusals(inputs, kernel, options, message):
    with pytest.raises(ValueError, match=message):
        conv2d(jnp.ones(inputs), jnp.ones(kernel), **options)


@pytest.mark.parametrize("way", WAYS)
def test_refuses_a_bias_of_another_width(way):
    with pytest.raises(ValueError, match=r"`bias` has shape \(1,\), but `kernel` gives \[3\]"):
        conv2d(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 3)), jnp.ones(1), way=way)


@BUILT
@pytest.mark.parametrize("relu", [False, True])
def test_weights_that_stay_get_no_gradient(rng, relu):
    given = numbers(rng, 2, 6, 7, 2), numbers(rng, 3, 3, 2, 3), numbers(rng, 3)
    loss = lambda x, k, b, way="native": jnp.sum(conv2d(x, k, b, relu=relu, way=way) ** 2)
    assert "conv2d_backward" in str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 2)))(*given))
    assert "conv2d_backward" not in str(jax.make_jaxpr(jax.grad(loss))(*given))
    expected = jax.grad(partial(loss, way="xla"))(*given)
    np.testing.assert_allclose(jax.grad(loss)(*given), expected, rtol=1e-4, atol=1e-4)
