"""Every repair keeps the contract on every awkward network, and is exact where it says so.

Add a repair to the list below to have it checked.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import away_from_zero, bits, concat_toy, same_bits

from maskprune import repair
from maskprune.conv import conv2d
from maskprune.lab.testing import awkward_forms, poison, sample_network
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, effective_params, init_network, trainable
from maskprune.select.consumers import readers_of
from maskprune.tasks.models import fcn
from maskprune.train.curvature import flatten, gauss_newton


MODEL = fcn((3, 3), kernel=3, convolution=partial(conv2d, way="xla"))
SHAPES = jax.eval_shape(MODEL.init, jax.random.key(0))


def positive(seed):
    """A network whose masks all pass the ReLU on pictures, so that what holds of sums holds of outputs."""
    return init_network(jax.tree.map(jnp.abs, away_from_zero(seed, SHAPES)), MODEL.groups)


def activations(params, batch):
    return MODEL.activations(params, batch)


def wild(network, batch):
    """A singular, indefinite curvature, zero where nothing moves: as bad as an exact Hessian may be."""
    flat = flatten(network)
    waves = jnp.sin(jnp.arange(7.0)[:, None] * jnp.arange(flat.vector.size)[None]) * flat.trains[None]
    return waves.T @ (jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -2.0])[:, None] * waves) * jnp.mean(batch)


REPAIRS = {
    "plain": repair.plain(),
    "bias": repair.bias(activations, border=1),
    "merge": repair.merge(),
    "least_squares": repair.least_squares(activations),
    "second_order": repair.second_order(wild),
}
COMPILED = {name: jax.jit(remove) for name, remove in REPAIRS.items()}


@pytest.fixture
def batch(rng):
    return jnp.asarray(rng.uniform(size=(4, 7, 8, 1)), jnp.float32)


@cache
def forms():
    start = init_network(away_from_zero(3, SHAPES), MODEL.groups)
    one = choose(start, {"conv2": [1, 2]})
    held = dataclasses.replace(freeze(start, one), fixed=("conv3/bias",))
    return awkward_forms(start) | {"some frozen": freeze(start, one), "one leaf that never trains": held}


def held_bits(network, marks):
    """The bits of what is not marked."""
    pairs = zip(jax.tree.leaves(network.params), jax.tree.leaves(marks), strict=True)
    return [np.asarray(leaf)[~np.broadcast_to(mark, leaf.shape)].view(np.uint32) for leaf, mark in pairs]


@pytest.mark.rotating
@pytest.mark.parametrize("name", REPAIRS)
def test_contract(name, batch):
    remove = COMPILED[name]
    for form, network in forms().items():
        network = poison(network)
        chosen = choose(network, {"conv1": [0], "conv2": [0, 1]})
        after = remove(network, chosen, batch)
        expected = disable(network, chosen)
        assert same_bits_of_flags(after, expected), form
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(effective_params(after))), form
        stays = [
            np.array_equal(*pair)
            for pair in zip(*(held_bits(n, trainable(expected)) for n in (network, after)), strict=True)
        ]
        assert all(stays), form
        cleaned = dataclasses.replace(network, params=effective_params(network))
        assert same_bits(effective_params(after), effective_params(remove(cleaned, chosen, batch))), form


def same_bits_of_flags(one, other):
    flags = lambda network: [np.asarray(each) for each in jax.tree.leaves((network.enabled, network.frozen))]
    return all(map(np.array_equal, flags(one), flags(other)))


@pytest.mark.parametrize("name", REPAIRS)
def test_nothing_chosen_changes_nothing(name, batch):
    network = poison(forms()["every second mask disabled"])
    negative = {name: layer | {"bias": jnp.full_like(layer["bias"], -0.0)} for name, layer in network.params.items()}
    network = dataclasses.replace(network, params=negative)  # adding nothing would turn a -0.0 into 0.0
    gone = ~np.asarray(network.enabled["conv1"])
    for chosen in ({}, {"conv1": jnp.asarray(gone)}):  # what is disabled already cannot go again
        chosen = choose(network, {}) | chosen
        after = COMPILED[name](network, chosen, batch)
        assert same_bits_of_flags(after, network)
        assert all(map(np.array_equal, bits(after.params), bits(network.params)))


@pytest.mark.rotating
@pytest.mark.parametrize("name", ["bias", "merge", "least_squares", "second_order"])
def test_many_removals_side_by_side_are_those_one_by_one(name, batch):
    network = forms()["all masks enabled"]
    none = jnp.zeros((3, 3), bool)
    chosen = {"conv1": jnp.eye(3, dtype=bool), "conv2": none}
    many = jax.jit(jax.vmap(REPAIRS[name], in_axes=(None, 0, None)))(network, chosen, batch)
    for mask in range(3):
        alone = COMPILED[name](network, choose(network, {"conv1": [mask]}), batch)
        for one, all_of_them in zip(jax.tree.leaves(alone.params), jax.tree.leaves(many.params), strict=True):
            np.testing.assert_allclose(one, all_of_them[mask], rtol=2e-3, atol=2e-3)


def outputs(network, pictures):
    return np.asarray(MODEL.apply(effective_params(network), pictures))


def overwritten(network, **leaves):
    """The network with masks' own numbers replaced: `conv1=(mask, kernel, bias)`."""
    params = dict(network.params)
    for layer, (mask, kernel, bias) in leaves.items():
        old = params[layer]
        params[layer] = {
            "kernel": old["kernel"].at[..., mask].set(kernel),
            "bias": old["bias"].at[mask].set(bias),
        }
    return dataclasses.replace(network, params=params)


def with_multiple(network, factor):
    """Mask 2 of conv1 is a multiple of mask 0."""
    layer = network.params["conv1"]
    return overwritten(network, conv1=(2, factor * layer["kernel"][..., 0], factor * layer["bias"][0]))


@pytest.mark.parametrize(("goes", "stays"), [(2, 0), (0, 2)])
def test_merging_a_positive_multiple_changes_no_output(goes, stays, batch):
    network = with_multiple(forms()["all masks enabled"], 2.5)
    after = COMPILED["merge"](network, choose(network, {"conv1": [goes]}), batch)
    np.testing.assert_allclose(outputs(after, batch), outputs(network, batch), rtol=1e-5, atol=1e-5)
    assert not np.allclose(
        outputs(disable(network, choose(network, {"conv1": [goes]})), batch), outputs(network, batch)
    )
    assert not same_bits(after.params["conv2"]["kernel"][:, :, stays], network.params["conv2"]["kernel"][:, :, stays])


def test_an_opposite_mask_is_no_twin_and_neither_is_one_that_goes_or_is_gone(batch):
    network = with_multiple(forms()["all masks enabled"], 1.0)
    lone = disable(network, choose(network, {"conv1": [1]}))
    layer = lone.params["conv1"]
    opposite = overwritten(lone, conv1=(2, -0.9 * layer["kernel"][..., 0], 0.5 * layer["bias"][0]))
    both = choose(network, {"conv1": [0, 2]})
    for each, chosen in (
        (opposite, choose(network, {"conv1": [2]})),  # only an opposite one stays
        (lone, both),  # nobody stays
        (disable(lone, choose(network, {"conv1": [0]})), choose(network, {"conv1": [2]})),
    ):
        after = COMPILED["merge"](poison(each), chosen, batch)
        assert same_bits(effective_params(after), effective_params(disable(each, chosen)))


def test_a_twin_below_the_least_cosine_is_none(batch):
    network = positive(2)  # all its cosines are positive, none near 1
    chosen = choose(network, {"conv1": [0]})
    after = jax.jit(repair.merge(least=0.999))(network, chosen, batch)
    assert same_bits(after.params, network.params)
    assert not same_bits(COMPILED["merge"](network, chosen, batch).params, network.params)


def test_bias_repair_of_a_constant_mask_is_exact_inside(batch):
    network = overwritten(forms()["all masks enabled"], conv1=(1, 0.0, 0.7))
    chosen = choose(network, {"conv1": [1]})
    inside = lambda outputs: outputs[:, 2:-2, 2:-2]
    after = COMPILED["bias"](network, chosen, batch)
    np.testing.assert_allclose(inside(outputs(after, batch)), inside(outputs(network, batch)), rtol=1e-5, atol=1e-5)
    assert same_bits(after.params["conv2"]["kernel"], network.params["conv2"]["kernel"])


def sums(network, pictures, params=None):
    """What conv2 makes of conv1 before its ReLU."""
    params = effective_params(network)
    layer = params["conv2"]
    return np.asarray(conv2d(MODEL.activations(params, pictures)["conv1"], layer["kernel"], layer["bias"], way="xla"))


def test_least_squares_is_exact_where_a_mask_is_a_mixture_of_others(batch):
    network = positive(5)
    layer = network.params["conv1"]
    mixed = lambda leaf: 0.3 * leaf[..., 0] + 0.6 * leaf[..., 1]
    network = overwritten(network, conv1=(2, mixed(layer["kernel"]), mixed(layer["bias"])))
    chosen = choose(network, {"conv1": [2]})
    after = jax.jit(repair.least_squares(activations, ridge=1e-6))(network, chosen, batch)
    plain = disable(network, chosen)
    apart = lambda other: np.abs(sums(other, batch) - sums(network, batch)).max()
    assert apart(after) < 2e-3 * apart(plain)


@pytest.mark.parametrize("form", ["all masks enabled", "every second mask disabled", "one leaf that never trains"])
def test_least_squares_is_never_worse_than_no_repair(form, batch):
    network = forms()[form]
    for masks in ([0], [1], [0, 2]):
        chosen = choose(network, {"conv1": masks})
        error = lambda other: np.mean(np.square(sums(other, batch) - sums(network, batch)))
        after = COMPILED["least_squares"](network, chosen, batch)
        assert error(after) <= error(disable(network, chosen)) * (1 + 1e-5)
        if form == "all masks enabled" and masks != [0, 2]:
            assert error(after) < 0.9 * error(COMPILED["bias"](network, chosen, batch))


def test_least_squares_finds_what_a_dense_solver_finds(rng):
    """A dense reader, two masks that go and three that stay, some outputs of the reader frozen."""
    network, inputs = dense_network(rng)
    chosen = choose(network, {"first": [1, 3]})
    after = jax.jit(repair.least_squares(dense_activations, ridge=1e-6))(network, chosen, inputs)
    hidden = np.asarray(dense_activations(network.params, inputs)["first"])
    wanted = hidden @ np.asarray(network.params["second"]["w"]) + np.asarray(network.params["second"]["b"])
    best = np.linalg.lstsq(np.c_[hidden[:, [0, 2, 4]], np.ones(len(hidden))], wanted, rcond=None)[0]
    kernel, bias = (np.asarray(after.params["second"][name]) for name in ("w", "b"))
    np.testing.assert_allclose(kernel[[0, 2, 4], 1:], best[:3, 1:], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(bias[1:], best[3, 1:], rtol=1e-3, atol=1e-3)
    assert same_bits((kernel[:, 0], bias[0]), (network.params["second"]["w"][:, 0], network.params["second"]["b"][0]))


def dense_network(rng):
    shapes = {"first": {"w": (4, 5), "b": (5,)}, "second": {"w": (5, 3), "b": (3,)}}
    params = jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    first, second = (0, 1, 2, 3, 4), (0, 1, 2)
    groups = Groups(
        (
            Group(
                "first",
                5,
                (
                    Slice("first/w", 1, first, "out"),
                    Slice("first/b", 0, first, "out"),
                    Slice("second/w", 0, first, "in"),
                ),
            ),
            Group("second", 3, (Slice("second/w", 1, second, "out"), Slice("second/b", 0, second, "out"))),
        )
    )
    network = init_network(params, groups)
    return freeze(network, choose(network, {"second": [0]})), jnp.asarray(rng.normal(size=(40, 4)), jnp.float32)


def dense_activations(params, inputs):
    hidden = jax.nn.relu(inputs @ params["first"]["w"] + params["first"]["b"][None])
    return {"first": hidden, "second": hidden @ params["second"]["w"] + params["second"]["b"][None]}


def rows_network(rng):
    """A linear model with a group over its inputs: the loss is quadratic, and a removal can be refitted exactly."""
    labels = (0, 0, 1, 2, 2, -1)
    inputs = jnp.asarray(rng.normal(size=(30, 6)) @ (np.eye(6) + 0.2 * rng.normal(size=(6, 6))), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(30, 2)), jnp.float32)
    best = np.linalg.lstsq(np.asarray(inputs), np.asarray(targets), rcond=None)[0]
    network = init_network({"w": best.astype(np.float32)}, Groups((Group("g", 3, (Slice("w", 0, labels, "out"),)),)))
    return network, (inputs, targets)


def row_residuals(params, batch):
    return (batch[0] @ params["w"] - batch[1]).reshape(-1)


@pytest.mark.parametrize("masks", [[0], [1, 2]])
def test_the_second_order_step_is_the_best_refit_of_a_quadratic_loss(masks, rng):
    network, batch = rows_network(rng)
    curvature = lambda network, batch: gauss_newton(row_residuals, network, batch).matrix
    after = jax.jit(repair.second_order(curvature, damping=0.0))(network, choose(network, {"g": masks}), batch)
    stays = ~np.isin((0, 0, 1, 2, 2, -1), masks)
    best = np.zeros((6, 2))
    best[stays] = np.linalg.lstsq(np.asarray(batch[0])[:, stays], np.asarray(batch[1]), rcond=None)[0]
    np.testing.assert_allclose(effective_params(after)["w"], best, rtol=1e-2, atol=2e-3)


def test_frozen_masks_may_go_and_are_then_made_up_for(rng):
    network, batch = rows_network(rng)
    curvature = lambda network, batch: gauss_newton(row_residuals, network, batch).matrix
    frozen = freeze(network, choose(network, {"g": [0, 1]}))
    after = jax.jit(repair.second_order(curvature, damping=0.0))(frozen, choose(network, {"g": [0]}), batch)
    held = np.asarray(batch[1]) - np.asarray(batch[0])[:, 2:3] @ np.asarray(network.params["w"])[2:3]
    best = np.linalg.lstsq(np.asarray(batch[0])[:, 3:], held, rcond=None)[0]
    np.testing.assert_allclose(after.params["w"][3:], best, rtol=1e-2, atol=2e-3)
    assert same_bits(after.params["w"][:3], network.params["w"][:3])


def test_a_reader_that_is_not_understood_is_named():
    network = sample_network()
    with pytest.raises(ValueError, match=r"Group `wide` is read along axis 0 of `out/kernel`.*\[2, 1, 2\] positions"):
        readers_of(network, network.groups["wide"])
    with pytest.raises(ValueError, match="The masks of group `wide` are read at"):
        jax.eval_shape(repair.merge(), network, choose(network, {"wide": [0]}), None)


def test_a_reader_without_a_bias_is_named_where_one_is_needed(rng):
    network, inputs = dense_network(rng)
    params = {"first": network.params["first"], "second": {"w": network.params["second"]["w"]}}
    first = network.groups["first"]
    network = init_network(params, Groups((first,)))
    only = lambda params, inputs: {"first": jax.nn.relu(inputs @ params["first"]["w"] + params["first"]["b"][None])}
    chosen = choose(network, {"first": [0]})
    with pytest.raises(ValueError, match="`second/w` has no bias beside it"):
        jax.eval_shape(repair.bias(only), network, chosen, inputs)
    after = jax.jit(repair.least_squares(only))(network, chosen, inputs)
    hidden, kernel = np.asarray(only(params, inputs)["first"]), np.asarray(params["second"]["w"])
    best = np.linalg.lstsq(hidden[:, 1:], hidden @ kernel, rcond=None)[0]  # no constant is free
    np.testing.assert_allclose(after.params["second"]["w"][1:], best, rtol=1e-2, atol=1e-3)


def test_concatenated_layers_are_repaired_at_their_place():
    toy = concat_toy()
    network = init_network(toy.params, toy.groups)
    branches = lambda params, x: {
        name: jax.nn.softplus(x @ params[name]["kernel"] + params[name]["bias"][None]) for name in ("left", "right")
    }
    compiled = jax.jit(repair.least_squares(branches))
    for name, mask in (("left", 0), ("right", 1)):
        chosen = choose(network, {name: [mask]})
        after = compiled(network, chosen, toy.inputs)
        error = lambda other: np.mean(
            np.square(toy.apply(effective_params(other), toy.inputs) - toy.apply(toy.params, toy.inputs))
        )
        assert error(after) < 0.5 * error(disable(network, chosen))


@pytest.mark.parametrize(
    "make",
    [
        lambda: repair.merge(least=1.0),
        lambda: repair.merge(least=-0.1),
        lambda: repair.least_squares(activations, ridge=0.0),
        lambda: repair.second_order(lambda network, batch: None, damping=-1.0),
    ],
)
def test_settings_out_of_range_are_named(make):
    with pytest.raises(ValueError, match=r"`(least|ridge|damping)` is"):
        make()


def test_missing_activations_and_borders_that_leave_nothing_are_named(batch):
    network = positive(1)
    chosen = choose(network, {})
    with pytest.raises(ValueError, match="group `conv2` needs"):
        jax.eval_shape(repair.bias(lambda params, batch: {"conv1": batch[..., [0, 0, 0]]}), network, chosen, batch)
    with pytest.raises(ValueError, match="larger than twice the border, which is 4"):
        jax.eval_shape(repair.bias(activations, border=4), network, chosen, batch)
