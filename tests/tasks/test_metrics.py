"""Scores: float64 references, hand values, blank conventions, pixels that are not finite, windows by brute force."""

import doctest
import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskprune import metrics
from maskprune.tasks import quality


SCORES = {"f1", "mae", "mse", "relative_rmse", "r2", "psnr"}
ARRAY_SCORES = [metrics.soft_f1, metrics.mae, metrics.mse, metrics.relative_rmse, metrics.r2, metrics.psnr]
WINDOW_SCORES = [metrics.ssim, metrics.uiqi]


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    output, target = rng.random((2, 3, 14, 12, 1), dtype=np.float32)
    return output, target


def reference_sums(output: np.ndarray, target: np.ndarray) -> np.ndarray:
    o, t = (picture.astype(np.float64).reshape(len(picture), -1) for picture in (output, target))
    terms = (np.abs(o - t), o * t, (o - t) ** 2, t, (t - t.mean(1, keepdims=True)) ** 2, np.ones_like(t))
    return np.stack([term.sum(1) for term in terms], axis=1)


def flat(level: float, *, pictures: int = 2, side: int = 12) -> np.ndarray:
    return np.full((pictures, side, side, 1), level, np.float32)


@pytest.mark.parametrize("level", [None, 0.1, 0.7])
def test_sums_keep_float32_accuracy_over_large_pictures(level, rng):
    output, target = rng.random((2, 2, 256, 255, 1), dtype=np.float32)
    target = target if level is None else np.full_like(target, level)
    sums = jax.jit(metrics.picture_sums)(output, target)
    assert sums.shape == (2, 6) and sums.dtype == np.float32
    np.testing.assert_allclose(sums, reference_sums(output, target), rtol=1e-6)


def test_sums_see_only_what_the_border_leaves(pair):
    poisoned = np.full((3, 18, 16, 1), np.nan, np.float32)
    poisoned[:, 2:-2, 2:-2] = pair[0]
    target = np.pad(pair[1], ((0, 0), (2, 2), (2, 2), (0, 0)))
    np.testing.assert_array_equal(metrics.picture_sums(poisoned, target, border=2), metrics.picture_sums(*pair))


def test_sums_of_members_side_by_side(pair):
    output, target = pair
    together = jax.vmap(metrics.picture_sums, in_axes=(0, None))(np.stack([output, target]), target)
    np.testing.assert_allclose(together[1], metrics.picture_sums(target, target), rtol=1e-6)


def test_scores_are_the_formulas(pair):
    output, target = (picture.astype(np.float64) for picture in pair)
    scores = metrics.scores_from_sums(metrics.picture_sums(*pair))
    squared, overlap = (output - target) ** 2, (output * target).sum((1, 2, 3))
    expected = {
        "f1": np.mean(2 * overlap / (2 * overlap + np.abs(output - target).sum((1, 2, 3)))),
        "mae": np.abs(output - target).mean(),
        "mse": squared.mean(),
        "relative_rmse": math.sqrt(squared.sum() / (target**2).sum()),
        "r2": 1 - squared.sum() / ((target - target.mean()) ** 2).sum(),
        "psnr": -10 * math.log10(squared.mean()),
    }
    assert scores == pytest.approx(expected, rel=1e-5)
    assert set(scores) == SCORES and all(type(score) is float for score in scores.values())


def test_array_functions_read_the_same_table(pair):
    table = metrics.scores_from_sums(metrics.picture_sums(*pair, border=3))
    assert [score(*pair, border=3) for score in ARRAY_SCORES] == list(table.values())


def test_scoring_in_batches_is_scoring_at_once(pair):
    output, target = pair
    rows = [np.asarray(metrics.picture_sums(output[i : i + 1], target[i : i + 1])) for i in range(3)]
    at_once = metrics.scores_from_sums(metrics.picture_sums(output, target))
    assert metrics.scores_from_sums(np.concatenate(rows)) == pytest.approx(at_once, rel=1e-6)


def test_macro_weighs_pictures_and_micro_weighs_pixels():
    sums = np.array([[1, 1, 0, 0, 0, 4], [0, 50, 0, 0, 0, 4]])  # F1 2/3 and 1
    assert metrics.scores_from_sums(sums, average="macro")["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.scores_from_sums(sums, average="micro")["f1"] == pytest.approx(102 / 103)


def test_binary_soft_f1_is_the_true_f1(rng):
    output, target = rng.random((2, 3, 9, 9, 1)) < 0.3
    pooled = metrics.precision_recall_f1(output, target)
    assert metrics.soft_f1(output, target, average="micro") == pytest.approx(pooled.f1)
    single = [metrics.precision_recall_f1(output[i : i + 1], target[i : i + 1]).f1 for i in range(3)]
    assert metrics.soft_f1(output, target) == pytest.approx(np.mean(single))


def test_blank_output_for_blank_target_is_perfect():
    scores = metrics.scores_from_sums(metrics.picture_sums(flat(0), flat(0)))
    assert scores == {"f1": 1, "mae": 0, "mse": 0, "relative_rmse": 0, "r2": 1, "psnr": 100}


def test_blank_target_is_measured_against_ones():
    scores = metrics.scores_from_sums(metrics.picture_sums(flat(0.5), flat(0)))
    assert scores["f1"] == 0 and scores["r2"] == 0
    assert scores["relative_rmse"] == pytest.approx(0.5)


@pytest.mark.parametrize("level", [0.1, 0.3, 1 / 3, 0.7, 1.0])
def test_r2_of_a_flat_target_does_not_divide_by_rounding(level):
    target = flat(level, side=250)
    assert metrics.r2(target, target) == 1
    assert metrics.r2(target * 0.9, target) == 0


def test_impossible_overlap_scores_zero():
    assert metrics.soft_f1(flat(-3), flat(1)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("average", ["macro", "micro"])
def test_a_broken_pixel_makes_every_score_nan(bad, average, pair):
    output = pair[0].copy()
    output[1, 2, 3, 0] = bad
    for target in (pair[1], np.zeros_like(output)):
        scores = metrics.scores_from_sums(metrics.picture_sums(output, target), average=average)
        assert set(scores) == SCORES and all(math.isnan(score) for score in scores.values())
    assert all(math.isnan(share) for share in metrics.precision_recall_f1(output, pair[1]))


@pytest.mark.parametrize("score", WINDOW_SCORES)
def test_a_broken_pixel_makes_window_scores_nan(score, pair):
    output = pair[0].copy()
    output[1, 2, 3, 0] = np.nan
    assert math.isnan(score(output, pair[1]))


@pytest.mark.parametrize("sums", [np.zeros((0, 6)), np.zeros(6), np.zeros((2, 5))])
def test_refuses_what_is_not_a_table_of_sums(sums):
    with pytest.raises(ValueError, match="sums has shape"):
        metrics.scores_from_sums(sums)


def test_refuses_an_unknown_average():
    with pytest.raises(ValueError, match="`average` is 'mean'"):
        metrics.scores_from_sums(np.ones((1, 6)), average="mean")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("score", [*ARRAY_SCORES, *WINDOW_SCORES, metrics.precision_recall_f1])
@pytest.mark.parametrize("border", [-1, 6])
def test_refuses_a_border_that_leaves_nothing(score, border, pair):
    with pytest.raises(ValueError, match=f"border={border}"):
        score(*pair, border=border)


@pytest.mark.parametrize(("score", "smallest"), [(metrics.ssim, 7), (metrics.uiqi, 8)])
def test_windows_must_fit(score, smallest):
    fits, short = flat(0.2, side=smallest + 2), flat(0.2, side=smallest + 1)
    assert score(fits, fits, border=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="border=1 leaves"):
        score(short, short, border=1)


@pytest.mark.parametrize("score", WINDOW_SCORES)
def test_window_scores_are_one_for_equal_pictures_and_finite_on_blank_ones(score, pair):
    assert score(pair[0], pair[0]) == pytest.approx(1, abs=1e-12)
    assert score(flat(0), flat(0)) == 1
    assert math.isfinite(score(flat(0), pair[1][:2, :12])) and math.isfinite(score(flat(0), flat(1)))
    assert score(*pair) < 0.5


@pytest.mark.parametrize("score", WINDOW_SCORES)
def test_window_scores_average_pictures_and_channels(score, pair):
    output, target = pair
    single = [score(output[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert score(output, target) == pytest.approx(np.mean(single))
    channels = [np.moveaxis(picture, 0, 3)[..., 0, :][None] for picture in pair]  # [1, H, W, 3]
    assert score(*channels) == pytest.approx(score(output, target))


def brute_uiqi(x: np.ndarray, y: np.ndarray, block: int) -> float:
    """One window at a time, with the flat cases decided on the pixels themselves."""
    values = []
    for row in range(x.shape[0] - block + 1):
        for column in range(x.shape[1] - block + 1):
            a = x[row : row + block, column : column + block].astype(np.float64)
            b = y[row : row + block, column : column + block].astype(np.float64)
            brightness = (
                1.0 if not a.any() and not b.any() else 2 * a.mean() * b.mean() / (a.mean() ** 2 + b.mean() ** 2)
            )
            if np.ptp(a) == 0 and np.ptp(b) == 0:
                values.append(brightness)
                continue
            covariance = np.mean((a - a.mean()) * (b - b.mean()))
            values.append(2 * covariance / (a.var() + b.var()) * brightness)
    return float(np.mean(values))


# Few levels make flat windows common; 1/3 is not exact in binary.
levels = st.sampled_from([0.0, 1 / 3, 0.75])
small_pictures = hnp.arrays(np.float32, (1, 5, 4, 1), elements=st.one_of(levels, st.floats(0, 1, width=16)))


@given(output=small_pictures, target=small_pictures, block=st.sampled_from([2, 3]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_uiqi_agrees_with_brute_force(output, target, block):
    value = metrics.uiqi(output, target, block=block)
    assert value == pytest.approx(brute_uiqi(output[0, ..., 0], target[0, ..., 0], block), abs=1e-6)
    assert -1 <= value <= 1
    assert metrics.uiqi(target, output, block=block) == pytest.approx(value, abs=1e-12)
    assert metrics.uiqi(output, output, block=block) == pytest.approx(1, abs=1e-12)


def test_uiqi_agrees_with_brute_force_at_the_published_block(pair):
    expected = np.mean([brute_uiqi(o[..., 0], t[..., 0], 8) for o, t in zip(*pair, strict=True)])
    assert metrics.uiqi(*pair) == pytest.approx(expected, abs=1e-9)


def test_uiqi_hand_values(rng):
    ramp = (np.arange(64, dtype=np.float32) / 64).reshape(1, 8, 8, 1) + np.float32(0.25)
    assert metrics.uiqi(2 * ramp, ramp) == pytest.approx(0.8 * 0.8)  # contrast and brightness off by two
    assert metrics.uiqi(ramp[:, ::-1, ::-1], ramp) == pytest.approx(-1)  # same mean and spread, turned around
    assert metrics.uiqi(flat(0.5), flat(0.25)) == pytest.approx(0.8)  # both flat: brightness alone
    assert metrics.uiqi(flat(0.5), flat(0)) == 0
    noise = rng.random((2, 12, 12, 1), dtype=np.float32)
    assert metrics.uiqi(flat(0.5), noise) == 0  # one flat: no covariance
    centred = np.indices((8, 8)).sum(0).reshape(1, 8, 8, 1) % 2 * 2.0 - 1
    assert metrics.uiqi(centred, -centred) == -1  # both means zero: structure alone


@pytest.mark.parametrize("level", [0.1, 1 / 3, 0.7, 0.999])
def test_uiqi_tells_flat_from_nearly_flat(level):
    # Plain box sums lose the variance of one unit in the last place; here it must count, and flat must stay flat.
    target = flat(level, pictures=1, side=64)
    assert metrics.uiqi(target, 0.5 * target) == pytest.approx(0.8, abs=1e-12)
    checks = (np.indices((64, 64)).sum(0) % 2).astype(bool)[None, ..., None]
    grained = np.where(checks, np.nextafter(target, np.float32(1)), target)
    turned = np.where(checks, target, np.nextafter(target, np.float32(1)))
    assert metrics.uiqi(grained, grained) == pytest.approx(1, abs=1e-9)
    assert metrics.uiqi(grained, turned) == pytest.approx(-1, abs=1e-9)
    assert metrics.uiqi(grained, target) == pytest.approx(0, abs=1e-9)


def test_uiqi_finds_flat_windows_in_double_precision():
    # In float64 the mean of 64 equal values may be off by one unit in the last place.
    with jax.enable_x64(True):
        target = np.full((1, 16, 16, 1), 0.1)
        assert metrics.uiqi(target, 0.5 * target) == pytest.approx(0.8, abs=1e-12)


def test_uiqi_refuses_a_block_without_variance(pair):
    with pytest.raises(ValueError, match="block=1"):
        metrics.uiqi(*pair, block=1)


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        ([1, 1, 1, 0], [1, 0, 0, 1], (1 / 3, 1 / 2, 2 / 5)),
        ([0, 0, 0, 0], [0, 0, 0, 0], (1, 1, 1)),
        ([0, 0, 0, 0], [1, 0, 0, 1], (0, 0, 0)),
        ([1, 0, 0, 0], [0, 0, 0, 0], (0, 0, 0)),
        ([1, 0, 0, 0], [1, 0, 0, 0], (1, 1, 1)),
    ],
)
def test_precision_and_recall_by_hand(output, target, expected):
    pictures = [np.array(values, np.float32).reshape(1, 2, 2, 1) for values in (output, target)]
    assert metrics.precision_recall_f1(*pictures) == pytest.approx(expected)


def test_threshold_itself_is_not_above_it():
    output, target = flat(0.25), flat(1)
    assert metrics.precision_recall_f1(output, target, threshold=0.25).recall == 0
    assert metrics.precision_recall_f1(output, target, threshold=0.2).recall == 1


@pytest.mark.parametrize("module", [metrics, quality])
def test_examples_run(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
