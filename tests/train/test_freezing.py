"""Freezing under any optimizer: held entries keep their bits, the others move, and nothing is compiled again.

Every optimizer of a list passes the same contract; to check another one, add a line. Training starts with everything
free, so that momenta and second moments of the entries held later are far from zero.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import concat_toy

from maskprune import (
    Groups,
    choose,
    disable,
    enable,
    freeze,
    init_network,
    init_state,
    make_train_step,
    thaw,
    trainable,
)
from maskprune.removal.compaction import compact_params
from maskprune.train.freezing import hold_untrainable
from maskprune.train.optim import accumulate, cosine, land_on_average, restarts, scale_by_progress, soap


OPTIMIZERS = {
    "sgd": optax.sgd(1e-2),
    "momentum": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "rmsprop": optax.rmsprop(1e-2, momentum=0.5),
    "lion": optax.lion(1e-3, weight_decay=0.1),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "decayed adam": optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1), optax.scale(-1e-2)),
    "soap": soap(1e-2),
    "averaged soap": optax.chain(soap(1e-2), land_on_average(0.0)),
    "soap on two batches": accumulate(soap(1e-2), lambda progress: jnp.int32(2)),
}
TARGET = jnp.asarray(np.random.default_rng(9).normal(size=(7, 2)), jnp.float32)


def loss(params, x):
    return jnp.mean((concat_toy().apply(params, x) - TARGET) ** 2)


def start(optimizer, **options):
    toy = concat_toy()
    return init_state(init_network(toy.params, toy.groups, **options), optimizer), toy.inputs


def with_network(state, network):
    return dataclasses.replace(state, network=network)


def split_bits(state, moves):
    """The bits of the entries that are held, and of those that train, for flags from `trainable`."""
    held, free = [], []
    for leaf, flags in zip(jax.tree.leaves(state.network.params), jax.tree.leaves(moves), strict=True):
        leaf, flags = np.asarray(leaf), np.broadcast_to(flags, leaf.shape)
        held.append(leaf[~flags].view(np.uint32))
        free.append(leaf[flags].view(np.uint32))
    return np.concatenate(held), np.concatenate(free)


@pytest.mark.rotating
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_contract(optimizer):
    traces = []

    def counted(params, x):
        traces.append(None)
        return loss(params, x)

    step = jax.jit(make_train_step(counted, optimizer))
    state, x = start(optimizer)
    for _ in range(3):
        state, _ = step(state, x, progress=0.1)
    network = disable(state.network, choose(state.network, {"left": [0]}))
    network = freeze(network, choose(network, {"left": [1], "right": [0]}))
    state, moves = with_network(state, network), trainable(network)
    assert all(np.all(np.abs(leaf) > 0.01) for leaf in jax.tree.leaves(network.params))
    held, free = split_bits(state, moves)
    assert held.size == 5 + 5 + 5 + 2  # three masks with their biases, and the row that reads the disabled one
    for _ in range(10):
        state, info = step(state, x, progress=0.1)
        assert bool(info.finite)
        assert np.array_equal(split_bits(state, moves)[0], held)
    assert np.all(split_bits(state, moves)[1] != free)

    everything = choose(network, {"left": range(3), "right": range(2)})
    state = with_network(state, thaw(enable(state.network, everything), everything))
    for _ in range(3):
        state, _ = step(state, x, progress=0.1)
    assert np.all(split_bits(state, moves)[0] != held)
    assert len(traces) == 1


def test_negative_zero_keeps_its_sign():
    """Adding +0 to -0 gives +0: even an update of nothing can change a bit."""
    state, x = start(optax.adamw(1e-2))
    params = {
        **state.network.params,
        "left": jax.tree.map(lambda w: jnp.full(w.shape, -0.0), state.network.params["left"]),
    }
    network = freeze(dataclasses.replace(state.network, params=params), {"left": np.ones(3, bool)})
    after, _ = jax.jit(make_train_step(loss, optax.adamw(1e-2)))(with_network(state, network), x)
    assert all(np.all(np.signbit(leaf)) for leaf in jax.tree.leaves(after.network.params["left"]))


@pytest.mark.rotating
@pytest.mark.parametrize("inner", [optax.identity(), optax.scale_by_adam()])
def test_disabled_masks_train_as_the_reduced_problem(inner):
    """With a clipping norm far below the gradient's, the small network takes the same steps as the masked one."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e-2), inner, optax.scale(-0.1))
    state, x = start(optimizer)
    network = disable(state.network, choose(state.network, {"left": [0, 2], "right": [1]}))
    small = init_state(init_network(compact_params(network), Groups(())), optimizer)
    state, step = with_network(state, network), jax.jit(make_train_step(loss, optimizer))
    for _ in range(3):
        state, small = step(state, x)[0], step(small, x)[0]
    for one, other in zip(*map(jax.tree.leaves, (compact_params(state.network), small.network.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5)


def test_clipping_ignores_the_gradients_of_frozen_masks():
    limit = 1e-2
    optimizer = optax.chain(optax.clip_by_global_norm(limit), optax.scale(-1.0))
    state, x = start(optimizer)
    network = freeze(state.network, choose(state.network, {"left": [0, 1, 2], "right": [0, 1]}))
    grads = jax.jit(jax.grad(loss))(network.params, x)
    moving = jax.tree.map(lambda g, moves: np.where(moves, g, 0), grads, trainable(network))
    assert optax.tree.norm(moving) < 0.95 * optax.tree.norm(grads)
    after, _ = jax.jit(make_train_step(loss, optimizer))(with_network(state, network), x)
    moved = jax.tree.map(jnp.subtract, after.network.params, network.params)
    assert float(optax.tree.norm(moved)) == pytest.approx(limit, rel=1e-4)


def test_a_nan_gradient_of_a_held_entry_does_not_pass():
    def rough(params, x):  # the slope of sqrt(w * w) at 0 is not a number
        return loss(params, x) + jnp.sum(jnp.sqrt(params["left"]["bias"] ** 2))

    optimizer = OPTIMIZERS["clipped adam"]
    state, x = start(optimizer)
    left = {**state.network.params["left"], "bias": state.network.params["left"]["bias"].at[1].set(0.0)}
    network = dataclasses.replace(state.network, params={**state.network.params, "left": left})
    assert np.isnan(jax.jit(jax.grad(rough))(network.params, x)["left"]["bias"][1])
    step = jax.jit(make_train_step(rough, optimizer))
    assert not bool(step(with_network(state, network), x)[1].finite)
    held = with_network(state, freeze(network, choose(network, {"left": [1]})))
    after, info = step(held, x)
    assert bool(info.finite)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(after))
    assert np.all(split_bits(after, trainable(held.network))[1] != split_bits(held, trainable(held.network))[1])


@pytest.mark.parametrize("name", ["adamw", "soap"])
def test_fixed_leaves_cost_no_memory_and_stay(name):
    whole, _ = start(OPTIMIZERS[name])
    state, x = start(OPTIMIZERS[name], fixed=["left/*", "head/bias"])
    size = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    assert size(state.opt_state) <= size(whole.opt_state) - 2 * (12 + 3 + 2)
    after, _ = jax.jit(make_train_step(loss, OPTIMIZERS[name]))(state, x, progress=0.1)
    held, free = split_bits(state, trainable(state.network))
    assert held.size == 12 + 3 + 2
    assert np.array_equal(split_bits(after, trainable(state.network))[0], held)
    assert np.all(split_bits(after, trainable(state.network))[1] != free)


def test_integer_leaves_ride_along():
    toy = concat_toy()
    network = init_network({**toy.params, "table": np.arange(3)}, toy.groups)
    optimizer = optax.adamw(1e-2)
    after, info = jax.jit(make_train_step(loss, optimizer))(init_state(network, optimizer), toy.inputs)
    assert after.network.params["table"].dtype == jnp.int32
    assert np.array_equal(after.network.params["table"], [0, 1, 2])
    assert bool(info.finite)
    assert not np.array_equal(after.network.params["head"]["bias"], network.params["head"]["bias"])


def test_missing_flags_are_named():
    transform = hold_untrainable()
    with pytest.raises(ValueError, match=r"update\(\.\.\., trainable=flags\)"):
        transform.update({"w": jnp.ones(2)}, transform.init({"w": jnp.ones(2)}))


def test_selects_entry_by_entry():
    transform = hold_untrainable()
    updates = {"w": jnp.array([[1.0, jnp.nan], [3.0, jnp.inf]])}
    found, _ = transform.update(updates, optax.EmptyState(), trainable={"w": jnp.array([[True, False]])})
    assert np.array_equal(jax.tree.leaves(found)[0], [[1, 0], [3, 0]])


def test_learning_rate_follows_the_share_of_the_session():
    transform = scale_by_progress(lambda progress: 1.0 - progress)
    for progress, factor in [(0.0, 1.0), (0.25, 0.75), (0.5, 0.5)]:
        found, _ = transform.update({"w": jnp.full(2, 4.0)}, optax.EmptyState(), progress=progress)
        assert np.array_equal(jax.tree.leaves(found)[0], np.full(2, 4 * factor))


def test_restarts_are_cosines_one_after_another():
    schedule = restarts(3, growth=2.0, decay=0.5, warmup=0.0)
    progress = jnp.asarray([0.0, 0.5 / 7, 1 / 7 - 1e-4, 1 / 7 + 1e-6, 2 / 7, 3 / 7 - 1e-4, 3 / 7 + 1e-6, 5 / 7, 0.9999])
    wanted = [1, 0.5, 0, 0.5, 0.25, 0, 0.25, 0.125, 0]
    np.testing.assert_allclose(jax.vmap(schedule)(progress), wanted, atol=1e-4)


def test_one_cycle_is_the_cosine_and_only_the_first_one_warms_up():
    progress = jnp.linspace(0.0, 0.999, 50)
    np.testing.assert_allclose(jax.vmap(restarts(1))(progress), jax.vmap(cosine)(progress), atol=1e-6)
    assert float(restarts(2, growth=1.0)(jnp.float32(0.5))) == pytest.approx(1.0)


@pytest.mark.parametrize(("cycles", "growth", "words"), [(0, 2.0, "`cycles` is 0"), (2, 0.0, "`growth` is 0.0")])
def test_restarts_refuse_what_makes_no_cycle(cycles, growth, words):
    with pytest.raises(ValueError, match=words):
        restarts(cycles, growth=growth)
