"""Scores weighed by savings: the contract, numbers worked out by hand, and the order that follows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import choose, cost, disable, init_network, models, select
from maskprune.lab.testing import check_selector


def by_size(enabled):
    """Later masks save more; disabled ones nothing."""
    return {name: jnp.where(flags, jnp.arange(1.0, flags.size + 1), 0.0) for name, flags in enabled.items()}


def nothing(enabled):
    return jax.tree.map(jnp.zeros_like, enabled)


@pytest.mark.rotating
@pytest.mark.parametrize(
    "selector",
    [
        select.weigh(select.standardize(select.magnitude()), by_size, strength=0.5),
        select.weigh(select.reverse(select.magnitude()), nothing),
    ],
)
def test_contract(selector):
    check_selector(selector)


def two_groups(scores):
    """A network of two layers, 1 to 3 to 2 to 1 channels, and a selector with these scores."""
    model = models.fcn((3, 2), kernel=3)
    network = init_network(model.init(jax.random.key(0)), model.groups)
    return network, lambda key, network, batch: {name: jnp.asarray(s, jnp.float32) for name, s in scores.items()}


def test_worth_per_unit_saved():
    network, selector = two_groups({"conv1": [6.0, 6.0, -6.0], "conv2": [0.0, -6.0]})
    saving = lambda enabled: {"conv1": jnp.array([1.0, 3.0, 1.0]), "conv2": jnp.array([2.0, 3.0])}  # 2 on average
    found = select.weigh(selector, saving)(jax.random.key(0), network, None)
    np.testing.assert_allclose(found["conv1"], [12.0, 4.0, -3.0])
    np.testing.assert_allclose(found["conv2"], [0.0, -9.0])
    ranked = select.rank(found, network)
    assert ranked == [("conv2", 1), ("conv1", 2), ("conv2", 0), ("conv1", 1), ("conv1", 0)]
    mild = select.weigh(selector, saving, strength=0.0)(jax.random.key(0), network, None)
    np.testing.assert_allclose(mild["conv1"], [6.0, 6.0, -6.0])


def test_the_mean_is_over_enabled_masks():
    network, selector = two_groups({"conv1": [6.0, 6.0, 6.0], "conv2": [6.0, 6.0]})
    network = disable(network, choose(network, {"conv1": [1, 2], "conv2": [1]}))
    saving = lambda enabled: {"conv1": jnp.array([1.0, 100.0, 0.0]), "conv2": jnp.array([3.0, 0.0])}
    found = select.weigh(selector, saving)(jax.random.key(0), network, None)
    assert [float(found["conv1"][0]), float(found["conv2"][0])] == [12.0, 4.0]


def test_with_the_savings_of_a_real_network():
    model = models.fcn((3, 2), kernel=3)
    network = init_network(model.init(jax.random.key(0)), model.groups)
    counted = cost(model.apply, network.params, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32), groups=model.groups)
    equal = lambda key, network, batch: jax.tree.map(lambda flags: jnp.ones(flags.size), network.enabled)
    selector = jax.jit(select.weigh(equal, counted.saving("parameters")))
    # A mask of conv1 costs 9 + 1 and 9 in each of the 2 that read it, one of conv2 27 + 1 and 9.
    assert select.rank(selector(jax.random.key(0), network, None), network)[0][0] == "conv2"
    # With one mask of conv1 left, one of conv2 costs 9 + 1 and 9 only, one of conv1 what it did.
    thinned = disable(network, choose(network, {"conv1": [0, 1]}))
    found = selector(jax.random.key(0), thinned, None)
    assert float(found["conv1"][2]) < float(found["conv2"][0])


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="`strength` is -1"):
        select.weigh(select.random(), by_size, strength=-1)
