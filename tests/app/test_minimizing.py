"""The main program, run as a user runs it, on tiny pictures and few steps: what it writes, refuses and survives."""

import csv
import dataclasses
import functools
import json
import subprocess
import sys
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from toys import edge_network, smooth_pictures

import maskprune
from maskprune.app import minimizing, protocol
from maskprune.app.protocol import SelectorName
from maskprune.app.setup import SELECTORS, load_data, make_selector, set_up


PROGRAM = Path(__file__).parents[2] / "experiments" / "minimize.py"
# probe-long is probe, which trains, and longer.
NAMES = [name for name, choosing in SELECTORS.items() if not choosing.trains]
NAMES.append(pytest.param("probe", marks=pytest.mark.rotating))


def changed(config, **change):
    """The configuration with other values, those of its pictures among them."""
    names = {field.name for field in dataclasses.fields(config.pictures)}
    pictures = {name: change.pop(name) for name in names & change.keys()}
    return dataclasses.replace(config, pictures=dataclasses.replace(config.pictures, **pictures), **change)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return smooth_pictures(tmp_path_factory.mktemp("data") / "pictures.npz", 48)


@pytest.fixture(scope="module")
def edges(tmp_path_factory) -> Path:
    return edge_network(tmp_path_factory.mktemp("start") / "edges.npz")


@pytest.fixture(scope="module")
def quick(pictures, edges):
    """A configuration that takes seconds."""
    recipe = protocol.Recipe(crop=32, first_steps=60, steps=20, final_steps=20, batch=4, learning_rate=5e-3)
    recipe = dataclasses.replace(recipe, strategy="one-by-one")
    source = protocol.Pictures(data=pictures, size=48)
    return minimizing.Config(pictures=source, start_from=edges, recipe=recipe, max_rounds=2, quiet=True)


@pytest.fixture(scope="module")
def finished(quick, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "first"
    return out, minimizing.main(dataclasses.replace(quick, out=out)), quick


def test_writes_everything_it_promises(finished):
    out, result, _ = finished
    assert {path.name for path in out.iterdir()} == {
        "result.json", "history.csv", "network.npz", "report.html", "pictures",
        "network.stablehlo", "network.onnx", "network.safetensors", "network.orbax", "memory",
    }  # fmt: skip
    kept = json.loads((out / "result.json").read_text())
    promised = "config seed versions device precision initial_score final_score relative_rmse masks_before masks_after"
    promised += " enabled parameters_before parameters_after multiply_adds_before multiply_adds_after steps seconds"
    promised += " verified_max_abs_difference"
    for name in promised.split():
        assert kept[name] is not None, name
    assert kept["masks_before"] == {"conv1": 2, "conv2": 2}
    assert kept["masks_after"] == {name: sum(flags) for name, flags in kept["enabled"].items()}
    assert kept["rounds"] == 2 and kept["stop"] == "the limit of 2 rounds is reached"
    assert kept["steps"] >= 60 + 2 * 20 + 20
    assert result["final_score"] == kept["final_score"]
    assert len(list((out / "pictures").glob("*.png"))) == 5


def test_history_has_one_row_per_round_with_sizes_that_add_up(finished):
    out, result, _ = finished
    rows = list(csv.DictReader((out / "history.csv").read_text().splitlines()))
    assert rows[0]["verdict"] == "reference" and rows[-1]["verdict"] == "final"
    assert len(rows) == 1 + result["rounds"] + 1
    for row in rows:
        assert int(row["masks"]) == int(row["masks_conv1"]) + int(row["masks_conv2"])
        k1, k2 = int(row["masks_conv1"]), int(row["masks_conv2"])
        assert int(row["multiply_adds"]) == 25 * (k1 + k1 * k2 + k2)
        assert int(row["parameters"]) == int(row["multiply_adds"]) + k1 + k2 + 1
    assert int(rows[-1]["total_steps"]) == result["steps"]


def test_the_saved_network_is_small_and_scores_as_reported(finished, pictures):
    out, result, config = finished
    apply, params = maskprune.models.load(out / "network.npz")
    widths = [layer["kernel"].shape[3] for layer in params.values()]
    assert widths == [*result["masks_after"].values(), 1]
    assert maskprune.count_params(params) == result["parameters_after"]
    dataset = maskprune.data.make_dataset(maskprune.data.sobel(), pictures, size=config.pictures.size)
    inputs, targets = (maskprune.data.batches.to_unit(side) for side in dataset.evaluation[:2])
    assert maskprune.metrics.soft_f1(apply(params, inputs), targets, border=6) == pytest.approx(
        result["final_score"], abs=1e-5
    )


def test_same_seed_same_result_and_another_seed_another(finished, tmp_path):
    out, first, config = finished
    again = minimizing.main(dataclasses.replace(config, out=tmp_path / "again"))
    other = minimizing.main(dataclasses.replace(config, out=tmp_path / "other", seed=1))
    assert (out / "network.npz").exists()
    for name in ("initial_score", "final_score", "enabled", "metrics"):
        assert again[name] == first[name]
    assert other["initial_score"] != first["initial_score"]
    one, two = (maskprune.models.load(path / "network.npz")[1] for path in (out, tmp_path / "again"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_compiles_few_programs(quick, tmp_path, caplog):
    jax.clear_caches()
    with jax.log_compiles():
        minimizing.main(dataclasses.replace(quick, out=tmp_path))
    compiled = [text for record in caplog.records if (text := record.getMessage()).startswith("Finished XLA comp")]
    assert 5 < len(compiled) <= 25, "\n".join(compiled)  # 24 with JAX 0.10.2; one by one 89


def test_starts_from_a_saved_network_without_training_it_first(finished, tmp_path):
    out, result, config = finished
    recipe = dataclasses.replace(config.recipe, first_steps=0, final_steps=0)
    config = dataclasses.replace(config, start_from=out / "network.npz", out=tmp_path, recipe=recipe)
    config = dataclasses.replace(config, max_rounds=1)
    again = minimizing.main(config)
    assert again["initial_score"] == pytest.approx(result["final_score"], abs=1e-6)
    assert again["masks_before"] == result["masks_after"]
    assert again["steps"] <= 20


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("local-mean", "otsu", "adaptive")]


@pytest.mark.rotating
@pytest.mark.parametrize("task", ["canny", "threshold", *SLOW])
def test_every_task_runs(finished, tmp_path, task):
    out, _, config = finished
    recipe = dataclasses.replace(config.recipe, selector="taylor", first_steps=None, steps=2, final_steps=0)
    config = changed(config, task=task, recipe=recipe, reverse=True, standardize=True, control=True)
    config = dataclasses.replace(config, objective="macs", minimize_layers=True)
    result = minimizing.main(dataclasses.replace(config, start_from=out / "network.npz", out=tmp_path, max_rounds=1))
    assert result["task"] == task and 0 <= result["final_score"] <= 1


@pytest.fixture(scope="module")
def parts(finished):
    """What selectors are made of, and a network for them."""
    model, dataset = maskprune.models.fcn((3, 2)), load_data(finished[2].pictures)
    recipe = protocol.fill_in(finished[2].recipe, "quick", finished[2].pictures)
    network = maskprune.init_network(model.init(jax.random.key(0)), model.groups)
    return set_up(dataset, model, recipe), network


def test_the_command_line_knows_every_selector():
    assert set(typing.get_args(SelectorName)) == SELECTORS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_selector_has_a_name(parts, name):
    setup, network = parts
    selector = make_selector(name, setup)
    made = selector if name == "probe" else functools.partial(jax.eval_shape, selector)  # their sums: test_select*
    scores = made(jax.random.key(1), network, setup.sample(name))
    assert {group: len(values) for group, values in scores.items()} == {"conv1": 3, "conv2": 2}


@pytest.mark.rotating
def test_pairs_learn_the_users_own_filter(quick, tmp_path, pictures):
    with np.load(pictures) as file:
        for number, picture in enumerate(file["pictures"]):
            for folder, values in (("before", picture), ("after", 255 - picture)):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    params = jax.tree.map(np.zeros_like, maskprune.models.fcn((2, 2)).init(jax.random.key(0)))
    for layer in ("conv1", "conv2", "conv3"):
        params[layer]["kernel"][2, 2, 0, 0] = 1
    params["conv3"]["kernel"] *= -0.5  # half of the way to the filter, which is 1 - x
    params["conv3"]["bias"] += 0.75
    start = maskprune.models.save(tmp_path / "start.npz", params)
    config = changed(quick, task="pairs", data=None, start_from=start, out=tmp_path / "out")
    config = changed(config, inputs=tmp_path / "before", targets=tmp_path / "after")
    assert minimizing.main(config)["metrics"]["final"]["r2"] > 0.9


@pytest.mark.rotating
def test_replicas_are_whole_searches_and_candidates_share_a_round(quick, tmp_path, capsys):
    config = dataclasses.replace(quick, out=tmp_path, replicas=2, candidates=2, racing=True, seed=7, quiet=False)
    smallest = minimizing.main(config)
    results = [json.loads((tmp_path / f"seed-{seed}" / "result.json").read_text()) for seed in (7, 8)]
    assert [result["seed"] for result in results] == [7, 8]
    assert sum(smallest["masks_after"].values()) == min(sum(result["masks_after"].values()) for result in results)
    for seed, result in zip((7, 8), results, strict=True):
        rows = list(csv.DictReader((tmp_path / f"seed-{seed}" / "history.csv").read_text().splitlines()))
        steps = sum(int(row["steps"]) for row in rows)
        assert result["steps"] == steps + 60 and "best of 2: " in rows[1]["reason"]
        assert int(rows[1]["steps"]) == 10 + 10 + 10  # both half of the way, the better one to its end
        assert (tmp_path / f"seed-{seed}" / "report.html").exists()
    said = capsys.readouterr().out
    assert "seed-7:   1" in said and "seed-8: last session" in said and "The smallest network is that of seed-" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": 2.0}, "--threshold"),
        ({"threshold": 0.0}, "--threshold"),
        ({"start_from": None, "widths": (5, 0)}, "--widths"),
        ({"start_from": None, "widths": ()}, "--widths"),
        ({"kernel": 4}, "--kernel"),
        ({"count": 0}, "--count"),
        ({"task": "pairs"}, "--inputs"),
        ({"inputs": Path("a"), "targets": Path("b")}, "--task pairs"),
        ({"level": 3.0, "task": "threshold"}, "--level"),
        ({"level": 0.5}, "--level"),
        ({"start_from": Path("network.npz"), "widths": (2, 2)}, "--widths"),
        ({"stagnation": 1.5}, "--stagnation"),
        ({"stagnation": 0.1, "replicas": 2}, "--stagnation"),
        ({"replicas": 0}, "--replicas"),
        ({"candidates": 0}, "--candidates"),
        ({"racing": True}, "--racing"),
    ],
)
def test_bad_options_are_refused_before_any_work(quick, tmp_path, change, words):
    with pytest.raises(SystemExit, match=words):
        minimizing.main(changed(quick, out=tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_strategies_that_know_masks_only_are_refused_for_layers(quick, tmp_path):
    recipe = dataclasses.replace(quick.recipe, strategy="beam")
    with pytest.raises(SystemExit, match="--minimize-layers does not go with --strategy beam"):
        minimizing.main(dataclasses.replace(quick, recipe=recipe, minimize_layers=True, out=tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crop": 12}, "--crop"),
        ({"crop": 400}, "--crop"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"batch": 0}, "--batch"),
        ({"border": -1}, "border"),
        ({"first_steps": 0}, "--first-steps"),
    ],
)
def test_bad_recipes_are_refused_before_any_work(quick, tmp_path, change, words):
    config = dataclasses.replace(quick, start_from=None, recipe=dataclasses.replace(quick.recipe, **change))
    with pytest.raises(SystemExit, match=words):
        minimizing.main(dataclasses.replace(config, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": Path("nowhere")}, "nowhere"),
        ({"start_from": Path("nowhere.npz")}, "nowhere.npz"),
        ({"out": PROGRAM}, "minimize.py"),
        ({"data": PROGRAM}, "minimize.py"),
    ],
)
def test_files_that_are_not_there_or_not_right_are_named_without_a_traceback(quick, tmp_path, change, words):
    with pytest.raises(SystemExit, match=words):
        minimizing.main(changed(quick, **({"out": tmp_path / "out"} | change)))


def test_the_presets_are_complete_and_the_thesis_is_literal():
    from maskprune.app import protocol

    for preset in protocol.PRESETS.values():
        assert {name for name, value in dataclasses.asdict(preset).items() if value is None} == {"selector"}
    _, thesis = minimizing.resolve(minimizing.Config(preset="thesis"))
    assert (thesis.first_steps, thesis.steps, thesis.batch, thesis.crop, thesis.border) == (10_000, 2_000, 3, 256, 0)
    assert (thesis.initial, thesis.optimizer, thesis.learning_rate) == ("thesis", "adam", 1e-3)


def test_help_answers_without_loading_jax():
    code = "import sys, runpy; sys.argv = ['minimize.py', '--help']\n"
    code += f"try: runpy.run_path({str(PROGRAM)!r}, run_name='__main__')\n"
    code += "except SystemExit: pass\nassert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "--threshold" in done.stdout and "--start-from" in done.stdout


def test_the_library_imports_late_what_only_the_end_of_a_run_needs():
    code = "import sys, maskprune; [getattr(maskprune, name) for name in maskprune.__all__]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    late = {"matplotlib", "jinja2", "onnx", "onnxruntime", "safetensors", "orbax", "flax", "skimage", "scipy.special"}
    assert not late & {*done.stdout.split()}
