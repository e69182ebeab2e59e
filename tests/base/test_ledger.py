"""A study's rows survive crashes, and two studies never mix."""

import json

import numpy as np
import pytest

from maskprune.base.ledger import Ledger


ABOUT = {"config": {"task": "sobel", "seeds": 3}, "versions": {"jax": "1"}}


def test_a_study_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    Ledger.open(path, ABOUT).add([{"seed": 0, "alive": "0110", "score": 0.5}])
    again = Ledger.open(path, ABOUT | {"versions": {"jax": "2"}})
    again.add([{"seed": 1, "alive": "1110", "score": float("nan")}])
    found = Ledger.read(path)
    assert found.about == ABOUT  # of the one who began
    assert [row["alive"] for row in found.rows] == ["0110", "1110"] and np.isnan(found.rows[1]["score"])
    assert again.find(seed=0) == found.find(seed=0) == [{"seed": 0, "alive": "0110", "score": 0.5}]
    assert found.find(seed=0, alive="1110") == []


@pytest.mark.parametrize("cut", [2, 5, 20])
def test_a_line_cut_short_is_dropped_and_the_next_one_is_whole(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    Ledger.open(path, ABOUT).add([{"seed": 0}, {"seed": 1, "more": "x" * 30}])
    path.write_bytes(path.read_bytes()[:-cut])
    again = Ledger.open(path, ABOUT)
    assert again.rows == [{"seed": 0}]
    again.add([{"seed": 2}])
    assert Ledger.read(path).rows == [{"seed": 0}, {"seed": 2}]


def test_another_study_is_refused_by_what_differs(tmp_path):
    path = tmp_path / "rows.jsonl"
    Ledger.open(path, ABOUT).add([{"seed": 0}])
    with pytest.raises(ValueError, match="seeds is 3, not 4"):
        Ledger.open(path, {"config": {"task": "sobel", "seeds": 4}})
    assert Ledger.read(path).rows == [{"seed": 0}]


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("seed,score\n1,2\n")
    with pytest.raises(ValueError, match="no record of a run"):
        Ledger.open(path, ABOUT)
    assert path.read_text() == "seed,score\n1,2\n"


def test_an_altered_line_is_passed_over_and_the_others_count(tmp_path):
    path = tmp_path / "rows.jsonl"
    Ledger.open(path, ABOUT).add([{"seed": seed, "score": 0.25} for seed in range(3)])
    content = path.read_bytes()
    at = content.index(b'"seed": 1') + 8
    path.write_bytes(content[:at] + b"7" + content[at + 1 :])  # one digit, and still sound JSON
    found = Ledger.open(path, ABOUT)
    assert [row["seed"] for row in found.rows] == [0, 2] and found.damaged == [3]
    found.add([{"seed": 3, "score": 0.25}])
    assert [row["seed"] for row in Ledger.read(path).rows] == [0, 2, 3]


def test_every_altered_byte_of_a_ledger_is_found_or_harmless(tmp_path):
    path = tmp_path / "rows.jsonl"
    ledger = Ledger.open(path, ABOUT)
    ledger.add([{"seed": 1, "score": 0.1}, {"seed": 2, "score": float("nan")}])
    content, sound = path.read_bytes(), [json.dumps(row) for row in ledger.rows]
    for at in range(len(content)):
        for bit in (1, 16, 128):
            path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
            try:
                found = Ledger.read(path)
            except ValueError:
                continue
            assert found.about == ABOUT and all(json.dumps(row) in sound for row in found.rows)
