"""Populations and batches divided over eight devices, and over two processes, give what one device gives."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


CHILD = Path(__file__).parents[1] / "support" / "devices_child.py"
SETTINGS = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def start(out, *arguments):
    command = [sys.executable, str(CHILD), str(out), *map(str, arguments)]
    return subprocess.Popen(command, env=SETTINGS, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*children):
    for child in children:
        said, _ = child.communicate(timeout=300)
        assert child.returncode == 0, said


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one device, eight devices, and two processes of two devices found."""
    folder = tmp_path_factory.mktemp("devices")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finish(start(folder / "one.npz", 1), start(folder / "eight.npz", 8))
    finish(*[start(folder / f"process{i}.npz", 2, port, i) for i in (0, 1)])
    return {path.stem: dict(np.load(path)) for path in folder.iterdir()}


def agree(one, other, prefix):
    names = [name for name in one if name.startswith(prefix)]
    assert len(names) > 5
    for name in names:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_members_divided_over_eight_devices(found):
    one, eight = found["one"], found["eight"]
    assert (one["devices"], eight["devices"]) == (1, 8)
    assert eight["at_once"] == 16 and eight["compilations"] == 1  # 11 members, filled up
    agree(one, eight, "members/")
    np.testing.assert_allclose(one["losses"], eight["losses"], rtol=1e-4)
    assert one["losses"].shape == (11, 5) and np.isfinite(one["losses"]).all()


def test_a_batch_divided_over_eight_devices(found):
    assert found["eight"]["batch/compilations"] == 1
    agree(found["one"], found["eight"], "batch/")


def test_members_divided_over_two_processes(found):
    one, first, second = found["one"], found["process0"], found["process1"]
    assert first["devices"] == second["devices"] == 4 and first["at_once"] == 12
    assert all(np.array_equal(first[name], second[name]) for name in first)
    agree(one, first, "members/")
    np.testing.assert_allclose(one["losses"], first["losses"], rtol=1e-4)
