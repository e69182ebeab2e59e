"""Landing on the average: exactly that of the trajectory, only at the end, whatever the rate, and nowhere held."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_freezing import loss, split_bits, start
from toys import linear_draw, linear_loss, same_bits

from maskprune import (
    Groups,
    choose,
    disable,
    freeze,
    init_network,
    init_state,
    make_population,
    make_session,
    make_train_step,
    stack,
    trainable,
    unstack,
)
from maskprune.train.optim import land_on_average
from maskprune.train.optim.averaging import is_last_step


KERNEL = jnp.asarray([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.25]])
PARAMS = {"kernel": jnp.full((3, 2), 0.3), "bias": jnp.full(2, -0.2)}


def walk(transform, steps, *, rate=1.0):
    """Where each of the updates 1, 2, 3, ... leads, as `make_train_step` applies them, from 0."""
    params, seen, step = jnp.zeros(()), [], jax.jit(transform.update)
    state = transform.init(params)
    for done in range(steps):
        update, state = step(jnp.float32(done + 1), state, params, progress=done / steps, rate=rate)
        params = params + rate * update
        seen.append(float(params))
    return seen


@pytest.mark.parametrize("rate", [1.0, 0.25, -2.0])
def test_the_last_step_lands_on_the_average_of_a_trajectory(rate):
    plain = rate * np.cumsum(np.arange(1, 11))
    seen = walk(land_on_average(0.6), 10, rate=rate)
    np.testing.assert_allclose(seen[:-1], plain[:-1], rtol=1e-6)
    assert seen[-1] == pytest.approx(np.mean(plain[6:]), rel=1e-6)


def test_a_rate_of_zero_stands_still():
    assert walk(land_on_average(0.5), 4, rate=0.0) == [0, 0, 0, 0]


def test_a_session_of_one_step_is_the_step():
    assert walk(land_on_average(0.5), 1) == [1]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 800, 10_000, 999_983])
def test_the_last_step_is_known_from_the_share_done(steps):
    done = np.unique(np.clip([0, 1, steps // 3, steps - 3, steps - 2, steps - 1], 0, steps - 1)).astype(np.int32)
    progress = jnp.asarray(done, jnp.float32) / jnp.float32(steps)
    found = np.asarray(is_last_step(jnp.asarray(done), progress))
    wanted = (done == steps - 1) & (done > 0)  # of one step there is nothing to average
    assert np.array_equal(found, wanted)


def test_without_progress_it_never_lands():
    transform = land_on_average()
    state = transform.init(jnp.zeros(()))
    for _ in range(3):
        update, state = transform.update(jnp.float32(2), state, jnp.zeros(()))
        assert update == 2


def sessions(optimizer, chunk):
    step = make_train_step(linear_loss, optimizer)
    return make_session(step, linear_draw, chunk=chunk), init_state(init_network(PARAMS, Groups(())), optimizer)


def test_a_session_lands_whatever_its_chunks_and_pauses(key):
    optimizer = optax.chain(optax.sgd(0.3), land_on_average(0.5))
    (session, state), (other, _) = sessions(optimizer, 4), sessions(optimizer, 7)
    after, _ = session.run(key, state, KERNEL, 10)
    part, _ = other.run(key, state, KERNEL, 10, until=6)
    again, _ = other.run(key, part, KERNEL, 10)
    assert same_bits(after.network.params, again.network.params)

    plain, start = sessions(optax.sgd(0.3), 1)
    seen = [plain.run(key, start, KERNEL, 10, until=until)[0].network.params["kernel"] for until in range(6, 11)]
    np.testing.assert_allclose(after.network.params["kernel"], np.mean(seen, axis=0), rtol=1e-5)
    assert np.max(np.abs(after.network.params["kernel"] - seen[-1])) > 1e-3


def test_members_of_a_population_land_as_alone(key):
    optimizer = optax.chain(optax.adam(0.1), land_on_average(0.5))
    session, state = sessions(optimizer, 10)
    keys, rates = jax.random.split(key, 3), [1.0, 0.5, 2.0]
    population = make_population(make_train_step(linear_loss, optimizer), linear_draw, chunk=4)
    found, _ = population.run(keys, stack([state] * 3), KERNEL, 10, rates=np.asarray(rates))
    for own, rate, together in zip(keys, rates, unstack(found), strict=True):
        alone, _ = session.run(own, state, KERNEL, 10, rate=rate)
        for one, other in zip(*map(jax.tree.leaves, (alone.network.params, together.network.params)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_held_entries_keep_their_bits_and_may_store_nan():
    """A NaN in the average of a disabled mask must not land anywhere."""
    optimizer = optax.chain(optax.adamw(1e-2, weight_decay=0.1), land_on_average(0.0))
    state, x = start(optimizer)
    network = disable(state.network, choose(state.network, {"left": [0]}))
    network = freeze(network, choose(network, {"left": [1], "right": [0]}))
    kernel = network.params["left"]["kernel"].at[:, 0].set(jnp.nan)
    network = dataclasses.replace(
        network, params={**network.params, "left": {**network.params["left"], "kernel": kernel}}
    )
    state, moves = init_state(network, optimizer), trainable(network)
    held, free = split_bits(state, moves)
    step = jax.jit(make_train_step(loss, optimizer))
    for done in range(5):
        state, info = step(state, x, progress=done / 5)
        assert bool(info.finite)
    assert np.array_equal(split_bits(state, moves)[0], held)
    assert np.all(split_bits(state, moves)[1] != free)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match=f"`start` is {share}"):
        land_on_average(share)


def test_missing_parameters_are_named():
    transform = land_on_average()
    with pytest.raises(ValueError, match=r"update\(updates, state, params\)"):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))
