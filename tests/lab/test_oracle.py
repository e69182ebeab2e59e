"""The exhaustive study on a tiny network: every row is there, and an interruption changes none."""

import csv
import dataclasses
import importlib
import json
import shutil

import jax
import numpy as np
import pytest
from scipy import ndimage

import maskprune
from maskprune.lab import mask_sets


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("oracle")


@pytest.fixture(scope="module")
def tiny(program, tmp_path_factory):
    """Two masks and two, started from a network that answers edges: whether a random start learns would be luck."""
    noise = np.random.default_rng(5).normal(size=(6, 32, 32))
    smooth = np.stack([ndimage.gaussian_filter(each, 2.0) for each in noise])
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    np.savez(path, pictures=np.round(255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8))
    params = jax.tree.map(np.zeros_like, maskprune.models.fcn((2, 2), kernel=3).init(jax.random.key(0)))
    params["conv1"]["kernel"][1, :, 0, 0] = params["conv1"]["kernel"][:, 1, 0, 1] = [-1, 0, 1]
    params["conv2"]["kernel"][1, 1] = np.eye(2)
    params["conv3"]["kernel"][1, 1] = 1
    recipe = program.Recipe(crop=20, border=3, batch=2, first_steps=4, steps=3, optimizer="adam")
    config = program.Config(
        pictures=program.Pictures(data=path, size=32),
        recipe=recipe,
        widths=(2, 2),
        kernel=3,
        kinds=("ablation", "one-shot", "equal", "path"),
        replicates=2,
        beam=2,
        selectors=("magnitude-l1", "random"),
        quiet=True,
    )

    def start(out):
        for seed in (0, 1):
            maskprune.models.save(out / "parents" / f"seed-{seed}.npz", params)
        return dataclasses.replace(config, out=out)

    return start


@pytest.fixture(scope="module")
def finished(program, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("oracle")
    program.main(tiny(out))
    return out


def rows_of(out):
    """The rows without the time they took, in an order of their own."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in maskprune.Ledger.read(out / "rows.jsonl").rows]
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def test_every_subset_of_every_kind_is_there_once(finished):
    rows = rows_of(finished)
    for kind, orders in (("ablation", (0,)), ("one-shot", (0, 1)), ("equal", (0, 1))):
        for order in orders:
            found = [row for row in rows if row["kind"] == kind and row["replicate"] == order]
            assert sorted(row["alive"] for row in found) == sorted(mask_sets.every((2, 2)))
            removed = [4 - row["masks"] for row in found]
            steps = {"ablation": [0] * 9, "one-shot": [3] * 9, "equal": [3 * each for each in removed]}[kind]
            assert [row["steps"] for row in found] == steps
            assert all(row["multiply_adds"] == 9 * (a + a * b + b) for row in found for a, b in [row["shape"]])
    assert len([row for row in rows if row["kind"] == "control"]) == 2
    assert {row["selector"] for row in rows if row["kind"] == "selector"} == {"magnitude-l1", "random"}


def test_orders_of_the_data_differ_and_no_training_is_no_change(finished):
    rows = rows_of(finished)
    score = lambda kind, order, each: next(
        row["score"] for row in rows if (row.get("kind"), row.get("replicate"), row.get("alive")) == (kind, order, each)
    )
    assert score("one-shot", 0, "10 11") != score("one-shot", 1, "10 11")
    assert score("ablation", 0, "11 11") == score("parent", 0, "11 11")
    assert score("one-shot", 0, "11 11") == score("control", 0, "11 11")
    assert score("equal", 0, "01 11") == score("one-shot", 0, "01 11")  # one mask removed: one session


def test_paths_go_on_from_the_best(finished):
    rows = [row for row in rows_of(finished) if row["kind"] == "path" and row["replicate"] == 0]
    first = {row["alive"]: row for row in rows if row["masks"] == 3}
    assert len(first) == 4 and all(row["before"] == "11 11" for row in first.values())
    kept = sorted(first, key=lambda each: -first[each]["score"])[:2]
    assert [each for rank in (0, 1) for each in first if first[each]["rank"] == rank] == kept
    second = [row for row in rows if row["masks"] == 2]
    assert {row["before"] for row in second} == set(kept)
    ranked = [row["alive"] for row in second if row["rank"] is not None]
    assert len(ranked) == len(set(ranked)) == 2  # one of each set


@pytest.mark.rotating
@pytest.mark.parametrize("share", [0.6])
def test_an_interruption_changes_no_row(program, tiny, finished, tmp_path, share):
    shutil.copytree(finished / "beams", tmp_path / "beams")
    content = (finished / "rows.jsonl").read_bytes()
    (tmp_path / "rows.jsonl").write_bytes(content[: int(share * len(content))])  # in the middle of a line
    assert len(maskprune.Ledger.read(tmp_path / "rows.jsonl").rows) < len(rows_of(finished))
    program.main(tiny(tmp_path))
    assert rows_of(tmp_path) == rows_of(finished)


@pytest.mark.rotating
def test_more_may_be_asked_for_later_and_another_study_is_refused(program, tiny, finished, tmp_path):
    out = tmp_path / "more"
    shutil.copytree(finished, out)
    config = dataclasses.replace(tiny(out), kinds=("one-shot",), parents=2, replicates=1)
    program.main(config)
    kept, more = rows_of(finished), rows_of(out)
    assert [row for row in more if row["parent"] == 0] == kept
    assert len([row for row in more if row["parent"] == 1 and row["kind"] == "one-shot"]) == 9
    with pytest.raises(SystemExit, match="another config"):
        program.main(dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, steps=4)))


def test_a_report_is_written(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"report.html", "smallest.csv", "shapes.csv", "replayed.csv", "steps.csv", "reliability.csv"} <= names
    assert {"lattice.png", "front.png", "regret.png"} <= names
    rows = list(csv.DictReader((finished / "replayed.csv").read_text().splitlines()))
    assert {"random", "oracle greedy", "sequential", "ablation", "magnitude-l1"} == {row["strategy"] for row in rows}
    for row in csv.DictReader((finished / "smallest.csv").read_text().splitlines()):
        if row["kind"] != "path" and row["smallest"] != "nan":
            assert float(row["smallest"]) <= float(row["one_at_a_time"] or "inf")


@pytest.mark.rotating
def test_cut_out_and_from_scratch(program, tiny, tmp_path):
    """The other form, only the smallest networks, and fresh starts of every shape."""
    config = dataclasses.replace(
        tiny(tmp_path), form="compact", max_size=2, kinds=("one-shot", "scratch"), replicates=1, draws=2
    )
    program.main(config)
    rows = rows_of(tmp_path)
    assert {row["alive"] for row in rows if row["kind"] == "one-shot"} == set(mask_sets.every((2, 2), most=2))
    scratch = [row for row in rows if row["kind"] == "scratch"]
    assert [(row["parent"], row["alive"], row["steps"]) for row in scratch] == [(0, "10 10", 10), (1, "10 10", 10)]
    assert len({row["score"] for row in scratch}) == 2
    assert not (tmp_path / "replayed.csv").exists()  # that needs all of them


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"beam": 0}, "--beam is 0"),
        ({"widths": (9, 9)}, "enumerated"),
        ({"kernel": 4}, "odd"),
        ({"thresholds": ()}, "--thresholds is empty"),
    ],
)
def test_what_makes_no_sense_is_refused(program, tiny, tmp_path, change, complaint):
    with pytest.raises(SystemExit, match=complaint):
        program.main(dataclasses.replace(tiny(tmp_path), **change))


@pytest.mark.rotating
def test_searches_start_from_the_parents_and_go_on(finished, tmp_path):
    searches = importlib.import_module("searches")
    out = tmp_path / "searches"
    config = searches.Config((finished,), strategies=("random",), thresholds=(0.5,), out=out, quiet=True, parents=1)
    searches.main(config)
    summary = searches.main(dataclasses.replace(config, strategies=("random", "auto"), thresholds=(0.5, 1.0)))
    rows = maskprune.Ledger.read(out / "rows.jsonl").rows
    assert [(row["strategy"], row["threshold"]) for row in rows] == [
        ("random", 0.5), ("auto", 0.5), ("random", 1.0), ("auto", 1.0),
    ]  # fmt: skip
    assert all(row["score"] >= row["threshold"] * row["reference"] and 2 <= row["masks"] <= 4 for row in rows)
    assert len(summary) == 4 and (out / "summary.csv").exists() and (out / "searches.csv").exists()
    less = dataclasses.replace(config, sessions=0)
    with pytest.raises(SystemExit, match="another config"):
        searches.main(less)
    searches.main(dataclasses.replace(less, out=tmp_path / "less"))
    (row,) = maskprune.Ledger.read(tmp_path / "less" / "rows.jsonl").rows
    assert (row["rounds"], row["masks"], row["steps"]) == (0, 4, 0)
