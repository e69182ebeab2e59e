"""Rows, results and files of a run."""

import csv
import json
import math

import jax
import numpy as np
import optax
import pytest

import maskprune
from maskprune import record
from maskprune.base.files import replace_file


@pytest.fixture(scope="module")
def rounds():
    model = maskprune.models.fcn((3, 2))
    network = maskprune.init_network(model.init(jax.random.key(0)), model.groups)
    optimizer = optax.sgd(0.1)
    report = maskprune.SessionReport(np.zeros(4, np.float32), True, "", 0.1)
    scores = iter([1.0, 0.99, 0.5, 0.5, 0.5, 0.5])
    return list(
        maskprune.minimize(
            jax.random.key(1),
            maskprune.init_state(network, optimizer),
            train=lambda key, state: (state, report),
            evaluate=lambda state: {"score": next(scores), "relative_rmse": 0.1},
            optimizer=optimizer,
            selector=maskprune.select.sequential(),
            limits=maskprune.Limits(rounds=2),
        )
    )


def test_rows_give_the_size_of_the_network_that_was_judged(rounds):
    rows = [record.history_row(each, size=record.fcn_size, spent=10) for each in rounds]
    assert [row["verdict"] for row in rows] == ["reference", "accepted", "refused"]
    assert [row["chosen"] for row in rows] == ["", "conv1[0]", "conv1[1]"]
    assert [(row["masks_conv1"], row["masks_conv2"]) for row in rows] == [(3, 2), (2, 2), (1, 2)]
    assert [row["multiply_adds"] for row in rows] == [25 * (a + a * 2 + 2) for a in (3, 2, 1)]
    assert [row["total_steps"] for row in rows] == [10, 14, 14]


def test_csv_keeps_every_column_and_leaves_lists_out(tmp_path):
    rows = [{"a": 1, "enabled": [True]}, {"a": 2, "b": "x, y"}]
    path = record.write_csv(tmp_path / "history.csv", rows)
    assert list(csv.DictReader(path.read_text().splitlines())) == [{"a": "1", "b": ""}, {"a": "2", "b": "x, y"}]


def test_json_is_plain_and_strict(tmp_path):
    value = {"n": np.float32(0.5), "bad": math.nan, "flags": np.array([True]), "path": tmp_path, "none": None, 3: (1,)}
    found = json.loads(record.write_json(tmp_path / "result.json", value).read_text())
    assert found == {"n": 0.5, "bad": None, "flags": [True], "path": str(tmp_path), "none": None, "3": [1]}


def test_files_are_replaced_whole(tmp_path):
    path = replace_file(tmp_path / "new" / "file", b"first")
    assert path.read_bytes() == b"first"
    with pytest.raises(TypeError):
        replace_file(path, "not bytes")
    assert path.read_bytes() == b"first"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_inference_is_timed_for_every_network():
    model = maskprune.models.fcn((2, 2))
    params = model.init(jax.random.key(0))
    times = record.time_inference([(model.apply, params)] * 2, jax.numpy.zeros((1, 16, 16, 1)), repeats=3)
    assert len(times) == 2 and min(times) > 0


def test_facts_of_the_machine_are_words():
    assert record.versions()["jax"] == jax.__version__
    assert record.device().startswith(jax.default_backend())
