"""What each target is, by hand and against other implementations."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
from scipy import ndimage
from skimage import feature

from maskprune.tasks.data import adaptive, canny, local_mean, otsu, sobel, threshold
from maskprune.tasks.data.targets import canny_magnitude, unit


ALL = [sobel(), canny(), canny(low=0.1, high=0.3), threshold(), local_mean(), otsu(), adaptive()]
BINARY = [target for target in ALL if target.binary]
name = lambda target: target.name


@pytest.fixture(scope="module")
def picture():
    """A smooth random landscape, uint8[96, 80]: edges at every strength, no two pixels sure to tie."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(96, 80)), 3)
    return np.rint(255 * (noise - noise.min()) / np.ptp(noise)).astype(np.uint8)


@pytest.mark.parametrize("target", ALL, ids=name)
def test_contract(target, picture):
    values = target(picture)
    assert values.shape == picture.shape
    assert values.dtype == (np.bool_ if target.binary else np.float32)
    assert 0 <= values.min() < values.max() <= 1
    np.testing.assert_array_equal(values, target(unit(picture)))
    np.testing.assert_array_equal(values, pickle.loads(pickle.dumps(target))(picture))


@pytest.mark.parametrize("target", ALL, ids=name)
def test_is_plain_hashable_data(target):
    assert hash(target) == hash(dataclasses.replace(target))
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "other"


@pytest.mark.parametrize("target", BINARY, ids=name)
@pytest.mark.parametrize("level", [0, 51, 85, 100, 127])
def test_a_flat_dark_picture_has_nothing_in_it(target, level):
    assert not target(np.full((40, 50), level, np.uint8)).any()


@pytest.mark.parametrize("target", [local_mean(5), adaptive(sigma=2)], ids=name)
def test_flat_ground_beside_texture_is_not_decided_by_rounding(target, picture):
    beside = np.hstack([picture[:, :60], np.full((96, 60), 85, np.uint8)])
    assert not target(beside)[:, 72:].any()


def test_sobel_of_a_step_by_hand():
    step = np.zeros((5, 6), np.uint8)
    step[:, 3:] = 255
    expected = np.zeros((5, 6), np.float32)
    expected[:, 2:4] = 4 / math.sqrt(20)  # (1 + 2 + 1) × 1 on both sides of the step; replicated border: no other edge
    np.testing.assert_allclose(sobel()(step), expected, rtol=1e-6)
    np.testing.assert_allclose(sobel()(step.T.copy()), expected.T, rtol=1e-6)


def test_sobel_reaches_one_and_never_more():
    rng = np.random.default_rng(1)
    patches = rng.integers(0, 2, (3000, 3, 3)).astype(np.float32)
    strongest = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 1]], np.float32)
    values = [sobel()(patch)[1, 1] for patch in [*patches, strongest]]
    assert sobel()(strongest)[1, 1] == pytest.approx(1, abs=1e-6)
    assert max(values) <= 1


def test_sobel_equals_scipy(picture):
    exact = unit(picture).astype(np.float64)
    across, down = (ndimage.sobel(exact, axis=axis, mode="nearest") for axis in (0, 1))
    np.testing.assert_allclose(sobel()(picture), np.sqrt(across**2 + down**2) / math.sqrt(20), atol=2e-7)


@pytest.mark.parametrize("sigma", [1.0, math.sqrt(2), 3.0])
def test_canny_with_thresholds_is_scikit_images(picture, sigma):
    expected = feature.canny(unit(picture), sigma=sigma, low_threshold=0.05, high_threshold=0.2)
    np.testing.assert_array_equal(canny(sigma=sigma, low=0.05, high=0.2)(picture), expected)


@pytest.mark.parametrize("sigma", [1.0, math.sqrt(2), 3.0])
def test_automatic_canny_takes_30_percent_of_the_magnitude(picture, sigma):
    magnitude = canny_magnitude(unit(picture), sigma)
    high = np.quantile(magnitude, 0.7)
    assert (magnitude > high).mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_array_equal(canny(sigma=sigma)(picture), canny(sigma=sigma, high=high, low=0.4 * high)(picture))


def test_canny_magnitude_is_what_scikit_image_thresholds(picture):
    """Its own quantiles, which it takes of its own magnitude, must give the same edges as ours."""
    theirs = feature.canny(unit(picture), sigma=2, low_threshold=0.5, high_threshold=0.8, use_quantiles=True)
    low, high = np.quantile(canny_magnitude(unit(picture), 2), [0.5, 0.8])
    np.testing.assert_array_equal(canny(sigma=2, low=low, high=high)(picture), theirs)


def test_canny_finds_the_outline_of_a_faint_square():
    square = np.full((64, 64), 100, np.uint8)
    square[20:44, 20:44] = 101
    found = canny()(square)
    outline = np.zeros((64, 64), bool)
    outline[18:46, 18:46] = True
    outline[22:42, 22:42] = False
    assert 60 < found.sum() < 140
    assert not found[~outline].any()


def test_threshold_takes_what_is_above_and_no_ties():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(threshold(0.5)(ramp), ramp >= 128)
    np.testing.assert_array_equal(threshold(51 / 255)(ramp), ramp > 51)


def test_local_mean_equals_integer_arithmetic(picture):
    padded = np.pad(picture.astype(np.int64), 2, mode="edge")
    sums = np.lib.stride_tricks.sliding_window_view(padded, (5, 5)).sum((-1, -2))
    np.testing.assert_array_equal(local_mean(5)(picture), 25 * picture.astype(np.int64) > sums)


def test_otsu_separates_two_populations():
    rng = np.random.default_rng(2)
    bright = rng.random((60, 60)) < 0.3
    picture = np.where(bright, rng.integers(180, 220, bright.shape), rng.integers(20, 60, bright.shape))
    np.testing.assert_array_equal(otsu()(picture.astype(np.uint8)), bright)


def test_adaptive_ignores_slow_light():
    """A dot pattern on a ramp: no fixed level separates it, the local mean does; an offset of 1 takes everything."""
    ramp = np.linspace(0.1, 0.8, 120, dtype=np.float32)[None].repeat(120, 0)
    dots = np.zeros(ramp.shape, bool)
    dots[12:-12:12, 12:-12:12] = True
    lit = ramp + 0.1 * dots
    inner = (slice(20, -20), slice(20, -20))
    found = adaptive(sigma=4, offset=-0.03)(lit)
    np.testing.assert_array_equal(found[inner], dots[inner])
    assert adaptive(offset=1)(lit).all()


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: canny(sigma=0), "sigma=0"),
        (lambda: canny(low=0.3, high=0.2), "low=0.3"),
        (lambda: threshold(1.5), r"level=1\.5"),
        (lambda: local_mean(4), "window=4"),
        (lambda: local_mean(1), "window=1"),
        (lambda: adaptive(sigma=-1), "sigma=-1"),
    ],
)
def test_bad_options_name_the_argument(make, argument):
    with pytest.raises(ValueError, match=argument):
        make()
