"""Compaction: over every combination of masks the small network computes what the masked one does, and is smaller."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, away_from_zero, concat_toy, fcn_toy, flatten_toy, same_bits

from maskprune import (
    CompactionError,
    Network,
    check_same,
    choose,
    compact,
    conv2d,
    count_params,
    disable,
    effective_params,
    freeze,
    init_network,
    models,
)
from maskprune.removal.compaction import compact_params


def with_flags(network: Network, flags: tuple[bool, ...]) -> Network:
    """`flags` over all masks of the network in order: True where enabled."""
    ends = np.cumsum([group.size for group in network.groups])[:-1]
    parts = np.split(np.array(flags), ends)
    return dataclasses.replace(network, enabled=dict(zip(network.groups.names, map(jnp.asarray, parts), strict=True)))


def every_combination(network: Network):
    count = sum(group.size for group in network.groups)
    return (with_flags(network, flags) for flags in itertools.product([True, False], repeat=count))


def whole_numbers(seed: int, params):
    """Small integers: their products and sums are exact in float32, in whatever order they are added."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.integers(-3, 4, leaf.shape), jnp.float32), params)


@pytest.mark.parametrize(("way", "widths"), [("xla", (3, 2)), ("blocked", (2, 1))])
def test_every_combination_of_masks_to_the_last_bit(way, widths):
    model = models.fcn(widths, kernel=3, convolution=partial(conv2d, way=way))
    network = init_network(whole_numbers(4, jax.eval_shape(model.init, jax.random.key(0))), model.groups)
    pictures = jnp.asarray(np.random.default_rng(5).integers(0, 5, (2, 5, 6, 1)), jnp.float32)
    run, seen = jax.jit(model.apply), []
    for masked in every_combination(network):
        small = compact_params(masked)
        first, second = (int(np.sum(masked.enabled[name])) for name in ("conv1", "conv2"))
        assert [small[name]["kernel"].shape[2:] for name in small] == [(1, first), (first, second), (second, 1)]
        assert count_params(small) == 10 * first + (9 * first + 1) * second + 9 * second + 1
        seen.append(np.asarray(run(small, pictures)))
        assert np.array_equal(seen[-1], run(effective_params(masked), pictures))
    assert len(np.unique(np.stack(seen), axis=0)) >= 2 ** sum(widths) / 3  # the masks mattered


def test_random_masks_of_a_deeper_network(rng):
    model = models.fcn((4, 3, 2), kernel=(3, 1, 3, 1), convolution=partial(conv2d, way="xla"))
    network = init_network(away_from_zero(6, jax.eval_shape(model.init, jax.random.key(0))), model.groups)
    pictures = jnp.asarray(rng.uniform(size=(1, 6, 7, 1)), jnp.float32)
    for flags in rng.random((4, 9)) < 0.6:
        masked = with_flags(network, tuple(flags))
        apply, small = compact(model.apply, masked, pictures)
        np.testing.assert_allclose(apply(small, pictures), model.apply(small, pictures), rtol=1e-5, atol=1e-6)
        widths = [int(np.sum(masked.enabled[name])) for name in model.groups.names]
        assert [part["bias"].shape[0] for part in small.values()] == [*widths, 1]


@pytest.mark.parametrize("make", [concat_toy, flatten_toy])
def test_other_structures(make):
    """Softplus and tanh(x - 0.1) are not zero at zero: the slices that read a disabled mask must go as well."""
    toy = make()
    network = init_network(toy.params, toy.groups)
    count = sum(group.size for group in toy.groups)
    for number in range(count):
        flags = tuple(n > number or n % 2 == 1 for n in range(count))
        masked = with_flags(network, flags)
        _, small = compact(toy.apply, masked, toy.inputs)
        assert count_params(small) < count_params(toy.params)
    assert check_same(toy.apply, network, compact_params(network), toy.inputs) == 0


def test_scattered_rows_keep_their_order():
    toy = flatten_toy()
    network = init_network(toy.params, toy.groups)
    small = compact_params(disable(network, choose(network, {"conv": [1, 2]})))
    assert small["conv"]["kernel"].shape == (3, 3, 1, 2)
    rows = [row for row in range(24) if row % 4 in (0, 3)]
    assert same_bits(small["dense"]["kernel"], np.asarray(toy.params["dense"]["kernel"])[rows])


def test_two_groups_leave_one_axis():
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    small = compact_params(disable(network, choose(network, {"left": [1], "right": [0, 1]})))
    assert same_bits(small["head"]["kernel"], np.asarray(toy.params["head"]["kernel"])[[0, 2, 5, 6, 7, 8]])
    assert small["right"]["kernel"].shape == (4, 0)
    assert same_bits(small["head"]["bias"], toy.params["head"]["bias"])


@pytest.mark.parametrize("make", TOYS)
def test_nothing_disabled_is_nothing_removed(make):
    toy = make()
    assert same_bits(compact_params(init_network(toy.params, toy.groups)), toy.params)


@pytest.mark.parametrize("make", TOYS)
def test_frozen_or_not_is_the_same(make):
    toy = make()
    network = init_network(toy.params, toy.groups)
    first, *_ = toy.groups
    masked = disable(network, choose(network, {first.name: [1]}))
    frozen = freeze(masked, choose(masked, {first.name: [0, 1]}))
    assert same_bits(compact_params(frozen), compact_params(masked))


def test_a_stored_nan_is_left_behind():
    toy = fcn_toy()
    network = init_network(toy.params, toy.groups)
    network = disable(network, choose(network, {"conv1": [1]}))
    broken = {**network.params, "conv1": {**network.params["conv1"], "bias": jnp.array([0.3, jnp.nan, 0.2])}}
    _, small = compact(toy.apply, dataclasses.replace(network, params=broken), toy.inputs)
    assert small["conv1"]["bias"].tolist() == pytest.approx([0.3, 0.2])


def test_compact_twice_is_compact_once():
    model = models.fcn((4, 3), kernel=3)
    params = away_from_zero(6, jax.eval_shape(model.init, jax.random.key(0)))
    network = init_network(params, model.groups)
    once = compact_params(disable(network, choose(network, {"conv1": [0, 2], "conv2": [1]})))
    again = init_network(once, models.fcn((2, 2), kernel=3).groups)
    assert same_bits(compact_params(again), once)
    twice = compact_params(disable(again, choose(again, {"conv1": [1], "conv2": [0]})))  # masks 3 and 0 of the first
    at_once = disable(network, choose(network, {"conv1": [0, 2, 3], "conv2": [0, 1]}))
    assert same_bits(twice, compact_params(at_once))


def test_returns_the_parameters_without_a_sample_too():
    toy = fcn_toy()
    network = init_network(toy.params, toy.groups)
    network = disable(network, choose(network, {"conv2": [0]}))
    assert same_bits(compact(toy.apply, network)[1], compact(toy.apply, network, toy.inputs)[1])


def hidden(params, x):
    return x @ params["left"]["kernel"] + params["left"]["bias"][None]


WRONG = {
    "gives the masks themselves": hidden,
    "reads the full bias": lambda p, x: x @ p["left"]["kernel"] + concat_toy().params["left"]["bias"][None],
    "not finite when full": lambda p, x: jnp.sum(x) + jnp.where(p["left"]["bias"].size < 3, 0.0, jnp.inf),
    "not finite at all": lambda p, x: jnp.sum(x) + jnp.inf,
    "not finite in its second output": lambda p, x: (jnp.sum(x), jnp.full(2, jnp.nan)),
}


@pytest.mark.parametrize("apply", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("masks", [[1], [0, 1]])
def test_a_function_that_cannot_be_compacted_is_found_out(apply, masks):
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    with pytest.raises(CompactionError):
        compact(apply, disable(network, choose(network, {"left": masks})), toy.inputs)


OWN_SIZES = {
    "counts its parameters": lambda p, x: (jnp.sum(x), jnp.sum(x) + p["left"]["bias"].size),
    "branches on a width": lambda p, x: jnp.sum(x) + (jnp.inf if p["left"]["bias"].size < 3 else 0.0),
}


@pytest.mark.parametrize("apply", OWN_SIZES.values(), ids=OWN_SIZES.keys())
def test_sizes_that_the_function_computes_with_stay_those_of_the_masked_network(apply):
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    compact(apply, disable(network, choose(network, {"left": [1]})), toy.inputs)


def test_the_error_says_how_far_off():
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    masked = disable(network, choose(network, {"left": [1]}))
    small = compact_params(masked)
    apply = lambda p, x: jnp.full(3, 40.0) + p["left"]["bias"].size
    with pytest.raises(CompactionError, match=r"differs .* by 1, more than 1e-05 of the largest output 43"):
        check_same(apply, masked, small, toy.inputs)
    check_same(apply, masked, small, toy.inputs, tolerance=0.03)


@pytest.mark.parametrize(("tree", "expected"), [({}, 0), ({"a": jnp.ones((2, 3)), "b": [jnp.ones(())]}, 7)])
def test_count_params(tree, expected):
    assert count_params(tree) == expected


def test_rounding_where_large_numbers_cancel_is_no_error_but_a_wrong_cut_still_is():
    model = models.fcn((4, 6))
    params = model.init(jax.random.key(3))
    params["conv2"] = {name: 1e4 * leaf for name, leaf in params["conv2"].items()}
    pictures = 0.5 + 1e-5 * jax.random.uniform(jax.random.key(4), (2, 24, 24, 1))
    params["conv3"]["kernel"] = jnp.abs(params["conv3"]["kernel"])
    network = init_network(params, model.groups)
    network = disable(network, choose(network, {"conv1": [0], "conv2": [1, 4]}))
    highest = jnp.max(model.apply(effective_params(network), pictures))
    network.params["conv3"]["bias"] += 0.5 - highest  # outputs up to 0.5 are left of numbers of 1e4
    small = compact_params(network)  # on some machines equal to the last bit: rounded once more, by hand
    small["conv3"]["kernel"] = jnp.nextafter(small["conv3"]["kernel"], jnp.inf)
    assert 1e-5 < check_same(model.apply, network, small, pictures) < 0.1
    small["conv3"]["kernel"] = small["conv3"]["kernel"].at[2, 2, 0, 0].multiply(1.001)
    with pytest.raises(CompactionError, match="more than rounding explains"):
        check_same(model.apply, network, small, pictures)
