"""Alterations: what they change, what they leave alone, and that the earlier network stays as it was."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import away_from_zero, bits, concat_toy, fcn_toy, flatten_toy, same_bits

from maskprune import (
    Network,
    choose,
    disable,
    enable,
    freeze,
    init_network,
    list_masks,
    models,
    reinitialize,
    thaw,
    zero_weights,
)
from maskprune.masks.network import entries


def redraw(network: Network, chosen) -> Network:
    """`reinitialize` with a fixed key and the initial distribution of any toy."""
    init = lambda key: jax.tree.map(lambda leaf: jnp.full(leaf.shape, jax.random.uniform(key) + 5.0), network.params)
    return reinitialize(jax.random.key(7), network, chosen, init)


FLAG_CHANGES = [disable, enable, freeze, thaw]
WEIGHT_CHANGES = [redraw, zero_weights, partial(zero_weights, part="all")]
ALTERATIONS = FLAG_CHANGES + WEIGHT_CHANGES


def network_of(make) -> Network:
    """A network in a mixed state: the second mask of the first group is disabled, its third is frozen."""
    toy = make()
    network = init_network(toy.params, toy.groups)
    first = toy.groups.names[0]
    return freeze(disable(network, choose(network, {first: [1]})), choose(network, {first: [2]}))


def some_of_each(network: Network):
    """The first and last mask of the first group, the first mask of the others."""
    first, *others = network.groups
    return choose(network, {first.name: [0, first.size - 1], **{group.name: [0] for group in others}})


def copied(network: Network) -> Network:
    return jax.tree.map(lambda leaf: np.array(leaf), network)


def equal(one: Network, other: Network) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("make", [concat_toy, flatten_toy])
@pytest.mark.parametrize("alter", ALTERATIONS)
def test_nothing_outside_chosen_changes(make, alter):
    network = network_of(make)
    before, chosen = copied(network), some_of_each(network)
    after = alter(network, chosen)
    own = entries(network.groups, network.params, chosen, roles=("out",))
    for old, new, mine in zip(*map(jax.tree.leaves, (before.params, after.params, own)), strict=True):
        assert np.array_equal(np.where(mine, old, new), old)
        assert new.dtype == old.dtype
        assert not new.weak_type
    for name, marked in chosen.items():
        for field in ("enabled", "frozen"):
            old, new = getattr(before, field)[name], getattr(after, field)[name]
            assert np.array_equal(np.where(marked, old, new), old)
    assert after.groups is network.groups
    assert after.fixed == network.fixed


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_the_given_network_is_untouched(alter):
    network = network_of(fcn_toy)
    before, parts = copied(network), jax.tree.leaves(network)
    alter(network, some_of_each(network))
    assert equal(before, network)
    assert all(old is new for old, new in zip(parts, jax.tree.leaves(network), strict=True))


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_idempotent(alter):
    network = network_of(concat_toy)
    chosen = some_of_each(network)
    once = alter(network, chosen)
    assert equal(alter(once, chosen), once)


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_choosing_nothing_changes_nothing(alter):
    network = network_of(concat_toy)
    assert equal(alter(network, choose(network, {})), network)
    assert equal(alter(network, {}), network)


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_a_missing_group_means_none_of_it(alter):
    network = network_of(concat_toy)
    whole = choose(network, {"right": [1]})
    assert equal(alter(network, {"right": whole["right"]}), alter(network, whole))
    assert equal(alter(network, {"right": np.array([False, True])}), alter(network, whole))


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_many_at_once_is_one_after_another(alter):
    network = network_of(concat_toy)
    at_once = alter(network, choose(network, {"left": [0, 2], "right": [0, 1]}))
    one_by_one = network
    for name, number in [("right", 1), ("left", 2), ("left", 0), ("right", 0)]:
        one_by_one = alter(one_by_one, choose(network, {name: [number]}))
    assert equal(at_once, one_by_one)


@pytest.mark.parametrize("alter", FLAG_CHANGES)
def test_flags_leave_the_stored_weights(alter):
    network = network_of(fcn_toy)
    after = alter(network, some_of_each(network))
    assert after.params is network.params


def test_disable_and_freeze_mean_what_they_say():
    network = network_of(concat_toy)
    chosen = choose(network, {"left": [0], "right": [1]})
    assert list_masks(disable(network, chosen).enabled) == {"left": [2], "right": [0]}
    assert list_masks(freeze(network, chosen).frozen) == {"left": [0, 2], "right": [1]}


@pytest.mark.parametrize(("there", "back"), [(disable, enable), (enable, disable), (freeze, thaw), (thaw, freeze)])
def test_inverse_on_chosen(there, back):
    network = network_of(concat_toy)
    chosen = choose(network, {"left": [0, 1, 2], "right": [1]})
    uniform = back(network, chosen)
    assert not equal(there(uniform, chosen), uniform)
    assert equal(back(there(uniform, chosen), chosen), uniform)


def test_reinitialize_draws_afresh_for_chosen_only():
    model = models.fcn((3, 2), kernel=3)
    network = init_network(away_from_zero(8, jax.eval_shape(model.init, jax.random.key(0))), model.groups)
    chosen = choose(network, {"conv1": [0, 2], "conv2": [1]})
    one, again, other = (
        reinitialize(jax.random.key(seed), network, chosen, model.init).params for seed in (11, 11, 12)
    )
    assert same_bits(one, again)
    fresh = model.init(jax.random.key(11))
    for layer, picked in [("conv1", [0, 2]), ("conv2", [1])]:
        kernels = [np.asarray(p[layer]["kernel"])[..., picked] for p in (one, other, network.params)]
        assert len(np.unique(np.stack(kernels), axis=0)) == 3
        assert np.array_equal(kernels[0], np.asarray(fresh[layer]["kernel"])[..., picked])
        assert np.array_equal(np.asarray(one[layer]["bias"])[picked], np.full(len(picked), 0.05, np.float32))
    assert same_bits(one["conv3"], network.params["conv3"])


def test_reinitialize_keeps_the_stored_precision():
    network = network_of(concat_toy)
    half = dataclasses.replace(network, params=jax.tree.map(lambda leaf: leaf.astype(jnp.float16), network.params))
    drawn = reinitialize(jax.random.key(0), half, some_of_each(half), lambda key: network.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn.params)} == {jnp.dtype("float16")}


@pytest.mark.parametrize(("part", "bias_kept"), [("kernel", True), ("all", False)])
@pytest.mark.parametrize("make", [fcn_toy, flatten_toy])
def test_zero_weights(make, part, bias_kept):
    network = network_of(make)
    name = network.groups.names[0]
    old, new = network.params[name], zero_weights(network, choose(network, {name: [0]}), part=part).params[name]
    assert not np.any(new["kernel"][..., 0])
    assert np.all(new["kernel"][..., 1:])
    assert bool(new["bias"][0] == old["bias"][0]) is bias_kept
    assert bool(new["bias"][0] == 0) is not bias_kept


def test_zero_weights_by_selection():
    """A NaN is zeroed too; a product with zero would keep it."""
    network = network_of(concat_toy)
    params = {**network.params, "left": {**network.params["left"], "kernel": jnp.full((4, 3), jnp.nan)}}
    zeroed = zero_weights(dataclasses.replace(network, params=params), choose(network, {"left": [1]}))
    assert not np.any(bits(zeroed.params["left"]["kernel"])[0][:, 1])


def test_zero_weights_refuses_other_parts():
    network = network_of(fcn_toy)
    with pytest.raises(ValueError, match='`part` is \'bias\': use "kernel" or "all"'):
        zero_weights(network, {}, part="bias")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("alter", ALTERATIONS)
@pytest.mark.parametrize(
    "flags", [np.array([0, 1, 1]), np.array([1.0, 0.0, 0.0]), np.zeros(2, bool), np.zeros((3, 1), bool), np.True_]
)
def test_refuses_flags_of_another_kind(alter, flags):
    with pytest.raises(ValueError, match=r"`chosen\['left'\]` is \w+\[.*\], not bool\[3\]: make it with `choose`"):
        alter(network_of(concat_toy), {"left": flags})


@pytest.mark.parametrize("alter", ALTERATIONS)
def test_refuses_unknown_groups(alter):
    with pytest.raises(KeyError, match=r"no group `write` \(did you mean `right`\?\)"):
        alter(network_of(concat_toy), {"write": np.zeros(2, bool)})


def test_works_inside_jit_and_vmap():
    network = network_of(concat_toy)
    rows = {"left": jnp.eye(3, dtype=bool), "right": jnp.array([[True, False]] * 3)}
    many = jax.jit(jax.vmap(partial(disable, network)))(rows)
    for i in range(3):
        alone = disable(network, {name: flags[i] for name, flags in rows.items()})
        assert all(np.array_equal(many.enabled[name][i], alone.enabled[name]) for name in rows)
