"""Sub-networks: cut out or masked they are one network, and none depends on what is trained beside it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import TOYS, concat_toy, same_bits

import maskprune
from maskprune.lab import mask_sets, subnetworks


TOY = concat_toy()  # dense layers are compiled fast
OPTIMIZER = optax.adam(1e-2)


@pytest.fixture(scope="module")
def network():
    return maskprune.init_network(TOY.params, TOY.groups)


@pytest.fixture(scope="module")
def train():
    def loss(params, batch):
        return jnp.mean(jnp.square(TOY.apply(params, batch) - batch[:, :2]))

    draw = lambda key, data: data + 0.1 * jax.random.normal(key, data.shape)
    step = maskprune.make_train_step(loss, OPTIMIZER)
    return maskprune.train_many(maskprune.make_population(step, draw, chunk=10, at_once=3), TOY.inputs)


def evaluate(state):
    return {"score": float(jnp.mean(TOY.apply(maskprune.effective_params(state.network), TOY.inputs)))}


def tried(key, jobs, train, **options):
    options = {"train": train, "evaluate": evaluate, "optimizer": OPTIMIZER, "steps": 20, "together": 3} | options
    return [found for piece in subnetworks.train_each(key, jobs, **options) for found in piece]


@pytest.mark.rotating
@pytest.mark.parametrize("toy", TOYS)
def test_every_subset_computes_the_same_cut_out_and_masked(toy):
    toy = toy()
    network = maskprune.init_network(toy.params, toy.groups)
    assert subnetworks.alive_of(network) == mask_sets.full([group.size for group in toy.groups])
    for each in mask_sets.every([group.size for group in toy.groups]):
        masked = subnetworks.cut(network, each, masked=True)
        assert subnetworks.alive_of(masked) == each
        assert maskprune.count_enabled(subnetworks.cut(network, each)) == maskprune.count_enabled(masked)
        apply, params = maskprune.compact(toy.apply, masked)
        small = subnetworks.cut(network, each).params
        assert all(np.array_equal(*pair) for pair in zip(*map(jax.tree.leaves, (small, params)), strict=True))
        np.testing.assert_allclose(
            apply(small, toy.inputs), toy.apply(maskprune.effective_params(masked), toy.inputs), rtol=1e-5, atol=1e-6
        )


def test_a_cut_of_a_cut(network):
    once = subnetworks.cut(network, "011 10")
    for each in ("001 10", "010 10"):
        assert same_bits(subnetworks.cut(once, each, of="011 10").params, subnetworks.cut(network, each).params)
    with pytest.raises(ValueError, match="`alive`"):
        subnetworks.cut(once, "100 10", of="011 10")  # has none of its masks left


@pytest.mark.parametrize("wrong", ["000 11", "11 11", "111 11 1", "111"])
def test_what_does_not_fit_is_refused(network, wrong):
    with pytest.raises(ValueError, match="`alive`"):
        subnetworks.cut(network, wrong)


@pytest.mark.rotating
def test_cut_out_and_masked_train_alike_and_what_is_gone_does_not_matter(key, network, train):
    poisoned = jax.tree.map(jnp.asarray, network)
    poisoned.params["left"]["kernel"] = network.params["left"]["kernel"].at[:, 0].set(jnp.nan)
    jobs = lambda masked: [
        (each, partial(subnetworks.cut, poisoned, each, masked=masked)) for each in ("011 10", "011 01")
    ]
    small, masked = tried(key, jobs(False), train), tried(key, jobs(True), train)
    for one, other in zip(small, masked, strict=True):
        assert one.alive == other.alive and one.steps == other.steps == 20 and one.finite and other.finite
        assert one.metrics["score"] == pytest.approx(other.metrics["score"], rel=1e-4)
        cut = maskprune.compact_network(other.state.network)
        for a, b in zip(jax.tree.leaves(one.state.network.params), jax.tree.leaves(cut.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        assert not same_bits(one.state.network.params, subnetworks.cut(network, one.alive).params)  # it was trained


def test_a_result_depends_on_no_other(key, network, train):
    sets = [each for each in mask_sets.every((3, 2)) if mask_sets.count(each) == 3]
    jobs = [(each, partial(subnetworks.cut, network, each, masked=True)) for each in sets]
    every = {found.alive: found for found in tried(key, jobs, train)}
    assert list(every) == sets
    for each in jobs[1::3]:
        (alone,) = tried(key, [each], train)
        assert same_bits(alone.state.network.params, every[alone.alive].state.network.params)
        assert alone.metrics == every[alone.alive].metrics


def test_lengths_may_follow_the_masks_and_be_nothing(key, network, train):
    jobs = [(each, partial(subnetworks.cut, network, each, masked=True)) for each in ("001 10", "011 10", "111 11")]
    found = tried(key, jobs, train, steps=lambda each: 10 * (5 - mask_sets.count(each)))
    assert [each.steps for each in found] == [30, 20, 0]
    assert same_bits(found[2].state.network.params, network.params)


def test_no_program_is_made_twice(key, network, train):
    jobs = [(each, partial(subnetworks.cut, network, each, masked=True)) for each in mask_sets.every((3, 2))]
    step = maskprune.make_train_step(lambda params, batch: jnp.mean(TOY.apply(params, batch)), OPTIMIZER)
    population = maskprune.make_population(step, lambda key, data: data, at_once=3)
    tried(key, jobs, maskprune.train_many(population, TOY.inputs), steps=1)
    assert population.compilations() == 1
