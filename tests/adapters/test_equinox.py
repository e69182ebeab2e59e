"""Equinox modules as functions and back: what the adapter hands out computes what the module computes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import equinox_nets
from zoo.entry import pictures, randomize

import maskprune as mp
from maskprune.equinox import from_module, to_module, training
from maskprune.removal.rebuilt import RebuildError


KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 4)
WORDS = jnp.asarray(np.random.default_rng(4).integers(0, 20, (2, 7)), jnp.int32)


class Words(eqx.Module):
    """Embedding, attention of three heads, a GRU over time, an MLP."""

    embedding: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    cell: eqx.nn.GRUCell
    head: eqx.nn.MLP

    def __init__(self):
        self.embedding = eqx.nn.Embedding(20, 5, key=KEYS[0])
        self.attention = eqx.nn.MultiheadAttention(3, 5, qk_size=4, vo_size=2, use_value_bias=True, key=KEYS[1])
        self.cell, self.head = eqx.nn.GRUCell(5, 6, key=KEYS[2]), eqx.nn.MLP(6, 2, 4, 1, key=KEYS[3])

    def __call__(self, x):
        x = jax.vmap(self.embedding)(x)
        x = self.attention(x, x, x)
        return self.head(jax.lax.scan(lambda h, x: (self.cell(x, h), None), jnp.zeros(6), x)[0])


def pictures_net(mode):
    """Grouped and transposed convolutions with batch norms and dropout, in a sequence that hands the state on."""
    layers = [
        eqx.nn.Conv2d(3, 8, 3, padding=1, key=KEYS[0]),
        eqx.nn.BatchNorm(8, "examples", mode=mode, momentum=0.8),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(8, 8, 3, padding=1, groups=8, key=KEYS[1]),
        eqx.nn.BatchNorm(8, "examples", channelwise_affine=False, mode=mode),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Dropout(0.5),
        eqx.nn.ConvTranspose2d(8, 4, 2, stride=2, key=KEYS[2]),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(4, 2, 1, key=KEYS[3]),
    ]
    return eqx.nn.Sequential(layers)


def stateful(mode):
    return eqx.nn.make_with_state(lambda: pictures_net(mode))()


REBUILT = {
    "words": (lambda: (Words(), None), WORDS),
    "batch": (lambda: stateful("batch"), pictures(2, 2, 3, 6, 6)),
    "ema": (lambda: stateful("ema"), pictures(2, 2, 3, 6, 6)),
    "autoencoder": (lambda: (equinox_nets.Autoencoder(KEY), None), pictures(5, 2, 2, 12, 12)),
    "vit": (lambda: (equinox_nets.ViT(KEY), None), pictures(3, 2, 3, 12, 12)),
}
SLOW = ("words", "ema", "autoencoder", "vit")


def randomized(module, state):
    """The module with random arrays, and positive random statistics where there is a state."""
    draw = np.random.default_rng(3)
    new = lambda leaf: jnp.asarray(draw.uniform(0.3, 1.5, leaf.shape), leaf.dtype) if leaf.ndim else leaf
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)
    return eqx.combine(randomize(3, arrays), rest), None if state is None else jax.tree.map(new, state)


def called(module, state, x):
    """What the module itself gives for a batch, in inference mode."""
    module = eqx.nn.inference_mode(module)
    if state is None:
        return jax.vmap(module)(x)
    return jax.vmap(lambda x: module(x, state)[0], axis_name="examples")(x)


def first_mask(group):
    """The first mask, but not where the module's own code holds the width: within heads, of a carried state."""
    return [] if any(word in group.name for word in ("#2", "value_proj", "cell")) or group.size == 1 else [0]


@pytest.mark.rotating
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in REBUILT]
)
def test_a_module_comes_back_small(name):
    make, x = REBUILT[name]
    module, state = randomized(*make())
    before = mp.count_params(eqx.filter(module, eqx.is_inexact_array))
    apply, params, model_state = from_module(module, state)
    states = () if model_state is None else (model_state,)
    expected = eqx.filter_jit(called)(module, state, x)
    np.testing.assert_allclose(jax.jit(apply)(params, *states, x), expected, rtol=1e-5, atol=1e-5)
    groups = mp.trace(apply, params, x, model_state=model_state)
    network = mp.init_network(params, groups)
    network = mp.disable(network, mp.choose(network, {group.name: first_mask(group) for group in groups}))
    small_apply, small_params = mp.compact(apply, network, x, model_state=model_state)
    cut = None if model_state is None else mp.make_plan(groups, network.enabled).cut(model_state, state=True)
    small = to_module(module, small_apply, small_params, x, model_state=cut, state=state)
    small, small_state = small if state is not None else (small, None)
    assert type(small) is type(module) and mp.count_params(eqx.filter(small, eqx.is_inexact_array)) < before
    masked = jax.jit(apply)(mp.effective_params(network), *states, x)
    np.testing.assert_allclose(eqx.filter_jit(called)(small, small_state, x), masked, rtol=1e-4, atol=1e-4)
    for layer in jax.tree.leaves(small, is_leaf=lambda node: isinstance(node, (eqx.nn.Linear, eqx.nn.Conv))):
        if isinstance(layer, eqx.nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        if isinstance(layer, eqx.nn.Conv):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
        if isinstance(layer, eqx.nn.BatchNorm):
            assert layer.input_size == small_state.get(layer.batch_state_index)[0].shape[0]


def test_a_width_in_the_code_is_refused():
    module, x = equinox_nets.Recurrent(KEY), pictures(4, 2, 6, 5)
    apply, params, _ = from_module(module)
    network = mp.init_network(params, mp.trace(apply, params, x))
    network = mp.disable(network, mp.choose(network, {"cell": [2]}))
    small_apply, small_params = mp.compact(apply, network, x)
    with pytest.raises(RebuildError, match=r"The Recurrent cannot run on .*\(equinox_nets.py:\d+\)"):
        to_module(module, small_apply, small_params, x)


class Dropped(eqx.Module):
    """Dropout that is told apart by its key, and a norm."""

    drop: eqx.nn.Dropout
    norm: eqx.nn.BatchNorm

    def __init__(self):
        self.drop, self.norm = eqx.nn.Dropout(0.5), eqx.nn.BatchNorm(3, ("batch",), mode="batch", momentum=0.5)

    def __call__(self, x, state, *, key=None):
        return self.norm(self.drop(x, key=key), state)


def test_training_changes_statistics_and_draws_by_the_key():
    module, x = Dropped(), pictures(1, 8, 3)
    _, params, state = from_module(module)  # its own initial state
    assert set(params) == {"norm"} and set(params["norm"]) == {"weight", "bias"}
    train = jax.jit(training(module))
    first, new = train(params, state, x, key=KEYS[0])
    second, _ = train(params, new, x, key=KEYS[1])
    assert np.abs(first - second).max() > 0.1
    evaluated = eqx.nn.inference_mode(module.drop)
    _, new = training(eqx.tree_at(lambda module: module.drop, module, evaluated))(params, state, x)  # its flag stays
    np.testing.assert_allclose(new["norm"]["batch_state_index"][0], 0.5 * x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(new["norm"]["batch_counter"], [1, 1, 1])
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_a_missing_state_is_asked_for():
    module, _ = eqx.nn.make_with_state(Dropped)()
    with pytest.raises(ValueError, match="The Dropped has a state: give the one that"):
        from_module(module)


def test_a_module_that_knows_its_batch_is_called_as_it_is():
    module = eqx.nn.Lambda(lambda x: x.sum())
    apply, _, state = from_module(module, batched=False)
    assert state is None and apply({}, jnp.ones((2, 3))) == 6
