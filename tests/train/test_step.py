"""One step and a session of many: the same bits for the same key, one compilation, and nothing lost to a NaN."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import linear_draw as draw
from toys import linear_loss as loss

from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.train import session as session_module
from maskprune.train.optim.schedules import cosine, scale_by_progress
from maskprune.train.session import make_session
from maskprune.train.step import init_state, make_train_step


TRUTH = jnp.array([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0], [2.0, 0.0, 1.0, -1.0]])


def small_network(scale=0.1):
    """Four masks, each with three weights and a bias, and an integer leaf."""
    labels = (0, 1, 2, 3)
    params = {"bias": jnp.full(4, scale), "calls": jnp.array([7, 8]), "kernel": jnp.full((3, 4), scale)}
    own = (Slice("kernel", 1, labels, "out"), Slice("bias", 0, labels, "out"))
    return init_network(params, Groups((Group("g", 4, own),)))


def new_session(*, optimizer=None, chunk=10, of=loss, drawn=draw, stateful=False):
    return make_session(make_train_step(of, optimizer or optax.adam(0.05), stateful=stateful), drawn, chunk=chunk)


def start(optimizer=None, network=None):
    return init_state(network or small_network(), optimizer or optax.adam(0.05))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


PLAIN = new_session()  # one compilation for every test that needs no more


def test_the_same_key_gives_the_same_bits(key):
    found = [session.run(key, start(), TRUTH, 23) for session in (PLAIN, new_session())]
    assert bits(found[0][0]) == bits(found[1][0])
    assert np.array_equal(found[0][1].losses, found[1][1].losses)


@pytest.mark.rotating
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_chunk_changes_nothing(key, chunk):
    one, other = (session.run(key, start(), TRUTH, 23) for session in (PLAIN, new_session(chunk=chunk)))
    assert bits(one[0]) == bits(other[0])
    assert np.array_equal(one[1].losses, other[1].losses) and one[1].losses.shape == (23,)


def test_another_key_gives_another_result():
    found = [PLAIN.run(jax.random.key(seed), start(), TRUTH, 5)[0] for seed in (0, 1)]
    assert bits(found[0]) != bits(found[1])


def test_every_step_of_a_session_gets_its_own_batch(key):
    _, report = new_session(of=lambda params, batch: jnp.sum(params["bias"]) * 0 + batch[0][0, 0]).run(
        key, start(), TRUTH, 23
    )
    assert len(set(report.losses.tolist())) == 23


def test_one_compilation_serves_masks_lengths_and_keys(key):
    session = new_session()
    state, _ = session.run(key, start(), TRUTH, 23)
    for steps, alter in ((5, disable), (40, freeze), (0, disable), (10, disable)):
        network = alter(state.network, choose(state.network, {"g": [steps % 4]}))
        state, _ = session.run(jax.random.fold_in(key, steps), init_state(network, optax.adam(0.05)), TRUTH, steps)
    session.run(key, start(), TRUTH, 3, watch=lambda state, losses: "")
    assert session.compilations() == 1


def test_a_model_state_of_plain_numbers_compiles_once_too(key):
    optimizer = optax.adam(0.05)
    session = new_session(of=remembering, drawn=draw, stateful=True)
    state, _ = session.run(key, init_state(small_network(), optimizer, {"mean": 0.0, "seen": 0}), TRUTH, 12)
    session.run(key, init_state(state.network, optimizer, state.model_state), TRUTH, 12)
    assert session.compilations() == 1


def test_a_longer_session_goes_on_where_a_shorter_one_was_stopped(key):
    session = PLAIN
    whole, _ = session.run(key, start(), TRUTH, 40)
    half, report = session.run(key, start(), TRUTH, 40, watch=lambda state, losses: "half" * (len(losses) >= 20))
    assert (report.stopped, len(report.losses), int(half.step)) == ("half", 20, 20)
    assert bits(session.run(key, half, TRUTH, 40)[0]) == bits(whole)


def test_training_learns_and_leaves_earlier_states_alone(key):
    before = start()
    kept = bits(before)
    after, report = PLAIN.run(key, before, TRUTH, 600)
    PLAIN.run(key, after, TRUTH, 700)
    assert bits(before) == kept
    assert report.finite and report.stopped == "" and report.losses[-1] < 1e-3 * report.losses[0]
    np.testing.assert_allclose(after.network.params["kernel"], TRUTH, atol=0.05)
    np.testing.assert_allclose(after.network.params["bias"], 0.5, atol=0.05)
    assert after.network.params["calls"].tolist() == [7, 8] and int(after.step) == 600


BAD = 13  # the step at which the data turn bad


def breaking(params, batch, model_state, key):
    """Breaks at step BAD, which `model_state` counts: the loss (NaN or infinite), or only its gradient."""
    inputs, targets, how = batch
    bad = model_state == BAD
    value = loss(params, (inputs, targets)) + jax.random.uniform(key) + jnp.where(bad, HOW["loss"][how], 0.0)
    return value + jnp.sqrt(
        jnp.where(bad, HOW["under the root"][how], 1.0) * jnp.exp(params["bias"][0])
    ), model_state + 1


HOW = {"loss": jnp.array([math.nan, math.inf, 0.0]), "under the root": jnp.array([1.0, 1.0, 0.0])}


@functools.cache
def breaking_session(chunk):
    return new_session(of=breaking, drawn=lambda k, data: (*draw(k, data[0]), data[1]), stateful=True, chunk=chunk)


@pytest.mark.rotating
@pytest.mark.parametrize("chunk", [1, 10, 100])
@pytest.mark.parametrize("how", [0, 1, 2])
def test_the_state_before_a_failure_is_kept(key, how, chunk):
    session, data = breaking_session(chunk), (TRUTH, jnp.asarray(how))
    begin = init_state(small_network(), optax.adam(0.05), jnp.zeros((), jnp.int32))
    good, fine = session.run(key, begin, data, BAD)  # Adam ignores progress, so this is the same training
    assert fine.finite and fine.stopped == ""
    state, report = session.run(key, begin, data, 50, watch=lambda state, losses: "")
    assert bits(state) == bits(good) and int(state.model_state) == int(state.step) == BAD
    assert not report.finite and report.stopped == f"the loss or an update was not finite at step {BAD}"
    assert len(report.losses) == BAD + 1 and np.isfinite(report.losses[:BAD]).all()


def remembering(params, batch, model_state, key):
    mean = 0.9 * model_state["mean"] + 0.1 * jnp.mean(batch[0])
    return 0 * jnp.sum(params["bias"]) + jax.random.normal(key), {"mean": mean, "seen": model_state["seen"] + 1}


def test_a_loss_with_memory_and_noise(key):
    ones = lambda key, data: (jnp.ones((4, 3)), jnp.ones((4, 4)))
    session = new_session(of=remembering, drawn=ones, stateful=True)
    begin = init_state(small_network(), optax.adam(0.05), {"mean": jnp.zeros(()), "seen": jnp.zeros((), jnp.int32)})
    state, report = session.run(key, begin, TRUTH, 12)
    np.testing.assert_allclose(state.model_state["mean"], 1 - 0.9**12, rtol=1e-5)
    assert int(state.model_state["seen"]) == 12
    assert len(set(report.losses.tolist())) == 12  # every step has a key of its own


def test_a_watch_sees_every_loss_and_ends_the_session(key):
    seen = []

    def watch(state, losses):
        seen.append((int(state.step), len(losses)))
        return "enough" if len(losses) >= 20 else ""

    state, report = PLAIN.run(key, start(), TRUTH, 95, watch=watch)
    assert seen == [(10, 10), (20, 20)]
    assert report.stopped == "enough" and report.finite and report.losses.shape == (20,) and int(state.step) == 20


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: new_session(chunk=0), "`chunk` is 0"),
        (lambda: PLAIN.run(jax.random.key(0), start(), TRUTH, -1), "`steps` is -1"),
        (lambda: PLAIN.run(jax.random.key(0), beyond(8), TRUTH, 7), "`state.step` is 8.*init_state"),
    ],
)
def test_a_wrong_argument_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def beyond(step):
    return dataclasses.replace(start(), step=jnp.asarray(step, jnp.int32))


def falling(params, batch):
    return jnp.sum(params["bias"])


@pytest.mark.parametrize(
    ("schedule", "total"),
    [
        (lambda progress: 1 - progress, (20 + 1) / 2),
        (lambda progress: cosine(progress, warmup=0.0), 20 / 2 + 0.5),
        (lambda progress: cosine(progress, warmup=0.1), 20 / 2 + 0.5 - 1 - 0.25 * (1 + math.cos(math.pi / 20))),
        (lambda progress: jnp.where(progress < 0.5, 1.0, 0.0), 10),
    ],
)
def test_progress_reaches_the_schedule(key, schedule, total):
    optimizer = optax.chain(optax.sgd(1.0), scale_by_progress(schedule))
    state, _ = new_session(optimizer=optimizer, of=falling, chunk=7).run(key, start(optimizer), TRUTH, 20)
    np.testing.assert_allclose(state.network.params["bias"], 0.1 - total, rtol=1e-5)


def test_the_cosine_schedule_rises_and_ends_at_zero():
    values = np.array([cosine(jnp.float32(progress), warmup=0.5) for progress in (0.0, 0.25, 1.0)])
    np.testing.assert_allclose(values, [0.0, 0.25 * (1 + math.sqrt(0.5)), 0.0], atol=1e-6)
    assert cosine(jnp.float32(0.0), warmup=0.0) == 1.0


def test_a_fresh_start_has_no_memory(key):
    optimizer = optax.adam(0.05)
    trained, _ = PLAIN.run(key, start(), TRUTH, 20)
    again = init_state(trained.network, optimizer, 3.0)
    assert bits(again.opt_state) == bits(start().opt_state) != bits(trained.opt_state)
    assert int(again.step) == 0 and again.model_state == 3.0 and again.network is trained.network


def test_a_population_equals_its_members(key):
    optimizer = optax.adam(0.05)
    step = make_train_step(loss, optimizer)
    one_by_one, at_once = jax.jit(step), jax.jit(jax.vmap(step, in_axes=(0, None)))
    networks = [small_network(scale) for scale in (0.1, -0.4, 0.7)]
    networks[1] = disable(networks[1], choose(networks[1], {"g": [2]}))
    networks[2] = freeze(networks[2], choose(networks[2], {"g": [0, 1]}))
    states, batch = [start(optimizer, network) for network in networks], draw(key, TRUTH)
    together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    for _ in range(3):
        states = [one_by_one(state, batch)[0] for state in states]
        together, info = at_once(together, batch)
    assert info.loss.shape == (3,) and info.finite.all()
    for position, state in enumerate(states):
        member = jax.tree.map(lambda leaf, position=position: leaf[position], together)
        for one, other in zip(jax.tree.leaves(member), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert np.array_equal(together.network.params["kernel"][1][:, 2], networks[1].params["kernel"][:, 2])
    assert np.array_equal(together.network.params["bias"][2][:2], networks[2].params["bias"][:2])


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(session_module, "GRAPHS", {"xla_gpu_no_such_thing": "1"})
    compiled = session_module.Compiled(lambda x: x + 1)
    assert compiled(jnp.float32(1)) == 2 and compiled.count == 1
