"""A new head on a trained body: the body's values, statistics included, and it stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import (
    choose,
    disable,
    effective_params,
    freeze,
    init_network,
    init_state,
    make_train_step,
    take_over,
    trace,
)


def forward(params, x):
    return jnp.tanh(x @ params["body"]["w"] + params["body"]["b"][None]) @ params["head"]["w"]


def drawn(rng, outputs):
    shapes = {"body": {"w": (4, 6), "b": (6,)}, "head": {"w": (6, outputs)}}
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


def test_a_new_head_learns_on_a_body_that_stays(rng):
    x = rng.normal(size=(8, 4)).astype(np.float32)
    old = init_network(drawn(rng, 3), trace(forward, drawn(rng, 3), x))
    old = disable(old, choose(old, {"body": [2]}))
    params = take_over(effective_params(old), fresh := drawn(rng, 5), new="head/*")
    np.testing.assert_array_equal(params["head"]["w"], fresh["head"]["w"])
    network = freeze(init_network(params, trace(forward, params, x)), leaves="body/*")
    step = jax.jit(make_train_step(lambda p, b: jnp.mean((forward(p, b) - 1) ** 2), optax.adamw(1e-2)))
    state, _ = step(init_state(network, optax.adamw(1e-2)), x)
    jax.tree.map(np.testing.assert_array_equal, state.network.params["body"], jax.tree.map(np.asarray, params["body"]))
    assert (np.asarray(state.network.params["head"]["w"]) != fresh["head"]["w"]).all()


@pytest.mark.parametrize(
    ("trained", "new", "said"),
    [
        ({"a": np.ones(3)}, "head", "`new` holds `head`, which matches no leaf of `fresh`: a, b"),
        ({"a": np.ones(3)}, (), "`b` of `fresh`, of shape \\(2,\\), cannot be taken from `trained`: it is missing"),
        ({"a": np.ones(4), "b": np.ones(2)}, "b", "`a` of `fresh`, of shape \\(3,\\).* has the shape \\(4,\\) there"),
    ],
)
def test_what_does_not_fit_is_named(trained, new, said):
    with pytest.raises(ValueError, match=said):
        take_over(trained, {"a": np.zeros(3), "b": np.zeros(2)}, new=new)
