"""Many networks side by side: each computes what it would alone, and none of them disturbs another."""

import dataclasses
import math
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import BUILT
from toys import linear_draw as draw
from toys import linear_loss as loss

import maskprune
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.train import batching
from maskprune.train.population import make_population, stack, train_many, unstack
from maskprune.train.session import make_session, train_alone
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.05)
DATA = jnp.array([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0], [2.0, 0.0, 1.0, -1.0]])
GROUPS = Groups((Group("g", 4, (Slice("kernel", 1, (0, 1, 2, 3), "out"), Slice("bias", 0, (0, 1, 2, 3), "out"))),))


STEP = make_train_step(loss, OPTIMIZER)
ALONE = make_session(STEP, draw, chunk=10)


def new_population(**options):
    return make_population(STEP, draw, **{"chunk": 10, **options})


TOGETHER = new_population()


def members(count=5):
    """States that differ in weights and masks, and their keys."""
    states = []
    for seed in range(count):
        params = {"kernel": jax.random.normal(jax.random.key(seed), (3, 4)), "bias": jnp.full(4, 0.1 * seed)}
        network = init_network(params, GROUPS)
        network = disable(network, choose(network, {"g": [seed % 4]} if seed else {}))
        network = freeze(network, choose(network, {"g": [(seed + 1) % 4]} if seed > 2 else {}))
        states.append(init_state(network, OPTIMIZER))
    return jax.random.split(jax.random.key(7), count), states


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def close(one, other, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_a_member_computes_what_it_would_alone():
    keys, states = members()
    rates = [1.0, 0.5, 2.0, 0.0, 1.0]
    found, report = TOGETHER.run(keys, stack(states), DATA, 35, rates=rates)
    for number, each in enumerate(unstack(found)):
        alone, said = ALONE.run(keys[number], states[number], DATA, 35, rate=rates[number])
        close(each, alone)
        np.testing.assert_allclose(report.member(number).losses, said.losses, rtol=1e-5)
        assert report.member(number)[1:3] == said[1:3] == (True, "")
        held = ~np.asarray(alone.network.enabled["g"]) | np.asarray(alone.network.frozen["g"])
        kernel = [state.network.params["kernel"][:, held] for state in (each, states[number])]
        assert bits(kernel[0]) == bits(kernel[1])
    assert bits(unstack(found)[3].network.params) == bits(states[3].network.params)  # its rate was zero


@pytest.mark.rotating
@pytest.mark.parametrize("make", [lambda: optax.adam(1e-2), maskprune.optim.soap], ids=["adam", "soap"])
def test_members_of_a_convolutional_network_agree_with_single_runs(make):
    model, optimizer = maskprune.models.fcn((3, 2), kernel=3), make()
    step = make_train_step(lambda params, x: maskprune.losses.mse(model.apply(params, x), 0.5 * x), optimizer)
    pictures = lambda key, data: jax.random.uniform(key, (2, 9, 8, 1))
    keys = jax.random.split(jax.random.key(1), 3)
    states = [init_state(init_network(model.init(key), model.groups), optimizer) for key in keys]
    together, _ = make_population(step, pictures).run(keys, stack(states), None, 3)
    alone = make_session(step, pictures)
    for key, state, each in zip(keys, states, unstack(together), strict=True):
        close(each.network.params, alone.run(key, state, None, 3)[0].network.params, 1e-4)


@pytest.mark.rotating
@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_groups_of_any_size_give_the_same(at_once):
    keys, states = members()
    whole, said = TOGETHER.run(keys, stack(states), DATA, 23)
    parts, report = new_population(at_once=at_once).run(keys, stack(states), DATA, 23)
    close(whole, parts)
    np.testing.assert_allclose(said.losses, report.losses, rtol=1e-5)
    assert report.at_once == {1: 1, 2: 2, 3: 3, 4: 3, 100: 5}[at_once]
    assert report.taken.tolist() == [23] * 5 and report.stopped == ("",) * 5


def test_the_chunk_changes_nothing_and_an_end_can_be_resumed():
    keys, states = members()
    whole, said = TOGETHER.run(keys, stack(states), DATA, 35)
    for chunk in (1, 7, 100):
        each, report = new_population(chunk=chunk).run(keys, stack(states), DATA, 35)
        assert bits(each) == bits(whole) and np.array_equal(said.losses, report.losses)
    half, first = TOGETHER.run(keys, stack(states), DATA, 35, until=17)
    rest, second = TOGETHER.run(keys, half, DATA, 35)
    assert bits(rest) == bits(whole)
    assert np.array_equal(np.concatenate([first.losses, second.losses], axis=1), said.losses)
    single = [ALONE.run(keys[0], states[0], DATA, 35, until=until)[0] for until in (17, 35)]
    assert int(single[0].step) == 17 and bits(ALONE.run(keys[0], single[0], DATA, 35)[0]) == bits(single[1])


def test_a_nan_in_one_member_changes_no_bit_of_another():
    keys, states = members()
    well, _ = TOGETHER.run(keys, stack(states), DATA, 35)
    broken = states[2].network.params | {"bias": jnp.full(4, math.nan)}
    broken = dataclasses.replace(states[2], network=dataclasses.replace(states[2].network, params=broken))
    ill, report = TOGETHER.run(keys, stack([*states[:2], broken, *states[3:]]), DATA, 35)
    for number in (0, 1, 3, 4):
        assert bits(unstack(ill)[number]) == bits(unstack(well)[number])
    assert report.finite.tolist() == [True, True, False, True, True]
    assert report.stopped[2] == "the loss or an update was not finite at step 0" and report.stopped[3] == ""
    assert report.taken.tolist() == [35, 35, 1, 35, 35]
    assert len(report.member(2).losses) == 1 and np.isnan(report.losses[2]).all()
    assert bits(unstack(ill)[2].network.params) == bits(broken.network.params)


def test_a_population_that_is_dead_altogether_ends_at_once():
    keys, states = members(2)
    params = {"bias": jnp.full((2, 4), math.nan), "kernel": jnp.zeros((2, 3, 4))}
    stacked = stack(states)
    stacked = dataclasses.replace(stacked, network=dataclasses.replace(stacked.network, params=params))
    looks = []
    _, report = TOGETHER.run(keys, stacked, DATA, 1000, watch=lambda states, losses: looks.append(1) or "")
    assert not report.finite.any() and report.losses.shape == (2, 1) and len(looks) == 1


def test_masks_rates_and_lengths_compile_nothing_again():
    together = new_population()
    keys, states = members(6)
    state, report = together.run(keys, stack(states), DATA, 23)
    assert together.compilations() == 1 and 0 < report.compile_seconds < report.seconds
    altered = [
        init_state(disable(each.network, choose(each.network, {"g": [3]})), OPTIMIZER) for each in unstack(state)
    ]
    _, report = together.run(keys, stack(altered), DATA, 11, rates=np.linspace(0.5, 1, 6))
    assert together.compilations() == 1 and report.compile_seconds == 0
    assert together.run(keys[:5], stack(altered[:5]), DATA, 11)[1].at_once == 6  # filled up
    assert together.compilations() == 1
    assert together.run(keys[:2], stack(altered[:2]), DATA, 11)[1].at_once == 2  # six would be a waste
    assert together.compilations() == 2


def test_a_watch_sees_every_chunk_and_may_end_it():
    keys, states = members(3)
    seen = []

    def watch(state, losses):
        seen.append((state.step.tolist(), losses.shape))
        return "enough" * (len(seen) == 2)

    after, report = TOGETHER.run(keys, stack(states), DATA, 35, watch=watch)
    assert seen == [([10] * 3, (3, 10)), ([20] * 3, (3, 20))]
    assert after.step.tolist() == [20] * 3 and report.stopped == ("enough",) * 3 and report.finite.all()


@pytest.mark.rotating
def test_groups_fit_into_the_memory_there_is(monkeypatch):
    keys, states = members(8)
    whole, _ = TOGETHER.run(keys, stack(states), DATA, 12)
    programs = []
    with monkeypatch.context() as patch:
        patch.setattr(batching, "_share_that_fits", lambda program: programs.append(program) or 1.0)
        new_population().run(keys, stack(states), DATA, 1)
    needed = programs[0].memory_analysis()
    needed = needed.temp_size_in_bytes + needed.output_size_in_bytes
    monkeypatch.setattr(batching, "_free_memory", lambda: int(0.4 * needed / batching.SHARE))
    parts = new_population()
    found, report = parts.run(keys, stack(states), DATA, 12)
    assert 1 <= report.at_once <= 4 and parts.compilations() <= 3
    close(found, whole)
    monkeypatch.setattr(batching, "_free_memory", lambda: 0)
    assert new_population().run(keys, stack(states), DATA, 12)[1].at_once == 1


@pytest.mark.rotating
@pytest.mark.parametrize("good", [0, 2])
def test_memory_that_runs_out_halves_the_groups_and_loses_nothing(monkeypatch, good):
    keys, states = members(4)
    whole, said = TOGETHER.run(keys, stack(states), DATA, 35)
    real, calls = batching.Lanes.advance, []

    def short(self, lanes, *rest):
        calls.append(lanes[0].alive.shape[0])
        if calls[-1] > 2 and len(calls) > good:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")
        return real(self, lanes, *rest)

    monkeypatch.setattr(batching.Lanes, "advance", short)
    with pytest.warns(RuntimeWarning, match="2 networks are trained at once in place of 4"):
        found, report = new_population().run(keys, stack(states), DATA, 35)
    close(found, whole)
    np.testing.assert_allclose(report.losses, said.losses, rtol=1e-5)
    assert report.at_once == 2 and calls[:good] == [4] * good and calls[-1] <= 2


@pytest.mark.rotating
@pytest.mark.parametrize("words", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: broken"])
@pytest.mark.parametrize("options", [{"at_once": 1}, {"invariant": True, "at_once": 3}, {}])
def test_other_errors_and_a_group_that_cannot_be_halved_are_raised(monkeypatch, words, options):
    calls = []

    def broken(self, lanes, *_):
        calls.append(lanes[0].alive.shape[0])
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(batching.Lanes, "advance", broken)
    keys, states = members(3)
    short = words.startswith("RESOURCE") and not options
    with warnings.catch_warnings(record=True) as told, pytest.raises(jax.errors.JaxRuntimeError, match=words) as raised:
        warnings.simplefilter("always")
        new_population(**options).run(keys, stack(states), DATA, 35)
    assert calls == ([3, 1] if short else [options.get("at_once", 3)]) and len(told) == short
    notes = getattr(raised.value, "__notes__", [])
    assert ["tried 1 times" in note for note in notes] == [True] * short or "tried 0 times" in notes[0]


def test_smaller_groups_are_tried_three_times(monkeypatch):
    calls = []

    def broken(self, lanes, *_):
        calls.append(lanes[0].alive.shape[0])
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(batching.Lanes, "advance", broken)
    monkeypatch.setattr(batching.Compiled, "get", lambda *_: None)
    keys, states = members(40)
    with pytest.warns(RuntimeWarning) as told, pytest.raises(jax.errors.JaxRuntimeError) as raised:
        new_population(at_once=40).run(keys, stack(states), DATA, 35)
    assert calls == [40, 20, 10, 5] and len(told) == 3 and "tried 3 times" in raised.value.__notes__[0]


def test_sessions_side_by_side_for_a_search():
    keys, states = members(3)
    train = train_many(TOGETHER, DATA)
    found = train(list(keys), states, steps=20)
    for (state, report), key, begun in zip(found, keys, states, strict=True):
        alone, said = ALONE.run(key, begun, DATA, 20)
        close(state, alone)
        np.testing.assert_allclose(report.losses, said.losses, rtol=1e-5)
    half = train(list(keys), states, steps=20, share=0.45)
    assert [int(state.step) for state, _ in half] == [9] * 3 and len(half[0][1].losses) == 9
    one_by_one = train_alone(ALONE, DATA)
    close([state for state, _ in half], [state for state, _ in one_by_one(keys, states, steps=20, share=0.45)])


SIZES = (1, 2, 3, 8, 64)


def convolving(way):
    """A step, a draw and a fresh start of a small network that is convolved in that way."""
    model = maskprune.models.fcn((3, 2), kernel=3, convolution=partial(maskprune.conv2d, way=way))
    loss = lambda params, x: maskprune.losses.mse(model.apply(params, x), 0.5 * x)
    fresh = lambda optimizer: lambda key: init_state(init_network(model.init(key), model.groups), optimizer)
    return loss, lambda key, data: jax.random.uniform(key, (2, 9, 11, 1)), fresh


OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "soap": maskprune.optim.soap(),
    "averaged": maskprune.optim.soap_averaged(),
    "momentum": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9, nesterov=True)),
    "rmsprop": optax.rmsprop(1e-3),
}


QUICK = [("native", None, "adam"), ("native", 4, "adam"), ("blocked", 4, "soap")]
WAYS = [("native", None), ("native", 4), ("blocked", None), ("blocked", 4), ("xla", None), ("xla", 3)]


def kind(way, at_once, name):
    """A kind of population; all but a few are tried by name only: `pytest -m slow`."""
    marks = [BUILT] * (way == "native") + [pytest.mark.slow] * ((way, at_once, name) not in QUICK)
    return pytest.param(way, at_once, name, marks=marks)


@pytest.mark.rotating
@pytest.mark.parametrize(("way", "at_once", "name"), [kind(*each, name) for each in WAYS for name in OPTIMIZERS])
def test_an_invariant_member_is_the_same_in_any_company(way, at_once, name):
    """Bit for bit, for every number of members and every place among them; the others differ in all they can."""
    loss, pictures, fresh = convolving(way)
    step, steps = make_train_step(loss, OPTIMIZERS[name]), 5
    together = make_population(step, pictures, chunk=3, at_once=at_once, invariant=True)
    keys = jax.random.split(jax.random.key(1), max(SIZES))
    states, rates = jax.jit(jax.vmap(fresh(OPTIMIZERS[name])))(keys), np.linspace(0.5, 2.0, max(SIZES))
    rows = lambda found: [bits(each) for each in unstack(found)]
    every, whole = together.run(keys, states, None, steps, rates=rates)
    expected, rng = rows(every), np.random.default_rng(3)
    for size in SIZES:
        place = rng.permutation(max(SIZES))[:size]
        found, said = together.run(
            keys[place], jax.tree.map(lambda leaf, at=place: leaf[at], states), None, steps, rates=rates[place]
        )
        assert rows(found) == [expected[member] for member in place]
        assert said.losses.tobytes() == whole.losses[place].tobytes()
    assert together.compilations() == 1 and said.at_once == (at_once or 1)


def test_a_member_in_trouble_is_no_company():
    """A member that dies in the group of another changes no bit of it in the invariant mode either."""
    keys, states = members(4)
    together = new_population(invariant=True, at_once=2)
    well, _ = together.run(keys, stack(states), DATA, 35)
    network = dataclasses.replace(
        states[0].network, params=jax.tree.map(lambda x: x * jnp.nan, states[0].network.params)
    )
    ill, report = together.run(keys, stack([dataclasses.replace(states[0], network=network), *states[1:]]), DATA, 35)
    assert [bits(each) for each in unstack(ill)[1:]] == [bits(each) for each in unstack(well)[1:]]
    assert report.finite.tolist() == [False, True, True, True]


def test_states_go_in_and_out_of_a_stack_unchanged():
    _, states = members()
    assert [bits(each) for each in unstack(stack(states))] == [bits(each) for each in states]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda keys, states: (keys[:2], stack(states), {}), "`keys` has 2 members"),
        (lambda keys, states: (keys, states[0], {}), "`stack` the states"),
        (lambda keys, states: (keys, stack(states), {"rates": [1.0]}), "`rates` has shape"),
        (lambda keys, states: (keys, stack(states), {"until": 50}), "`until` is 50"),
        (
            lambda keys, states: (keys, stack([*states[:2], ALONE.run(keys[0], states[2], DATA, 3)[0]]), {}),
            r"different|steps \[0, 3\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    keys, states, options = wrong(*members(3))
    with pytest.raises(ValueError, match=message):
        TOGETHER.run(keys, states, DATA, 20, **options)


def test_states_that_cannot_be_stacked_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        stack([])
    _, (state,) = members(1)
    with pytest.raises(ValueError, match="differ"):
        stack([state, init_state(state.network, optax.sgd(0.1))])
    with pytest.raises(ValueError, match="`at_once` is 0"):
        new_population(at_once=0)
    with pytest.raises(ValueError, match="`chunk` is 0"):
        new_population(chunk=0)
