"""The benchmarks run, write what they promise, and their page says what the results say. Nothing is timed here."""

import importlib
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "benchmarks"
FACTS = {"device", "versions", "precision", "convolution", "rows"}


@pytest.fixture
def program(monkeypatch):
    """A benchmark as a module, found as Python finds it when the file is run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def run(program, monkeypatch, tmp_path):
    """Runs a benchmark's main with these arguments; what it wrote."""

    def run(name, *arguments):
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--json", str(out), *map(str, arguments)])
        program(name).main()
        return json.loads(out.read_text("utf-8"))

    return run


def page(program, monkeypatch, results, out):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--results", str(results), "--out", str(out)])
    program("tables").main()
    return (out / "README.md").read_text("utf-8")


def test_a_peer_of_less_precision_is_not_the_best(program):
    assert program("train_step").is_peer("PyTorch 2, eager") and not program("train_step").is_peer("PyTorch 2, TF32")
    rows = [{"name": name, "median_ms": time} for name, time in [("maskprune", 1), ("a, TF32", 2), ("a", 3)]]
    assert program("tables").best_peer(rows)["name"] == "a"


@pytest.mark.rotating
def test_train_step(run):
    found = run("train_step", "--sizes", 16, "--batch", 1, "--steps", 2, "--repeats", 1, "--optimizers", "adam")
    assert found.keys() == {*FACTS, "speedup_vs_best"}
    first, *rest = found["rows"]
    assert first["name"].startswith("maskprune")
    assert (first["size"], first["ratio_to_first"]) == (16, 1)
    assert found["speedup_vs_best"]["16"] == min(
        row["ratio_to_first"] for row in rest if not row["name"].startswith("maskprune")
    )
    assert all(row["median_ms"] > 0 and row["spread"] >= 1 and row["compile_s"] > 0 for row in found["rows"])


def test_inference(run):
    found = run("inference", "--sizes", 16, "--widths", 4, "--calls", 1, "--repeats", 1)
    assert found.keys() == FACTS
    full, masked, small = found["rows"]
    assert [row["name"] for row in found["rows"]] == ["full", "masked", "compacted"]
    assert {row["network"] for row in found["rows"]} == {"1-4-4-1"}
    assert full["ratio_to_full"] == 1
    assert full["multiply_adds"] == masked["multiply_adds"] == 25 * (4 + 16 + 4)
    assert small["multiply_adds"] == 25 * (2 + 4 + 2)


@pytest.mark.parametrize("widths", [(5, 5), (1, 2)])
def test_half_of_all_masks_are_disabled(program, widths):
    _, network = program("inference").half_disabled(widths)
    assert sum(int(flags.sum()) for flags in network.enabled.values()) == sum(widths) // 2


@pytest.mark.rotating
def test_population(run, capsys):
    sizes = ("--sizes", 16, "--members", 3, 10**9, "--at-once", 2, "--batch", 1)
    found = run("population", *sizes, "--steps", 2, "--repeats", 1, "--invariant")
    assert found.keys() == FACTS
    (row,) = found["rows"]  # the other one would have taken too long
    assert "1000000000 members: left out" in capsys.readouterr().out
    assert (row["members"], row["at_once"], row["steps"], row["own_choice"]) == (3, 2, 2, False)
    assert row["ratio_to_single"] == pytest.approx(row["median_ms"] / row["single_ms"])
    assert row["steps_per_s"] == pytest.approx(1e3 / row["median_ms"])
    assert row["invariant_ms"] > 0 and row["ratio_of_invariant"] > 0
    assert row["program_mb"] == pytest.approx(row["argument_mb"] + row["output_mb"] + row["temp_mb"])


@pytest.mark.rotating
def test_selector_time(run):
    small = ("--widths", 2, "--size", 16, "--batch", 1, "--sample", 2, "--calls", 1, "--repeats", 1)
    found = run("selector_time", *small, "--names", "taylor", "random")
    assert found.keys() == FACTS
    first, *rest = found["rows"]
    assert (first["name"], first["steps"]) == ("training step", 1)
    assert [row["name"] for row in rest] == ["taylor", "taylor, compiled", "random", "random, compiled"]
    assert all(row["steps"] == pytest.approx(row["median_ms"] / first["median_ms"]) for row in rest)


@pytest.mark.slow
def test_convergence(run):
    small = ("--networks", "2,2", "--starts", "scratch", "--steps", 40, "--seeds", 1, "--size", 96)
    found = run("convergence", *small, "--recipes", "soap", "levenberg")
    assert found.keys() == {*FACTS, "steps", "seeds", "good"}
    first, second = found["rows"]
    assert (first["name"], first["steps"], first["ratio_to_first"]) == ("soap", 40, 1)
    assert second["steps"] == max(1, round(40 / second["ratio_to_first"]))
    assert all(len(row["relative_rmse"]) == 1 and row["median"] > 0 for row in found["rows"])


def test_every_family_of_selectors_is_timed(program):
    known = program("selector_time").selectors(program("common").problem(16, 1))
    families = {"cosine", "magnitude", "activation", "taylor", "geometric", "sequential", "random"}
    families |= {"fisher", "ablation", "information", "twin"}  # the probe trains, and is timed as training
    assert {name.partition("-")[0] for name in known} == families


@pytest.mark.rotating
def test_memory(run):
    found = run("memory", "--sizes", 16, "--batch", 1, "--steps", 1, "--members")
    assert found.keys() == FACTS
    (row,) = found["rows"]
    assert (row["size"], row["members"]) == (16, 0)
    assert 0 < row["start_mb"] <= row["peak_mb"]
    assert 0 < row["temp_mb"] < row["program_mb"]


@pytest.mark.rotating
def test_trust(run):
    found = run("trust", "--sizes", 16, "--batch", 1, "--steps", 30, "--repeats", 1, "--optimizers", "adam")
    assert found.keys() == FACTS
    saving = [row for row in found["rows"] if row["kind"] == "saving"]
    assert [row["name"] for row in saving] == ["nothing is saved", "every second", "after every chunk"]
    repeated = [row for row in found["rows"] if row["kind"] == "same bits"]
    assert len(repeated) == 2 and all(row["results"] == row["runs"] == 1 for row in repeated)


@pytest.mark.rotating
def test_soak(run, program):
    found = run("soak", "--hours", 0)
    assert found.keys() == {*FACTS, "growth"} and found["growth"] is None and len(found["rows"]) == 1
    rows = [{"minutes": at, "resident_mb": 700 if at < 2 else 800 + at} for at in range(10)]
    assert program("soak").growth(rows) == pytest.approx(7 / 802)


@pytest.mark.slow
def test_more_members_at_once_need_more_memory(run):
    found = run(
        "population", "--sizes", 16, "--members", 4, "--at-once", 1, 4, "--batch", 1, "--steps", 1, "--repeats", 1
    )
    one, four = (row["program_mb"] for row in found["rows"])
    assert one < four < 8 * one


@pytest.mark.slow
def test_trace_time(run):
    found = run("trace_time", "--names", "mobilenet_v2", "--repeats", 1)
    assert found.keys() == {"device", "versions", "repeats", "load", "rows"}
    (row,) = found["rows"]
    assert (row["by"], row["name"], row["masks"]) == ("maskprune", "mobilenet_v2", 9128)


@pytest.mark.parametrize(("pace", "count"), [(1.0, 20), (100.0, 10), (5000.0, 1)])
def test_as_many_steps_as_fit(program, pace, count):
    assert program("common").fitting(20, 1.0, pace) == count


# Whole minimizations


def result(seconds=10.0, compile_seconds=2.0, masks=(1, 3), score=0.9):
    return {
        "seconds": seconds,
        "compile_seconds": compile_seconds,
        "training_seconds": seconds - compile_seconds - 1,
        "steps": 1000,
        "rounds": 7,
        "masks_after": {"conv1": masks[0], "conv2": masks[1]},
        "final_score": score,
        "relative_rmse": 0.04,
    }


def test_runs_of_several_seeds_take_turns(program):
    found = list(program("minimization").plan(["quick", "candidates", "replicas"], seeds=2, candidates=4, replicas=3))
    racing = ["--candidates", "4", "--racing"]
    assert found == [
        ("quick", 0, []),
        ("candidates", 0, racing),
        ("quick", 1, []),
        ("candidates", 1, racing),
        ("replicas", 0, ["--replicas", "3"]),
    ]
    assert list(program("minimization").plan(["thesis"], seeds=5, candidates=4, replicas=3)) == [
        ("thesis", 0, ["--preset", "thesis"])
    ]


def test_what_a_search_left_behind_is_read(program, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result()))
    found = program("minimization").read(tmp_path, 16.0)
    assert (found["searches"], found["search_s"], found["compile_s"], found["steps"]) == (1, 10, 2, 1000)
    assert (found["masks"], found["scores"]) == ([[1, 3]], [0.9])
    assert found["outside_search"] == pytest.approx(6 / 16)
    assert found["not_training"] == pytest.approx(9 / 16)


def test_searches_at_once_took_as_long_as_the_longest(program, tmp_path):
    for seed, seconds in enumerate((10.0, 12.0)):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "result.json").write_text(json.dumps(result(seconds=seconds)))
    found = program("minimization").read(tmp_path, 20.0)
    assert (found["searches"], found["search_s"], found["compile_s"], found["steps"]) == (2, 12, 4, 2000)
    assert found["not_training"] == pytest.approx(4 / 20)


def ran(kind, seed, wall_s, searches=1, options=()):
    return {"run": kind, "seed": seed, "options": list(options), "searches": searches, "wall_s": wall_s}


def test_only_runs_of_the_same_seeds_and_options_are_compared(program):
    compare = program("minimization").compare
    quick = [ran("quick", 0, 10.0), ran("quick", 1, 14.0)]
    together, racing = ran("replicas", 0, 16.0, searches=2), ran("candidates", 1, 28.0)
    assert compare([*quick, together, racing]) == {"replicas_speedup": 1.5, "candidates_ratio": 2.0}
    assert compare([quick[0], together, ran("candidates", 0, 9.0, options=["--size", "48"])]) == {}


def test_earlier_runs_are_kept_and_the_same_ones_replaced(program, tmp_path):
    kept, path = program("minimization").kept, tmp_path / "rows.json"
    assert kept(path, []) == []
    path.write_text(json.dumps({"rows": [ran("quick", 0, 10.0), ran("replicas", 0, 16.0, searches=2)]}))
    assert kept(path, [ran("quick", 0, 11.0)]) == [ran("replicas", 0, 16.0, searches=2)]


@pytest.mark.rotating
@pytest.mark.skipif(shutil.which("g++") is None, reason="the peak is measured by a loop in C++")
def test_roofline(run, program, monkeypatch):
    monkeypatch.setattr(program("roofline"), "peak_gflops", partial(program("roofline").peak_gflops, rounds=10))
    found = run("roofline", "--sizes", 8, "--repeats", 1)
    assert found.keys() == {*FACTS, "peak"}
    assert [row["name"] for row in found["rows"][::2]] == [
        "1 to 5, forward",
        "5 to 5, forward",
        "5 to 1, forward",
        "all layers",
    ]
    assert all(row["gflops"] > 0 and row["median_ms"] > 0 for row in found["rows"])
    assert found["rows"][-1]["median_ms"] == pytest.approx(sum(row["median_ms"] for row in found["rows"][1:-1:2]))


@pytest.mark.slow
def test_a_whole_minimization(run):
    short = ["--size", 48, "--crop", 32, "--first-steps", 200, "--steps", 20, "--final-steps", 0, "--max-rounds", 1]
    (row,) = run("minimization", "--runs", "quick", "--", *short)["rows"]
    assert row["steps"] >= 220
    assert 0 < row["search_s"] < row["wall_s"]


# The page


def step_row(name, size, ms, first):
    return {
        "name": name,
        "size": size,
        "median_ms": ms,
        "spread": 1.1,
        "compile_s": 1.5,
        "batch": 3,
        "ratio_to_first": ms / first,
    }


MADE_UP = {
    "train_step_toy": [
        step_row("maskprune, native convolution, adam", 64, 2.0, 2.0),
        step_row("XLA convolution, adam", 64, 20.0, 2.0),
        step_row("PyTorch 9, eager", 64, 7.0, 2.0),
    ],
    "population_toy": [
        {
            "size": 64, "members": members, "at_once": 2, "median_ms": 1.5, "single_ms": 2.0, "spread": 1.2,
            "ratio_to_single": 0.75, "steps_per_s": 666.7, "steps": 9, "program_mb": 12.3,
        }
        for members in (1, 64)
    ],
    "inference_toy": [
        {"network": "1-5-5-1", "size": 64, "name": "full", "median_ms": 0.5, "multiply_adds": 875, "ratio_to_full": 1},
        {
            "network": "1-5-5-1", "size": 64, "name": "compacted", "median_ms": 0.2, "multiply_adds": 275,
            "ratio_to_full": 0.4,
        },
    ],
    "minimization_toy": [
        {
            "run": "replicas", "arguments": ["--replicas", "2"], "options": [], "seed": 0, "wall_s": 99.5,
            "search_s": 88.0, "compile_s": 3.0, "steps": 12345, "not_training": 0.15,
            "masks": [[1, 3], [2, 2]], "scores": [0.9, 0.91],
        }
    ],
    "convergence_toy": [
        {
            "network": "1-2-2-1", "start": "scratch", "name": name, "steps": 800, "step_ms": 2.0, "compile_s": 1.0,
            "ratio_to_first": ratio, "relative_rmse": [0.04, 0.06, 0.0701], "median": 0.06, "good": 0.25,
        }
        for name, ratio in (("soap", 1.0), ("levenberg", 20.0))
    ],
    "selector_time_toy": [
        {"network": "1-5-5-1", "name": "training step", "median_ms": 4.0, "steps": 1.0},
        {"network": "1-5-5-1", "name": "taylor", "median_ms": 8.0, "steps": 2.0},
    ],
    "memory_toy": [
        {
            "size": 128, "members": 16, "at_once": 5, "start_mb": 270.0, "peak_mb": 455.0, "argument_mb": 1.0,
            "output_mb": 0.5, "temp_mb": 18.0, "program_mb": 19.5, "device_peak_mb": None,
        }
    ],
    "roofline_toy": [
        {"size": 64, "name": "5 to 5, forward", "median_ms": 1.0, "spread": 1.1, "gflops": 61.44, "share": 0.512},
    ],
    "step_profile_toy": [
        {"size": 64, "members": 0, "name": "convolution, forward, layer 1", "us_a_step": 12.345, "share": 0.25},
        {"size": 64, "members": 8, "name": "short kernels of XLA", "us_a_step": 3.0, "share": 0.5},
    ],
    "trust_toy": [
        {"kind": "saving", "name": "every second", "size": 64, "median_ms": 1.0, "spread": 1.1, "ratio": 1.0125},
        {
            "kind": "same bits", "name": "--deterministic", "optimizer": "adam", "size": 64, "runs": 5, "results": 1,
            "median_ms": 1.0, "ratio": 1.5,
        },
    ],
    "soak_toy": [{"minutes": 12.0 * number, "resident_mb": 700.0 + number} for number in range(11)],
}  # fmt: skip


def test_the_page_says_what_the_results_say(program, monkeypatch, tmp_path):
    for name, rows in MADE_UP.items():
        more = {"device": "abacus", "convolution": "native (beads)", "versions": {"jax": "0.0.1"}}
        more |= {"replicas_speedup": 1.25} if name == "minimization_toy" else {}
        more |= {"peak": {"one_core_gflops": 60.0, "all_cores_gflops": 120.0, "cores": 2}} if "roof" in name else {}
        more |= {"growth": 0.0123} if name == "soak_toy" else {}
        more |= {"good": 0.05} if name == "convergence_toy" else {}
        more |= {"driver": "9.9", "note": "Counted by hand."} if name == "step_profile_toy" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps({**more, "rows": rows}))
    (tmp_path / "something_else.json").write_text("{}")
    text = page(program, monkeypatch, tmp_path, tmp_path / "page")
    for expected in (
        "abacus; convolution native (beads); jax 0.0.1; spread 1.10",
        "| maskprune, native convolution, adam | 1 (2 ms) | 1.5 s |",
        "| PyTorch 9, eager | 3.50 × | 1.5 s |",
        "at 64²: **3.50 ×** (PyTorch 9, eager).",
        "| 64² | 64 | 2 | 1.5 ms | 2 ms | 0.75 × | 667 | 9 | 12.3 |",
        "| 1-5-5-1, full | 875 | 1 (0.5 ms) |",
        "| 1-5-5-1, compacted | 275 | 0.40 × |",
        "| replicas `--replicas 2` | 0 | 99.5 | 88.0 | 3.0 | 15% | 12,345 | (1,3) (2,2) | 0.900–0.910 |",
        "**1.25 times** as fast",
        "| relative RMSE, median (span) | 1-2-2-1, scratch | time of a step | below 0.05 |",
        "| levenberg | **0.0600** (0.040–0.070) | 20.0 × | 25% |",
        "| taylor | 8 ms = 2 |  |",
        "driver 9.9; jax 0.0.1.\n\nCounted by hand.\n\n| microseconds of a step | 64², one network | 64², 8 members |",
        "| convolution, forward, layer 1 | 12.3 (25%) |  |",
        "The peak is 60 GFLOP/s on one core and 120 on 2.",
        "| 5 to 5, forward | 61 (51%) |",
        "| saving | 64² | every second, soap | 1.012 |  |",
        "| same bits | 64² | --deterministic, adam | 1.500 | 1 of 5 runs |",
        "11 runs in 2.00 hours; growth after the first fifth: 1.23%.",
        "| 120 | 710 |",
        "| 128² | 16 members, 5 at once | 270 | 455 | 1.0 | 0.5 | 18.0 | 19.5 |",
    ):
        assert expected in text
    assert text.count("Not measured yet.") == 2  # tracing and the digits
    assert "something_else" not in text
    plots = {path.name for path in (tmp_path / "page" / "plots").iterdir()}
    assert plots == {"train_step_toy.png", "population_toy.png"}
    assert all(f"(plots/{name})" in text for name in plots)


def test_a_page_without_results(program, monkeypatch, tmp_path):
    text = page(program, monkeypatch, tmp_path, tmp_path)
    assert text.count("Not measured yet.") == len(program("tables").SECTIONS)


def test_the_page_belongs_to_the_results(program, monkeypatch, tmp_path):
    text = page(program, monkeypatch, FOLDER / "results", tmp_path)
    assert text == (FOLDER / "README.md").read_text("utf-8"), "run `python benchmarks/tables.py`"
    drawn, kept = ({path.name for path in (folder / "plots").glob("*.png")} for folder in (tmp_path, FOLDER))
    assert drawn == kept
