"""What does trust cost, and does it hold? Saving within sessions, and the same bits every time.

Saving: one network (1-5-5-1) is trained in sessions that take turns: without a memory, with one that saves every
second, and with one that saves after every chunk. Every session counts to the moment at which all is on the disk.

The same bits: processes that take turns, without and with the flags of `--deterministic`, train the same sessions; how
many different results come out, and how much longer does a step take?

    python benchmarks/trust.py --sizes 64 256 --json benchmarks/results/trust_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from common import CHUNK, Row, outputs, problem, said, write

import maskprune
from maskprune.minimizer.answers import Memory
from maskprune.minimizer.progress import digest


OPTIMIZERS = {"adam": lambda: optax.adam(1e-3), "soap": lambda: maskprune.optim.soap(1e-2)}
WAYS = {"nothing is saved": None, "every second": 1.0, "after every chunk": 0.0}


def seconds_of(session: Any, found: Any, number: int, steps: int, every: float | None) -> float:
    """A session of a key of its own, to the disk."""
    key, state = jax.random.key(number), found.state(jax.random.key(number))
    jax.block_until_ready(state.network.params)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        if every is None:
            session.run(key, state, found.pictures, steps)
        else:
            with Memory.open(folder, {"config": None, "data": None}, every=every) as memory:
                memory.session(session).run(key, state, found.pictures, steps)
        return time.perf_counter() - began


def saving(size: int, batch: int, steps: int, repeats: int) -> list[Row]:
    found = problem(size, batch, optimizer=OPTIMIZERS["soap"]())
    session = maskprune.make_session(found.step, found.draw, chunk=CHUNK)
    for every in WAYS.values():  # warms up
        seconds_of(session, found, 0, CHUNK, every)
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(repeats):
        for name, every in WAYS.items():
            spent[name].append(seconds_of(session, found, number + 1, steps, every))
    plain = np.array(spent["nothing is saved"])
    return [
        {
            "kind": "saving",
            "name": name,
            "size": size,
            "median_ms": 1e3 * float(np.median(times)) / steps,
            "spread": float(np.quantile(times, 0.9) / np.quantile(times, 0.1)),
            "ratio": float(np.median(np.array(times) / plain)),
        }
        for name, times in spent.items()
    ]


def look(size: int, batch: int, steps: int, optimizer: str) -> Row:
    """In a process of its own: a session, twice; the second one is timed."""
    found = problem(size, batch, optimizer=OPTIMIZERS[optimizer]())
    session = maskprune.make_session(found.step, found.draw, chunk=CHUNK)
    for _ in range(2):
        state, report = session.run(jax.random.key(1), found.state(jax.random.key(0)), found.pictures, steps)
    return {"seconds": report.seconds, "digest": digest("ended", (state, report.losses))}


def apart(size: int, batch: int, steps: int, optimizer: str, *, deterministic: bool) -> Row:
    from maskprune.app.runs import exact_flags

    flags = exact_flags() if deterministic else os.environ.get("XLA_FLAGS", "")
    words = [str(each) for each in (size, batch, steps)]
    command = [sys.executable, __file__, "--look", *words, "--optimizers", optimizer]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "XLA_FLAGS": flags}
    )
    return json.loads(done.stdout.splitlines()[-1])


def same_bits(size: int, batch: int, steps: int, optimizer: str, repeats: int) -> list[Row]:
    found: dict[bool, list[Row]] = {False: [], True: []}
    for _ in range(repeats):
        for deterministic, rows in found.items():
            rows.append(apart(size, batch, steps, optimizer, deterministic=deterministic))
    plain = np.median([row["seconds"] for row in found[False]])
    return [
        {
            "kind": "same bits",
            "name": "--deterministic" if deterministic else "default",
            "optimizer": optimizer,
            "size": size,
            "runs": len(rows),
            "results": len({row["digest"] for row in rows}),
            "median_ms": 1e3 * float(np.median([row["seconds"] for row in rows])) / steps,
            "ratio": float(np.median([row["seconds"] for row in rows]) / plain),
        }
        for deterministic, rows in found.items()
    ]


def say(row: Row) -> None:
    runs = f", {row['results']} results of {row['runs']} runs" if "runs" in row else ""
    print(
        f"{row['kind']} {row['size']}² {row.get('optimizer', 'soap')}, {row['name']}: {row['ratio']:.3f}{runs}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], help="sides of the pictures")
    parser.add_argument("--batch", type=int, default=3, help="pictures of a step")
    parser.add_argument("--steps", type=int, default=2000, help="steps of a session")
    parser.add_argument("--repeats", type=int, default=5, help="sessions of each kind")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS], help="that are repeated")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--look", type=int, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(look(*options.look, options.optimizers[0])))
        return
    rows: list[Row] = []
    take = partial(said, say=say)
    for size in options.sizes:
        for optimizer in options.optimizers:
            rows += take(same_bits(size, options.batch, options.steps, optimizer, options.repeats))
            write(options.json, rows)
        rows += take(saving(size, options.batch, options.steps, options.repeats))
        write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
