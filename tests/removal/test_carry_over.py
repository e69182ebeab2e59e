"""Training goes on with the small network as it would have with the masked one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import TOYS, concat_toy, fcn_toy

from maskprune import choose, compact, compact_network, compact_state, disable, freeze, init_network, init_state
from maskprune.masks.network import count_enabled, effective_params
from maskprune.removal.compaction import compact_params
from maskprune.train.optim import soap
from maskprune.train.step import make_train_step


def masked_network(toy, rng):
    network = init_network(toy.params, toy.groups)
    return disable(network, choose(network, {group.name: [int(rng.integers(group.size))] for group in toy.groups}))


@pytest.mark.parametrize("make", TOYS)
def test_the_small_network_has_the_masks_that_are_left(make, rng):
    toy = make()
    network = masked_network(toy, rng)
    small = compact_network(network)
    assert {group.name: group.size for group in small.groups} == count_enabled(network)
    again = disable(small, choose(small, {small.groups.names[0]: [0]}))
    apply, _ = compact(toy.apply, network)
    compact(apply, again, toy.inputs)  # raises if the groups of the small network were wrong


def test_frozen_masks_stay_frozen_and_empty_groups_go(rng):
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    network = disable(freeze(network, choose(network, {"left": [2]})), choose(network, {"left": [0], "right": [0, 1]}))
    small = compact_network(network)
    assert small.groups.names == ("left",)
    assert small.frozen["left"].tolist() == [False, True]


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9),
    "rmsprop": optax.rmsprop(1e-3),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "lamb": optax.lamb(1e-2, weight_decay=0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
}


@pytest.mark.rotating
@pytest.mark.parametrize("make", TOYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_steps_are_those_of_the_masked_network(make, name, rng):
    toy, optimizer = make(), OPTIMIZERS[name]
    state = init_state(masked_network(toy, rng), optimizer)
    target = jax.tree.map(lambda leaf: leaf + 1, toy.apply(toy.params, toy.inputs))
    small_apply, _ = compact(toy.apply, state.network)

    def stepper(apply):
        return jax.jit(make_train_step(lambda p, batch: ((apply(p, batch) - target) ** 2).mean(), optimizer))

    step, small_step = stepper(toy.apply), stepper(small_apply)
    for _ in range(3):
        state, _ = step(state, toy.inputs)
    small = compact_state(state)
    assert int(small.step) == 3
    for _ in range(3):
        state, info = step(state, toy.inputs)
        small, small_info = small_step(small, toy.inputs)
        np.testing.assert_allclose(info.loss, small_info.loss, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(compact_params(state.network)), jax.tree.leaves(small.network.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_without_the_old_moments_the_steps_would_differ(rng):
    """Guards the test above: a fresh optimizer takes another path."""
    toy, optimizer = fcn_toy(), OPTIMIZERS["adam"]
    step = jax.jit(make_train_step(lambda p, batch: (toy.apply(p, batch) ** 2).mean(), optimizer))
    state, _ = step(init_state(masked_network(toy, rng), optimizer), toy.inputs)
    kept, fresh = compact_state(state), init_state(compact_network(state.network), optimizer)
    sums = [sum(float(jnp.abs(leaf).sum()) for leaf in jax.tree.leaves(each.opt_state)) for each in (kept, fresh)]
    assert sums[0] > sums[1]


def test_model_state_is_cut_along(rng):
    toy = concat_toy()
    network = masked_network(toy, rng)
    state = init_state(network, optax.sgd(0.1), model_state={"count": jnp.zeros(())})
    assert compact_state(state).model_state == {"count": jnp.zeros(())}
    np.testing.assert_array_equal(
        compact_state(state).network.params["head"]["bias"], effective_params(network)["head"]["bias"]
    )


def test_memory_that_follows_no_parameter_is_refused(rng):
    toy = fcn_toy()
    with pytest.raises(
        ValueError, match=r"follows no parameter's shape, so it cannot be cut. Start afresh: `init_state"
    ):
        compact_state(init_state(masked_network(toy, rng), soap()))
