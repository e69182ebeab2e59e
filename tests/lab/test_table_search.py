"""Replayed searches follow the rules of `minimize`, on a table whose answers are known by hand."""

import math

import numpy as np
import pytest
from test_regret import COSTS, SCORES, TABLE

from maskprune.lab import mask_sets, regret, table_search
from maskprune.minimizer.rounds import Rules


def ended(policy, table=TABLE, **rules):
    return table_search.found(table_search.replay(policy, table, Rules(**rules), reference=1.0), table.whole)


def test_layer_by_layer():
    trials = table_search.replay(table_search.sequential, TABLE, Rules(threshold=0.65), reference=1.0, steps=10)
    # mask 0 goes (0.7), then in "01 11" mask 3 may go ("01 01", 0.95)
    assert [(t.held, t.mask, t.alive, t.score, t.accepted, t.steps) for t in trials] == [
        ("11 11", 0, "01 11", 0.7, True, 10),
        ("01 11", 3, "01 01", 0.95, True, 20),
    ]
    assert table_search.course(trials, "11 11") == [(0, 4), (10, 3), (20, 2)]


def test_refused_masks_come_again_after_an_acceptance_or_never():
    # At 0.75: mask 0 refused (0.7), mask 1 goes (0.9); in "10 11" mask 3 ("10 01", 0.3) and 4 (0.4) are refused.
    trials = table_search.replay(table_search.sequential, TABLE, Rules(threshold=0.75), reference=1.0)
    assert [(t.mask, t.accepted) for t in trials] == [(0, False), (1, True), (3, False), (4, False)]
    first = table_search.by_scores([[3, 2], [0, 1]])  # masks of layer 2 first
    again = table_search.replay(first, TABLE, Rules(threshold=0.75), reference=1.0)
    assert [t.mask for t in again] == [3, 4, 1, 3, 4]
    never = table_search.replay(first, TABLE, Rules(threshold=0.75, retry="never"), reference=1.0)
    assert [t.mask for t in never] == [3, 4, 1]


def test_references():
    table = regret.Table(SCORES | {"10 10": 0.82}, COSTS)
    assert ended(table_search.sequential, table, threshold=0.9) == "10 11"
    assert ended(table_search.sequential, table, threshold=0.9, reference="previous") == "10 10"  # 0.82 >= 0.9 * 0.9
    assert ended(table_search.sequential, table, threshold=0.9, reference="best") == "10 11"
    better = regret.Table(SCORES | {"10 11": 1.2, "10 10": 0.95}, COSTS)
    assert ended(table_search.sequential, better, threshold=0.9) == "10 10"
    assert ended(table_search.sequential, better, threshold=0.9, reference="best") == "10 11"  # 0.95 < 0.9 * 1.2


def test_several_candidates_take_the_best_and_cost_their_steps():
    trials = table_search.replay(
        table_search.sequential, TABLE, Rules(threshold=0.9, candidates=2), reference=1.0, steps=5
    )
    assert [(t.mask, t.accepted, t.steps) for t in trials] == [(1, True, 10), (4, False, 20)]


def test_nothing_is_accepted_and_failed_training_is_not():
    assert ended(table_search.sequential, threshold=1.0) == "11 11"
    broken = regret.Table(SCORES | {"10 11": math.nan}, COSTS)
    assert ended(table_search.sequential, broken, threshold=0.9) == "11 11"


def test_policies_order_all_masks_that_may_go():
    scores = [[0.3, np.nan], [0.1, 0.1]]
    assert table_search.by_scores(scores)("11 11") == [3, 4, 0, 1]
    assert table_search.best_first(TABLE)("11 11") == [1, 0, 4, 3]
    orders = [table_search.shuffled(seed)("111 111") for seed in range(200)]
    assert all(sorted(order) == mask_sets.removable("111 111") for order in orders)
    assert orders[3] == table_search.shuffled(3)("111 111")
    counts = np.bincount([order[0] for order in orders], minlength=7)
    assert counts[3] == 0 and counts[[0, 1, 2, 4, 5, 6]].min() > 15


def test_a_greedy_search_that_knows_is_the_greedy_path():
    for required in (0.3, 0.6, 0.9):
        trials = table_search.replay(table_search.best_first(TABLE), TABLE, Rules(threshold=required), reference=1.0)
        assert mask_sets.count(table_search.found(trials, "11 11")) == regret.greedy_size(TABLE, required)


def test_no_policy_ends_below_what_is_reachable(rng):
    sets = mask_sets.every((3, 3))
    for seed in range(30):
        table = regret.Table(dict(zip(sets, rng.uniform(size=49), strict=True)), dict.fromkeys(sets, 1.0))
        score = table[table.whole]
        found = table_search.replay(table_search.shuffled(seed), table, Rules(threshold=0.5), reference=score)
        least = regret.reachable(table, 0.5 * score)
        assert regret.smallest(table, 0.5 * score) <= least
        assert least <= mask_sets.count(table_search.found(found, table.whole))


def test_rules_a_table_cannot_follow_are_refused():
    for rules in (Rules(control=True), Rules(count=2), Rules(min_enabled=0), Rules(layers=True), Rules(share=0.5)):
        with pytest.raises(ValueError, match="`rules"):
            table_search.replay(table_search.sequential, TABLE, rules, reference=1.0)
    assert ended(table_search.sequential, threshold=0.1, min_enabled=2) == "11 11"


def test_a_table_of_small_ones_says_so():
    small = regret.Table({each: 1.0 for each in ("11 11", "01 01")}, COSTS)
    with pytest.raises(KeyError, match="cut to small ones"):
        ended(table_search.sequential, small)
