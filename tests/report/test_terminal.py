"""Outputs that lack letters, readers that went away, terminals that hung up, devices that are not there."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from maskprune import conv, record
from maskprune.minimizer.interrupt import Interrupt
from maskprune.minimizer.rounds import Round
from maskprune.report.display import Display
from maskprune.report.terminal import NO_READER, PLAIN, encodable, outputs


REPOSITORY = Path(__file__).parents[2]
VERDICT = Round(
    number=1, chosen={}, accepted=True, reason="5 × 6 – fine … 日本", score=1.0, held_score=1.0, reference=1.0,
    required=1.0, metrics={}, state=None, judged=None, steps=0, seconds=0.0, left=0, stop="",
)  # fmt: skip
ROW = {"chosen": "conv1[0]", "enabled": {"conv1": [True, False]}, "relative_rmse": 0.1}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "koi8-r", "no-such-encoding"])
def test_every_text_can_be_written_in_every_encoding(encoding):
    stream = type("Stream", (), {"encoding": encoding})
    known = "ascii" if encoding == "no-such-encoding" else encoding
    for text in ("".join(PLAIN), "日本 ü ²", "plain"):
        assert encodable(text, stream).encode(known)
    assert encodable("plain", stream) == "plain"
    assert encodable("✔ ■", type("Stream", (), {"encoding": "utf-8"})) == "✔ ■"
    assert encodable("✔ ■□", type("Stream", (), {"encoding": "ascii"})) == "+ #."


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_a_display_says_everything_in_every_encoding(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with Display() as show:
        for row in (VERDICT, VERDICT._replace(accepted=False)):
            show.verdict(row, ROW)
        show.say("wrote 日本.png × 2²")
        sys.stdout.flush()
    said = raw.getvalue().decode(encoding)
    assert said.count("\n") == 3 and "kept" in said and "refused" in said
    assert ("✔" in said) == (encoding == "utf-8") and ("日本" in said) == (encoding == "utf-8")


@contextlib.contextmanager
def nobody_reads():
    """A standard output whose reader has gone."""
    reading, writing = os.pipe()
    os.close(reading)
    stream = open(writing, "w", encoding="utf-8")  # noqa: SIM115
    with contextlib.suppress(BrokenPipeError), contextlib.closing(stream), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield


def test_a_search_goes_on_when_nobody_reads():
    with nobody_reads(), Display() as show:
        for _ in range(3):
            show.say("line")
            show.verdict(VERDICT, ROW)
            sys.stdout.flush()


def test_a_program_ends_without_a_word_when_nobody_reads():
    with nobody_reads(), pytest.raises(SystemExit) as caught, outputs():
        print("line", flush=True)
    assert caught.value.code == NO_READER == 128 + signal.SIGPIPE


def test_a_full_disk_behind_the_output_ends_no_search(monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", stream)
    with Display() as show:
        for _ in range(3):
            show.say("line" * 5000)
    monkeypatch.undo()
    stream.close()


def test_an_output_that_was_closed_is_none(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with outputs():
        print("line")
        assert not sys.stdout.isatty()
    sys.stdout.close()


@pytest.mark.rotating
@pytest.mark.parametrize(
    "command", [["experiments/minimize.py"], ["-m", "maskprune", "apply"], ["benchmarks/roofline.py"]]
)
def test_help_is_written_in_ascii_and_may_be_cut_short(command):
    reading, writing = os.pipe()
    os.close(reading)
    options = {"cwd": REPOSITORY, "timeout": 120, "check": False, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, *command, "--help"], stdout=writing, env=environment, **options)
    os.close(writing)
    assert done.returncode in (0, NO_READER) and done.stderr == ""  # argparse says nothing of it


# Signals


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_connection_that_is_lost_stops_in_good_order(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupt.asked and interrupt.code == 129
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as below `nohup`
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.asked and interrupt.code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


# Devices


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [("JAX_PLATFORMS", "foo", "JAX_PLATFORMS is 'foo'"), ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64 is set")],
)
def test_what_cannot_compute_is_told_before_a_folder_is_made(tmp_path, variable, value, words):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), variable: value}
    command = [sys.executable, str(REPOSITORY / "experiments" / "minimize.py"), "--out", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_there_is_no_trouble():
    assert record.why_no_device() == ""


def test_the_way_of_convolutions_is_explained():
    native = conv.default_way() == "native"
    assert native == (conv.why_not_native() == "")
    assert native or conv.describe_way() in ("blocked", "xla")
    assert jnp.result_type(float) == jnp.float32
