"""Searches beside the oracle's tables: what is a regret, what is undecided, and that every strategy runs."""

import importlib
import typing

import pytest


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("searches")


def row(masks, *, parent=0, threshold=0.9, score=0.95, steps=1000):
    return {
        "strategy": "auto",
        "parent": parent,
        "threshold": threshold,
        "masks": masks,
        "score": score,
        "reference": 1.0,
        "steps": steps,
        "relative_rmse": 0.05,
        "seconds": 1.0,
    }


def tried(masks, score, parent=0, kind="one-shot"):
    return {"parent": parent, "kind": kind, "masks": masks, "score": score}


TABLE = [tried(2, 0.2), tried(3, 0.91), tried(3, 0.7), tried(4, 0.99), tried(2, 1.0, kind="ablation"), tried(2, 1.0, 1)]


@pytest.mark.parametrize(
    ("found", "smallest", "regret", "known"),
    [
        (row(3), 3, 0, True),
        (row(5), 3, 2, True),
        (row(2), 3, -1, True),  # a search may train better than the table
        (row(4, threshold=0.995), ">=5", -1, True),
        (row(5, threshold=0.995), ">=5", 0, True),
        (row(7, threshold=0.995), ">=5", 2, False),  # what 5 and 6 masks reach, nobody knows
    ],
)
def test_regret_against_the_table_of_the_same_parent(program, found, smallest, regret, known):
    (got,) = program.compare([found], TABLE, first_steps=140)
    assert (got["smallest"], got["known"]) == (smallest, known)
    assert got["regret"] == regret or not known
    assert got["protocol_share"] == pytest.approx(1140 / 114_000)


def test_a_table_that_was_cut_short_tells_nothing_of_that_size(program):
    table = [
        tried(2, 0.2) | {"alive": "10 10"},
        tried(3, 0.91) | {"alive": "11 10"},
        tried(3, 0.7) | {"alive": "10 11"},
    ]
    known = lambda usable: program.compare([row(3)], table, first_steps=0, usable=usable)[0]["smallest"]
    assert known({2: 1, 3: 2, 4: 1}) == 3
    assert known({2: 1, 3: 4, 4: 1}) == ">=3" and known({2: 4, 3: 2, 4: 1}) == ">=2"
    missing = program.compare([row(5, threshold=0.99)], table, first_steps=0, usable={2: 1, 3: 2, 4: 1})[0]
    assert missing["smallest"] == ">=4" and not missing["known"]


def test_the_summary_counts_parents_and_leaves_out_what_is_undecided(program):
    rows = [row(3), row(5, parent=1), row(9, threshold=0.995), row(2, parent=2)]
    tables = [*TABLE, *(each | {"parent": 2} for each in TABLE[:4])]
    summary = {each["threshold"]: each for each in program.summarize(program.compare(rows, tables, first_steps=0))}
    ours = summary[0.9]
    assert ours["parents"] == 3 and ours["undecided"] == 0 and ours["smaller than the table"] == 1
    share = ours["no regret"]
    assert share.value == pytest.approx(2 / 3) and share.low <= 2 / 3 <= share.high
    assert ours["regret"].value == pytest.approx(1.0)  # 0, 3 and none below zero
    assert summary[0.995]["undecided"] == 1 and summary[0.995]["parents"] == 0


def test_every_strategy_has_a_name_and_a_plan(program):
    from maskprune import strategies
    from maskprune.app import protocol

    assert set(typing.get_args(protocol.StrategyName)) == protocol.STRATEGIES.keys()
    for strategy in protocol.STRATEGIES.values():
        assert callable(strategy.plan(strategies)) and strategy.selector in typing.get_args(protocol.SelectorName)
