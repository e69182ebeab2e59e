"""Every selector keeps the contract on every awkward network, and the checker sees each way of breaking it.

Add a selector to the list below to have it checked.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import select
from maskprune.conv import conv2d
from maskprune.models import fcn
from maskprune.network import effective_params, init_network
from maskprune.select.cosine import AGGREGATES
from maskprune.testing import awkward_forms, check_selector, poison, sample_network


MODEL = fcn(convolution=partial(conv2d, way="xla"))


def activations(params, batch):
    flowing = jax.nn.relu(batch["rows"] @ params["in"]["kernel"] + params["in"]["bias"][None])
    wide = jnp.stack([flowing[:, 0] + flowing[:, 1], flowing[:, 2], flowing[:, 3] + flowing[:, 4]], axis=1)
    lone = (flowing @ params["out"]["kernel"])[:, 1:2]
    return {**MODEL.activations(params, batch["pictures"]), "wide": wide, "lone": lone}


def loss(params, batch):
    found = activations(params, batch)
    return jnp.mean(jnp.square(found["conv3"] - 1.0)) + jnp.mean(jnp.square(found["lone"] - 1.0))


def by_largest_bias(key, network, batch):
    """A user's own selector, in a few lines."""
    del key, batch
    params = effective_params(network)
    return {group.name: -jnp.max(jnp.abs(select.mask_vectors(group, params)), axis=1) for group in network.groups}


PLAIN = {
    "sequential": select.sequential(),
    "random": select.random(),
    "magnitude1": select.magnitude(1),
    "magnitude2": select.magnitude(2),
    "geometric_median": select.geometric_median(),
    "reverse": select.reverse(select.magnitude()),
    "standardize": select.standardize(select.cosine("mean")),
    "standardize_reverse_random": select.standardize(select.reverse(select.random())),
    "own": by_largest_bias,
    **{
        f"cosine_{aggregate}_{absolute:d}{similar:d}": select.cosine(
            aggregate, absolute=absolute, similar_first=similar
        )
        for aggregate in AGGREGATES
        for absolute in (False, True)
        for similar in (True, False)
    },
}


WITH_DATA = {
    "activation_mean": select.activation(activations, "mean"),
    "activation_std": select.activation(activations, "std"),
    "activation_zeros": select.activation(activations, "zeros"),
    "taylor": select.taylor(loss),
    "standardize_taylor": select.standardize(select.taylor(loss)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_contract(name):
    check_selector(PLAIN[name])


@pytest.mark.parametrize("name", WITH_DATA)
def test_contract_with_data(name, rng):
    batch = {"pictures": rng.uniform(size=(2, 8, 8, 1)), "rows": rng.normal(size=(5, 4))}
    check_selector(WITH_DATA[name], batch=jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), batch))


def test_contract_on_a_network_of_ones_own():
    model = fcn((1, 3), kernel=3)
    check_selector(select.cosine(), network=init_network(model.init(jax.random.key(1)), model.groups))


def scores_of(network, value):
    return {group.name: jnp.full(group.size, value) for group in network.groups}


def misnamed(key, net, batch):
    return scores_of(net, 0.0)


def forgetful(key, network, batch):
    return {name: values for name, values in scores_of(network, 0.0).items() if name != network.groups.names[-1]}


def misshapen(key, network, batch):
    return {name: values[:1] if values.size > 1 else values[0] for name, values in scores_of(network, 0.0).items()}


def whole(key, network, batch):
    return {name: values.astype(int) for name, values in scores_of(network, 0.0).items()}


def unfinished(key, network, batch):
    return scores_of(network, jnp.nan)


def raw(key, network, batch):
    return {group.name: select.mask_sums(group, network.params) for group in network.groups} | (
        {network.groups.names[0]: jnp.full(network.groups.groups[0].size, raw_total(network))}
    )


def raw_total(network):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(network.params))


def host_bound(key, network, batch):
    return scores_of(network, float(raw_total(network)))


def meddling(key, network, batch):
    network.params["extra"] = jnp.zeros(1)
    return scores_of(network, 0.0)


CALLS: list[int] = []


def moody(key, network, batch):
    CALLS.append(1)
    return scores_of(network, float(len(CALLS)))


@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        (misnamed, "name them key, network, batch"),
        (forgetful, "the groups are"),
        (misshapen, "not float"),
        (whole, "not float"),
        (unfinished, "not finite at the enabled masks"),
        (raw, "what disabled masks have stored"),
        (host_bound, "does not run under jax.jit"),
        (meddling, "changed the network"),
        (moody, "other scores for the same key"),
    ],
)
def test_a_broken_promise_is_named(selector, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_selector(selector)


def test_the_awkward_forms_are_awkward():
    forms = awkward_forms(sample_network())
    halved = forms["every second mask disabled"]
    assert any(np.isnan(leaf).any() for leaf in jax.tree.leaves(poison(halved).params))
    computed = (jax.tree.leaves(effective_params(network)) for network in (poison(halved), halved))
    assert all(np.array_equal(one, two) for one, two in zip(*computed, strict=True))
    assert all(flags.all() for flags in forms["all masks frozen"].frozen.values())
    assert [int(flags.sum()) for flags in forms["one mask left in each group"].enabled.values()] == [1, 1, 1, 1]


def test_another_key_is_another_draw():
    network = sample_network()
    draws = [select.random()(jax.random.key(seed), network, None) for seed in range(3)]
    assert len({tuple(np.concatenate([draw["conv1"], draw["conv2"]]).tolist()) for draw in draws}) == 3
    assert not np.array_equal(draws[0]["conv1"], draws[0]["conv2"])
