"""How much memory does training take: one session, and populations of several sizes?

Each in a process of its own, which trains a few steps (1-5-5-1 network, Adam, float32) and says its peak resident size,
compiling included, beside its size after the imports; and what the compiled program of one group of members needs by
itself: arguments, results and temporaries. On a GPU also the device's own peak.

    python benchmarks/memory.py --sizes 128 256 --json benchmarks/results/memory_cpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
from common import CHUNK, MB, Row, outputs, peak_mb, problem, program_memory, write

import maskprune


POOL = 16  # pictures that batches are drawn from


def look(size: int, batch: int, members: int, steps: int) -> Row:
    """Trains in this process, and says what that took. 0 members: a single session."""
    key = jax.random.key(0)
    jax.block_until_ready(key)  # the device is at work
    start = peak_mb()
    found, at_once = problem(size, batch, pool=POOL), 1
    if members:
        population = maskprune.make_population(found.step, found.draw, chunk=CHUNK)
        keys = jax.random.split(key, members)
        _, report = population.run(keys, found.states(keys), found.pictures, steps)
        program, at_once = population.programs()[-1], report.at_once
    else:
        session = maskprune.make_session(found.step, found.draw, chunk=CHUNK)
        session.run(key, found.state(key), found.pictures, steps)
        program = session.programs()[-1]
    peak, device = peak_mb(), jax.local_devices()[0].memory_stats() or {}
    return {
        "size": size,
        "batch": batch,
        "members": members,
        "at_once": at_once,
        "start_mb": start,
        "peak_mb": peak,
        "device_peak_mb": device["peak_bytes_in_use"] / MB if "peak_bytes_in_use" in device else None,
        **program_memory(program),
    }


def apart(size: int, batch: int, members: int, steps: int) -> Row:
    """The same in a process of its own."""
    numbers = [str(each) for each in (size, batch, members, steps)]
    child = subprocess.run(
        [sys.executable, __file__, "--look", *numbers], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(child.stdout.splitlines()[-1])


def say(row: Row) -> None:
    who = f"{row['members']} members, {row['at_once']} at once" if row["members"] else "single session"
    numbers = ", ".join(f"{row[key] or 0:.1f} {key[:-3]}" for key in ("argument_mb", "output_mb", "temp_mb"))
    device = "" if row["device_peak_mb"] is None else f"  device {row['device_peak_mb']:.0f} MB"
    print(
        f"{row['size']:>4}²  {who:<25} process {row['start_mb']:.0f} → {row['peak_mb']:.0f} MB{device}  "
        f"program {row['program_mb'] or 0:.1f} MB ({numbers})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="sides of the pictures")
    parser.add_argument("--members", type=int, nargs="*", default=[1, 16, 64], help="beside a single session")
    parser.add_argument("--batch", type=int, default=3, help="pictures a step")
    parser.add_argument("--steps", type=int, default=3, help="steps that are trained")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--look", type=int, nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(*options.look)))
        return
    rows = []
    for size in options.sizes:
        for members in (0, *options.members):
            rows.append(apart(size, options.batch, members, options.steps))
            say(rows[-1])
    write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
