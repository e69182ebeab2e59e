"""Several candidates of one round: the best is kept, halving spends less, and nothing is tried twice."""

import itertools
import math

import jax
import numpy as np
import optax
import pytest

from maskprune import select
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network
from maskprune.minimizer.loop import minimize
from maskprune.minimizer.rounds import Rules
from maskprune.train.early import Early
from maskprune.train.halving import best, race
from maskprune.train.session import SessionReport, make_session, train_alone
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.05)
SIZE, STEPS = 6, 40
GROUPS = Groups((Group("g", SIZE, (Slice("w", 0, tuple(range(SIZE)), "out"),)),))
TARGET = np.array([3.0, 0.1, 2.0, 0.5, 1.0, 0.2], np.float32)  # what is lost with a mask
SESSION = make_session(
    make_train_step(lambda params, batch: jax.numpy.sum(jax.numpy.square(params["w"] - batch)), OPTIMIZER),
    lambda key, data: data + 0.1 * jax.random.normal(key, (SIZE,)),
    chunk=10,
)


def start(value=0.5):
    return init_state(init_network({"w": np.full(SIZE, value, np.float32)}, GROUPS), OPTIMIZER)


def evaluate(state):
    """What is explained of the target, 1 for all of it."""
    found = np.where(state.network.enabled["g"], np.asarray(state.network.params["w"]), 0)
    return {"score": float(1 - np.sum((found - TARGET) ** 2) / np.sum(TARGET**2))}


class Trainer:
    """Real sessions; remembers how many were asked for, and up to which share."""

    def __init__(self):
        self.asked, self.keys = [], []
        self.train = train_alone(SESSION, TARGET)

    def __call__(self, keys, states, *, share=1.0):
        self.asked.append((len(states), share))
        self.keys += [jax.random.key_data(key).tolist() for key in keys]
        return self.train(keys, states, steps=STEPS, share=share)


def search(train, **rules):
    trained, _ = SESSION.run(jax.random.key(5), start(), TARGET, 200)
    single = lambda key, state: train([key], [state])[0]
    return list(
        minimize(
            jax.random.key(1), trained, train=single, train_many=train, evaluate=evaluate, optimizer=OPTIMIZER,
            selector=select.sequential(), rules=Rules(**{"threshold": 0.95} | rules),
        )
    )  # fmt: skip


def test_the_best_of_several_is_kept():
    train = Trainer()
    rounds = search(train, candidates=6)
    first = rounds[1]
    assert first.chosen == {"g": [1]} and first.accepted and first.reason.startswith("best of 6: ")
    assert [rival.chosen["g"][0] for rival in first.rivals] == [0, 2, 3, 4, 5]
    assert all(rival.score <= first.score and rival.steps == STEPS for rival in first.rivals)
    assert first.steps == 6 * STEPS and train.asked[0] == (6, 1.0)
    assert len({str(key) for key in train.keys[:6]}) == 1  # the same batches for all
    # 0.1, then 0.2, then 0.5 go; without 1.0 less than 95 % of the target is explained.
    assert [row.chosen["g"] for row in rounds[1:] if row.accepted] == [[1], [5], [3]]
    assert rounds[-1].accepted is False and rounds[-1].stop == "every mask that may go was refused"
    assert {n for numbers in (rounds[-1].chosen, *(r.chosen for r in rounds[-1].rivals)) for n in numbers["g"]} == {
        0,
        2,
        4,
    }


def test_one_candidate_is_the_search_as_it_was():
    rounds = search(Trainer(), candidates=1)
    assert rounds[1].rivals == () and not rounds[1].reason.startswith("best")
    assert [row.chosen["g"] for row in rounds[1:3]] == [[0], [1]] and not rounds[1].accepted


def test_candidates_are_groups_of_count_masks_and_none_is_tried_twice():
    rounds = search(Trainer(), candidates=4, count=2)
    tried = [rounds[1].chosen["g"], *(rival.chosen["g"] for rival in rounds[1].rivals)]
    assert sorted(itertools.chain(*tried)) == list(range(6)) and len(tried) == 3


def test_halving_spends_less_and_its_winner_is_what_it_would_be_alone():
    train = Trainer()
    rounds = search(train, candidates=5, racing=True)
    assert train.asked[:4] == [(5, 0.125), (3, 0.25), (2, 0.5), (1, 1.0)]
    assert rounds[1].chosen == {"g": [1]} and rounds[1].accepted
    assert rounds[1].steps == 5 * 5 + 3 * 5 + 2 * 10 + 1 * 20
    assert sorted(rival.steps for rival in rounds[1].rivals) == [5, 5, 10, 20]
    whole = search(Trainer(), candidates=5)
    assert np.array_equal(whole[1].state.network.params["w"], rounds[1].state.network.params["w"])


@pytest.mark.parametrize("broken", [{0, 1, 2}, {0, 1, 2, 3}])
def test_candidates_that_break_drop_out(broken):
    def train(keys, states, *, share):
        said = []
        for number, state in enumerate(states):
            fine = len(states) < 4 or number not in broken
            said.append((state, SessionReport(np.zeros(3), fine, "" if fine else "not finite", 0.0)))
        return said

    found = race(
        jax.random.key(0), [start(value) for value in (0.1, 0.2, 0.3, 0.4)], train=train, evaluate=evaluate, racing=True
    )
    assert [each.worth == -math.inf for each in found] == [number in broken for number in range(4)]
    winner = best(found)
    assert winner is found[3 if len(broken) == 3 else 0]
    assert len(winner.report.losses) == (9 if len(broken) == 3 else 3)


def test_a_session_that_ended_itself_stays_in_the_race():
    def train(keys, states, *, share):
        return [(state, SessionReport(np.zeros(3), True, "enough", 0.0)) for state in states]

    found = race(jax.random.key(0), [start(1.0), start(0.1)], train=train, evaluate=evaluate, racing=True)
    assert best(found) is found[0] and found[0].share == 1.0 and len(found[0].report.losses) == 3


def test_without_sessions_side_by_side_candidates_take_turns_and_cannot_race():
    trained, _ = SESSION.run(jax.random.key(5), start(), TARGET, 200)
    train = lambda key, state: SESSION.run(key, state, TARGET, STEPS)
    options = {"train": train, "evaluate": evaluate, "optimizer": OPTIMIZER, "selector": select.sequential()}
    rounds = list(minimize(jax.random.key(1), trained, rules=Rules(threshold=0.95, candidates=6), **options))
    assert [row.chosen["g"] for row in rounds[1:] if row.accepted] == [[1], [5], [3]]
    with pytest.raises(ValueError, match="needs `train_many`"):
        next(minimize(jax.random.key(1), trained, rules=Rules(candidates=2, racing=True), **options))
    with pytest.raises(ValueError, match="`candidates` is 0"):
        Rules(candidates=0)


def test_who_passes_as_it_is_needs_no_training():
    trained = init_state(SESSION.run(jax.random.key(5), start(), TARGET, 200)[0].network, OPTIMIZER)
    train, states = Trainer(), [start(), trained]
    found = race(jax.random.key(0), states, train=train, evaluate=evaluate, racing=True, early=Early(0.0), required=0.9)
    assert not train.asked and best(found, 0.9) is found[1] and found[1].state is trained
    assert [each.share for each in found] == [0.0, 1.0] and not len(found[1].report.losses)
    found = race(
        jax.random.key(0), states[:1], train=train, evaluate=evaluate, racing=True, early=Early(0.0), required=0.9
    )
    assert train.asked and found[0].scores  # it does not pass as it is
    race(jax.random.key(0), [trained], train=train, evaluate=evaluate, racing=True, required=0.0)
    assert train.asked[-1] == (1, 1.0)  # sessions end early only where that was asked for


def test_a_search_removes_what_nobody_misses_without_a_step():
    rounds = {row.chosen["g"][0]: row for row in search(Trainer(), early=0.0, threshold=0.9)[1:]}
    assert rounds[1].accepted and rounds[1].steps == 0 and rounds[1].score == evaluate(rounds[1].state)["score"]
    assert not rounds[0].accepted and rounds[0].steps == STEPS
