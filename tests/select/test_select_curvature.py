"""What curvature and least squares say of masks, against refits by a dense solver."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import away_from_zero

from maskprune import select
from maskprune.conv import conv2d
from maskprune.lab.testing import check_selector, sample_network
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.select.consumers import columns, readers_of
from maskprune.tasks.models import fcn
from maskprune.train.curvature import flatten, gauss_newton


MODEL = fcn((3, 2), kernel=3, convolution=partial(conv2d, way="xla"))


def small(seed=1):
    return init_network(away_from_zero(seed, jax.eval_shape(MODEL.init, jax.random.key(0))), MODEL.groups)


def activations(params, batch):
    return MODEL.activations(params, batch)


@pytest.fixture
def pictures(rng):
    return jnp.asarray(rng.uniform(size=(4, 7, 8, 1)), jnp.float32)


def wild(network, batch):
    """Singular and indefinite, and zero where nothing moves: as bad as an exact Hessian may be."""
    del batch
    flat = flatten(network)
    waves = jnp.sin(jnp.arange(7.0)[:, None] * jnp.arange(flat.vector.size)[None]) * flat.trains[None]
    # Small, so that the rounding of its products stays below what the contract allows, on any processor.
    return waves.T @ (0.05 * jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -2.0])[:, None] * waves)


@pytest.mark.rotating
def test_contract_of_the_surgeon():
    check_selector(select.surgeon(wild), network=small())


def test_contract_of_the_surgeon_without_any_curvature():
    check_selector(select.surgeon(lambda network, batch: 0 * wild(network, batch)), network=small())


@pytest.mark.rotating
def test_contract_of_redundancy(pictures):
    check_selector(select.redundancy(activations), batch=pictures, network=small())


def scores(selector, network, batch):
    return {name: np.asarray(each) for name, each in jax.jit(selector)(jax.random.key(0), network, batch).items()}


def linear_network(rng):
    """A linear model with a group over its inputs, at its best; three masks of two, one and two rows."""
    labels = (0, 0, 1, 2, 2, -1)
    inputs = jnp.asarray(rng.normal(size=(30, 6)) @ (np.eye(6) + 0.2 * rng.normal(size=(6, 6))), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(30, 2)), jnp.float32)
    best = np.linalg.lstsq(np.asarray(inputs), np.asarray(targets), rcond=None)[0]
    return init_network({"w": best}, Groups((Group("g", 3, (Slice("w", 0, labels, "out"),)),))), (inputs, targets)


def linear_curvature(network, batch):
    return gauss_newton(lambda params, batch: (batch[0] @ params["w"] - batch[1]).reshape(-1), network, batch).matrix


def refitted(batch, stays, held=None):
    """The least mean square with only some rows free."""
    inputs, targets = (np.asarray(each, np.float64) for each in batch)
    targets = targets if held is None else targets - inputs @ held
    fitted = inputs[:, stays] @ np.linalg.lstsq(inputs[:, stays], targets, rcond=None)[0]
    return np.mean(np.square(fitted - targets))


def test_the_surgeon_states_the_price_of_a_removal_and_the_best_refit(rng):
    network, batch = linear_network(rng)
    found = scores(select.surgeon(linear_curvature, damping=0.0), network, batch)["g"]
    masks = np.array((0, 0, 1, 2, 2, -1))
    prices = [refitted(batch, masks != mask) - refitted(batch, masks > -2) for mask in range(3)]
    np.testing.assert_allclose(found, prices, rtol=1e-2)


def test_frozen_masks_do_not_help_and_have_a_price_of_their_own(rng):
    network, batch = linear_network(rng)
    network = freeze(network, choose(network, {"g": [0]}))
    found = scores(select.surgeon(linear_curvature, damping=0.0), network, batch)["g"]
    masks, weights = np.array((0, 0, 1, 2, 2, -1)), np.asarray(network.params["w"])
    held = np.where((masks == 0)[:, None], weights, 0.0)
    best = refitted(batch, masks > -2)
    prices = [refitted(batch, masks != 0), *(refitted(batch, (masks != 0) & (masks != mask), held) for mask in (1, 2))]
    np.testing.assert_allclose(found, np.array(prices) - best, rtol=1e-2)


def test_what_reads_a_mask_cannot_make_up_for_it():
    """One mask carries everything: as if its reader could grow, the quadratic would price it at nothing."""
    model = fcn((1,), kernel=1)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
    params = {name: layer | {"bias": jnp.zeros(1)} for name, layer in params.items()}
    network = init_network(params, model.groups)
    batch = jnp.linspace(-1.0, 1.0, 16).reshape(1, 4, 4, 1)
    residuals = lambda params, x: (model.apply(params, x) - jax.nn.relu(x)).reshape(-1)
    curvature = lambda network, batch: gauss_newton(residuals, network, batch).matrix
    price = scores(select.surgeon(curvature, damping=1e-5), network, batch)["conv1"][0]
    # All that is left is the last bias, and it moves only where that unit is awake: at the positive half.
    awake = np.asarray(batch).ravel()[8:]
    assert price == pytest.approx(np.sum(np.square(awake - awake.mean())) / 16, rel=1e-2)


def brute_force(network, pictures, name):
    """For each mask of a group, what is left of its share in the reader's sums after the others and a constant."""
    group = network.groups[name]
    (reader,) = readers_of(network, group)
    arrived = np.asarray(columns(reader, activations(network.params, pictures)[name], border=1), np.float64)
    kernel = np.asarray(network.params[reader.kernel.split("/")[0]]["kernel"], np.float64)
    arrived = arrived.reshape(len(arrived), group.size, -1)
    share = lambda mask: arrived[:, mask] @ kernel.transpose(2, 0, 1, 3).reshape(group.size, -1, kernel.shape[3])[mask]
    every = sum(share(mask) for mask in range(group.size))
    total = np.sum(np.square(every - every.mean(axis=0)))
    left = []
    for mask in range(group.size):
        others = np.delete(arrived, mask, axis=1).reshape(len(arrived), -1)
        others = np.c_[others, np.ones(len(others))]
        fitted = others @ np.linalg.lstsq(others, share(mask), rcond=None)[0]
        left.append(np.sum(np.square(share(mask) - fitted)) / total)
    return np.array(left)


def test_redundancy_is_what_a_fit_of_each_mask_by_the_others_leaves(rng):
    network, pictures = small(4), jnp.asarray(rng.uniform(size=(8, 9, 9, 1)), jnp.float32)
    found = scores(select.redundancy(activations, border=1, ridge=1e-6), network, pictures)
    for name in ("conv1", "conv2"):
        np.testing.assert_allclose(found[name], brute_force(network, pictures, name), rtol=2e-2, atol=1e-5)


def test_the_columns_of_a_reader_are_what_its_convolution_sums(pictures):
    network = small(3)
    (reader,) = readers_of(network, network.groups["conv1"])
    values, kernel = activations(network.params, pictures)["conv1"], network.params["conv2"]["kernel"]
    sums = columns(reader, values, border=2) @ kernel.transpose(2, 0, 1, 3).reshape(-1, kernel.shape[3])
    expected = conv2d(values, kernel, way="xla")[:, 2:-2, 2:-2].reshape(sums.shape)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5)


def conv1_with(network, make):
    """Mask 2 of conv1 made of the kernels and biases of the others."""
    layer = network.params["conv1"]
    changed = {name: leaf.at[..., 2].set(make(leaf)) for name, leaf in layer.items()}
    return init_network({**network.params, "conv1": changed}, network.groups)


def test_twins_multiples_and_shifted_copies_are_redundant_and_others_are_not(rng):
    pictures = jnp.asarray(rng.uniform(size=(8, 12, 12, 1)), jnp.float32)
    narrow = away_from_zero(2, jax.eval_shape(MODEL.init, jax.random.key(0)))
    kernel = narrow["conv1"]["kernel"].at[:, 2].set(0.0)
    narrow["conv1"] = narrow["conv1"] | {"kernel": kernel}
    shifted = jnp.roll(kernel[..., 0], 1, axis=1)
    makers = {
        "twin": lambda leaf: leaf[..., 0],
        "multiple": lambda leaf: 3.0 * leaf[..., 1],
        "shifted": lambda leaf: shifted if leaf.ndim == 4 else leaf[..., 0],
    }
    # What reads the twin is put in its middle, so that a shift by one pixel stays within the reach of the copy.
    middle = narrow["conv2"]["kernel"].at[:, :, 2].multiply(jnp.zeros((3, 3, 1)).at[1, 1].set(1.0))
    narrow["conv2"] = narrow["conv2"] | {"kernel": middle}
    network = init_network(narrow, MODEL.groups)
    selector = select.redundancy(activations, border=2, ridge=1e-6)
    plain = scores(selector, network, pictures)["conv1"]
    for make in makers.values():
        assert scores(selector, conv1_with(network, make), pictures)["conv1"][2] < 0.01 * plain[2]


def test_a_mask_alone_supplies_everything_and_one_that_nothing_reads_supplies_nothing(pictures):
    network = small(4)
    alone = disable(network, choose(network, {"conv1": [0, 2]}))
    # What disabled masks are said to put out does not count.
    shining = lambda params, batch: {name: each + 5 * batch for name, each in activations(params, batch).items()}
    for given in (activations, shining):
        assert scores(select.redundancy(given), alone, pictures)["conv1"][1] == pytest.approx(1.0, abs=2e-3)
    unread = init_network(network.params, Groups((Group("conv3", 1, (Slice("conv3/bias", 0, (0,), "out"),)),)))
    assert scores(select.redundancy(activations), unread, pictures)["conv3"] == [0.0]


@pytest.mark.parametrize(
    "make", [lambda: select.surgeon(wild, damping=-1.0), lambda: select.redundancy(activations, ridge=0.0)]
)
def test_settings_out_of_range_are_named(make):
    with pytest.raises(ValueError, match=r"`(damping|ridge)` is"):
        make()


def test_a_reader_that_is_not_understood_is_named(pictures):
    network = sample_network()
    found = lambda params, batch: {g.name: jnp.ones((2, 6, 6, g.size)) for g in network.groups}
    with pytest.raises(ValueError, match="Group `wide` is read along axis 0"):
        jax.eval_shape(select.redundancy(found), jax.random.key(0), network, pictures)


def test_a_mask_without_effect_costs_nothing_however_strong_the_damping(rng):
    network, (inputs, targets) = linear_network(rng)
    batch = inputs.at[:, 2].set(0.0), targets
    assert scores(select.surgeon(linear_curvature, damping=1.0), network, batch)["g"][1] == pytest.approx(0.0, abs=1e-5)
