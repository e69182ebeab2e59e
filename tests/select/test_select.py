"""Every selector keeps the contract on every awkward network, and the checker sees each way of breaking it.

Add a selector to the list below to have it checked.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import select
from maskprune.conv import conv2d
from maskprune.lab.testing import awkward_forms, check_selector, poison, sample_network
from maskprune.masks.alterations import disable
from maskprune.masks.network import choose, effective_params, init_network
from maskprune.select.cosine import AGGREGATES
from maskprune.tasks.models import fcn
from maskprune.train.session import make_session, train_alone
from maskprune.train.step import make_train_step


MODEL = fcn(convolution=partial(conv2d, way="xla"))


def activations(params, batch):
    flowing = jax.nn.relu(batch["rows"] @ params["in"]["kernel"] + params["in"]["bias"][None])
    wide = jnp.stack([flowing[:, 0] + flowing[:, 1], flowing[:, 2], flowing[:, 3] + flowing[:, 4]], axis=1)
    lone = (flowing @ params["out"]["kernel"])[:, 1:2]
    return {**MODEL.activations(params, batch["pictures"]), "wide": wide, "lone": lone}


def loss(params, batch):
    found = activations(params, batch)
    return jnp.mean(jnp.square(found["conv3"] - 1.0)) + jnp.mean(jnp.square(found["lone"] - 1.0))


def everywhere(params, batch):
    """The same with as many positions in every group as there are pixels."""
    found, pixels = activations(params, batch), batch["pictures"].size
    rows = {name: jnp.tile(found[name], (pixels // len(batch["rows"]), 1)) for name in ("wide", "lone")}
    return {**found, **rows}


OPTIMIZER = optax.adam(0.01)
SESSION = make_session(make_train_step(loss, OPTIMIZER), lambda key, batch: batch, chunk=2)


def short_probe(batch):
    """Races every mask over four steps on the batch."""
    train = partial(train_alone(SESSION, batch), steps=4)
    after = jax.jit(lambda network: loss(effective_params(network), batch))
    return select.probe(train, lambda state: {"score": -float(after(state.network))}, OPTIMIZER)


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
    "equal_shares": select.equal_shares(select.magnitude()),
    "standardize_reverse_random": select.standardize(select.reverse(select.random())),
    "twin": select.twin(),
    "ensemble": select.ensemble([select.magnitude(), select.random()], [2, 1]),
    "own": by_largest_bias,
    **{
        f"cosine_{aggregate}_{absolute:d}{similar:d}": select.cosine(
            aggregate, absolute=absolute, similar_first=similar
        )
        for aggregate in AGGREGATES
        for absolute in (False, True)
        for similar in (True, False)[: 1 + (aggregate == "max")]  # the other sign is the other order
    },
}


WITH_DATA = {
    "activation_mean": select.activation(activations, "mean"),
    "activation_std": select.activation(activations, "std"),
    "activation_zeros": select.activation(activations, "zeros"),
    "taylor": select.taylor(loss),
    "taylor_second": select.taylor(loss, 2, absolute=False),
    "standardize_taylor": select.standardize(select.taylor(loss)),
    "fisher": select.fisher(loss),
    "ablation": select.ablation(loss),
    "information": select.information(everywhere, lambda batch: batch["pictures"]),
}


@pytest.mark.rotating
@pytest.mark.parametrize("name", PLAIN)
def test_contract(name):
    check_selector(PLAIN[name])


@pytest.fixture
def batch(rng):
    made = {"pictures": rng.uniform(size=(2, 8, 8, 1)), "rows": rng.normal(size=(2, 4))}
    return jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), made)


@pytest.mark.rotating
@pytest.mark.parametrize("name", WITH_DATA)
def test_contract_with_data(name, batch):
    check_selector(WITH_DATA[name], batch=batch)


def test_contract_of_a_selector_that_trains(batch):
    check_selector(short_probe(batch), batch=batch, compiled=False)


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


def hasty(key, network, batch):
    """Keeps every promise but to be compiled."""
    return {name: np.asarray(values) for name, values in select.magnitude()(key, network, batch).items()}


def meddling(key, network, batch):
    network.params["extra"] = jnp.zeros(1)
    return scores_of(network, 0.0)


CALLS: list[int] = []


def moody(key, network, batch):
    CALLS.append(1)
    return scores_of(network, float(len(CALLS)))


def test_only_a_selector_on_the_host_may_read_the_device():
    check_selector(hasty, compiled=False)
    with pytest.raises(AssertionError, match=r"does not run under jax\.jit"):
        check_selector(hasty)
    with pytest.raises(AssertionError, match="what disabled masks have stored"):
        check_selector(raw, compiled=False)


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


def test_equal_shares_take_every_group_in_turn():
    model = fcn((2, 4))
    network = init_network(model.init(jax.random.key(0)), model.groups)
    scores = lambda key, network, batch: {"conv1": jnp.array([5.0, 0.0]), "conv2": jnp.array([3.0, 1.0, 9.0, 2.0])}
    order = select.rank(select.equal_shares(scores)(jax.random.key(0), network, None), network)
    assert order[0] == ("conv2", 1) and {order[1], order[2]} == {("conv2", 3), ("conv1", 1)}
    assert order[3] == ("conv2", 0) and {order[4], order[5]} == {("conv2", 2), ("conv1", 0)}
    gone = disable(network, choose(network, {"conv2": [1]}))
    lost = lambda key, network, batch: {**scores(key, network, batch), "conv2": jnp.array([3.0, 99.0, 9.0, 2.0])}
    again = select.equal_shares(lost)(jax.random.key(0), gone, None)
    np.testing.assert_allclose(again["conv2"], [0.75, 0.25, 1, 0.5])  # who is gone counts as the first


def test_another_key_is_another_draw():
    network = sample_network()
    draws = [select.random()(jax.random.key(seed), network, None) for seed in range(3)]
    assert len({tuple(np.concatenate([draw["conv1"], draw["conv2"]]).tolist()) for draw in draws}) == 3
    assert not np.array_equal(draws[0]["conv1"], draws[0]["conv2"])
