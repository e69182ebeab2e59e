"""Regret on tables whose answers are known by hand."""

import math

import numpy as np
import pytest

from maskprune.lab import mask_sets, regret


# Two masks and two. Layer 2 keeps either; of layer 1 only both, or the second one alone with both of layer 2.
SCORES = {
    "11 11": 1.0,
    "01 11": 0.7, "10 11": 0.9, "11 01": 0.5, "11 10": 0.6,
    "01 01": 0.95, "01 10": 0.2, "10 01": 0.3, "10 10": 0.4,
}  # fmt: skip
COSTS = {each: 10.0 * mask_sets.shape(each)[0] + mask_sets.shape(each)[1] for each in SCORES}
TABLE = regret.Table(SCORES, COSTS)


def test_the_smallest_and_the_cheapest():
    assert regret.smallest(TABLE, 0.9) == 2 and regret.cheapest(TABLE, 0.9) == 11
    assert regret.feasible(TABLE, 0.95) == ["11 11", "01 01"]
    assert math.isnan(regret.smallest(TABLE, 1.01)) and math.isnan(regret.cheapest(TABLE, 1.01))
    assert regret.smallest(TABLE, 0.951) == 4  # the requirement itself passes, a hair more does not


def test_the_smallest_need_not_be_the_cheapest():
    table = regret.Table({"111 1": 0.9, "10 1": 0.9}, {"111 1": 1.0, "10 1": 5.0})
    assert regret.smallest(table, 0.9) == 2 and regret.cheapest(table, 0.9) == 1


def test_regret_of_what_was_found():
    found = regret.regret(TABLE, "10 11", 0.9)
    assert found.size == 1 and found.cost == pytest.approx(12 / 11 - 1) and found.score == 0.0 and not found.violation
    violating = regret.regret(TABLE, "10 10", 0.9)
    assert violating == (0, 0.0, pytest.approx(0.55), True)
    assert math.isnan(regret.regret(TABLE, "10 11", 2.0).size)


def test_front_and_the_area_between_two():
    assert regret.front(SCORES) == {2: 0.95, 3: 0.9, 4: 1.0}
    assert regret.front_gap(TABLE, regret.front(SCORES)) == 0.0
    # found: nothing of two masks, 0.7 of three: (0.95 - 0) + (0.95 - 0.7) + (1 - 1)
    assert regret.front_gap(TABLE, {4: 1.0, 3: 0.7}) == pytest.approx(1.2)
    assert regret.front_gap(TABLE, {4: 1.0, 3: 0.7}, floor=0.8) == pytest.approx(0.3)


def test_a_failed_training_is_never_feasible():
    table = regret.Table(SCORES | {"01 01": math.nan}, COSTS)
    assert regret.smallest(table, 0.9) == 3 and regret.front(table.scores)[2] == 0.4
    assert regret.regret(table, "01 01", 0.1).violation


def test_anytime():
    held = [(0, 4), (10, 3), (30, 2)]
    found = regret.anytime(held, 2, horizon=40)
    assert found == ((2 * 10 + 1 * 20) / 40, 30)
    assert regret.anytime(held, 2, horizon=20) == ((2 * 10 + 1 * 10) / 20, 30)
    assert regret.anytime([(0, 3)], 2, horizon=5) == (1.0, math.inf)
    assert regret.anytime([(0, 2)], 2, horizon=5) == (0.0, 0.0)
    with pytest.raises(ValueError, match="`held`"):
        regret.anytime([(1, 3)], 2, horizon=5)


def test_steps():
    # from the whole network the best is to drop mask 1 (0.9); the others lead to 0.7, 0.5 and 0.6
    best = regret.step_quality(TABLE, "11 11", 1)
    assert best == (True, 0.0, 0.25, pytest.approx(0.9 - 0.675))
    worst = regret.step_quality(TABLE, "11 11", 4)
    assert not worst.hit and worst.regret == pytest.approx(0.3)
    with pytest.raises(ValueError, match="may go"):
        regret.step_quality(TABLE, "01 11", 0)


def test_one_at_a_time_misses_what_no_good_path_leads_to():
    # "01 01" scores 0.95, but both ways to it (0.7, 0.5) are not feasible at 0.9: the path ends at "10 11"
    assert regret.smallest(TABLE, 0.9) == 2 and regret.reachable(TABLE, 0.9) == 3
    assert regret.reachable(TABLE, 0.7) == 2  # through "01 11"
    assert regret.greedy_path(TABLE) == ["11 11", "10 11", "10 10"]
    assert regret.greedy_size(TABLE, 0.9) == 3 and regret.greedy_size(TABLE, 0.3) == 2
    assert math.isnan(regret.reachable(TABLE, 1.1)) and math.isnan(regret.greedy_size(TABLE, 1.1))


def test_agreement():
    assert regret.agreement([1, 2, 3], [0.1, 0.2, 0.9]) == (pytest.approx(1), pytest.approx(1))
    # one pair of six in the wrong order
    assert regret.agreement([1, 2, 3, 4], [1, 2, 4, 3]) == (pytest.approx(0.8), pytest.approx(4 / 6))
    assert all(map(math.isnan, regret.agreement([1, 1], [1, 2])))


def test_reliability_of_repeated_measurements(rng):
    truth = np.arange(40.0)
    assert regret.ceiling(np.stack([truth, truth])) == pytest.approx(1)
    assert regret.ceiling(np.stack([truth, -truth])) == 0
    # Signal and noise of equal variance: reliability near 1/2, of the mean of two near 2/3, its root 0.82, which is how
    # well the signal itself agrees with the mean.
    signal = rng.normal(size=4000)
    measured = signal + rng.normal(size=(2, 4000))
    assert regret.ceiling(measured) == pytest.approx(math.sqrt(2 / 3), abs=0.03)
    assert regret.agreement(signal, measured.mean(axis=0)).spearman == pytest.approx(regret.ceiling(measured), abs=0.03)
    with pytest.raises(ValueError, match="two measurements"):
        regret.ceiling(truth[None])


def test_a_table_says_what_it_lacks():
    with pytest.raises(KeyError, match="no network"):
        TABLE["11 00"]
    with pytest.raises(ValueError, match="`costs`"):
        regret.Table(SCORES, {})
