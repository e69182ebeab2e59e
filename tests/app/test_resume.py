"""The main program, killed, stopped, crowded and repeated: nothing is lost, and the same comes out to the bit.

Children are forked from a process that has imported everything and computed nothing, and read compiled programs from a
cache, so that one takes seconds.
"""

import dataclasses
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from toys import edge_network, smooth_pictures

import maskprune
from maskprune.app import repeats
from maskprune.base import files
from maskprune.base.ledger import Ledger


EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PROGRAM = EXPERIMENTS / "minimize.py"
LATE = [f"maskprune.app.{name}" for name in ("minimizing", "whole_search", "outcome", "studies", "repeats")]
LATE += ["orbax.checkpoint", "matplotlib.pyplot", "jinja2", "onnx", "skimage.filters"]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked here")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, a network that answers edges, and a folder for runs."""
    folder = tmp_path_factory.mktemp("resume")
    smooth_pictures(folder / "pictures.npz", 48)
    edge_network(folder / "edges.npz")
    return folder


@pytest.fixture(scope="module")
def fork(place):
    """`fork(function, *arguments) -> process`, of a server that has imported the programs."""
    before = dict(os.environ)
    cache = {"DIR": place / "compiled", "MIN_COMPILE_TIME_SECS": 0, "MIN_ENTRY_SIZE_BYTES": -1}
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache["DIR"])
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXPERIMENTS), *filter(None, [before.get("PYTHONPATH")])])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LATE)

    def start(function, *arguments):
        process = context.Process(target=function, args=arguments)
        process.start()
        return process

    yield start
    os.environ.clear()
    os.environ.update(before)


def work(place, out, resume, **change):
    """A child: a run of some seconds, or the rest of it."""
    from maskprune.app import minimizing, protocol

    recipe = protocol.Recipe(crop=32, first_steps=1000, steps=400, final_steps=400, batch=4, learning_rate=1e-3)
    recipe = dataclasses.replace(recipe, strategy="one-by-one", selector="ablation")
    pictures = protocol.Pictures(data=place / "pictures.npz", size=48)
    config = minimizing.Config(pictures=pictures, recipe=recipe, start_from=place / "edges.npz", max_rounds=4)
    config = dataclasses.replace(config, out=out, quiet=True, threshold=0.6, save_every=0.0, **change)
    minimizing.main(minimizing.Config(resume=out, quiet=True, save_every=0.0) if resume else config)


def finish(process, seconds=240):
    process.join(seconds)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def expected(place, fork):
    """A run that nothing happened to, and how long the second of two took."""
    assert finish(fork(work, place, place / "first", False)) == 0
    began = time.monotonic()
    assert finish(fork(work, place, place / "expected", False)) == 0
    assert repeats.differences(place / "first", place / "expected") == []
    return place / "expected", time.monotonic() - began


def kill_and_resume(place, fork, expected, kills, seed):
    """Kills runs at random instants, resumes each of them, and compares all that end. Returns how many ended."""
    (whole, seconds), rng, ended, number = expected, np.random.default_rng(seed), 0, 0
    out = place / f"killed-{seed}"
    while kills or out.exists():
        begun = (out / "memory" / "answers.jsonl").exists()
        process = fork(work, place, out, begun)
        process.join(rng.uniform(0, seconds) if kills else 240)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            kills -= 1
        if finish(process) == 0:
            assert repeats.differences(whole, out) == [], f"run {number} of seed {seed}"
            shutil.rmtree(out)
            ended, number = ended + 1, number + 1
        else:
            assert process.exitcode == -signal.SIGKILL, f"run {number} of seed {seed}"
    return ended


@pytest.mark.rotating
@pytest.mark.parametrize("seed", range(7))
def test_killed_at_any_instant_a_run_goes_on_to_the_same_bits(place, fork, expected, seed):
    assert kill_and_resume(place, fork, expected, kills=4, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(11, 21))
def test_a_thousand_kills(place, fork, expected, seed):
    assert kill_and_resume(place, fork, expected, kills=100, seed=seed)


@pytest.mark.slow
def test_a_hundred_runs_of_one_seed_are_one(place, fork, expected):
    for number in range(100):
        out = place / "again"
        assert finish(fork(work, place, out, False)) == 0
        assert repeats.differences(expected[0], out) == [], number
        shutil.rmtree(out)


def work_together(place, out, resume):
    """A child: two searches at once, which race their candidates side by side."""
    import maskprune.train.batching

    maskprune.train.batching.CACHE = 2**30  # members in groups, whatever the cache
    work(place, out, resume, replicas=2, candidates=3, racing=True, max_rounds=3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_searches_at_once_go_on_to_the_same_bits(place, fork, tmp_path, seed):
    began = time.monotonic()
    assert finish(fork(work_together, place, tmp_path / "whole", False)) == 0
    seconds, rng, out, kills = time.monotonic() - began, np.random.default_rng(seed), tmp_path / "out", 0
    while True:
        process = fork(work_together, place, out, (out / "memory" / "answers.jsonl").exists())
        process.join(rng.uniform(0.1, 0.4) * seconds if kills < 4 else 240)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        finish(process)
        kills += 1
    assert finish(process) == 0 and kills
    assert repeats.differences(tmp_path / "whole", out) == []


def test_a_finished_run_resumed_does_nothing(place, fork, expected, tmp_path):
    out = shutil.copytree(expected[0], tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
    assert finish(fork(work, place, out, True)) == 0
    assert before == {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != ".lock"
    }


def compete(folder, barrier, rounds, won):
    """A child that asks for one folder after another, at the same moment as the others."""
    for number in range(rounds):
        barrier.wait()
        try:
            with files.claim(folder / str(number)):
                barrier.wait()  # until all have asked
                with won.get_lock():
                    won[number] += 1
        except BlockingIOError as error:
            assert "another program" in str(error)
            barrier.wait()


def test_two_hundred_races_for_a_folder_have_one_winner_each(fork, tmp_path):
    context = multiprocessing.get_context("forkserver")
    barrier, won = context.Barrier(3), context.Array("i", 200)
    children = [fork(compete, tmp_path, barrier, 200, won) for _ in range(3)]
    assert [finish(child) for child in children] == [0, 0, 0]
    assert list(won) == [1] * 200


def test_two_runs_in_one_folder(place, expected, tmp_path, program_main):
    main, config = program_main
    with files.claim(tmp_path / "memory"), pytest.raises(SystemExit, match="another program"):
        main(dataclasses.replace(config, out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]
    out = shutil.copytree(expected[0], tmp_path / "out")
    with pytest.raises(SystemExit, match="holds a run: --resume"):
        main(dataclasses.replace(config, out=out))
    with pytest.raises(SystemExit, match="leave --threshold away"):
        main(dataclasses.replace(type(config)(), resume=out, threshold=0.5))
    with pytest.raises(SystemExit, match="holds no run"):
        main(dataclasses.replace(type(config)(), resume=tmp_path / "nothing"))
    assert repeats.differences(expected[0], out) == []


@pytest.fixture
def program_main(place):
    from maskprune.app import minimizing, protocol

    pictures = protocol.Pictures(data=place / "pictures.npz", size=48)
    config = minimizing.Config(pictures=pictures, recipe=protocol.Recipe(crop=32), quiet=True)
    return minimizing.main, dataclasses.replace(config, start_from=place / "edges.npz")


@pytest.mark.rotating
def test_pictures_that_changed_are_told(place, fork, expected, tmp_path):
    out = tmp_path / "out"
    process = fork(work, place, out, False)
    while not list((out / "memory").glob("*/*")):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    config = json.dumps(Ledger.read(out / "memory" / "answers.jsonl").about["given"]["pictures"])
    assert str(place / "pictures.npz") in config
    kept = (place / "pictures.npz").read_bytes()
    try:
        with np.load(place / "pictures.npz") as file:
            np.savez(place / "pictures.npz", pictures=255 - file["pictures"])
        command = [sys.executable, str(PROGRAM), "--resume", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    finally:
        (place / "pictures.npz").write_bytes(kept)
    assert done.returncode == 1 and "another data" in done.stderr and "Traceback" not in done.stderr
    assert finish(fork(work, place, out, True)) == 0
    assert repeats.differences(expected[0], out) == []


@pytest.mark.rotating
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_reports_and_the_run_goes_on(place, fork, expected, tmp_path, number):
    out = tmp_path / "out"
    process = fork(listen, place, out)
    while not list((out / "memory").glob("*/*")):
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert finish(process) == 128 + number
    result = json.loads((out / "result.json").read_text())
    assert result["interrupted"] and (out / "report.html").exists() and (out / "network.npz").exists()
    assert finish(fork(work, place, out, True)) == 0
    assert repeats.differences(expected[0], out) == []


def listen(place, out):
    """A child that is the program as it is started from a shell, with the options of `work`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = "--size 48 --crop 32 --batch 4 --first-steps 1000 --steps 400 --final-steps 400 --learning-rate 1e-3"
    options += " --strategy one-by-one --selector ablation --max-rounds 4 --threshold 0.6 --save-every 0 --quiet"
    files = ["--data", str(place / "pictures.npz"), "--start-from", str(place / "edges.npz"), "--out", str(out)]
    sys.argv = [str(PROGRAM), *options.split(), *files]
    runpy.run_path(str(PROGRAM), run_name="__main__")


def test_replay_repeats_and_compares(place, expected, tmp_path):
    command = [sys.executable, "-m", "maskprune", "reproduce"]
    done = subprocess.run([*command, str(expected[0])], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0 and "The same: " in done.stdout, done.stderr
    other = shutil.copytree(expected[0], tmp_path / "other")
    ledger = Ledger.read(other / "memory" / "answers.jsonl")
    rows = [{**row, "ended": "0" * 32} if row.get("name") == "training" else row for row in ledger.rows]
    (other / "memory" / "answers.jsonl").unlink()
    Ledger.open(other / "memory" / "answers.jsonl", ledger.about).add(rows)
    assert repeats.differences(expected[0], other)[0] == "training 1 was asked the same, and gave another answer"


def study(place, out):
    """A child: a study of two networks, of whose sessions none is in its ledger yet."""
    sys.path.insert(0, str(EXPERIMENTS))
    import reset

    from maskprune.app.protocol import Pictures, Recipe
    from maskprune.app.studies import Options

    recipe = Recipe(crop=32, batch=4, first_steps=1000, steps=50, border=4, learning_rate=5e-3)
    pictures = Pictures("threshold", place / "pictures.npz", size=48)
    options = Options(pictures, out, recipe=recipe, networks=2, widths=(2, 2), kernel=3, quiet=True)
    reset.main(reset.Config(options=options))


@pytest.mark.rotating
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_goes_on_within_a_network(place, fork, tmp_path, number):
    for out in (tmp_path / "whole", tmp_path / "stopped"):
        process = fork(study, place, out)
        if out.name == "stopped":
            while len(list((out / "memory").glob("states/*"))) < 2:  # of the first network
                time.sleep(0.02)
            os.kill(process.pid, number)
            assert finish(process) == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number]
            assert len(Ledger.read(out / "rows.jsonl").rows) == 0
            kept = Ledger.read(out / "memory" / "answers.jsonl").find(name="training")
            process = fork(study, place, out)
            process.join(0.5)
        assert finish(process) == 0
    first, second = (Ledger.read(tmp_path / name / "rows.jsonl").rows for name in ("whole", "stopped"))
    assert kept and json.dumps(first) == json.dumps(second)
    assert (tmp_path / "whole" / "reset.csv").read_bytes() == (tmp_path / "stopped" / "reset.csv").read_bytes()


@pytest.mark.rotating
def test_a_disk_that_is_full_at_the_end_costs_nothing(place, expected, tmp_path, program_main, monkeypatch, capsys):
    main, config = program_main
    real, left = maskprune.record.write_csv, [OSError(28, "No space left on device")]

    def write_csv(path, rows):
        if left:
            raise left.pop()
        return real(path, rows)

    monkeypatch.setattr(maskprune.record, "write_csv", write_csv)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    recipe = dataclasses.replace(config.recipe, steps=5, strategy="one-by-one")
    config = dataclasses.replace(config, recipe=recipe, max_rounds=1, quiet=False, out=tmp_path / "out")
    with pytest.raises(SystemExit, match="1"):
        main(config)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "No space left on device" in said and "--resume" in said
    (elsewhere,) = tmp_path.glob("out-*")
    result = json.loads((elsewhere / "result.json").read_text())
    again = main(dataclasses.replace(type(config)(), resume=tmp_path / "out"))
    assert again["enabled"] == result["enabled"] and (tmp_path / "out" / "report.html").exists()
    assert repeats.count_answers(tmp_path / "out") and (tmp_path / "out" / "history.csv").read_bytes()
    assert main(dataclasses.replace(type(config)(), resume=tmp_path / "out")) == json.loads(
        (tmp_path / "out" / "result.json").read_text()
    )


def test_a_folder_that_vanishes_costs_nothing_but_itself(place, fork, expected, tmp_path):
    out = tmp_path / "out"
    process = fork(work, place, out, False)
    while not list((out / "memory").glob("*/*")):
        time.sleep(0.02)
    os.rename(out, tmp_path / "gone")
    assert finish(process) == 1  # the results are written to a folder of the old name, which does not know the run
    assert (out / "network.npz").read_bytes() == (expected[0] / "network.npz").read_bytes()
