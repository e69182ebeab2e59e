"""Does a process that minimizes for hours keep its memory?

Runs small minimizations one after another in one process, each with its pictures, memory, report and exports, and
measures the resident memory after each. JAX keeps compiled programs of functions that are long gone; between runs
`jax.clear_caches()` lets them go, as a program of one's own should that searches with many different models. The first
part warms up: imports, allocators and caches fill once. Growth is that of a line through the rest, from its beginning
to its end.

    python benchmarks/soak.py --hours 2
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro


sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))


@dataclasses.dataclass(frozen=True)
class Config:
    """How long, and how much of it is warming up."""

    hours: float = 2.0
    """Length of the whole."""
    warm_up: float = 0.2
    """Share of it after which memory counts."""
    json: Path | None = None
    """Where to write the result."""


def resident() -> int:
    """Bytes of memory this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def once(folder: Path, seed: int) -> None:
    """A whole small run."""
    import minimize

    recipe = minimize.Recipe(crop=32, batch=4, first_steps=200, steps=50, final_steps=50)
    config = minimize.Config(
        minimize.Pictures(size=64), out=folder, recipe=recipe, seed=seed, widths=(3, 3), quiet=True
    )
    minimize.main(dataclasses.replace(config, max_rounds=4))


def main(config: Config) -> dict[str, Any]:
    end, began, times, sizes = time.monotonic() + 3600 * config.hours, time.monotonic(), [], []
    while time.monotonic() < end:
        folder = Path(tempfile.mkdtemp())
        try:
            once(folder / "run", seed=len(times))
        except RuntimeError as error:  # no start learned: as good a run as any other here
            print(error)
        shutil.rmtree(folder)
        jax.clear_caches()
        times.append(time.monotonic() - began)
        sizes.append(resident())
        print(f"run {len(times)}, {times[-1] / 60:.1f} min: {sizes[-1] / 2**20:.1f} MiB", flush=True)
        if config.json:
            config.json.write_text(json.dumps(result(config, times, sizes), indent=1) + "\n")
    return result(config, times, sizes)


def result(config: Config, times: list[float], sizes: list[int]) -> dict[str, Any]:
    """Growth of the line through what came after the warm-up, and the series."""
    import maskprune

    late = [(at, size) for at, size in zip(times, sizes, strict=True) if at >= config.warm_up * 3600 * config.hours]
    growth = None
    if len(late) > 2:
        at, size = np.array(late).T
        slope, level = np.polyfit(at - at[0], size, 1)
        growth = slope * (at[-1] - at[0]) / level
    return {
        "runs": len(times),
        "hours": times[-1] / 3600 if times else 0.0,
        "growth_after_warm_up": growth,
        "MiB": [round(size / 2**20, 1) for size in sizes],
        "versions": maskprune.record.versions(),
        "device": maskprune.record.device(),
    }


if __name__ == "__main__":
    found = main(tyro.cli(Config, description=__doc__))
    print(f"{found['runs']} runs in {found['hours']:.2f} hours, growth {found['growth_after_warm_up']:.2%}")
