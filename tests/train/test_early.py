"""Sessions that end early: passing is certain, giving up is wrong no more often than stated."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune.masks.groups import Groups
from maskprune.masks.network import init_network
from maskprune.minimizer.rounds import Rules
from maskprune.train.early import Early
from maskprune.train.halving import best, race
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_no_more_than_the_stated_share_of_passing_sessions_is_given_up(rate):
    """Curves of random gains, exchangeable: the bound holds over all looks together."""
    rng = np.random.default_rng(0)
    wrong = count = 0
    for _ in range(300):
        early = Early(rate)
        for _ in range(80):
            gains = np.cumsum(rng.exponential(0.1, 3))[::-1]
            early.remember(dict(zip(early.looks, 1.0 - gains, strict=True)), 1.0)
        gains = np.cumsum(rng.exponential(0.1, 3))[::-1]
        final = rng.uniform(0.8, 1.0)
        given_up = any(early.hopeless(look, final - gain, final) for look, gain in zip(early.looks, gains, strict=True))
        wrong, count = wrong + given_up, count + 1
    assert wrong / count <= rate + 2 * math.sqrt(rate / count)
    assert wrong > 0  # it does give up


def test_nothing_is_given_up_without_enough_whole_sessions_or_at_rate_0():
    early, never = Early(0.3), Early(0.0)
    needed = 0
    while not early.hopeless(0.5, -100.0, 1.0):
        needed += 1
        for each in (early, never):
            each.remember(dict.fromkeys(each.looks, 0.0), 0.1)
    assert needed == 9  # three looks: 1 - 0.1 of (9 + 1)
    for _ in range(200):
        never.remember(dict.fromkeys(never.looks, 0.0), 0.1)
    assert not never.hopeless(0.5, -100.0, 1.0)
    assert not early.hopeless(0.5, 0.95, 1.0) and early.hopeless(0.5, 0.85, 1.0)


def test_what_is_not_finite_leaves_no_gain():
    early = Early()
    early.remember({0.25: -math.inf, 0.5: 0.1}, 0.3)
    assert early.gains == {0.5: [pytest.approx(0.2)]}


def numbered(number, share):
    """A state that is nothing but a number and how far it was trained."""
    network = init_network({}, Groups(()))
    return TrainState(network=network, opt_state=number, model_state=share, step=jnp.int32(0))


class Curves:
    """Sessions whose score at every share is known."""

    def __init__(self, *curves):
        self.curves, self.asked, self.at = curves, [], 0.0

    def train(self, keys, states, *, share):
        numbers = [(state.opt_state, state.model_state) for state in states]
        self.asked.append((share, [number for number, _ in numbers]))
        reports = [SessionReport(np.zeros(int(100 * (share - at))), True, "", 0.0) for _, at in numbers]
        return [(numbered(n, share), report) for (n, _), report in zip(numbers, reports, strict=True)]

    def evaluate(self, state):
        return {"score": self.curves[state.opt_state](state.model_state)}

    def run(self, early, required, racing=False):
        states = [numbered(number, 0.0) for number in range(len(self.curves))]
        rule = {"train": self.train, "evaluate": self.evaluate, "racing": racing}
        return race(jax.random.key(0), states, **rule, early=early, required=required)


def test_the_race_ends_when_one_passes_and_that_one_is_judged():
    curves = Curves(lambda share: 0.4 * share, lambda share: share, lambda share: 0.9 * share)
    found = curves.run(Early(), required=0.45)
    assert [share for share, _ in curves.asked] == [0.25, 0.5]
    assert best(found, 0.45) is found[1] and len(found[1].report.losses) == 50
    assert [each.share for each in found] == [0.5, 1.0, 1.0]  # the third reaches 0.45 as well


def test_a_session_without_hope_drops_out_and_leaves_the_others_as_they_are():
    early = Early(0.3, gains={look: [0.1] * 20 for look in (0.25, 0.5, 0.75)})
    curves = Curves(lambda share: 0.5, lambda share: 0.87 + 0.1 * share)
    found = curves.run(early, required=0.99)
    assert curves.asked == [(0.25, [0, 1]), (0.5, [1]), (0.75, [1]), (1.0, [1])]
    assert [each.share for each in found] == [0.25, 1.0] and best(found, 0.99) is found[1]
    assert early.gains[0.5][-1] == pytest.approx(0.05) and len(early.gains[0.25]) == 21


def test_looks_and_halvings_go_together():
    curves = Curves(*[lambda share, n=n: 0.1 * n * share for n in range(4)])
    found = curves.run(Early(), required=9.0, racing=True)
    assert [(share, len(numbers)) for share, numbers in curves.asked] == [(0.25, 4), (0.5, 2), (0.75, 1), (1.0, 1)]
    assert best(found) is found[3]


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2.0])
def test_bad_rates_are_refused(bad):
    with pytest.raises(ValueError, match="`rate`"):
        Early(bad)
    with pytest.raises(ValueError, match="`early`"):
        Rules(early=bad)
    with pytest.raises(ValueError, match="`looks`"):
        Early(looks=(0.5, 1.0))
