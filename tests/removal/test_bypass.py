"""Doing without a layer: the identity in its place, held there, and gone once compacted."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import NATIVE, away_from_zero, same_bits

from maskprune import (
    Rules,
    bypass,
    choose,
    compact,
    conv2d,
    count_enabled,
    disable,
    effective_params,
    freeze,
    init_network,
    init_state,
    models,
    select,
    strategies,
    trace,
    why_no_bypass,
)
from maskprune.app.record import fcn_size, history_row, small_fcn
from maskprune.minimizer.loop import minimize
from maskprune.removal.compaction import check_same, compact_params
from maskprune.train.session import SessionReport
from maskprune.train.step import make_train_step


PICTURES = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 9, 8, 1)), jnp.float32)


def fcn_network(widths=(3, 4, 3)):
    model = models.fcn(widths, kernel=3)
    return model, init_network(away_from_zero(1, jax.eval_shape(model.init, jax.random.key(0))), model.groups)


def without(network, **masks):
    return disable(network, choose(network, masks))


def test_a_bypassed_layer_hands_on_what_it_reads():
    """Three of four masks left, reading three: after the ReLU before it, the layer is the identity."""
    model, network = fcn_network()
    network = bypass(without(network, conv2=[1]), "conv2")
    found = model.activations(effective_params(network), PICTURES)
    np.testing.assert_array_equal(found["conv2"][..., [0, 2, 3]], found["conv1"])
    assert not np.any(found["conv2"][..., 1])
    assert network.frozen["conv2"].tolist() == [True, False, True, True]


def test_the_masks_that_are_left_need_not_be_the_same_ones():
    model, network = fcn_network((3, 3, 2))
    network = bypass(without(network, conv1=[0], conv2=[2]), "conv2")
    found = model.activations(effective_params(network), PICTURES)
    np.testing.assert_array_equal(found["conv2"][..., [0, 1]], found["conv1"][..., [1, 2]])


def test_disabled_masks_keep_their_weights_and_other_layers_theirs():
    _, network = fcn_network()
    before = without(network, conv2=[1])
    after = bypass(before, "conv2")
    for old, new in ((before.params["conv2"]["kernel"], after.params["conv2"]["kernel"]),):
        assert same_bits(old[..., 1], new[..., 1])
    assert same_bits(
        [before.params[n] for n in ("conv1", "conv3", "conv4")], [after.params[n] for n in ("conv1", "conv3", "conv4")]
    )


def test_training_does_not_move_it():
    model, network = fcn_network((1, 2))
    network = bypass(network, "conv1")
    step = jax.jit(make_train_step(lambda p, x: (model.apply(p, x) ** 2).mean(), optax.adam(0.1)))
    state, _ = step(init_state(network, optax.adam(0.1)), PICTURES)
    assert same_bits(state.network.params["conv1"], network.params["conv1"])
    assert not same_bits(state.network.params["conv2"], network.params["conv2"])


def test_compacting_takes_the_layer_out():
    """The (1, 3) network becomes one of two layers, and computes what it did on pictures, which are not negative."""
    model, network = fcn_network((1, 3))
    network = bypass(network, "conv1")
    small = small_fcn(network)
    assert list(small) == ["conv1", "conv2"] and small["conv1"]["kernel"].shape == (3, 3, 1, 3)
    assert check_same(model.apply, network, small, PICTURES) == 0
    assert fcn_size(network) == {"parameters": 27 + 3 + 27 + 1, "multiply_adds": 54}


@pytest.mark.parametrize("way", ["xla", "blocked", NATIVE])
def test_compacting_any_function_takes_the_layer_out(way):
    model = models.fcn((1, 3), kernel=3, convolution=partial(conv2d, way=way))
    network = bypass(fcn_network((1, 3))[1], "conv1")
    small_apply, small = compact(model.apply, network, PICTURES)
    assert small["conv1"] == {"kernel": None, "bias": None}
    found = str(jax.make_jaxpr(small_apply)(small, PICTURES))
    assert found.count("conv_general_dilated[" if way == "xla" else f"name=conv2d_{way}_relu") == 2
    np.testing.assert_array_equal(small_apply(small, PICTURES), model.apply(effective_params(network), PICTURES))
    larger = jnp.ones((3, 20, 11, 1))
    np.testing.assert_allclose(jax.jit(small_apply)(small, larger), model.apply(small_fcn(network), larger), rtol=1e-6)


def test_a_dropped_layer_that_is_not_just_a_product_is_put_back():
    """The kernel is used twice, once not as a product: the function must see it as it was."""
    model, network = fcn_network((1, 3))
    network = bypass(network, "conv1")
    apply = lambda p, x: model.apply(p, x) + p["conv1"]["kernel"].sum()
    small_apply, small = compact(apply, network, PICTURES)
    assert small["conv1"]["kernel"] is None
    np.testing.assert_allclose(small_apply(small, PICTURES), apply(effective_params(network), PICTURES), rtol=1e-6)


def test_only_exact_identities_are_dropped():
    model, network = fcn_network((1, 3))
    params = jax.tree.map(jnp.asarray, compact_params(bypass(network, "conv1")))
    for place, value in (("bias", 1e-6), ("kernel", 1e-6)):
        nearly = {**params, "conv1": {**params["conv1"], place: params["conv1"][place] + value}}
        assert len(models.drop_identities(nearly)) == 3
    assert len(models.drop_identities(params)) == 2
    assert len(models.drop_identities({"conv1": params["conv1"]})) == 1  # one layer always stays
    del model


@pytest.mark.parametrize(
    ("alter", "layer", "why"),
    [
        (lambda n: n, "conv2", "it reads 3 channels and gives 4"),
        (lambda n: freeze(n, choose(n, {"conv3": [0]})), "conv3", "some of its masks are frozen"),
        (lambda n: without(n, conv1=[0, 1]), "conv1", ""),
    ],
)
def test_why_a_layer_cannot_be_bypassed(alter, layer, why):
    network = alter(fcn_network()[1])
    assert why_no_bypass(network, layer) == why
    if why:
        with pytest.raises(ValueError, match=f"Layer `{layer}` cannot be bypassed: {why}"):
            bypass(network, layer)


def test_even_windows_and_norms_are_refused():
    def apply(p, x):
        x = jax.lax.conv_general_dilated(x, p["a"]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.dot((x * p["a"]["scale"][None, None, None]).mean((1, 2)), p["z"])

    shapes = {"a": {"w": jnp.ones((2, 2, 1, 4)), "scale": jnp.ones(4)}, "z": jnp.ones((4, 2))}
    network = init_network(shapes, trace(apply, shapes, PICTURES))
    assert "only a kernel with a bias" in why_no_bypass(network, "a")
    plain = {**shapes, "a": {"w": shapes["a"]["w"]}}
    no_scale = lambda p, x: apply({**p, "a": {**p["a"], "scale": jnp.ones(4)}}, x)
    network = init_network(plain, trace(no_scale, plain, PICTURES))
    assert "which has no middle" in why_no_bypass(network, "a")


def test_dense_layers_and_other_layouts():
    """[outputs, inputs], as other libraries store kernels: the axis it reads is known from who is read."""

    def apply(p, x):
        x = jax.nn.relu(jnp.dot(x, p["a"]["w"].T))
        return jnp.dot(jax.nn.relu(jnp.dot(x, p["b"]["w"].T) + p["b"]["bias"][None]), p["z"])

    shapes = {"a": {"w": jnp.ones((4, 3))}, "b": {"w": jnp.ones((4, 4)), "bias": jnp.ones(4)}, "z": jnp.ones((4, 2))}
    params, x = away_from_zero(3, shapes), jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)
    network = init_network(params, trace(apply, params, x))
    network = bypass(without(network, a=[1], b=[3]), "b")
    expected = jnp.dot(jax.nn.relu(jnp.dot(x, params["a"]["w"].T))[:, np.array([0, 2, 3])], params["z"][:3])
    np.testing.assert_allclose(apply(effective_params(network), x), expected, rtol=1e-6)
    small_apply, small = compact(apply, network, x)
    assert small["b"] == {"w": None, "bias": None} and small["a"]["w"].shape == (3, 3)
    assert str(jax.make_jaxpr(small_apply)(small, x)).count("dot_general") == 2
    np.testing.assert_allclose(small_apply(small, x), expected, rtol=1e-6)


def idle(key, state):
    return state, SessionReport(np.zeros(1, np.float32), True, "", 0.0)


def search(network, evaluate, plan=None, **rules):
    optimizer = optax.sgd(0.1)
    return list(
        minimize(
            jax.random.key(0), init_state(network, optimizer), train=idle, evaluate=evaluate, optimizer=optimizer,
            selector=select.sequential(), rules=Rules(**rules), **({} if plan is None else {"plan": plan}),
        )
    )  # fmt: skip


def test_auto_tries_layers_too_and_masks_again():
    _, network = fcn_network((1, 2, 2))
    bypassed = lambda state: bool(np.any(state.network.frozen["conv3"]))

    def keep(state):
        """conv3 has to stay, and all masks until conv1 is gone; then one of conv2 may go, too."""
        masks, whole = sum(count_enabled(state.network).values()), not np.any(state.network.frozen["conv1"])
        return {"score": float(not bypassed(state) and masks >= (5 if whole else 4))}

    rounds = search(network, keep, plan=strategies.auto(1), layers=True)
    assert [row.bypassed for row in rounds if row.bypassed and row.accepted] == ["conv1"]
    after = rounds[[row.bypassed for row in rounds].index("conv1") + 1 :]
    assert any(row.accepted and row.chosen for row in after) and rounds[-1].stop


def test_the_search_tries_layers_when_no_mask_may_go():
    _, network = fcn_network((1, 2, 2))
    held = lambda state: not np.any(state.network.frozen["conv3"])  # conv3 is needed, conv1 is not
    keep = lambda state: {"score": float(all(map(np.all, state.network.enabled.values())) and held(state))}
    rounds = search(network, keep, layers=True)
    assert [(row.chosen, row.bypassed, row.accepted) for row in rounds[1:]] == [
        ({"conv2": [0]}, "", False),
        ({"conv2": [1]}, "", False),
        ({"conv3": [0]}, "", False),
        ({"conv3": [1]}, "", False),
        ({}, "conv1", True),
        ({"conv2": [0]}, "", False),
        ({"conv2": [1]}, "", False),
        ({"conv3": [0]}, "", False),
        ({"conv3": [1]}, "", False),
        ({}, "conv3", False),
    ]
    assert rounds[-1].stop == "every mask that may go was refused"
    assert not any(row.bypassed for row in search(network, keep))
    row = history_row(rounds[5], size=fcn_size, spent=0)
    assert row["chosen"] == "all of conv1" and row["verdict"] == "accepted"
    assert row["multiply_adds"] < history_row(rounds[0], size=fcn_size, spent=0)["multiply_adds"]


@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"only": ("conv2",)}, (3, 1, 3)),
        ({"only": ("conv[13]",)}, (1, 4, 1)),
        ({"only": ("conv2/*",)}, (3, 1, 3)),
        ({"protect": ("conv2", "conv3")}, (1, 4, 3)),
        ({"share": 0.5}, (2, 2, 2)),
        ({"share": 0.0}, (3, 4, 3)),
        ({"share": 0.9, "min_enabled": 2}, (2, 2, 2)),
    ],
)
def test_scopes_limit_what_may_go(rules, left):
    network = fcn_network()[1]
    last = search(network, lambda state: {"score": 1.0}, **rules)[-1]
    assert tuple(int(np.sum(flags)) for flags in last.state.network.enabled.values()) == left


@pytest.mark.parametrize("field", ["only", "protect"])
def test_a_scope_that_matches_nothing(field):
    with pytest.raises(
        ValueError, match=rf"`{field}` holds `conv9`, which matches no group. There are conv1, conv2, conv3"
    ):
        search(fcn_network()[1], lambda state: {"score": 1.0}, **{field: ("conv9",)})
