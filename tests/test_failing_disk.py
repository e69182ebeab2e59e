"""Every call that writes, failing: nothing that was safe is lost, the run goes on, and the user is told."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not COMPILER, reason="needs Linux and a C compiler")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    library = tmp_path_factory.mktemp("disk") / "failing_disk.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, HERE / "failing_disk.c", "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return library


def fail(disk, folder, kind, stride):
    environment = {**os.environ, "LD_PRELOAD": str(disk)}
    command = [sys.executable, HERE / "failing_disk_child.py", folder, kind, str(stride)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", ["once", "lasting"])
def test_a_disk_that_fails_loses_nothing_that_was_safe(disk, tmp_path, kind):
    found = fail(disk, tmp_path, kind, stride=37 if kind == "once" else 53)
    assert found["calls"] > 50 and found["told"] > found["tried"] * 0.9, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["once", "lasting"])
def test_every_call_fails_with_every_error(disk, tmp_path, kind):
    found = fail(disk, tmp_path, kind, stride=1)
    assert found["tried"] == 5 * found["calls"], found
