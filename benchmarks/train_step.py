"""How long does one training step take: by convolution, by optimizer, and in other libraries?

Trains the 1-5-5-1 network (Adam, mean squared error, float32, data on the device) in the compiled loop that sessions
use. All variants take turns, after a warm-up; compilation is timed apart. Other libraries run in processes of their
own, which wait while it is not their turn, from whatever interpreter has them installed. Quote ratios: times depend
on the machine and on who else uses it.

    python benchmarks/train_step.py --sizes 128 256 --json result.json
    python benchmarks/train_step.py --torch-python ../torch/bin/python --tensorflow-python ../tf/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import maskprune
from maskprune.conv import default_way, native


PEERS = Path(__file__).with_name("peers_train_step.py")


class Variant(NamedTuple):
    """`run(steps)` gives the milliseconds of one step."""

    name: str
    run: Callable[[int], float]
    compile_s: float


def ours(name: str, size: int, batch: int, steps: int, *, way: str, optimizer: Any) -> Variant:
    model = maskprune.models.fcn((5, 5), convolution=partial(maskprune.conv2d, way=way))
    key = jax.random.key(0)
    pictures = jax.random.uniform(key, (batch, size, size, 1))
    loss = lambda params, found: maskprune.losses.mse(model.apply(params, found), 0.5 * found)
    session = maskprune.make_session(maskprune.make_train_step(loss, optimizer), lambda key, data: data, chunk=steps)
    state = maskprune.init_state(maskprune.init_network(model.init(key), model.groups), optimizer)

    def run(steps: int) -> float:
        began = time.perf_counter()
        session.run(key, state, pictures, steps)
        return (time.perf_counter() - began) / steps * 1e3

    began = time.perf_counter()
    run(1)
    return Variant(name, run, time.perf_counter() - began)


@contextmanager
def peers(library: str, python: str, size: int, batch: int) -> Iterator[list[Variant]]:
    command = [python, str(PEERS), library, "--size", str(size), "--batch", str(batch)]
    quiet = None if library == "torch" else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        first = child.stdout.readline()
        if not first:
            sys.exit(f"{' '.join(command)} did not start.")

        def run(steps: int, name: str) -> float:
            print(name, steps, file=child.stdin, flush=True)
            return float(child.stdout.readline())

        yield [Variant(name, partial(run, name=name), seconds) for name, seconds in json.loads(first).items()]
        child.stdin.close()


def measure(variants: list[Variant], steps: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a step: median, and the spread as the ratio of the 90 % to the 10 % quantile."""
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for variant in variants:
        variant.run(steps)  # warm
    for _ in range(repeats):
        for variant in variants:
            times[variant.name].append(variant.run(steps))
    rows = []
    for variant in variants:
        low, median, high = np.quantile(times[variant.name], [0.1, 0.5, 0.9])
        rows.append({"name": variant.name, "median_ms": median, "spread": high / low, "compile_s": variant.compile_s})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the pictures")
    parser.add_argument("--batch", type=int, default=3, help="pictures a step")
    parser.add_argument("--steps", type=int, default=20, help="steps a timing")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each variant")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--tensorflow-python", help="an interpreter that has TensorFlow")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    ways = [*(["native"] if default_way() == "native" else []), "blocked"]
    libraries = {"torch": options.torch_python, "tensorflow": options.tensorflow_python}
    rows, speedup = [], {}
    for size in options.sizes:
        make = partial(ours, size=size, batch=options.batch, steps=options.steps)
        variants = [
            make(f"maskprune, {way} convolution, {name}", way=way, optimizer=optimizer)
            for way in ways
            for name, optimizer in (("adam", optax.adam(1e-3)), ("soap", maskprune.soap()))
        ]
        variants.append(make("XLA convolution, adam", way="xla", optimizer=optax.adam(1e-3)))
        with ExitStack() as stack:
            for library, python in libraries.items():
                if python:
                    variants += stack.enter_context(peers(library, python, size, options.batch))
            found = measure(variants, options.steps, options.repeats)
        for row in found:
            row |= {"size": size, "batch": options.batch, "ratio_to_first": row["median_ms"] / found[0]["median_ms"]}
            print(
                f"{size:>4}²  {row['name']:<55} {row['median_ms']:8.2f} ms  spread {row['spread']:.2f}  "
                f"{row['ratio_to_first']:5.2f} × the first  (first call {row['compile_s']:.1f} s)",
                flush=True,
            )
        others = [row["median_ms"] for row in found if not row["name"].startswith("maskprune")]
        speedup[size] = min(others) / found[0]["median_ms"]
        print(f"{size:>4}²  {speedup[size]:.2f} times as fast as the best of the others", flush=True)
        rows += found
    if options.json:
        facts = {"device": maskprune.record.device(), "versions": maskprune.record.versions(), "precision": "float32"}
        facts |= {"instructions": native.LEVEL}
        maskprune.record.write_json(options.json, {**facts, "rows": rows, "speedup_vs_best": speedup})


if __name__ == "__main__":
    main()
