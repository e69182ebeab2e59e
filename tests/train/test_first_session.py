"""A start that does not learn is drawn again, with its reason and its steps on record; a good one is left alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network
from maskprune.train.first_session import train_start
from maskprune.train.session import SessionReport
from maskprune.train.step import init_state


GROUPS = Groups((Group("g", 2, (Slice("w", 0, (0, 1), "out"),)),))


def draw(key):
    return init_state(init_network({"w": jax.random.uniform(key, (2,))}, GROUPS), optax.sgd(0.1))


def training(keys, steps=50, fails=(), stops=None):
    """A session of `steps` that only counts, is not finite in the attempts of `fails`, and ends itself at `stops`."""

    def train(key, state, *, share):
        done, end = int(state.step), int(share * steps)
        if done == 0:
            keys.append((jax.random.key_data(key).tolist(), state.network.params["w"].tolist()))
        assert jax.random.key_data(key).tolist() == keys[-1][0]
        if len(keys) - 1 in fails:
            return state, SessionReport(np.ones(7), False, "the loss was not finite at step 6", 0.0)
        stopped = stops is not None and end > stops
        end = stops if stopped else end
        state = dataclasses.replace(state, step=jnp.int32(end))
        return state, SessionReport(np.ones(end - done), True, "enough" if stopped else "", 0.0)

    return train


def dead_at_first(count):
    """Trouble with the first `count` draws, told apart by their weights."""
    seen = []

    def trouble(state):
        weights = state.network.params["w"].tolist()
        if weights not in seen:
            seen.append(weights)
        return f"draw {seen.index(weights)} is dead" if seen.index(weights) < count else ""

    return trouble


def test_a_dead_start_is_drawn_again(key):
    keys = []
    start = train_start(key, draw, training(keys), trouble=dead_at_first(2), look_at=0.4)
    assert start.redrawn == ("after 20 steps draw 0 is dead", "after 20 steps draw 1 is dead")
    assert start.steps == 20 + 20 + 50 and int(start.state.step) == 50
    assert start.state.network.params["w"].tolist() == keys[2][1]
    assert len({str(weights) for _, weights in keys}) == len({str(each) for each, _ in keys}) == 3


def test_a_good_start_is_kept_and_looked_at_twice(key):
    looks = []
    trouble = lambda state: looks.append(1) or ""
    start = train_start(key, draw, training([]), trouble=trouble, look_at=0.3)
    assert start.redrawn == () and start.steps == 50
    assert len(looks) == 2  # once in mid-session, once at the end


def test_trouble_that_only_shows_at_the_end_counts_too(key):
    looks = []

    def trouble(state):
        looks.append(1)
        return "died late" if len(looks) == 2 else ""

    start = train_start(key, draw, training([]), trouble=trouble, look_at=0.4)
    assert start.redrawn == ("after 50 steps died late",) and start.steps == 100 and len(looks) == 4


def test_a_session_that_is_not_finite_is_drawn_again(key):
    start = train_start(key, draw, training([], fails=(0,)), trouble=lambda state: "", look_at=0.4)
    assert start.redrawn == ("after 7 steps the loss was not finite at step 6",) and start.steps == 57


def test_it_gives_up_with_every_reason(key):
    with pytest.raises(RuntimeError, match=r"None of 3 starts .*draw 0 is dead; .*draw 1 is dead; .*draw 2 is dead"):
        train_start(key, draw, training([]), trouble=dead_at_first(3), look_at=0.4, attempts=3)


def test_the_same_key_starts_the_same(key):
    found = [train_start(key, draw, training([]), trouble=dead_at_first(1), look_at=0.4) for _ in range(2)]
    assert jnp.array_equal(found[0].state.network.params["w"], found[1].state.network.params["w"])
    other = train_start(jax.random.key(1), draw, training([]), trouble=dead_at_first(1), look_at=0.4)
    assert not jnp.array_equal(found[0].state.network.params["w"], other.state.network.params["w"])


@pytest.mark.parametrize(("stops", "steps"), [(30, 30), (10, 10)])
def test_a_session_that_ends_itself_is_no_trouble(key, stops, steps):
    start = train_start(key, draw, training([], stops=stops), trouble=lambda state: "", look_at=0.4)
    assert start.redrawn == () and start.steps == steps == int(start.state.step)
