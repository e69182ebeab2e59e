"""Sums of many float32 terms against sums that lose nothing: `math.fsum`, and integers."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskprune import losses, metrics
from maskprune.select.consumers import covariance
from maskprune.train.accurate_sums import centred, product_of_rows, sum_of_parts


TENTH = float(np.float32(0.1))
MANY = 10_000_000


def relative(found, expected) -> float:
    return float(np.max(np.abs(np.asarray(found, np.float64) / expected - 1)))


@pytest.mark.parametrize("of", [jnp.sum, lambda x: jnp.sum(x[:, None], axis=0)[0], lambda x: jnp.mean(x) * MANY])
def test_what_xla_reduces_is_added_in_a_tree(of):
    """Everything here that calls `jnp.sum` rests on it; a running float32 sum of these would be off by a tenth."""
    assert relative(jax.jit(of)(jnp.full(MANY, 0.1)), MANY * TENTH) < 5e-7


def test_a_deviation_far_from_zero():
    values = np.float32(1000) + np.random.default_rng(0).normal(size=(1_000_000, 2)).astype(np.float32) / 100
    found = jnp.sqrt(jnp.mean(jnp.square(centred(jnp.asarray(values))), axis=0))
    assert relative(found, np.std(values.astype(np.float64), axis=0)) < 1e-6
    flat = centred(jnp.full((999, 2), 0.1))
    assert float(jnp.max(jnp.abs(flat))) < 1e-14


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_product_over_two_million_rows(width):
    """XLA's own is off by 2 % with three columns on a CPU, and by 3e-5 with five."""
    rows = jnp.full((2_000_000, width), 0.1)
    assert relative(jax.jit(product_of_rows)(rows, rows), 2e6 * TENTH**2) < 2e-6


def test_a_covariance_over_two_million_rows():
    mean, gram = covariance(jnp.where(jnp.arange(2_000_000)[:, None] % 2, 1.25, 0.75) * jnp.ones((1, 3)))
    assert relative(mean, 1.0) < 1e-6 and relative(gram, 1 / 16) < 2e-6


numbers = st.floats(-1e3, 1e3, width=32)


@pytest.mark.rotating
@given(values=st.lists(numbers, min_size=1, max_size=40), examples=st.integers(1, 45), big=numbers)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_parts_add_up_to_what_fsum_says(values, examples, big):
    """Terms that cancel, too: the error is that of the result and of one rounding of the terms, not of the largest."""
    terms = np.array([*values, 1e7 * big, -1e7 * big], np.float32)
    found = sum_of_parts(lambda part: jnp.sum(part), jnp.asarray(terms), examples)
    exact, size = math.fsum(terms.tolist()), math.fsum(np.abs(terms).tolist())
    # Of one term a part nothing is lost but in the last rounding; of several, what their own sum rounds off.
    assert abs(float(found) - exact) <= 1e-7 * abs(exact) + (1e-13 if examples == 1 else 1e-6) * size


def test_as_many_parts_as_there_are_terms_of_ten_million():
    """One after another, as a scan must: without what was rounded off the sum would be 1.087937e6."""
    found = jax.jit(partial(sum_of_parts, jnp.sum, examples=1))(jnp.full(MANY, 0.1))
    assert relative(found, MANY * TENTH) < 1e-7


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(broken):
    found = sum_of_parts(jnp.sum, jnp.array([1.0, broken, 2.0]), 1)
    np.testing.assert_equal(float(found), broken)


@pytest.mark.parametrize("scale", [0.1, 0.001, 1 / 4096])
def test_r2_of_a_bright_target_that_hardly_varies(rng, scale):
    """ΣT² − (ΣT)²/n in float32 says nothing here: it once gave 0 for an R² of 0.75."""
    target = (0.9 + scale * rng.normal(size=(3, 200, 210, 1))).astype(np.float32)
    output = (target + scale / 2 * rng.normal(size=target.shape)).astype(np.float32)
    doubles = [side.astype(np.float64) for side in (output, target)]
    expected = 1 - np.sum((doubles[0] - doubles[1]) ** 2) / np.sum((doubles[1] - doubles[1].mean()) ** 2)
    assert metrics.r2(output, target) == pytest.approx(expected, rel=1e-5)


def test_one_pixel_of_another_grey_is_not_flat():
    target = np.full((1, 256, 256, 1), 200 / 255, np.float32)
    target[0, 7, 9] = 201 / 255
    assert metrics.r2(target, target) == 1 and metrics.r2(np.full_like(target, 200 / 255), target) == pytest.approx(
        0, abs=1e-3
    )


@pytest.mark.parametrize("level", [0.1, 1 / 3, 0.9])
def test_scores_of_a_hundred_million_pixels(level):
    """Pictures one after another, as an evaluation looks at them: 24 of 4 million pixels."""
    side, count = 2048, 24
    one = jax.jit(lambda value: metrics.picture_sums(*(jnp.full((1, side, side, 1), v) for v in (value, level)))[0])
    values = np.linspace(0.2, 0.8, count, dtype=np.float32)
    scores = metrics.scores_from_sums(np.stack([np.asarray(one(value)) for value in values]))
    errors = [abs(float(value) - float(np.float32(level))) for value in values]
    assert scores["mae"] == pytest.approx(math.fsum(errors) / count, rel=1e-6)
    assert scores["mse"] == pytest.approx(math.fsum(error**2 for error in errors) / count, rel=1e-6)


@pytest.mark.parametrize("loss", [losses.mse, losses.mae])
def test_losses_of_ten_million_equal_pixels(loss):
    output = jnp.full((1, 2500, 4000, 1), 0.1)
    expected = TENTH**2 if loss is losses.mse else TENTH
    assert relative(jax.jit(loss)(output, jnp.zeros_like(output)), expected) < 5e-7
