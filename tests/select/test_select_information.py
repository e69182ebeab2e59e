"""Mutual information against what is known of binary, discrete and normal variables."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import select
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network


POSITIONS, MASKS = 4096, 4
NETWORK = init_network({"w": np.ones(MASKS)}, Groups((Group("g", MASKS, (Slice("w", 0, (0, 1, 2, 3), "out"),)),)))


@cache
def selector(bins):
    return select.information(lambda params, batch: {"g": batch[0]}, lambda batch: batch[1], bins=bins)


def bits(target, *outputs, bins=16):
    """The score of each output, put out by masks on a picture of 64 × 64 pixels, or more rows."""
    columns = np.stack([*outputs, *[target] * (MASKS - len(outputs))], axis=1)
    batch = [jnp.asarray(values.reshape(1, 64, len(target) // 64, -1), jnp.float32) for values in (columns, target)]
    return np.asarray(selector(bins)(jax.random.key(0), NETWORK, batch)["g"], np.float64)[: len(outputs)]


@pytest.mark.parametrize("bins", [2, 3, 16])
@pytest.mark.parametrize("share", [0.5, 0.25, 0.01])
def test_a_copy_of_a_binary_target_has_its_entropy(rng, share, bins):
    target = rng.permutation(np.arange(POSITIONS) < share * POSITIONS).astype(float)
    p = np.mean(target)
    entropy = -p * np.log2(p) - (1 - p) * np.log2(1 - p)
    found = bits(target, target, -target, 7 - 3 * target, bins=bins)
    np.testing.assert_allclose(found, entropy, atol=2e-3)


def test_a_copy_of_sixteen_equal_levels_has_four_bits(rng):
    target = rng.permutation(np.arange(POSITIONS) % 16)
    np.testing.assert_allclose(bits(target, target), 4, atol=5e-3)


def test_what_says_nothing_scores_nothing(rng):
    target, constant = rng.normal(size=POSITIONS), np.full(POSITIONS, 0.3)
    found = bits(target, constant, rng.normal(size=POSITIONS), target)
    assert found[0] == 0 and abs(found[1]) < 0.02 and found[2] > 3.9
    assert bits(constant, target) == 0


def test_chance_agreement_is_taken_off(rng):
    found = [bits(*rng.normal(size=(5, 2048))) for _ in range(10)]
    assert abs(np.mean(found)) < 0.01  # as it stands, the sum is 0.08


@pytest.mark.parametrize("correlation", [0.3, 0.7, 0.95])
def test_normal_variables(rng, correlation):
    target, noise = rng.normal(size=(2, 16 * POSITIONS))
    output = correlation * target + np.sqrt(1 - correlation**2) * noise
    known = -0.5 * np.log2(1 - correlation**2)
    assert 0.9 * known < bits(target, output)[0] < 1.02 * known  # bins lose a little, never add


def test_a_growing_function_of_the_output_changes_nothing(rng):
    target = rng.normal(size=POSITIONS)
    output = target + rng.normal(size=POSITIONS)
    found = bits(np.exp(target), output, np.exp(output), output**3, 100 + output / 8)
    assert len(set(np.round(found, 3))) == 1 and found[0] > 0.3
    np.testing.assert_allclose(bits(target, output), found[0])
    np.testing.assert_allclose(bits(output, target), found[0], atol=1e-4)


def test_the_cut_of_a_relu_costs_what_it_hides(rng):
    """Half of the positions tell only that they are in the lower half: 1 bit is left of what 8 bins told."""
    target = rng.normal(size=POSITIONS)
    np.testing.assert_allclose(bits(target, np.maximum(target, 0)), (4 + 1) / 2, atol=0.02)


def test_positions_must_agree():
    found = lambda outputs: select.information(lambda params, batch: outputs, lambda batch: batch)
    with pytest.raises(ValueError, match="gave 6 numbers, but the activations of `g` have 5 positions"):
        found({"g": jnp.zeros((5, 4))})(jax.random.key(0), NETWORK, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="`activations` gave h"):
        found({"h": jnp.zeros((6, 4))})(jax.random.key(0), NETWORK, jnp.zeros((2, 3)))
