"""How the search treats training: fresh optimizers, keys of every round, interruptions, and one search for real."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import select
from maskprune.conv import conv2d
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network, list_masks
from maskprune.minimizer.loop import Limits, Rules, minimize
from maskprune.tasks.data.split import Dataset, Split
from maskprune.tasks.models import fcn
from maskprune.tasks.pictures import picture_task
from maskprune.train.session import SessionReport, make_session
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.1)
GROUPS = Groups((Group("g", 4, (Slice("w", 0, (0, 1, 2, 3), "out"),)),))
SESSION = make_session(
    make_train_step(lambda params, batch: jnp.sum(jnp.square(params["w"] - batch)), OPTIMIZER),
    lambda key, data: data + 0.1 * jax.random.normal(key, (4,)),
    chunk=10,
)


def trained_start(key):
    network = init_network({"w": jnp.array([0.5, -0.5, 1.0, 2.0])}, GROUPS)
    return SESSION.run(key, init_state(network, OPTIMIZER), jnp.ones(4), 10)[0]


def recording(seen):
    def train(key, state):
        seen.append((jax.random.key_data(key).tolist(), state))
        return SESSION.run(key, state, jnp.ones(4), 10)

    return train


def score(state):
    return {"score": 1.0 + 0.0 * float(state.network.params["w"][0])}


def run(key, state, *, train, evaluate=score, selector=None, **rest):
    selector = selector or select.random()
    return minimize(key, state, train=train, evaluate=evaluate, optimizer=OPTIMIZER, selector=selector, **rest)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_every_candidate_and_every_control_starts_with_a_fresh_optimizer(key):
    seen, state = [], trained_start(key)
    list(run(key, state, train=recording(seen), rules=Rules(control=True)))
    fresh = bits(init_state(state.network, OPTIMIZER).opt_state)
    assert bits(state.opt_state) != fresh
    assert len(seen) == 2 * 3
    assert all(bits(each.opt_state) == fresh and int(each.step) == 0 for _, each in seen)


def test_every_round_has_keys_of_its_own_and_the_control_the_same(key):
    seen, asked = [], []

    def selector(key, network, batch):
        asked.append(jax.random.key_data(key).tolist())
        return select.random()(key, network, batch)

    list(run(key, trained_start(key), train=recording(seen), selector=selector, rules=Rules(control=True)))
    keys = [each for each, _ in seen]
    assert keys[0::2] == keys[1::2]
    assert len({str(each) for each in [*keys[0::2], *asked]}) == 6


def test_the_same_key_repeats_the_search(key):
    state = trained_start(key)
    strip = lambda rows: [(row.number, row.chosen, row.accepted, row.score, row.reason, row.steps) for row in rows]
    one, two = (list(run(key, state, train=recording([]))) for _ in range(2))
    assert strip(one) == strip(two) and bits(one[-1].state) == bits(two[-1].state)
    orders = {str([row.chosen for row in run(jax.random.key(n), state, train=recording([]))]) for n in range(5)}
    assert len(orders) > 1


def test_the_batch_and_the_current_network_reach_the_selector(key):
    seen = []

    def selector(key, network, batch):
        seen.append((batch, list_masks(network.enabled)["g"]))
        return select.sequential()(key, network, batch)

    list(run(key, trained_start(key), train=recording([]), selector=selector, batch="sample"))
    assert seen == [("sample", [0, 1, 2, 3]), ("sample", [1, 2, 3]), ("sample", [2, 3])]


def test_the_model_state_steps_back_with_the_network(key):
    def train(key, state):
        after = dataclasses.replace(state, model_state=state.model_state + 1)
        return after, SessionReport(np.zeros(1), True, "", 0.0)

    start = init_state(trained_start(key).network, OPTIMIZER, jnp.zeros(()))
    evaluate = lambda state: {"score": 0.0 if len(list_masks(state.network.enabled)["g"]) < 3 else 1.0}
    rounds = list(run(key, start, train=train, evaluate=evaluate))
    assert [row.accepted for row in rounds] == [True, True, False, False, False]
    assert [int(row.state.model_state) for row in rounds] == [0, 1, 1, 1, 1]


def test_an_interruption_passes_and_leaves_earlier_rounds_as_they_were(key):
    calls = []

    def train(key, state):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return SESSION.run(key, state, jnp.ones(4), 10)

    rounds, kept = [], []
    with pytest.raises(KeyboardInterrupt):
        for row in run(key, trained_start(key), train=train):
            rounds.append(row)
            kept.append(bits(row.state))
    assert [row.accepted for row in rounds] == [True, True]
    assert [bits(row.state) for row in rounds] == kept


def test_nothing_is_trained_before_it_is_asked_for(key):
    seen = []
    rounds = run(key, trained_start(key), train=recording(seen))
    next(rounds)
    assert seen == []
    next(rounds)
    assert len(seen) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_network_without_a_score_cannot_be_minimized(key, bad):
    with pytest.raises(ValueError, match=f"scores {bad}: train it first"):
        next(run(key, trained_start(key), train=recording([]), evaluate=lambda state: {"score": bad}))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Rules(threshold=0.0), "`threshold` is 0.0"),
        (lambda: Rules(threshold=1.01), "`threshold` is 1.01"),
        (lambda: Rules(threshold=np.nan), "`threshold` is nan"),
        (lambda: Rules(reference="first"), "`reference` is 'first'"),
        (lambda: Rules(retry="always"), "`retry` is 'always'"),
        (lambda: Rules(min_enabled=-1), "`min_enabled` is -1"),
        (lambda: Rules(count=0), "`count` is 0"),
    ],
)
def test_a_wrong_rule_is_named(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


def edges():
    """Pictures of 32 by 32, and their horizontal rises: one rectified difference, which one mask a layer can do."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (10, 8, 8), np.uint8)
    pictures = coarse.repeat(4, axis=1).repeat(4, axis=2)
    rises = np.clip(np.diff(pictures.astype(int), axis=2, prepend=pictures[:, :, :1].astype(int)), 0, 255)
    sides = np.stack([pictures, rises.astype(np.uint8)])[..., None]
    names = tuple(f"picture {number}" for number in range(10))
    train, evaluation = (Split(*sides[:, part], names[part]) for part in (slice(0, 7), slice(7, 10)))
    return Dataset(
        train=train,
        evaluation=evaluation,
        target_name="rise",
        binary=False,
        source="made up",
        skipped={},
        notes=(),
        checksum="0" * 12,
    )


def test_a_real_search_removes_a_planted_dead_mask_and_compiles_once(key):
    model = fcn((2, 2), kernel=3, convolution=partial(conv2d, way="xla"))
    task = picture_task(model.apply, edges(), border=2, batch=2, crop=32, sample=2)
    optimizer = optax.adam(0.01)
    session = make_session(make_train_step(task.loss, optimizer), task.draw, chunk=50)
    train = lambda steps: lambda key, state: session.run(key, state, task.data, steps)
    # The first masks of both layers see the rise and pass it on; the second of conv1 is dead for good.
    params = jax.tree.map(lambda leaf: 0.02 * jnp.ones_like(leaf), model.init(key))
    params["conv1"]["kernel"] = params["conv1"]["kernel"].at[1, 0:2, 0, 0].set(jnp.array([-1.0, 1.0]))
    params["conv1"]["bias"] = jnp.array([0.0, -100.0])
    params["conv2"]["kernel"] = params["conv2"]["kernel"].at[1, 1, 0, :].set(1.0)
    params["conv3"]["kernel"] = params["conv3"]["kernel"].at[1, 1, :, 0].set(0.5)
    state, report = train(200)(key, init_state(init_network(params, model.groups), optimizer))
    assert report.finite and task.evaluate(state)["score"] > 0.5
    rounds = list(
        minimize(
            key,
            state,
            train=train(50),
            evaluate=task.evaluate,
            optimizer=optimizer,
            selector=select.activation(lambda params, batch: model.activations(params, batch[0])),
            batch=task.sample,
            limits=Limits(rounds=2),
        )
    )
    assert rounds[1].chosen == {"conv1": [1]} and rounds[1].accepted
    assert list_masks(rounds[-1].state.network.enabled)["conv1"] == [0]
    assert session.compilations() == 1
