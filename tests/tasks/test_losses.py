"""Losses: hand-computed truths, gradients against finite differences, blank pictures, borders, refusals."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskprune import losses, metrics


LOSSES = [losses.mse, losses.mae, losses.soft_f1]

unit_pictures = hnp.arrays(
    np.float32, (2, 3, 4, 1), elements=st.one_of(st.just(0.0), st.floats(0.0009765625, 1, width=32))
)
binary_pictures = hnp.arrays(np.bool_, (2, 3, 4, 1))


def reference(loss, output: np.ndarray, target: np.ndarray) -> float:
    """The formulas again, in float64 and one picture at a time."""
    output, target = output.astype(np.float64), target.astype(np.float64)
    if loss is losses.mse:
        return float(np.mean((output - target) ** 2))
    if loss is losses.mae:
        return float(np.mean(np.abs(output - target)))
    shares = []
    for o, t in zip(output, target, strict=True):
        error, whole = np.abs(o - t).sum(), np.abs(o - t).sum() + 2 * (o * t).sum()
        shares.append(error / whole if whole else 0.0)
    return float(np.mean(shares))


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    output, target = rng.random((2, 3, 9, 8, 1), dtype=np.float32)  # border 4 leaves no column
    return output, target


@pytest.mark.parametrize(("loss", "expected"), [(losses.mse, 0.125), (losses.mae, 0.25), (losses.soft_f1, 1 / 3)])
def test_hand_computed_values(loss, expected):
    target = np.array([1, 1, 0, 0], np.float32).reshape(1, 2, 2, 1)
    output = np.array([0.5, 0.5, 0, 0], np.float32).reshape(1, 2, 2, 1)  # E = 1, TP = 1
    assert float(loss(output, target)) == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
@given(output=unit_pictures, target=unit_pictures)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_agrees_with_float64_and_stays_in_range(loss, output, target):
    value = float(loss(output, target))
    assert value == pytest.approx(reference(loss, output, target), rel=1e-5, abs=1e-7)
    assert 0 <= value <= 1
    assert float(loss(target, target)) == 0


@given(output=binary_pictures, target=binary_pictures)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_soft_f1_of_binary_pictures_is_the_true_f1(output, target):
    shares = []
    for o, t in zip(output, target, strict=True):
        right, false_positives, false_negatives = (o & t).sum(), (o & ~t).sum(), (~o & t).sum()
        whole = 2 * right + false_positives + false_negatives
        shares.append(2 * right / whole if whole else 1.0)
    assert float(losses.soft_f1(output, target)) == pytest.approx(1 - np.mean(shares), abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_pictures_lose_no_accuracy(loss, rng):
    output, target = rng.random((2, 2, 256, 255, 1), dtype=np.float32)
    assert float(loss(output, target)) == pytest.approx(reference(loss, output, target), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_matches_finite_differences(loss, pair):
    output, target = pair
    target = target * (np.arange(3, dtype=np.float32) > 0).reshape(3, 1, 1, 1)  # the first target is blank
    gradient = np.asarray(jax.grad(loss)(output, target))
    height = 1e-6
    for index in [(0, 1, 1, 0), (1, 0, 0, 0), (1, 4, 3, 0), (2, 8, 6, 0)]:
        bump = np.zeros(output.shape)
        bump[index] = height
        slope = (reference(loss, output + bump, target) - reference(loss, output - bump, target)) / (2 * height)
        assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("output_level", [0.0, 1e-38, 1e-30, 1e-20, 1e-8, 1.0])
@pytest.mark.parametrize("target_level", [0.0, 1e-30, 1.0])
def test_finite_on_blank_pictures(loss, output_level, target_level):
    output, target = jnp.full((2, 4, 4, 1), output_level), jnp.full((2, 4, 4, 1), target_level)
    value, gradient = jax.jit(jax.value_and_grad(loss))(output, target)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_soft_f1_of_blank_targets(pair):
    output, blank = pair[0], np.zeros_like(pair[0])
    value, gradient = jax.value_and_grad(losses.soft_f1)(blank, blank)
    assert value == 0 and not np.any(gradient)
    value, gradient = jax.value_and_grad(losses.soft_f1)(output, blank)
    assert value == 1 and not np.any(gradient)


def test_soft_f1_of_a_blank_output_still_teaches(pair):
    target = pair[1]
    value, gradient = jax.value_and_grad(losses.soft_f1)(np.zeros_like(target), target)
    assert value == 1
    assert (np.asarray(gradient)[target > 0] < 0).all()


def test_soft_f1_counts_impossible_overlap_as_wholly_wrong():
    target = jnp.ones((1, 2, 2, 1))
    value, gradient = jax.value_and_grad(losses.soft_f1)(-3 * target, target)
    assert value == 1 and np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_pixel_is_not_hidden(loss, bad, pair):
    output, target = pair[0].copy(), pair[1]
    output[1, 2, 3, 0] = bad
    assert not np.isfinite(loss(output, target))


@pytest.mark.parametrize("loss", LOSSES)
def test_border_is_neither_read_nor_taught(loss, pair):
    output, target = pair
    frame = np.ones(output.shape, bool)
    frame[:, 2:-2, 2:-2] = False
    poisoned = np.where(frame, np.nan, output)
    value, gradient = jax.value_and_grad(loss)(poisoned, target, border=2)
    inner_value, inner_gradient = jax.value_and_grad(loss)(output[:, 2:-2, 2:-2], target[:, 2:-2, 2:-2])
    assert value == inner_value
    np.testing.assert_array_equal(np.asarray(gradient)[:, 2:-2, 2:-2], inner_gradient)
    assert not np.asarray(gradient)[frame].any()


@pytest.mark.parametrize("loss", LOSSES)
def test_jit_and_vmap_change_nothing(loss, pair):
    output, target = pair
    members = np.stack([output, target, 0 * output])
    together = jax.jit(jax.vmap(loss, in_axes=(0, None)))(members, target)
    np.testing.assert_allclose(together, [loss(member, target) for member in members], rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("border", [-1, 4])
def test_refuses_a_border_that_leaves_nothing(loss, border, pair):
    with pytest.raises(ValueError, match=f"border={border}"):
        loss(*pair, border=border)


def test_the_largest_border_leaves_the_middle(pair):
    output, target = pair
    assert float(losses.mae(output, target, border=3)) == pytest.approx(
        np.abs(output - target)[:, 3:-3, 3:-3].mean(), rel=1e-6
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_refuses_pictures_that_would_broadcast_or_wrap(loss, pair):
    output, target = pair
    with pytest.raises(ValueError, match="one shape"):
        loss(output, target[..., 0])
    with pytest.raises(ValueError, match="one shape"):
        loss(output, target[:1])
    with pytest.raises(ValueError, match="no pictures"):
        loss(output[:0], target[:0])
    with pytest.raises(TypeError, match="target has dtype uint8"):
        loss(output, np.zeros(target.shape, np.uint8))


def test_half_precision_is_summed_in_single():
    output, target = jnp.full((1, 64, 64, 1), 0.5, jnp.bfloat16), jnp.zeros((1, 64, 64, 1), jnp.bfloat16)
    assert losses.mae(output, target) == jnp.float32(0.5)
    assert losses.mae(output, target).dtype == jnp.float32


def test_soft_f1_loss_is_one_minus_the_score(pair):
    output, target = pair
    target = target * (np.arange(3, dtype=np.float32) > 0).reshape(3, 1, 1, 1)
    assert float(losses.soft_f1(output, target, border=1)) == pytest.approx(
        1 - metrics.soft_f1(output, target, border=1), abs=1e-6
    )


def test_examples_run():
    result = doctest.testmod(losses)
    assert result.attempted and not result.failed
