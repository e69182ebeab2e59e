"""A whole search: what it adds up, what it keeps, and what an interruption leaves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import select
from maskprune.app.whole_search import Lengths, search
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import count_enabled, init_network
from maskprune.minimizer.lockstep import run_together
from maskprune.minimizer.rounds import Rules
from maskprune.train.population import make_population, train_many
from maskprune.train.session import make_session, train_alone
from maskprune.train.step import init_state, make_train_step


OPTIMIZER = optax.adam(0.05)
SIZE = 5
GROUPS = Groups((Group("g", SIZE, (Slice("w", 0, tuple(range(SIZE)), "out"),)),))
TARGET = jnp.array([3.0, 0.1, 2.0, 0.2, 1.0])
LENGTHS = Lengths(first=200, short=40, last=30)


def noisy(key, data):
    return data + 0.1 * jax.random.normal(key, (SIZE,))


STEP = make_train_step(lambda params, batch: jnp.sum(jnp.square(params["w"] - batch)), OPTIMIZER)
ALONE = train_alone(make_session(STEP, noisy, chunk=20), TARGET)
TOGETHER = train_many(make_population(STEP, noisy, chunk=20), TARGET)


def draw(key):
    return init_state(init_network({"w": jax.random.uniform(key, (SIZE,))}, GROUPS), OPTIMIZER)


def evaluate(state):
    found = np.where(state.network.enabled["g"], np.asarray(state.network.params["w"]), 0)
    return {"score": float(1 - np.sum((found - TARGET) ** 2) / np.sum(TARGET**2))}


class Book:
    upcoming = ""

    def __init__(self):
        self.lines, self.rounds = [], []

    def say(self, text):
        self.lines.append(text)

    def verdict(self, found, row):
        self.rounds.append((self.upcoming, found.number, found.accepted))


def run(train=ALONE, *, seed=0, show=None, **options):
    given = {
        "evaluate": evaluate, "trouble": lambda state: "", "optimizer": OPTIMIZER, "lengths": LENGTHS,
        "selector": lambda network: select.magnitude(), "rules": Rules(threshold=0.95),
        "size": lambda network: {"parameters": sum(count_enabled(network).values())},
    }  # fmt: skip
    return search(jax.random.key(seed), draw, train=train, show=show or Book(), **(given | options))


def test_a_whole_search():
    show = Book()
    found = run(show=show)
    assert count_enabled(found.state.network) == {"g": 3} and not found.interrupted
    verdicts = [row["verdict"] for row in found.rows]
    assert verdicts == ["reference", "accepted", "accepted", "refused", "refused", "refused", "final"]
    assert found.steps == 200 + 5 * 40 + 30 == found.rows[-1]["total_steps"]
    assert [row["total_steps"] for row in found.rows] == [200, 240, 280, 320, 360, 400, 430]
    assert found.stop == "every mask that may go was refused" and "last session" in show.lines[-1]
    assert 0 <= found.compile_seconds < found.seconds and 0 < found.training_seconds < found.seconds


def test_the_last_session_is_kept_only_if_it_is_better():
    worse = [0]

    def drifting(state):
        """Every look finds less, so that the last session never helps."""
        worse[0] += 1
        return {"score": 1.0 - 1e-3 * worse[0]}

    found = run(evaluate=drifting, rules=Rules(min_enabled=SIZE))
    assert found.rows[-1]["reason"].endswith("not kept") and int(found.state.step) == LENGTHS.first
    assert run(lengths=LENGTHS._replace(last=0)).rows[-1]["verdict"] == "refused"


def test_without_a_first_session_the_draw_itself_is_minimized():
    ready = init_state(init_network({"w": TARGET}, GROUPS), OPTIMIZER)
    found = search(
        jax.random.key(0), lambda key: ready, train=ALONE, evaluate=evaluate, trouble=lambda state: "never asked",
        optimizer=OPTIMIZER, selector=lambda network: select.magnitude(), lengths=LENGTHS._replace(first=0),
        show=Book(), size=lambda network: {"parameters": 0},
    )  # fmt: skip
    assert found.initial is ready.network and count_enabled(found.state.network) == {"g": 3}


def test_redrawn_starts_are_told_and_counted():
    show, looks = Book(), []
    trouble = lambda state: looks.append(1) or ("it is dead" if len(looks) == 1 else "")
    found = run(show=show, trouble=trouble)
    assert show.lines[0] == "A start was drawn again: after 50 steps it is dead." and found.steps == 430 + 50


@pytest.mark.parametrize("at", [0, 1, 2, 4])
def test_an_interruption_leaves_what_is_known(at):
    calls = []

    def train(keys, states, **options):
        calls.append(1)
        if len(calls) > at:
            raise KeyboardInterrupt
        return ALONE(keys, states, **options)

    show, reached = Book(), draw(jax.random.key(9))
    found = run(train, show=show, latest=lambda: reached)
    assert found.interrupted and found.stop == "it was interrupted" and "Interrupted" in show.lines[-1]
    if at < 2:  # within the first session
        assert found.state is reached and found.rows == []
    else:
        assert len(found.rows) == at - 1 and found.steps == 200 + 40 * (at - 2)
    calls.clear()
    assert (run(train) is None) == (at < 2)


def test_searches_together_decide_what_each_decides_alone():
    seeds = (0, 1, 2)
    shows = [Book() for _ in seeds]
    jobs = [
        lambda train, seed=seed, show=show: run(train, seed=seed, show=show)
        for seed, show in zip(seeds, shows, strict=True)
    ]
    for seed, show, found in zip(seeds, shows, run_together(jobs, TOGETHER), strict=True):
        alone = run(seed=seed)
        assert [row["chosen"] for row in found.rows] == [row["chosen"] for row in alone.rows]
        np.testing.assert_allclose(
            [row["score"] for row in found.rows], [row["score"] for row in alone.rows], rtol=1e-4
        )
        assert found.steps == alone.steps and len(show.rounds) == len(alone.rows) - 1
        assert dataclasses.asdict(found.state.network)["enabled"].keys() == {"g"}
