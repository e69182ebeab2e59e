"""`conv2d` against a sum over kernel taps in NumPy, in every way it is computed, with its derivatives and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import conv2d
from maskprune.conv import Way, blocked, default_way


WAYS: list[Way] = ["blocked", "xla"]
SIDES = [(1, 1), (3, 3), (5, 5), (7, 7), (9, 9), (3, 5), (7, 1)]
PICTURES = [(1, 1), (2, 3), (5, 7), (13, 16), (32, 32)]

run = jax.jit(conv2d, static_argnames=("padding", "way"))


def reference(inputs: jax.typing.ArrayLike, kernel: jax.typing.ArrayLike) -> np.ndarray:
    """Zero padding, stride 1, in float64: one shifted picture for every tap of the kernel."""
    x, k = np.asarray(inputs, np.float64), np.asarray(kernel, np.float64)
    (tall, wide), (_, height, width, _) = k.shape[:2], x.shape
    padded = np.pad(x, ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    taps = ((i, j) for i in range(tall) for j in range(wide))
    return np.sum([padded[:, i : i + height, j : j + width] @ k[i, j] for i, j in taps], axis=0)


def numbers(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("way", WAYS)
def test_agrees_with_the_sum_over_taps(rng, way, sides):
    for n, (height, width) in enumerate(PICTURES if way == "blocked" else PICTURES[1:3]):
        before, after = 1 + (n + sides[0]) % 6, 1 + (5 * n + sides[1]) % 6
        inputs, kernel = numbers(rng, 2, height, width, before), numbers(rng, *sides, before, after)
        found = run(inputs, kernel, way=way)
        assert found.shape == (2, height, width, after)
        np.testing.assert_allclose(found, reference(inputs, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", WAYS)
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


@pytest.mark.parametrize("sides", [(1, 1), (5, 5), (3, 7)])
def test_gradients_agree_between_ways(rng, sides):
    inputs, kernel = numbers(rng, 2, 6, 9, 3), numbers(rng, *sides, 3, 2)
    weights = numbers(rng, 2, 6, 9, 2)
    slopes = [
        jax.jit(jax.grad(lambda x, k, way=way: jnp.sum(weights * run(x, k, way=way)), argnums=(0, 1)))(inputs, kernel)
        for way in WAYS
    ]
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    # The kernel's gradient at one tap is the sum of products that tap made.
    middle = jnp.einsum("nhwi,nhwo->io", inputs, weights, precision="highest")
    np.testing.assert_allclose(slopes[0][1][sides[0] // 2, sides[1] // 2], middle, rtol=1e-4, atol=1e-4)


def test_second_derivatives_agree_between_ways(rng):
    inputs, kernel = numbers(rng, 1, 3, 4, 1), numbers(rng, 3, 3, 1, 2)
    found = [
        jax.jit(jax.hessian(lambda k, way=way: jnp.sum(jnp.tanh(run(inputs, k, way=way)))))(kernel) for way in WAYS
    ]
    assert found[0].shape == kernel.shape * 2
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-5)
    flat = found[0].reshape(kernel.size, kernel.size)
    np.testing.assert_allclose(flat, flat.T, atol=1e-5)


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
def test_bias_and_valid_padding(rng, way):
    inputs, kernel, bias = numbers(rng, 2, 7, 9, 2), numbers(rng, 3, 5, 2, 3), jnp.array([1.0, -2.0, 3.0])
    found = run(inputs, kernel, bias, padding="VALID", way=way)
    assert found.shape == (2, 5, 5, 3)
    np.testing.assert_allclose(found, reference(inputs, kernel)[:, 1:-1, 2:-2] + np.asarray(bias), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize(("way", "beyond"), [("xla", 0), ("blocked", blocked.BLOCK - 1)])
def test_a_bad_pixel_stays_where_it_is_seen(rng, way, beyond):
    """A block is one product over its window, so in the blocked way 0 * NaN spoils the block, and no more than that."""
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


@pytest.mark.parametrize(
    ("inputs", "kernel", "options", "message"),
    [
        ((1, 4, 4, 2), (3, 3, 3, 1), {}, r"`inputs` has shape \(1, 4, 4, 2\) and `kernel` \(3, 3, 3, 1\)"),
        ((4, 4, 2), (3, 3, 2, 1), {}, r"use \[N, H, W, I\] and \[k, l, I, O\]"),
        ((1, 4, 4, 2), (3, 2, 1), {}, r"use \[N, H, W, I\] and \[k, l, I, O\]"),
        ((1, 4, 4, 2), (4, 3, 2, 1), {}, r"`kernel` has shape \(4, 3, 2, 1\).*odd"),
        ((1, 4, 4, 2), (3, 2, 2, 1), {}, r"first two sides must be odd"),
        ((1, 4, 4, 2), (3, 3, 2, 1), {"padding": "same"}, r"`padding` is 'same': use \"SAME\" or \"VALID\""),
        ((1, 4, 4, 2), (3, 3, 2, 1), {"way": "fast"}, r"`way` is 'fast': use \"blocked\" or \"xla\""),
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
