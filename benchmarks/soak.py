"""Does a process that minimizes for hours keep its memory?

Runs small minimizations one after another in one process, each with its pictures, memory, report and exports, and
measures the resident memory after each, without what the C library keeps for later: that comes and goes by half of the
whole. JAX keeps compiled programs of functions that are long gone; between runs `jax.clear_caches()` lets them go, as a
program of one's own should that searches with many different models. The first part warms up: imports, allocators and
caches fill once. Growth is that of a line through the rest, from its beginning to its end.

    python benchmarks/soak.py --hours 2 --json benchmarks/results/soak_cpu.json
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import os
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from common import MB, Row, outputs, write


WARM_UP = 0.2  # share of the time after which memory counts


def resident_mb() -> float:
    """Megabytes that this process holds, once the C library has given back what it only keeps for later."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MB


def once(folder: Path, seed: int) -> None:
    """A whole small run."""
    from maskprune.app import minimizing, protocol

    recipe = protocol.Recipe(crop=32, batch=4, first_steps=200, steps=50, final_steps=50)
    config = minimizing.Config(protocol.Pictures(size=64), out=folder, recipe=recipe, seed=seed, widths=(3, 3))
    try:
        minimizing.main(dataclasses.replace(config, max_rounds=4, quiet=True))
    except SystemExit as error:  # no start learned: as good a run as any other here
        print(error)
    jax.clear_caches()


def growth(rows: list[Row]) -> float | None:
    """By how much a line through what came after the warm-up rises, as a share; None for too few runs."""
    late = [row for row in rows if row["minutes"] >= WARM_UP * rows[-1]["minutes"]]
    if len(late) < 3:
        return None
    minutes, sizes = (np.array([row[name] for row in late]) for name in ("minutes", "resident_mb"))
    slope, level = np.polyfit(minutes - minutes[0], sizes, 1)
    return float(slope * (minutes[-1] - minutes[0]) / level)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=2.0, help="how long")
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()
    rows: list[Row] = []
    began = time.monotonic()
    while not rows or time.monotonic() - began < 3600 * options.hours:
        with tempfile.TemporaryDirectory() as folder:
            once(Path(folder) / "run", seed=len(rows))
        rows.append({"minutes": (time.monotonic() - began) / 60, "resident_mb": resident_mb()})
        print(f"run {len(rows)}, {rows[-1]['minutes']:.1f} min: {rows[-1]['resident_mb']:.1f} MB", flush=True)
        write(options.json, rows, growth=growth(rows))
    if (grown := growth(rows)) is not None:
        print(f"{len(rows)} runs, growth {grown:.2%}")


if __name__ == "__main__":
    with outputs():
        main()
