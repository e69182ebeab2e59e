"""A network as a value: naming masks, what a disabled mask contributes, what may train, and how often it compiles."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, concat_toy, fcn_toy, flatten_toy, same_bits

from maskprune import (
    Network,
    choose,
    count_enabled,
    disable,
    effective_params,
    freeze,
    init_network,
    list_masks,
    trainable,
)
from maskprune.masks.network import effective_arrays, entries, trained_leaves


def network_of(toy, **options) -> Network:
    return init_network(toy.params, toy.groups, **options)


def first_of_each(network: Network):
    return choose(network, {group.name: [0] for group in network.groups})


def flags_over(network: Network, tree) -> dict[str, np.ndarray]:
    """A tree of broadcasting flags at full size, by leaf path."""
    wide = jax.tree.map(lambda flag, leaf: np.broadcast_to(flag, leaf.shape), tree, network.params)
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): f for p, f in jax.tree_util.tree_leaves_with_path(wide)
    }


@pytest.mark.parametrize("make", TOYS)
def test_starts_with_every_mask_enabled_and_none_frozen(make):
    toy = make()
    network = network_of(toy)
    assert count_enabled(network) == {group.name: group.size for group in toy.groups}
    assert list_masks(network.frozen) == {}
    assert same_bits(effective_params(network), toy.params)
    assert all(flag.all() for flag in flags_over(network, trainable(network)).values())


@pytest.mark.parametrize("make", TOYS)
@pytest.mark.parametrize("poison", [jnp.nan, -0.0, 1.0])
def test_effective_parameters_without_compiling_are_the_same_bits(make, poison):
    network = network_of(make())
    network = dataclasses.replace(network, params=jax.tree.map(lambda leaf: leaf * poison, network.params))
    for group in network.groups:
        less = disable(network, choose(network, {group.name: [0, group.size - 1]}))
        assert same_bits(effective_arrays(less), effective_params(less))
        assert not any(leaf.weak_type for leaf in jax.tree.leaves(effective_arrays(less)))


@pytest.mark.parametrize("masks", [{}, {"left": [1]}, {"left": [0, 2], "right": [0, 1]}, {"right": [1]}])
def test_choose_and_list_are_inverse(masks):
    chosen = choose(network_of(concat_toy()), masks)
    assert list_masks(chosen) == masks
    assert {name: (flags.dtype, flags.shape) for name, flags in chosen.items()} == {
        "left": (jnp.bool_, (3,)),
        "right": (jnp.bool_, (2,)),
    }


def test_choose_takes_any_order_repeats_and_iterables():
    network = network_of(concat_toy())
    assert list_masks(choose(network, {"left": iter([2, 0, 2])})) == {"left": [0, 2]}
    assert list_masks(choose(network, {"left": np.array([1]), "right": []})) == {"left": [1]}


@pytest.mark.parametrize("number", [-1, 3, 100])
def test_choose_refuses_numbers_out_of_range(number):
    with pytest.raises(IndexError, match=rf"`left` has masks 0 to 2, not {number}"):
        choose(network_of(concat_toy()), {"left": [number]})


def test_choose_refuses_unknown_groups():
    with pytest.raises(KeyError, match="did you mean `left`"):
        choose(network_of(concat_toy()), {"lift": [0]})


@pytest.mark.parametrize("make", TOYS)
def test_stored_values_of_disabled_masks_are_irrelevant(make):
    toy = make()
    network = disable(network_of(toy), first_of_each(network_of(toy)))
    reached = entries(toy.groups, toy.params, first_of_each(network), roles=("out", "in"))

    @jax.jit
    def value_and_slope(params):
        loss = lambda p: jnp.sum(toy.apply(effective_params(dataclasses.replace(network, params=p)), toy.inputs))
        return jax.value_and_grad(loss)(params)

    clean = value_and_slope(network.params)
    assert np.isfinite(clean[0])
    for poison in (np.nan, np.inf, -np.inf, 1e30):
        poisoned = jax.tree.map(lambda leaf, hit, value=poison: jnp.where(hit, value, leaf), network.params, reached)
        assert not same_bits(poisoned, network.params)
        assert same_bits(value_and_slope(poisoned), clean)


@pytest.mark.parametrize("make", TOYS)
def test_disabled_masks_neither_act_nor_learn(make):
    toy = make()
    network = disable(network_of(toy), first_of_each(network_of(toy)))

    @jax.jit
    def held_parts(network):
        loss = lambda p: jnp.sum(toy.apply(effective_params(dataclasses.replace(network, params=p)), toy.inputs))
        only_held = lambda tree: jax.tree.map(lambda m, x: jnp.where(m, 0, x), trainable(network), tree)
        return (
            only_held(effective_params(network)),
            only_held(jax.grad(loss)(network.params)),
            only_held(network.params),
        )

    acting, learning, stored = held_parts(network)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((acting, learning)))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(stored))


def test_entries_broadcast_and_mark_by_label():
    network = network_of(concat_toy())
    chosen = choose(network, {"left": [2], "right": [0]})  # the last mask too: -1 is not it
    marked = entries(network.groups, network.params, chosen, roles=("out", "in"))
    assert marked["head"]["kernel"].shape == (9, 1)
    assert np.flatnonzero(marked["head"]["kernel"]).tolist() == [2, 3]
    assert np.flatnonzero(marked["left"]["kernel"]).tolist() == [2]
    assert marked["head"]["bias"].shape == (1,)
    assert not marked["head"]["bias"].any()


@pytest.mark.parametrize(
    ("roles", "touched"),
    [(("out",), {"conv/kernel", "conv/bias"}), (("in",), {"dense/kernel"}), ((), set())],
)
def test_entries_of_a_role(roles, touched):
    network = network_of(flatten_toy())
    marked = flags_over(network, entries(network.groups, network.params, first_of_each(network), roles=roles))
    assert {path for path, flags in marked.items() if flags.any()} == touched


def test_entries_with_repeated_labels():
    network = network_of(flatten_toy())
    marked = entries(network.groups, network.params, choose(network, {"conv": [2]}), roles=("in",))
    assert np.flatnonzero(marked["dense"]["kernel"]).tolist() == [2, 6, 10, 14, 18, 22]


def test_a_frozen_mask_may_still_be_read_in_new_ways():
    network = freeze(network_of(flatten_toy()), first_of_each(network_of(flatten_toy())))
    moves = flags_over(network, trainable(network))
    assert not moves["conv/kernel"][..., 0].any()
    assert moves["conv/kernel"][..., 1:].all()
    assert moves["conv/bias"].tolist() == [False, True, True, True]
    assert moves["dense/kernel"].all()
    assert same_bits(effective_params(network), network.params)


@pytest.mark.parametrize("make", [fcn_toy, concat_toy])
def test_a_population_is_one_vmap(make):
    toy = make()
    network = network_of(toy)
    sizes = [group.size for group in toy.groups]
    rows = np.array(list(itertools.product([False, True], repeat=sum(sizes))))
    enabled = dict(zip(toy.groups.names, np.split(rows, np.cumsum(sizes)[:-1], axis=1), strict=True))

    def of(flags):
        params = effective_params(dataclasses.replace(network, enabled=flags))
        return params, toy.apply(params, toy.inputs)

    together, alone = jax.jit(jax.vmap(of))(enabled), jax.jit(of)
    for i in range(len(rows)):
        params, output = alone({name: flags[i] for name, flags in enabled.items()})
        assert same_bits(jax.tree.map(lambda leaf, i=i: leaf[i], together[0]), params)
        np.testing.assert_allclose(together[1][i], output, rtol=1e-5, atol=1e-5)


def test_masks_are_data_and_compile_once():
    toy, traces = concat_toy(), []

    @jax.jit
    def run(network):
        traces.append(None)
        return toy.apply(effective_params(network), toy.inputs), trainable(network)

    network = network_of(toy)
    for masks in [{}, {"left": [0]}, {"left": [0, 1], "right": [1]}]:
        chosen = choose(network, masks)
        run(disable(network, chosen))
        run(freeze(network, chosen))
    run(network_of(concat_toy()))  # equal groups made anew
    assert len(traces) == 1


def test_weak_types_and_lists_become_arrays():
    toy = concat_toy()
    params = {**toy.params, "gain": 2.0, "count": 3, "shift": jnp.asarray(1.0)}
    network = init_network(params, toy.groups)
    leaves = jax.tree.leaves(network.params)
    assert all(isinstance(leaf, jax.Array) and not leaf.weak_type for leaf in leaves)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(effective_params(network)))
    assert network.params["count"].dtype == jnp.int32


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((), set()),
        (("left/*",), {"left/kernel", "left/bias"}),
        (("*/bias", "head/kernel"), {"left/bias", "right/bias", "head/bias", "head/kernel"}),
        (("r?ght/kernel",), {"right/kernel"}),
    ],
)
def test_fixed_patterns(patterns, expected):
    network = network_of(concat_toy(), fixed=patterns)
    assert set(network.fixed) == expected
    moves = flags_over(network, trainable(network))
    assert {path for path, flags in moves.items() if not flags.any()} == expected
    assert sum(not trains for trains in jax.tree.leaves(trained_leaves(network))) == len(expected)


def test_fixed_pattern_that_matches_nothing():
    with pytest.raises(ValueError, match=r"`fixed` holds `middle/\*`.*left/kernel"):
        network_of(concat_toy(), fixed=["left/*", "middle/*"])


def test_integer_leaves_never_train():
    toy = concat_toy()
    network = init_network({**toy.params, "table": np.arange(3)}, toy.groups)
    assert trained_leaves(network)["table"] is False
    assert not trainable(network)["table"].any()


def test_init_checks_groups_against_params():
    toy = concat_toy()
    with pytest.raises(ValueError, match=r"axis 0 of `head/kernel`, whose shape is \(8, 2\)"):
        init_network({**toy.params, "head": {**toy.params["head"], "kernel": jnp.zeros((8, 2))}}, toy.groups)
