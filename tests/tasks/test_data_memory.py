"""A folder of any size takes no more memory than was allowed, and the user is told what was left out."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hostile_limits import ROOT, linux

from maskprune.tasks.data import make_dataset, make_pairs, sobel


SIDE, FEW = 128, 300
CROP = 3 * SIDE**2
PEAK = """
import sys
from hostile_child import memory
from maskprune.tasks.data import make_dataset, sobel
make_dataset(sobel(), size=128, limit=2, cache=None)
before = memory("VmHWM:")
make_dataset(sobel(), sys.argv[1], size=128, memory=int(sys.argv[2]), cache=None, workers=2)
print(memory("VmHWM:") - before)
"""


def fill(folder, count, *, side=SIDE):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.pgm").write_bytes(b"P5\n%d %d\n255\n" % (side, side) + rng.bytes(side * side))
    return folder


def peak(folder, memory) -> int:
    """Bytes of memory that a data set takes at most, beside what the imports take."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))}
    command = [sys.executable, "-c", PEAK, folder, str(memory)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(found.stdout)


@linux
def test_peak_memory_does_not_grow_with_the_folder(tmp_path):
    few, many = fill(tmp_path / "few", FEW), fill(tmp_path / "many", 4 * FEW)
    once, budget, slack = peak(few, FEW * CROP), FEW * CROP, 10 << 20
    assert peak(many, budget) < once + slack
    assert once < 2 * budget + 2 * slack
    assert peak(many, 4 * budget) > once + 3 * budget  # without a limit it does grow


def names(dataset):
    return {*dataset.train.names, *dataset.evaluation.names}


def test_as_many_as_fit_are_drawn_and_it_is_said(tmp_path):
    folder = fill(tmp_path / "p", 10, side=16)
    make = lambda **options: make_dataset(sobel(), folder, size=16, **{"cache": tmp_path / "cache", **options})
    crop = 3 * 16 * 16
    for _ in range(2):  # the second time from the cache
        found = make(memory=6 * crop + crop // 2)
        assert len(names(found)) == 6
        assert found.notes == (
            f"of 10 pictures 6 were drawn, whose crops fit into {6 * crop + crop // 2} bytes; memory= allows more",
        )
    assert names(make(memory=6 * crop, split_seed=2)) != names(found)
    assert names(found) == names(make(limit=6)) and make(limit=6).notes == ()
    assert make(memory=10 * crop).notes == () == make(limit=4, memory=5 * crop).notes
    assert make(memory=10 * crop).checksum == make().checksum
    with pytest.raises(ValueError, match=r"memory=1535 does not hold the crops of two pictures"):
        make(memory=2 * crop - 1)


def test_pairs_keep_to_it_too(tmp_path):
    folder = fill(tmp_path / "p", 10, side=16)
    found = make_pairs(folder, folder, size=16, memory=3 * 3 * 256, cache=None)
    assert len(names(found)) == 3 and "of 10 pictures 3 were drawn" in found.notes[0]
