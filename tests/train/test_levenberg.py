"""Levenberg-Marquardt: the solution at once where the problem is linear, and the contract of every training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_freezing import TARGET, split_bits, start
from toys import concat_toy, linear_draw, same_bits

from maskprune import (
    Groups,
    choose,
    disable,
    freeze,
    init_network,
    init_state,
    make_population,
    make_session,
    stack,
    trainable,
    unstack,
)
from maskprune.train.optim import land_on_average, levenberg, make_levenberg_step


KERNEL = jnp.asarray([[1.0, 2.0], [0.5, -1.0], [-2.0, 0.25]])
PARAMS = {"kernel": jnp.full((3, 2), 0.3), "bias": jnp.full(2, -0.2)}


def linear(params, batch):
    inputs, targets = batch
    return (inputs @ params["kernel"] + params["bias"][None] - targets).reshape(-1)


def bent(params, x):
    return (concat_toy().apply(params, x) - TARGET).reshape(-1)


def least_squares(rng, optimizer):
    """More equations than unknowns, with noise; the state to start from, the batch, and the solution."""
    inputs = rng.normal(size=(40, 3)) * [1.0, 10.0, 100.0]  # badly scaled
    targets = inputs @ np.asarray(KERNEL) + 0.5 + 0.1 * rng.normal(size=(40, 2))
    solution = np.linalg.lstsq(np.column_stack([inputs, np.ones(40)]), targets, rcond=None)[0]
    batch = jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32)
    return init_state(init_network(PARAMS, Groups(())), optimizer), batch, solution


def test_a_linear_problem_is_solved_in_two_steps(rng):
    optimizer = levenberg(1e-4)
    state, batch, solution = least_squares(rng, optimizer)
    step = jax.jit(make_levenberg_step(linear, optimizer))
    for _ in range(2):
        state, info = step(state, batch)
    assert bool(info.finite)
    np.testing.assert_allclose(state.network.params["kernel"], solution[:3], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(state.network.params["bias"], solution[3], rtol=2e-3)


def test_half_the_rate_goes_half_the_way(rng):
    state, batch, _ = least_squares(rng, levenberg())
    step = jax.jit(make_levenberg_step(linear, levenberg()))
    moved = [step(state, batch, rate=rate)[0].network.params["kernel"] - PARAMS["kernel"] for rate in (1.0, 0.5)]
    np.testing.assert_allclose(moved[1], moved[0] / 2, rtol=1e-4)


def test_kept_promises_ease_the_damping_and_broken_ones_raise_it():
    """From x = 2 the model of atan(x) promises a step to the far side, where the residual is larger."""
    optimizer = levenberg(1e-4)
    curve = lambda params, batch: jnp.arctan(params["x"])
    state = init_state(init_network({"x": jnp.full(1, 2.0)}, Groups(())), optimizer)
    step = jax.jit(make_levenberg_step(curve, optimizer))
    damping = lambda state: float(optax.tree.get(state.opt_state, "damping"))
    refused, _ = step(state, None)
    assert same_bits(refused.network.params, state.network.params)
    assert damping(refused) == pytest.approx(2e-4)
    assert damping(step(refused, None)[0]) == pytest.approx(8e-4)  # the next refusal costs twice as much
    for _ in range(12):
        state, info = step(state, None)
    assert float(info.loss) < 1e-6
    easy = init_state(init_network({"x": jnp.full(1, 0.1)}, Groups(())), optimizer)
    assert damping(step(easy, None)[0]) == pytest.approx(1e-4 / 3)


def test_held_entries_keep_their_bits_and_may_store_nan():
    optimizer = levenberg()
    state, x = start(optimizer)
    network = disable(state.network, choose(state.network, {"left": [0]}))
    network = freeze(network, choose(network, {"left": [1], "right": [0]}))
    kernel = network.params["left"]["kernel"].at[:, 0].set(jnp.nan)
    left = {**network.params["left"], "kernel": kernel}
    network = dataclasses.replace(network, params={**network.params, "left": left})
    state, moves = init_state(network, optimizer), trainable(network)
    held, free = split_bits(state, moves)
    step, losses = jax.jit(make_levenberg_step(bent, optimizer)), []
    for _ in range(8):
        state, info = step(state, x)
        assert bool(info.finite)
        losses.append(float(info.loss))
    assert np.array_equal(split_bits(state, moves)[0], held)
    assert np.all(split_bits(state, moves)[1] != free)
    assert losses[-1] < 0.5 * losses[0] and losses == sorted(losses, reverse=True)


def test_fixed_leaves_and_integers_stay():
    optimizer = levenberg()
    toy = concat_toy()
    network = init_network({**toy.params, "table": np.arange(3)}, toy.groups, fixed=["head/*"])
    after, step = init_state(network, optimizer), jax.jit(make_levenberg_step(bent, optimizer))
    for _ in range(4):  # the first is refused
        after, info = step(after, toy.inputs)
    assert bool(info.finite)
    assert same_bits(after.network.params["head"], network.params["head"])
    assert np.array_equal(after.network.params["table"], [0, 1, 2])
    assert not same_bits(after.network.params["left"], network.params["left"])


def test_a_batch_that_is_no_number_ends_the_session():
    state, x = start(levenberg())
    after, info = jax.jit(make_levenberg_step(bent, levenberg()))(state, x.at[0, 0].set(jnp.nan))
    assert not bool(info.finite)
    assert same_bits(after.network.params, state.network.params)


@pytest.mark.rotating
def test_sessions_and_populations_run_it(key):
    """Chunks make no difference, members are what they would be alone, and the landing works here too."""
    optimizer = optax.chain(levenberg(1.0), land_on_average(0.5))
    step = make_levenberg_step(linear, optimizer)
    state = init_state(init_network(PARAMS, Groups(())), optimizer)
    one, other = (make_session(step, linear_draw, chunk=chunk) for chunk in (2, 5))
    keys = jax.random.split(key, 3)
    alone = [one.run(own, state, KERNEL, 5)[0] for own in keys]
    assert same_bits(alone[0].network.params, other.run(keys[0], state, KERNEL, 5)[0].network.params)
    found, _ = make_population(step, linear_draw, chunk=2).run(keys, stack([state] * 3), KERNEL, 5)
    for single, together in zip(alone, unstack(found), strict=True):
        for leaf, same in zip(*map(jax.tree.leaves, (single.network.params, together.network.params)), strict=True):
            np.testing.assert_allclose(leaf, same, rtol=1e-3, atol=1e-4)


def test_an_optimizer_without_its_memory_is_refused():
    state, x = start(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"init_state\(network, levenberg\(\)\)"):
        make_levenberg_step(bent, optax.sgd(0.1))(state, x)


def test_it_is_no_optimizer_of_gradients():
    transform = levenberg()
    with pytest.raises(ValueError, match="make_levenberg_step"):
        transform.update(jnp.ones(2), transform.init(jnp.ones(2)))
