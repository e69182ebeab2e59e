"""What is a training step on a GPU spent on, kernel by kernel?

Runs steps of the 1-5-5-1 network (Adam, 3 pictures, float32) under JAX's profiler, one kernel after another instead of
in a CUDA graph, where the profiler sees none of them. So the sum of the kernels is what the device works, not what a
step takes: in the graph short kernels run side by side, and gaps between kernels are much shorter.

    python benchmarks/step_profile.py --sizes 64 256 --members 0 64 --json benchmarks/results/step_profile_cuda.json
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from common import Row, outputs, problem, said, write

import maskprune
from maskprune.train import session


POOL = 16  # pictures that batches are drawn from
OWN = ("forward", "backward")  # kernels of `maskprune/conv/_kernels.cu`, one launch each for a layer


def steps_of(size: int, members: int, steps: int) -> Callable[[], Any]:
    """Trains so many steps; 0 members: a single network."""
    found, key = problem(size, 3, pool=POOL), jax.random.key(0)
    if not members:
        alone, state = maskprune.make_session(found.step, found.draw, chunk=steps), found.state(key)
        return lambda: alone.run(key, state, found.pictures, steps)
    together, keys = maskprune.make_population(found.step, found.draw, chunk=steps), jax.random.split(key, members)
    states = found.states(keys)
    return lambda: together.run(keys, states, found.pictures, steps)


def kernels(folder: Path) -> Iterator[tuple[str, float]]:
    """Names and microseconds of what ran on the device, in the order of their start."""
    path = next(folder.rglob("*.trace.json.gz"))
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    lanes = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each.get("name") == "thread_name"}
    device = [
        each for each in events if each.get("ph") == "X" and "Stream" in lanes.get((each["pid"], each["tid"]), "")
    ]
    for each in sorted(device, key=lambda each: each["ts"]):
        yield each["name"], each["dur"]


def rows_of(size: int, members: int, steps: int) -> list[Row]:
    run = steps_of(size, members, steps)
    run()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run()
        spent, calls, layers = defaultdict(float), defaultdict(int), 3
        for name, duration in kernels(Path(folder)):
            if name in OWN:  # layers come first to last forward, last to first backward
                number = calls[name] % layers + 1
                calls[name] += 1
                name = f"convolution, {name}, layer {number if name == 'forward' else layers + 1 - number}"
            else:
                name = "short kernels of XLA" if duration < 10 else f"XLA: {name}"
            spent[name] += duration / steps
    total = sum(spent.values())
    rows = sorted(spent.items(), key=lambda each: -each[1])
    return [
        {"size": size, "members": members, "name": name, "us_a_step": used, "share": used / total}
        for name, used in rows
        if used > 0.002 * total
    ]


def say(row: Row) -> None:
    who = f"{row['members']} members" if row["members"] else "one network"
    print(
        f"{row['size']:>4}²  {who:<12} {row['us_a_step']:9.2f} us a step  {row['share']:4.0%}  {row['name']}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256], help="sides of the pictures")
    parser.add_argument("--members", type=int, nargs="+", default=[0, 64], help="networks side by side; 0: one alone")
    parser.add_argument("--steps", type=int, default=20, help="steps that are looked at")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        parser.error("this looks at the kernels of a GPU, and JAX sees none")
    session.GRAPHS = {"xla_gpu_enable_command_buffer": ""}
    kinds = itertools.product(options.sizes, options.members)
    rows = list(said((row for size, members in kinds for row in rows_of(size, members, options.steps)), say))
    write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
