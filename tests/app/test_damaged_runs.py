"""What a finished run left, damaged in every way: each program ends with a sentence that names the file."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import edge_network, smooth_pictures

from maskprune import models
from maskprune.app import minimizing, protocol, repeats
from maskprune.app.commands import main as maskprune
from maskprune.base.ledger import Ledger
from maskprune.minimizer import answers


FILES = ("result.json", "history.csv", "network.npz", "report.html", "memory/answers.jsonl")
ANSWERS = FILES[-1]


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def become_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": Path.unlink,
    "a folder": become_a_folder,
    "foreign": lambda path: path.write_bytes(b"\xff\xfe nothing of the kind"),
    "other JSON": lambda path: path.write_text("[1, 2]"),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of few steps that has ended."""
    place = tmp_path_factory.mktemp("finished")
    pictures = protocol.Pictures(data=smooth_pictures(place / "pictures.npz", 32), size=32)
    recipe = protocol.Recipe(crop=32, steps=5, final_steps=0, batch=2, strategy="one-by-one")
    config = minimizing.Config(pictures=pictures, recipe=recipe, quiet=True, max_rounds=1, out=place / "run")
    minimizing.main(dataclasses.replace(config, start_from=edge_network(place / "edges.npz")))
    return place / "run"


def ends_with(function, *arguments):
    with pytest.raises(SystemExit) as caught:
        function(*arguments)
    said, code = str(caught.value), caught.value.code
    return said, 1 if code == said else code


def resume(folder):
    minimizing.main(minimizing.Config(resume=folder, quiet=True))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_a_finished_run_is_named(finished, tmp_path, name, damage):
    out = shutil.copytree(finished, tmp_path / "run")
    if name == ANSWERS and damage == "cut":  # the first line: without later ones the run is not finished
        (out / name).write_bytes((out / name).read_bytes()[:300])
    else:
        DAMAGES[damage](out / name)
    words = Path(name).name
    for program, arguments in ((resume, [out]), (maskprune, [["reproduce", str(out)]])):
        if name == "report.html" and program is maskprune:
            continue  # what is compared does not need it
        said, code = ends_with(program, *arguments)
        assert words in said and code == 1 and "\n" not in said, said
    if name == ANSWERS:
        said, code = ends_with(minimizing.main, minimizing.Config(repeat=out, out=tmp_path / "new", quiet=True))
        assert words in said and code == 1 and not (tmp_path / "new").exists()
    if name == "network.npz":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in.png")
        said, code = ends_with(maskprune, ["apply", str(out / name), str(tmp_path / "in.png"), str(tmp_path / "o.png")])
        assert words in said and code == (2 if damage in ("deleted", "a folder", "a pipe") else 1)


@pytest.mark.parametrize("lacking", ["masks_after", "final_score", "stop"])
def test_a_result_of_another_kind_is_named(finished, tmp_path, lacking):
    out = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({name: each for name, each in result.items() if name != lacking}))
    said, code = ends_with(resume, out)
    assert "result.json" in said and lacking in said and code == 1


def test_a_result_without_a_number_is_still_told(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    result = json.loads((out / "result.json").read_text())
    (out / "result.json").write_text(json.dumps({**result, "final_score": None, "relative_rmse": None}))
    resume(out)


def test_what_is_compared_is_what_the_run_wrote(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    assert repeats.differences(finished, out) == []
    (out / "result.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"result\.json"):
        repeats.differences(finished, out)


@pytest.mark.parametrize("given", [None, 5, {"pictures": 5}, {"no_such": 1}])
def test_a_run_of_other_options_is_told(finished, tmp_path, given):
    about = answers.read_answers(finished / "memory").about
    Ledger.open(tmp_path / ANSWERS, {**about, "given": given})
    said, code = ends_with(resume, tmp_path)
    assert code == 1 and "option" in said


# The saved network itself


def damaged_network(finished, path, change):
    with np.load(finished / "network.npz") as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda arrays: arrays.update(extra=np.zeros(1)), "the array `extra`"),
        (
            lambda arrays: arrays.update({"conv9/kernel": np.zeros((1, 1, 1, 1), np.float32)}),
            "the array `conv9/kernel`",
        ),
        (lambda arrays: arrays.update({"conv1/scale": np.zeros(1, np.float32)}), "the array `conv1/scale`"),
        (lambda arrays: arrays["conv1/kernel"].fill(np.nan), "`conv1/kernel` holds numbers that are not finite"),
        (lambda arrays: arrays["conv3/bias"].fill(-np.inf), "`conv3/bias` holds numbers that are not finite"),
        (
            lambda arrays: arrays.update({"conv1/bias": arrays["conv1/bias"].astype(float)}),
            "holds float64, not float32",
        ),
    ],
)
def test_the_network_is_blamed_and_not_the_picture(finished, tmp_path, change, words):
    path = damaged_network(finished, tmp_path / "network.npz", change)
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "in.png")
    said, code = ends_with(maskprune, ["apply", str(path), str(tmp_path / "in.png"), str(tmp_path / "out.png")])
    assert words in said and "in.png" not in said and code == 1
    config = minimizing.Config(start_from=path, out=tmp_path / "out", quiet=True)
    said, code = ends_with(minimizing.main, config)
    assert words in said and code == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda leaf: np.asarray(leaf, np.float64), TypeError, "float64 as `conv1/"),
        (lambda leaf: np.asarray(leaf, np.float16), TypeError, "float16 as `conv1/"),
        (lambda leaf: np.full_like(leaf, np.nan), ValueError, "not finite as `conv1/"),
    ],
)
def test_what_load_refuses_is_not_saved(finished, tmp_path, change, error, words):
    _, params = models.load(finished / "network.npz")
    changed = {**params, "conv1": {name: change(leaf) for name, leaf in params["conv1"].items()}}
    with pytest.raises(error, match=words):
        models.save(tmp_path / "network.npz", changed)
    assert not (tmp_path / "network.npz").exists()
