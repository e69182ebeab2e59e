"""The probe on a network of six numbers: sessions one by one say the same, and a race keeps who survives longest."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from maskprune import select
from maskprune.masks.alterations import disable, freeze
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.train.session import SessionReport, make_session, train_alone
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.05)
SIZE, STEPS = 6, 24
SLICES = ({"g": range(4), "h": range(4, 6)}).items()
GROUPS = Groups(
    tuple(
        Group(name, len(own), (Slice("w", 0, tuple(own.index(i) if i in own else -1 for i in range(SIZE)), "out"),))
        for name, own in SLICES
    )
)
TARGET = np.array([3.0, 0.1, 2.0, 0.5, 1.0, 0.2], np.float32)  # what is lost with a mask
KEY = jax.random.key(11)
SESSION = make_session(
    make_train_step(lambda params, batch: jax.numpy.sum(jax.numpy.square(params["w"] - batch)), OPTIMIZER),
    lambda key, data: data + 0.1 * jax.random.normal(key, (SIZE,)),
    chunk=8,
)


def start():
    return init_network({"w": np.full(SIZE, 1.0, np.float32)}, GROUPS)


def evaluate(state):
    enabled = np.concatenate([state.network.enabled[name] for name in ("g", "h")])
    found = np.where(enabled, np.asarray(state.network.params["w"]), 0)
    return {"score": float(1 - np.sum((found - TARGET) ** 2) / np.sum(TARGET**2))}


class Trainer:
    """Real sessions; remembers how many were asked for, up to which share, with which keys."""

    def __init__(self):
        self.asked, self.keys = [], set()
        self.train = train_alone(SESSION, TARGET)

    def __call__(self, keys, states, *, share=1.0):
        self.asked.append((len(states), share))
        self.keys |= {str(jax.random.key_data(key)) for key in keys}
        return self.train(keys, states, steps=STEPS, share=share)


def places(selector, network, batch=None):
    found = selector(KEY, network, batch)
    return np.concatenate([found["g"], found["h"]]).astype(int).tolist()


def test_without_a_race_it_is_the_order_of_sessions_one_by_one():
    network = start()
    alone = [disable(network, choose(network, {n: [i]})) for n, own in SLICES for i in range(len(own))]
    trained = [SESSION.run(KEY, init_state(each, OPTIMIZER), TARGET, STEPS)[0] for each in alone]
    scores = [evaluate(state)["score"] for state in trained]
    train = Trainer()
    found = places(select.probe(train, evaluate, OPTIMIZER, racing=False), network)
    assert found == [sorted(scores, reverse=True).index(score) for score in scores] == [5, 0, 4, 2, 3, 1]
    assert train.asked == [(6, 1.0)] and train.keys == {str(jax.random.key_data(KEY))}


def test_a_race_agrees_and_spends_less():
    train = Trainer()
    assert places(select.probe(train, evaluate, OPTIMIZER), start()) == [5, 0, 4, 2, 3, 1]
    assert train.asked == [(6, 0.125), (3, 0.25), (2, 0.5), (1, 1.0)]


def test_several_orders_give_the_mean_place():
    """The noise is as large as what is to be told apart, so single orders differ; their mean is what is returned."""
    keys = jax.random.split(KEY, 5)
    network, noisy = start(), make_noisy()
    found = select.probe(noisy, evaluate, OPTIMIZER, racing=False, orders=5)(KEY, network, None)
    alone = [select.probe(noisy, evaluate, OPTIMIZER, racing=False)(key, network, None) for key in keys]
    for name in found:
        np.testing.assert_allclose(found[name], np.mean([each[name] for each in alone], axis=0), rtol=1e-6)
    assert len({tuple(np.concatenate([each["g"], each["h"]])) for each in alone}) > 1


def make_noisy():
    draw = lambda key, data: data + jax.random.normal(key, (SIZE,))
    step = make_train_step(lambda params, batch: jax.numpy.sum(jax.numpy.square(params["w"] - batch)), OPTIMIZER)
    train = train_alone(make_session(step, draw, chunk=8), TARGET)
    return lambda keys, states, *, share: train(keys, states, steps=STEPS, share=share)


def test_no_orders_are_refused():
    with pytest.raises(ValueError, match="orders must be at least 1, found 0"):
        select.probe(Trainer(), evaluate, OPTIMIZER, orders=0)


def test_who_stays_longer_is_before_who_scores_higher():
    """With early scores that mislead: 5 is out at once, though it would be the second best, and 0 gets farther."""
    misled = lambda state: evaluate(state) if int(state.step) > STEPS // 8 else {"score": early[lost_mask(state)]}
    early = [1.0, 0.9, 0.1, 0.8, 0.2, 0.3]
    assert places(select.probe(Trainer(), misled, OPTIMIZER), start()) == [2, 0, 5, 1, 4, 3]


def lost_mask(state):
    return int(np.flatnonzero(~np.concatenate([state.network.enabled[name] for name in ("g", "h")]))[0])


def test_frozen_and_disabled_masks_are_not_tried_and_come_last():
    network = start()
    network = freeze(disable(network, choose(network, {"g": [0]})), choose(network, {"g": [1], "h": [1]}))
    train = Trainer()
    assert places(select.probe(train, evaluate, OPTIMIZER), network) == [3, 3, 2, 0, 1, 3]
    assert train.asked[0][0] == 3
    every = freeze(network, choose(network, {"g": range(4), "h": range(2)}))
    assert places(select.probe(train, evaluate, OPTIMIZER), every) == [0] * 6


@pytest.mark.parametrize("racing", [True, False])
def test_what_breaks_comes_last_of_the_tried(racing):
    """Without mask 1 training fails, without mask 5 the score does."""

    def train(keys, states, *, share):
        whole = lambda state: lost_mask(state) != 1
        return [(state, SessionReport(np.zeros(3), whole(state), "", 0.0)) for state in states]

    scores = [0.1, 0.9, 0.2, 0.3, 0.4, math.nan]
    judge = lambda state: {"score": scores[lost_mask(state)]}
    found = places(select.probe(train, judge, OPTIMIZER, racing=racing), start())
    assert found[1] >= 4 and found[5] >= 4 and sorted(found[2:5], reverse=True) == found[2:5] and found[4] == 0


def test_what_breaks_late_comes_last_too():
    shares = []

    def train(keys, states, *, share):
        shares.append(share)
        return [(state, SessionReport(np.zeros(3), True, "", 0.0)) for state in states]

    judge = lambda state: {
        "score": math.nan if lost_mask(state) == 1 and shares[-1] == 0.5 else evaluate(state)["score"]
    }
    found = places(select.probe(train, judge, OPTIMIZER), start())
    assert found[1] == 5 and found[5] == 0  # 1 led until then


def test_equal_candidates_share_a_place():
    train = lambda keys, states, *, share: [(state, SessionReport(np.zeros(1), True, "", 0.0)) for state in states]
    judge = lambda state: {"score": float(lost_mask(state) < 2)}
    assert places(select.probe(train, judge, OPTIMIZER, racing=False), start()) == [0, 0, 2, 2, 2, 2]


def test_a_repair_comes_with_the_removal():
    seen = []

    def remove(network, chosen, batch):
        """Whoever goes first hands its share to mask 0: without mask 2 nothing is amiss."""
        seen.append(batch)
        after = disable(network, chosen)
        return dataclasses.replace(after, params={"w": np.where(chosen["g"][2], TARGET, after.params["w"])})

    train = lambda keys, states, *, share: [(state, SessionReport(np.zeros(1), True, "", 0.0)) for state in states]
    judge = lambda state: {"score": -float(np.sum(np.square(state.network.params["w"] - TARGET)))}
    found = places(select.probe(train, judge, OPTIMIZER, racing=False, remove=remove), start(), "the batch")
    assert found == [1, 1, 0, 1, 1, 1] and seen == ["the batch"] * 6
