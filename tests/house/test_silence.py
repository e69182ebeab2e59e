"""Nothing is sent: an export asks the network for nothing, and no telemetry is written.

onnxruntime's is native code and on by default: it leaves a device's number below the cache folder at once, and looks
for its server after some 25 seconds.
"""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]
ONLY = REPOSITORY / "maskprune" / "removal" / "export" / "runtime.py"
FOLDERS = ("maskprune", "tests", "benchmarks", "experiments", "docs")

EXPORT = """
import sys, time
from pathlib import Path
import numpy as np
import maskprune
folder, endings, seconds = Path(sys.argv[1]), sys.argv[2].split(), float(sys.argv[3])
for ending in endings:
    params, inputs = {"w": np.ones((3, 2), np.float32)}, [np.ones((4, 3), np.float32)]
    maskprune.export(lambda params, x: x @ params["w"], params, folder / ending, inputs=inputs)
time.sleep(seconds)
"""
ASKS = re.compile(r"resolv\.conf|/etc/hosts|nsswitch|sa_family=AF_INET6?\b")


def imports_of_onnxruntime(source: str) -> list[int]:
    """The lines that import it, or have it imported."""
    lines: list[int] = []
    if "onnxruntime" not in source:
        return lines
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {
            "import_module",
            "importorskip",
            "__import__",
        }:
            names += [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        lines += [node.lineno for name in names if str(name).split(".")[0] == "onnxruntime"]
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "import onnxruntime",
        "def f():\n    import onnxruntime as ort",
        "from onnxruntime import InferenceSession",
        "from onnxruntime.capi import _pybind_state",
        "import importlib\nimportlib.import_module('onnxruntime')",
        "pytest.importorskip('onnxruntime')",
    ],
)
def test_an_import_is_seen(source):
    assert imports_of_onnxruntime(source)


def test_one_file_imports_onnxruntime():
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert ONLY in files and len(files) > 50
    assert [path for path in files if imports_of_onnxruntime(path.read_text("utf-8"))] == [ONLY]


def test_its_telemetry_is_off_before_the_import():
    lines = ONLY.read_text("utf-8").splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip() == "import onnxruntime")
    assert lines[place - 1].strip() == 'os.environ["ORT_DISABLE_TELEMETRY"] = "1"'


@pytest.fixture
def strace():
    """The command that writes down whom a program asks."""
    command = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=openat,connect,sendto,sendmsg,sendmmsg", "-o"]
    probe = [*command, os.devnull, sys.executable, "-c", ""]
    if shutil.which("strace") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed, or may not be used here")
    return command


@pytest.mark.parametrize("seconds", [0, pytest.param(40, marks=pytest.mark.slow)])
def test_an_export_asks_nobody_and_leaves_nothing(strace, tmp_path, seconds):
    endings = ["net.stablehlo", "net.orbax"]
    endings += ["net.onnx"] if importlib.util.find_spec("onnxruntime") else []
    endings += ["net.safetensors"] if importlib.util.find_spec("safetensors") else []
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [*strace, trace, sys.executable, "-c", EXPORT, tmp_path / "out", " ".join(endings), str(seconds)]
    subprocess.run(command, env={**environment, **places}, check=True, timeout=240, capture_output=True)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    lines = trace.read_text(errors="replace").splitlines()
    assert any("maskprune" in line for line in lines)  # else it saw nothing
    assert [line for line in lines if ASKS.search(line)] == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(endings)
