"""Two seconds and a gigabyte: whether files from strangers are decided within them, in a process of their own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured by Linux's /proc")


class Found(NamedTuple):
    """What became of a file, "kept" or why not; seconds, of them at work; bytes."""

    what: str
    wall: float
    cpu: float
    memory: int


def decide(kind: str, folder: Path, names: Sequence[bytes]) -> dict[bytes, Found]:
    """What becomes of every file, read as a "picture", a "network" or a "source"; 280 seconds are a hang."""
    command = [sys.executable, ROOT / "tests" / "support" / "hostile_child.py", kind, folder]
    lines = "\n".join(json.dumps(os.fsdecode(name)) for name in names)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=280, env=environment)
    assert child.returncode == 0, child.stderr[-2000:]
    return {name: Found(*json.loads(line)) for name, line in zip(names, child.stdout.splitlines(), strict=True)}


def check_limits(found: dict[bytes, Found]) -> None:
    for name, one in found.items():
        # Processor time: the machine has other work. A wait without work, as for a pipe, is seen by the wall's.
        assert one.cpu < 2 and one.wall < 10 and one.memory < 1 << 30, f"{name}: {one}"
