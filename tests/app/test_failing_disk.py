"""Every call that writes, failing: nothing that was safe is lost, the run goes on, and the user is told."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from toys import smooth_pictures

from maskprune.app import repeats


COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="needs Linux and a C compiler")
SUPPORT = Path(__file__).parents[1] / "support"
ERRORS = [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT]


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    library = tmp_path_factory.mktemp("disk") / "failing_disk.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, SUPPORT / "failing_disk.c", "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def fail(disk, folder, kind, stride):
    environment = {**os.environ, "LD_PRELOAD": str(disk)}
    command = [sys.executable, SUPPORT / "failing_disk_child.py", folder, kind, str(stride)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.rotating
@pytest.mark.parametrize("kind", ["once", "lasting"])
def test_a_disk_that_fails_loses_nothing_that_was_safe(disk, tmp_path, kind):
    found = fail(disk, tmp_path, kind, stride=37 if kind == "once" else 53)
    assert found["calls"] > 50 and found["told"] > found["tried"] * 0.9, found


EXPORTS = """
import ctypes, sys
from pathlib import Path
import numpy as np
import maskprune
disk, folder = ctypes.CDLL(None), Path(sys.argv[1])
for when in (0, 10, 20, 30, 40, 60):
    disk.fail_below(str(folder).encode(), ctypes.c_long(when), 28, 1)
    try:
        maskprune.export(None, {"a": np.ones((3, 3), np.float32)}, folder / "net.orbax")
    except OSError as error:
        print("told", when, "No space left" in str(error))
    disk.fail_below(b"", ctypes.c_long(-1), 0, 0)
"""


def test_an_export_that_fails_says_so_and_the_program_ends(disk, tmp_path):
    environment = {**os.environ, "LD_PRELOAD": str(disk)}
    command = [sys.executable, "-c", EXPORTS, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and done.stdout.count("True") == 6, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [0, 1])
def test_a_whole_run_goes_on_when_the_disk_is_well_again(disk, tmp_path, lasting):
    smooth_pictures(tmp_path / "pictures.npz", 48)
    program = [sys.executable, SUPPORT.parents[1] / "experiments" / "minimize.py"]
    options = "--size 48 --crop 32 --batch 4 --widths 2 2 --strategy one-by-one --max-rounds 2 --save-every 0"
    options += " --first-steps 400 --steps 100 --final-steps 100 --task threshold"
    command = [*program, "--data", tmp_path / "pictures.npz", *options.split(), "--out"]
    subprocess.run([*command, tmp_path / "whole"], check=True, timeout=300, capture_output=True)
    out, tried = tmp_path / "out", 0
    for when in [*range(0, 200, 13), *range(200, 1200, 97)]:
        code = ERRORS[tried % len(ERRORS)]
        fault = {"FAIL_BELOW": out, "FAIL_AT": when, "FAIL_WITH": code, "FAIL_LASTING": lasting, "LD_PRELOAD": disk}
        environment = {**os.environ, **{name: str(value) for name, value in fault.items()}, "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [*command, out], env=environment, timeout=300, capture_output=True, text=True, check=False
        )
        assert "Traceback" not in done.stderr, (when, done.stderr[-2000:])
        if not (out / "memory" / "answers.jsonl").exists():  # it could not even begin, and said so
            assert done.returncode and os.strerror(code) in done.stderr, when
            shutil.rmtree(out, ignore_errors=True)
            continue
        again = [*program, "--resume", out]
        subprocess.run(again, check=True, timeout=300, capture_output=True)
        assert repeats.differences(tmp_path / "whole", out) == [], (when, code)
        shutil.rmtree(out)
        tried += 1
    assert tried > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["once", "lasting"])
def test_every_call_fails_with_every_error(disk, tmp_path, kind):
    found = fail(disk, tmp_path, kind, stride=1)
    assert found["tried"] == 5 * found["calls"], found
