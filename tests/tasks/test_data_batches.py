"""Batches: decided by the key, aligned, in range, at home in jit, vmap and scan."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune.tasks.data import Split, batches


N, SIZE = 5, 24
draw = jax.jit(batches.draw_batch, static_argnames=("batch", "crop", "flips"))


@pytest.fixture(scope="module")
def split():
    """Every pixel of every picture is different, and the target says the same as the input, in 16 bits."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 256, (N, SIZE, SIZE, 1), np.uint8)
    return batches.to_device(Split(inputs, inputs.astype(np.uint16) * 257, tuple("abcde")))


def test_types_and_shapes(split, key):
    assert split.inputs.dtype == jnp.uint8 and split.targets.dtype == jnp.uint16
    for array in draw(key, split, batch=16, crop=7):
        assert array.shape == (16, 7, 7, 1) and array.dtype == jnp.float32
        assert array.min() >= 0 and array.max() <= 1


def test_input_and_target_are_cut_alike(split, key):
    inputs, targets = draw(key, split, batch=16, crop=7)
    np.testing.assert_allclose(inputs, targets, atol=1e-7)


def test_every_crop_is_a_piece_of_a_picture(split, key):
    inputs, _ = draw(key, split, batch=16, crop=7)
    stored = np.asarray(split.inputs)[..., 0]
    windows = np.lib.stride_tricks.sliding_window_view(stored, (7, 7), (1, 2)).reshape(-1, 49)
    for crop in np.rint(np.asarray(inputs) * 255).reshape(-1, 49):
        assert (windows == crop).all(1).any()


def test_flips_mirror_input_and_target_alike_in_all_four_ways(split, key):
    plain, _ = draw(key, split, batch=64, crop=7)
    inputs, targets = draw(key, split, batch=64, crop=7, flips=True)
    np.testing.assert_allclose(inputs, targets, atol=1e-7)
    found = set()
    for before, after in zip(np.asarray(plain), np.asarray(inputs), strict=True):
        ways = {"": before, "h": before[:, ::-1], "v": before[::-1], "both": before[::-1, ::-1]}
        found |= {name for name, way in ways.items() if np.array_equal(way, after)}
    assert found == {"", "h", "v", "both"}


def test_every_picture_and_place_is_reached(split, key):
    place = jnp.arange(N * SIZE * SIZE, dtype=jnp.uint16).reshape(N, SIZE, SIZE, 1)
    inputs, _ = draw(key, batches.DeviceSplit(place, place), batch=4000, crop=22)
    corners = np.rint(np.asarray(inputs)[:, 0, 0, 0] * 65535).astype(int)
    expected = {int(place[n, r, c, 0]) for n in range(N) for r in range(3) for c in range(3)}
    assert set(corners.tolist()) == expected


def test_the_key_decides(split, key):
    first, again = (draw(key, split, batch=16, crop=7)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != draw(jax.random.fold_in(key, 1), split, batch=16, crop=7)[0]).any()


def test_whole_pictures(split, key):
    inputs, _ = draw(key, split, batch=8, crop=SIZE)
    whole = np.asarray(batches.to_unit(split.inputs))
    for crop in np.asarray(inputs):
        assert np.isclose(whole, crop[None], atol=1e-7).all((1, 2, 3)).any()


@pytest.mark.rotating
def test_same_in_jit_scan_and_vmap(split, key):
    keys = jax.random.split(key, 3)
    one_by_one = np.stack([draw(k, split, batch=16, crop=7)[0] for k in keys])
    single = lambda k: batches.draw_batch(k, split, batch=16, crop=7)[0]
    _, scanned = jax.lax.scan(lambda carry, k: (carry, single(k)), 0, keys)
    np.testing.assert_allclose(jax.vmap(single)(keys), one_by_one, atol=1e-7)
    np.testing.assert_allclose(scanned, one_by_one, atol=1e-7)
    np.testing.assert_allclose(single(keys[0]), one_by_one[0], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_unit_range_ends_exactly_at_one(dtype, wrap):
    stored = np.arange(np.iinfo(dtype).max + 1, dtype=np.int64).astype(dtype)
    values = np.asarray(wrap(batches.to_unit)(stored))
    assert values.dtype == np.float32 and values[0] == 0 and values[-1] == 1
    np.testing.assert_allclose(values, stored.astype(np.float64) / stored[-1], rtol=2e-7)


def test_floats_are_refused():
    with pytest.raises(TypeError, match="float32"):
        batches.to_unit(jnp.ones(3))


@pytest.mark.parametrize("crop", [1, 7, 8, SIZE])
def test_centre(split, crop):
    cut, start = batches.centre(split, crop), (SIZE - crop) // 2
    place = slice(start, start + crop)
    np.testing.assert_array_equal(cut.inputs, split.inputs[:, place, place])
    np.testing.assert_array_equal(cut.targets, split.targets[:, place, place])
    assert cut.targets.dtype == split.targets.dtype


@pytest.mark.parametrize("crop", [0, SIZE + 1])
def test_a_crop_out_of_range_is_named(split, key, crop):
    with pytest.raises(ValueError, match=f"crop={crop}.*{SIZE}"):
        batches.draw_batch(key, split, batch=2, crop=crop)
    with pytest.raises(ValueError, match=f"crop={crop}"):
        batches.centre(split, crop)


def test_an_empty_batch_is_named(split, key):
    with pytest.raises(ValueError, match="batch=0"):
        batches.draw_batch(key, split, batch=0, crop=4)


def test_parts_are_all_pictures_in_order_and_the_whole_is_let_go(rng):
    inputs, targets = (rng.integers(0, 256, (7, 4, 4, 1), np.uint8) for _ in range(2))
    parts = batches.Parts(Split(inputs, targets, ("",) * 7))
    (whole,) = parts.on_device()
    assert next(parts.on_device()) is whole
    held = weakref.ref(whole)
    del whole
    assert [parts.halve() for _ in range(4)][::3] == ["4 pictures are judged at once in place of 7", ""]
    assert held() is None and len(list(parts.on_device())) == 7
    again = batches.Parts(Split(inputs, targets, ("",) * 7))
    again.halve()
    sizes, found = zip(*((len(part.inputs), part) for part in again.on_device()), strict=True)
    assert sizes == (4, 3)
    np.testing.assert_array_equal(np.concatenate([part.targets for part in found]), targets)
