"""Jobs that train meet: what they ask for is trained at once, in one order, and an error reaches all of them."""

import time

import jax.numpy as jnp
import pytest

from maskprune.minimizer.lockstep import run_together


class State:
    def __init__(self, name, step=0):
        self.name, self.step = name, jnp.int32(step)


class Trainer:
    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def __call__(self, keys, states, *, steps, share=1.0):
        if len(self.asked) == self.fails_at:
            raise KeyboardInterrupt
        self.asked.append(([state.name for state in states], steps, share))
        return [
            (State(state.name, int(state.step) + steps), f"{key}{state.name}")
            for key, state in zip(keys, states, strict=True)
        ]


def job(name, sessions, *, pause=0.0, steps=10, wide=1):
    def run(train):
        said = []
        for turn in range(sessions):
            time.sleep(pause)
            found = train([turn] * wide, [State(f"{name}{i}") for i in range(wide)], steps=steps)
            said += [report for _, report in found]
        return said

    return run


def test_what_all_wait_for_is_trained_at_once_in_the_order_of_the_jobs():
    train = Trainer()
    found = run_together([job("a", 3, pause=0.02), job("b", 1), job("c", 2, wide=2)], train)
    assert train.asked == [
        (["a0", "b0", "c0", "c1"], 10, 1.0),
        (["a0", "c0", "c1"], 10, 1.0),
        (["a0"], 10, 1.0),
    ]
    assert found == [["0a0", "1a0", "2a0"], ["0b0"], ["0c0", "0c1", "1c0", "1c1"]]


def test_sessions_of_different_kinds_are_trained_apart():
    train = Trainer()
    share = lambda train: train([0], [State("s")], steps=10, share=0.5)
    later = lambda train: train([0], [State("l", step=5)], steps=10)
    run_together([job("a", 1), job("b", 1, steps=20), share, later, job("c", 1)], train)
    assert train.asked == [(["a0", "c0"], 10, 1.0), (["b0"], 20, 1.0), (["s"], 10, 0.5), (["l"], 10, 1.0)]


def test_a_job_that_fails_does_not_keep_the_others_waiting():
    def fails(train):
        train([0], [State("f")], steps=10)
        raise LookupError("lost")

    train, ended = Trainer(), []
    with pytest.raises(LookupError, match="lost"):
        run_together([fails, lambda train: ended.append(job("a", 3)(train))], train)
    assert ended == [["0a0", "1a0", "2a0"]]


def test_an_interruption_reaches_every_job_which_may_still_answer():
    def writes_down(name):
        def run(train):
            try:
                job(name, 5)(train)
            except KeyboardInterrupt:
                return f"{name} was interrupted"

        return run

    train = Trainer(fails_at=2)
    found = run_together([writes_down("a"), job("b", 1), writes_down("c")], train)
    assert found == ["a was interrupted", ["0b0"], "c was interrupted"] and len(train.asked) == 2


def test_no_jobs():
    assert run_together([], Trainer()) == []
