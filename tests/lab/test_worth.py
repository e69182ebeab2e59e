"""The three tests of a mask: what may move in each, what the scores are, and that the tested network stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune.lab.worth import Worth, disabled_and_frozen, worth, zeroed, zeroed_alone
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, effective_params, init_network
from maskprune.train.session import make_session
from maskprune.train.step import init_state, make_train_step


LABELS = (0, 1, 2)
OWN = (Slice("hidden/kernel", 1, LABELS, "out"), Slice("hidden/bias", 0, LABELS, "out"))
GROUPS = Groups((Group("hidden", 3, (*OWN, Slice("out/kernel", 0, LABELS, "in"))),))
OPTIMIZER = optax.adam(0.02)
INPUTS = jnp.asarray(np.random.default_rng(5).normal(size=(40, 2)), jnp.float32)
TESTED = 1


def apply(params, inputs):
    hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"][None]


def given_params():
    """The function to learn is the network itself, so every change shows in the score."""
    kernel = jnp.array([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]])
    hidden = {"kernel": kernel, "bias": jnp.array([0.1, 0.5, 0.2])}
    return {"hidden": hidden, "out": {"kernel": jnp.array([[1.0], [-2.0], [0.5]]), "bias": jnp.array([0.3])}}


TARGETS = apply(given_params(), INPUTS)


def error(params):
    return jnp.mean(jnp.square(apply(params, INPUTS) - TARGETS))


SESSION = make_session(
    make_train_step(lambda params, batch: error(params), OPTIMIZER), lambda key, data: data, chunk=200
)


def train(key, state):
    return SESSION.run(key, state, jnp.zeros(()), 200)


def evaluate(state):
    return {"score": float(1.0 / (1.0 + error(effective_params(state.network)))), "steps": int(state.step)}


@pytest.fixture
def found(request, key):
    """The state given, its bits, and what the test of the mask says."""
    network = init_network(given_params(), GROUPS)
    state, _ = SESSION.run(key, init_state(network, OPTIMIZER), jnp.zeros(()), 3)  # moments that must not carry over
    before = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]
    chosen = choose(network, {"hidden": [TESTED]})
    result = worth(key, state, chosen, alteration=request.param, train=train, evaluate=evaluate, optimizer=OPTIMIZER)
    assert [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)] == before
    return state, result


def moved(state, result):
    """Which entries differ between the given and the trained network: `(hidden kernel by mask, bias by mask, out)`."""
    before, after = state.network.params, result.state.network.params
    changed = jax.tree.map(lambda one, two: np.asarray(one) != np.asarray(two), before, after)
    hidden, out = changed["hidden"], changed["out"]
    return hidden["kernel"].all(axis=0).tolist(), hidden["bias"].tolist(), out["kernel"][:, 0].tolist()


@pytest.mark.parametrize("found", [zeroed], indirect=True)
def test_zeroed_lets_everything_learn(found):
    assert moved(*found) == ([True] * 3, [True] * 3, [True] * 3)
    result = found[1]
    assert np.abs(result.state.network.params["hidden"]["kernel"][:, TESTED]).max() > 0.05  # it learns again
    assert all(flags.all() for flags in result.state.network.enabled.values())
    assert result.at_once < result.after <= 1.0


@pytest.mark.parametrize("found", [disabled_and_frozen], indirect=True)
def test_disabled_and_frozen_learns_without_the_mask(found):
    assert moved(*found) == ([True, False, True], [True, False, True], [True, False, True])
    network = found[1].state.network
    assert network.enabled["hidden"].tolist() == [True, False, True]
    others = np.array([0, 2])
    without = {
        "hidden": {name: leaf[..., others] for name, leaf in network.params["hidden"].items()},
        "out": {"kernel": network.params["out"]["kernel"][others], "bias": network.params["out"]["bias"]},
    }
    np.testing.assert_allclose(apply(effective_params(network), INPUTS), apply(without, INPUTS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("found", [zeroed_alone], indirect=True)
def test_zeroed_alone_lets_the_mask_and_the_output_learn(found):
    assert moved(*found) == ([False, True, False], [False, True, False], [True] * 3)
    result = found[1]
    assert np.abs(result.state.network.params["hidden"]["kernel"][:, TESTED]).max() > 0.05
    assert result.after > result.at_once


@pytest.mark.parametrize("found", [zeroed, disabled_and_frozen, zeroed_alone], indirect=True)
def test_the_scores_are_before_at_once_and_after(found):
    state, result = found
    params = state.network.params
    kernel = params["hidden"]["kernel"].at[:, TESTED].set(0.0)
    out = params["out"]["kernel"]
    if not result.state.network.enabled["hidden"][TESTED]:
        out = out.at[TESTED].set(0.0)
    altered = {"hidden": {**params["hidden"], "kernel": kernel}, "out": {**params["out"], "kernel": out}}
    np.testing.assert_allclose(result.before, 1 / (1 + error(params)), rtol=1e-5)
    np.testing.assert_allclose(result.at_once, 1 / (1 + error(altered)), rtol=1e-5)
    np.testing.assert_allclose(result.after, 1 / (1 + error(effective_params(result.state.network))), rtol=1e-5)
    assert int(result.state.step) == 200  # a fresh optimizer and a whole session, whatever came before


def test_drop_is_the_share_of_the_score_lost_at_once():
    state = init_state(init_network(given_params(), GROUPS), OPTIMIZER)
    assert Worth(before=0.8, at_once=0.6, after=0.7, state=state).drop == pytest.approx(0.25)
