"""Networks that say where their arrays lie: fewer channels that do not divide among four devices are no crash."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


CHILD = Path(__file__).parents[1] / "support" / "placement_child.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("placement") / "found.json"
    done = subprocess.run([sys.executable, str(CHILD), str(out)], env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


PLACED = ["channels", "channels over two axes", "channels and batch", "batch", "weights", "device_put", "jit", "mesh"]


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("kept", ["3", "4"])
def test_the_small_network_runs_with_and_without_jit(found, name, kept):
    assert found[name][kept].get("error") is None
    assert found[name][kept]["off"] < 1e-5


# For every function how what it places is divided, along (rows, columns), where four and where three channels are left.
DIVIDED = {
    "channels": ([[1, 4]], [[1, 1]]),
    "channels over two axes": ([[1, 4]], [[1, 1]]),
    "channels and batch": ([[2, 2]], [[2, 1]]),
    "batch": ([[4, 1]], [[4, 1]]),
    "weights": ([[1, 4]], [[1, 1]]),
    "device_put": ([[1, 4]], [[1, 1]]),
    "jit": ([[4, 1], [1, 4]], [[4, 1], [1, 1]]),
    "mesh": ([[1, 4]], [[1, 1]]),
}


@pytest.mark.parametrize("name", PLACED)
def test_only_the_axis_that_does_not_divide_is_replicated_and_a_warning_says_what_to_do(found, name):
    four, three = found[name]["4"], found[name]["3"]
    assert (four["divided"], three["divided"]) == DIVIDED[name]
    assert four["warnings"] == []
    if name == "batch":
        assert three["warnings"] == []
    else:
        (warning,) = three["warnings"]
        parts = 2 if name == "channels and batch" else 4
        assert f"among {parts} devices" in warning and "3 channels" in warning and f"`round_to={parts}`" in warning


def test_where_types_say_how_arrays_are_divided_a_sentence_names_the_grid(found):
    assert found["explicit"]["4"]["off"] < 1e-5
    assert "the mesh is explicit. `round_to=4`" in found["explicit"]["3"]["error"]


def test_channels_inside_shard_map_stay_and_the_reason_names_it(found):
    assert "`shard_map` divides it among devices by itself" in found["shard_map"]["refused"]["a[1]"]
