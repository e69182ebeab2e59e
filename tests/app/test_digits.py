"""The fine-tuning example, run as a user runs it, with a tiny network and few steps."""

import importlib.util
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import maskprune as mp


PROGRAM = Path(__file__).parents[2] / "experiments" / "digits.py"
METHODS = ("taylor", "uniform", "none")

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def program():
    spec = importlib.util.spec_from_file_location("digits_program", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_split_is_fixed_and_takes_every_picture_once(program):
    parts = program.load_digits()
    assert [len(part.labels) for part in parts.values()] == [1078, 359, 360]
    rows = np.concatenate([np.asarray(part.pictures).reshape(-1, 64) for part in parts.values()])
    assert len(np.unique(rows, axis=0)) == 1797
    assert rows.min() == 0
    assert rows.max() == 1


def two_groups() -> mp.Network:
    params = {"a": jnp.ones((2, 4)), "b": jnp.ones((4, 8)), "c": jnp.ones((8, 1))}
    apply = lambda params, x: jnp.maximum(jnp.maximum(x @ params["a"], 0) @ params["b"], 0) @ params["c"]
    return mp.init_network(params, mp.trace(apply, params, jnp.ones((1, 2)))), mp.cost(apply, params, jnp.ones((1, 2)))


def test_remove_stops_at_the_limit_and_leaves_the_last_of_a_group(program):
    network, found = two_groups()
    assert found.multiply_adds == 2 * 4 + 4 * 8 + 8
    order = [("a", number) for number in range(4)] + [("b", number) for number in range(8)]
    left = mp.count_enabled(program.remove(network, order, found, limit=13))
    assert left == {"a": 1, "b": 5}  # 2 + 5 + 5 multiply-adds; one mask more would be 14
    assert mp.count_enabled(program.remove(network, order, found, limit=48)) == {"a": 4, "b": 8}


def test_seeds_that_are_finished_are_not_run_again(program, tmp_path, monkeypatch):
    asked = []

    def run_seed(config, full, data, seed):
        asked.append(seed)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        return [{"seed": seed, "method": "none"}]

    monkeypatch.setattr(program, "run_seed", run_seed)
    config = program.Config(widths=(2, 2, 2), blocks=1, seeds=2, out=tmp_path)
    with pytest.raises(SystemExit) as stopped:
        program.main(config)
    assert stopped.value.code == 130 and not (tmp_path / "result.json").exists()
    assert [row["seed"] for row in program.main(config)["rows"]] == [0, 1]
    assert asked == [0, 1, 1]


@pytest.mark.slow
def test_a_run_prunes_to_the_share_and_writes_what_it_found(program, tmp_path):
    config = program.Config(
        methods=METHODS, epochs=(2, 1, 1), rounds=2, widths=(4, 8, 8), blocks=1, timings=3, out=tmp_path
    )
    result = program.main(config)
    assert [row["method"] for row in result["rows"]] == list(METHODS)
    *pruned, whole = result["rows"]
    for row in pruned:
        assert 0.4 * result["multiply_adds"] < row["multiply_adds"] <= 0.5 * result["multiply_adds"]
        assert row["parameters"] < result["parameters"]
        assert row["masked_and_compact_differ_by"] < 1e-4
        assert row["accuracy_after"] > 0.3  # of ten classes
    assert (whole["multiply_adds"], whole["parameters"]) == (result["multiply_adds"], result["parameters"])
    assert whole["accuracy_before"] == pruned[0]["accuracy_before"]
    assert json.loads((tmp_path / "result.json").read_text("utf-8"))["rows"][0]["masks"] == pruned[0]["masks"]
