"""The studies, run as a user runs them on tiny pictures: what they write, and that a stop changes nothing."""

import csv
import importlib
import itertools
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from toys import smooth_pictures

from maskprune.app.protocol import Pictures, Recipe
from maskprune.app.studies import Options


# Enough for most starts to learn a threshold; Adam, because it compiles faster.
ROUGH = {"optimizer": "adam", "batch": 4, "crop": 24, "border": 2, "first_steps": 200, "steps": 10, "final_steps": 10}


@pytest.fixture(scope="module", autouse=True)
def one_by_one():
    """Members are trained one after another, as larger batches are: one program for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskprune.train.batching.CACHE", 0)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return smooth_pictures(tmp_path_factory.mktemp("data") / "pictures.npz", 32)


@pytest.fixture(scope="module")
def tiny(pictures, tmp_path_factory):
    """`tiny(name, **own)` is a study's program and a configuration that takes seconds."""

    def make(name, *, networks=2, out=None, recipe=(), **own):
        program = importlib.import_module(name)
        options = Options(
            pictures=Pictures("threshold", pictures, size=32),
            out=out or tmp_path_factory.mktemp(name),
            recipe=Recipe(**{**ROUGH, **dict(recipe)}),
            networks=networks,
            widths=(2, 2),
            kernel=3,
            quiet=True,
        )
        return program, program.Config(options=options, **own)

    return make


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def numbers(rows):
    """Every number of a table, but the times."""
    return [[value for name, value in row.items() if "seconds" not in name] for row in rows]


ASKED = ("cosine-max", "magnitude-l1", "ablation", "probe", "random")  # that all are known: test_experiment.py
OWN = {
    "correlations": {"replicates": 2, "selectors": ASKED},
    "worth": {},
    "grid": {"threshold": 0.9},
    "strategies": {"strategies": ("random", "uniform"), "thresholds": (0.9,)},
}


@pytest.fixture(scope="module")
def finished(tiny):
    """`finished(name)` is the folder and the result of a study of two networks; each is run once."""
    known = {}

    def run(name):
        if name not in known:
            program, config = tiny(name, **OWN[name])
            known[name] = (config.options.out, program.main(config), config)
        return known[name]

    return run


def ledgers(out):
    return sorted(out.rglob("rows.jsonl"))


RESUMED = [name if name in ("worth", "correlations") else pytest.param(name, marks=pytest.mark.slow) for name in OWN]


@pytest.mark.rotating
@pytest.mark.parametrize("name", RESUMED)
def test_a_study_goes_on_where_it_stopped(tiny, finished, name, tmp_path, monkeypatch):
    out, result, _ = finished(name)
    for path in ledgers(out):  # what a stop in the second network leaves
        stopped = tmp_path / path.relative_to(out)
        stopped.parent.mkdir(exist_ok=True)
        stopped.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + b'{"seed": 1, "ma')
    program, config = tiny(name, out=tmp_path, **OWN[name])
    again = program.main(config)
    assert numbers(again) == numbers(result)
    for path in out.glob("*.csv"):
        assert numbers(read(path)) == numbers(read(tmp_path / path.name)), path.name

    monkeypatch.setattr("maskprune.run_together", None)  # a finished study trains nothing
    before = (tmp_path / "report.html").read_bytes()
    program.main(config)
    assert (tmp_path / "report.html").read_bytes() == before


@pytest.mark.rotating
@pytest.mark.parametrize("name", OWN)
def test_a_page_with_its_tables_and_pictures_is_left(finished, name):
    out, _, config = finished(name)
    page = (out / "report.html").read_text("utf8")
    assert f"python experiments/{name}.py" in page and "checksum" in page
    for path in [*out.glob("*.csv"), *(out / "pictures").glob("*.png")]:
        assert path.stat().st_size > 100
        assert path.suffix == ".png" or path.name in page or path.stem in ("masks", "searches")
    rows = [json.loads(line) for path in ledgers(out) for line in path.read_text().splitlines()[1:]]
    assert [row["seed"] for row in rows] == [0, 1] == list(range(config.options.networks))


def test_another_study_in_the_same_folder_is_refused(tiny, finished):
    out, _, _ = finished("worth")
    program, config = tiny("worth", out=out, recipe={"steps": 21})
    with pytest.raises(SystemExit, match=r"worth\.py: .*another config"):
        program.main(config)


@pytest.mark.parametrize(
    ("name", "own", "words"),
    [
        ("correlations", {"replicates": 0}, "--replicates"),
        ("grid", {"threshold": 1.5}, "--threshold"),
        ("strategies", {"strategies": (), "thresholds": (0.9,)}, "--strategies"),
        ("strategies", {"strategies": ("random",), "thresholds": (2.0,)}, "--thresholds"),
        ("worth", {"networks": 0}, "--networks"),
    ],
)
def test_bad_options_are_refused_before_any_work(tiny, name, own, words, tmp_path):
    program, config = tiny(name, out=tmp_path / "out", **own)
    with pytest.raises(SystemExit, match=words):
        program.main(config)
    assert not (tmp_path / "out").exists()


def test_correlations_hold_every_selector_and_every_way(finished):
    out, masks, _ = finished("correlations")
    names = ASKED
    assert {row["selector"] for row in read(out / "selectors.csv")} == set(names)
    assert len(masks) == 8 and all(math.isfinite(mask[name]) for mask in masks for name in names)
    for table, parts in (("within", 1), ("pooled", 1), ("layers", 2)):
        rows = read(out / f"{table}.csv")
        assert len(rows) == parts * 2 * len(names)
        for method in ("pearson", "kendall", "spearman"):
            assert {f"{method}{part}" for part in ("", "_low", "_high", "_p", "_p_holm", "_n")} <= rows[0].keys()
    row = next(row for row in read(out / "pooled.csv") if (row["outcome"], row["selector"]) == ("drop", "magnitude-l1"))
    known = stats.kendalltau([mask["magnitude-l1"] for mask in masks], [mask["drop"] for mask in masks]).statistic
    assert float(row["kendall"]) == pytest.approx(known)


def test_correlations_know_what_they_say_of_a_mask(finished):
    _, masks, _ = finished("correlations")
    for mask in masks:
        assert mask["best"] == pytest.approx((mask["best_1"] + mask["best_2"]) / 2)
        assert mask["drop"] <= 1
    assert any(mask["best_1"] != mask["best_2"] for mask in masks)  # another order of the data


def test_halves_of_the_replicates_agree_as_far_as_there_is_something_to_agree_on():
    correlations = importlib.import_module("correlations")
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(40, 10, 4))
    rows = lambda best: [
        {"network": network, **{f"best_{r + 1}": float(best[network, mask, r]) for r in range(4)}}
        for network in range(40) for mask in range(10)
    ]  # fmt: skip
    assert abs(correlations.halves(rows(noise), 4)) < 0.1
    signal = np.repeat(rng.normal(size=(40, 10, 1)), 4, axis=2)
    # Signal and noise of equal variance: means of two have a reliability of 2/3, Spearman's rho a little less.
    assert correlations.halves(rows(signal + noise), 4) == pytest.approx(0.65, abs=0.06)


def test_the_ceiling_is_the_root_of_the_reliability():
    """Outcomes with as much noise as truth: one has reliability 1/2, the mean of two 2/3."""
    program, rng = importlib.import_module("correlations"), np.random.default_rng(0)
    masks = []
    for network in range(30):
        truth = rng.normal(size=20)
        first, second = truth + rng.normal(size=20), truth + rng.normal(size=20)
        masks += [{"network": network, "best_1": a, "best_2": b} for a, b in zip(first, second, strict=True)]
    found = program.ceiling(masks, 2)
    assert found.value == pytest.approx(math.sqrt(2 / 3), abs=0.03) and found.low < found.value < found.high
    assert program.ceiling(masks, 1) is None


def test_a_mask_that_is_what_it_was_is_like_itself():
    likeness = importlib.import_module("worth").likeness
    past = np.array([[3.0, 4.0], [4.0, -3.0]])
    assert likeness(past, past[0], 0) == {"like_itself": 1.0, "distance": 0.0, "like_another": 0.0, "nearest": 1.0}
    swapped = likeness(past, 2 * past[1], 0)
    assert swapped["like_another"] == pytest.approx(1.0) and swapped["like_itself"] == pytest.approx(0.0)
    assert swapped["nearest"] == 0.0 and swapped["distance"] == pytest.approx(math.sqrt(25 + 100) / 5)
    assert likeness(past, np.zeros(2), 0)["distance"] == 1.0 and likeness(past, np.zeros(2), 0)["like_itself"] == 0.0


def test_worth_asks_every_mask_by_every_test(finished):
    out, masks, _ = finished("worth")
    asked = {(mask["test"], mask["network"], mask["layer"], mask["mask"]) for mask in masks}
    tests = ("zeroed", "disabled", "zeroed alone", "control")
    assert asked == set(itertools.product(tests, (0, 1), ("conv1", "conv2"), (0, 1)))
    for mask in masks:
        assert ("like_itself" in mask) == (mask["test"] != "disabled")
        if mask["test"] == "control":
            assert mask["drop"] == 0.0 == mask["loss"] and mask["before"] == mask["at_once"]
    row = next(row for row in read(out / "worth.csv") if (row["test"], row["layer"]) == ("disabled", "all"))
    disabled = [mask["loss"] for mask in masks if mask["test"] == "disabled"]
    assert float(row["loss"]) == pytest.approx(np.mean(disabled)) and row["masks"] == "8" and row["networks"] == "2"


def test_the_grid_has_every_size_and_equal_budgets_are_equal(finished):
    out, table, _ = finished("grid")
    assert [row["widths"] for row in read(out / "cells.csv")] == ["1+1", "1+2", "2+1", "2+2"]
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()[1:]]
    for row in rows:
        assert {cell["steps"] for cell in row["full"] if cell["learned"]} <= set(range(210, 500))
        assert all(cell["steps"] >= row["search"]["steps"] // 4 for cell in row["equal"])
    assert [row["way"] for row in table][:3] == [
        "grid, every size fully trained", "grid, for the steps of one search", "one search"]  # fmt: skip
    assert table[0]["seeds"] == 2


def test_the_grid_takes_the_smallest_that_is_good_enough():
    best_cell = importlib.import_module("grid").best_cell
    cells = [{"widths": w, "score": s} for w, s in (([1, 1], 0.5), ([1, 2], 0.91), ([2, 1], 0.93), ([2, 2], 1.0))]
    assert best_cell(cells, 0.9)["widths"] == [2, 1]
    assert best_cell(cells, 0.95)["widths"] == [2, 2] and best_cell(cells, 0.5)["widths"] == [1, 1]


def test_a_narrow_start_is_the_small_network(tiny):
    import jax

    import maskprune as mp
    from maskprune.app import protocol, studies
    from maskprune.app.setup import load_data, set_up

    _, config = tiny("grid")
    options = config.options
    recipe = protocol.fill_in(options.recipe, "study", options.pictures)
    setup = set_up(load_data(options.pictures), mp.models.fcn((2, 2), kernel=3), recipe)
    study = studies.Study(options.out, options, setup, None, None)
    network = studies.narrow(study, (1, 2), jax.random.key(3)).network
    small = mp.models.fcn((1, 2), kernel=3).init(jax.random.key(3))
    assert mp.count_enabled(network) == {"conv1": 1, "conv2": 2}
    jax.tree.map(np.testing.assert_array_equal, mp.record.small_fcn(network), small)


def test_strategies_name_what_they_found(finished):
    out, searches, _ = finished("strategies")
    assert {(each["strategy"], each["network"]) for each in searches} == set(
        itertools.product(("random", "uniform"), (0, 1))
    )
    for each in searches:
        assert each["masks"] == sum(map(int, each["widths"].split("+"))) and each["steps"] >= 210
        assert each["ratio"] == pytest.approx(each["score"] / each["initial"])
    starts = {(each["network"], each["initial"]) for each in searches}
    assert len(starts) == 2  # all strategies search from the same network
    row = read(out / "summary.csv")[0]
    counts = [int(part.partition("×")[2]) for part in row["sizes"].split(", ")]
    assert sum(counts) == 2 == int(row["networks"])
    assert float(row["masks_low"]) <= float(row["masks"]) <= float(row["masks_high"])
    assert [row["strategy"] for row in read(out / "against_random.csv")] == ["uniform"]


@pytest.mark.parametrize(("strategy", "candidates", "steps"), [("auto", 4, 200), ("one-by-one", 1, None)])
def test_a_search_of_a_study_goes_as_its_strategy_says(monkeypatch, strategy, candidates, steps):
    studies, asked = importlib.import_module("maskprune.app.studies"), {}
    monkeypatch.setattr("maskprune.search", lambda *args, **how: asked.update(how))
    nothing = types.SimpleNamespace(evaluate=None, trouble=None, init=None)
    setup = types.SimpleNamespace(task=nothing, model=nothing, optimizer=None, start=None)
    recipe = Recipe(strategy=strategy, reference="best", first_steps=1, steps=5, final_steps=1)
    study = types.SimpleNamespace(setup=setup, recipe=recipe)
    with pytest.raises(KeyboardInterrupt):  # nothing was found
        studies.search(study, None, None, selector=None, sample=None, threshold=0.9)
    assert (asked["rules"].candidates, asked["limits"].steps) == (candidates, steps)
    assert asked["rules"].threshold == 0.9 and asked["rules"].reference == "best" and callable(asked["plan"])


def test_a_repair_counts_the_steps_until_the_score_is_back():
    repairs = importlib.import_module("repairs")
    found = repairs.outcome([0.4, 0.5, 0.76, 0.7, 0.8, 0.79], 0.8, 0.95, 400)
    assert found == {"at_once": 0.5, "after": pytest.approx(0.9875), "steps": 100.0, "recovered": 1.0}
    assert repairs.outcome([0.8] * 6, 0.8, 0.95, 400)["steps"] == 0
    assert repairs.outcome([0.1] * 6, 0.8, 0.95, 400) == {
        "at_once": pytest.approx(0.125), "after": pytest.approx(0.125), "steps": 800, "recovered": 0.0,
    }  # fmt: skip
    mask = lambda name, number, once: {"repair": name, "layer": "a", "mask": number, "at_once": once}
    rows = [
        {
            "seed": 3,
            "masks": [mask("none", 0, 0.5), mask("bias", 0, 0.999), mask("none", 1, 0.99), mask("bias", 1, 0.2)],
        }
    ]
    assert [(row["repair"], row["mask"]) for row in repairs.flat(rows)] == [("none", 0), ("bias", 0)]


@pytest.mark.slow
def test_every_repair_is_measured_on_the_same_masks(tiny):
    program, config = tiny("repairs")
    masks = program.main(config)
    rows = read(config.options.out / "repairs.csv")
    assert [row["repair"] for row in rows] == list(program.REPAIRS)
    assert len({row["masks"] for row in rows}) == 1 and len(masks) == 5 * int(rows[0]["masks"])


@pytest.mark.rotating
def test_the_reset_is_compared_mask_by_mask(tiny):
    program, config = tiny("reset")
    table = program.main(config)
    assert [row["share of the session"] for row in table] == list(program.LOOKS)
    assert all(row["masks"] == 8 and row["networks"] == 2 for row in table)
    last = table[-1]
    assert last["fresh - kept"].value == pytest.approx(last["fresh"].value - last["kept"].value)
    assert last["fresh"].value != last["kept"].value  # another optimizer, another network
