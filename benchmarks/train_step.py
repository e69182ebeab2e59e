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
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from common import Row, Variant, measure, outputs, problem, variant, write
from peers_train_step import is_peer

import maskprune
from maskprune.conv import default_way


PEERS = Path(__file__).with_name("peers_train_step.py")


def ours(name: str, size: int, batch: int, steps: int, *, way: str, optimizer: Any) -> Variant:
    found, key = problem(size, batch, way=way, optimizer=optimizer), jax.random.key(0)
    session, state = maskprune.make_session(found.step, found.draw, chunk=steps), found.state(key)
    return variant(name, lambda steps: session.run(key, state, found.pictures, steps)[0].step)


def all_of_ours(size: int, batch: int, steps: int, names: Sequence[str]) -> list[Variant]:
    """The default way of convolution first, XLA's own last."""
    make = partial(ours, size=size, batch=batch, steps=steps)
    optimizers = {"adam": optax.adam(1e-3), "soap": maskprune.optim.soap()}
    first = default_way()
    found = [make(f"maskprune, {first} convolution, {name}", way=first, optimizer=optimizers[name]) for name in names]
    for way, name in (("blocked", "maskprune, blocked convolution, adam"), ("xla", "XLA convolution, adam")):
        if way != first:
            found.append(make(name, way=way, optimizer=optimizers["adam"]))
    return found


@contextmanager
def peers(library: str, python: str, size: int, batch: int) -> Iterator[list[Variant]]:
    command = [python, str(PEERS), library, "--size", str(size), "--batch", str(batch)]
    quiet = None if library == "torch" else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        questions, answers = child.stdin, child.stdout
        first = answers.readline()
        if not first:
            sys.exit(f"{' '.join(command)} did not start.")

        def run(steps: int, name: str) -> float:
            print(name, steps, file=questions, flush=True)
            return float(answers.readline())

        yield [Variant(name, partial(run, name=name), seconds) for name, seconds in json.loads(first).items()]
        questions.close()


def say(size: int, row: Row) -> None:
    print(
        f"{size:>4}²  {row['name']:<55} {row['median_ms']:8.2f} ms  spread {row['spread']:.2f}  "
        f"{row['ratio_to_first']:5.2f} × the first  (first call {row['compile_s']:.1f} s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides of the pictures")
    parser.add_argument("--batch", type=int, default=3, help="pictures a step")
    parser.add_argument("--steps", type=int, default=20, help="steps a timing")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each variant")
    parser.add_argument("--optimizers", nargs="+", choices=["adam", "soap"], default=["adam", "soap"], help="of ours")
    parser.add_argument("--torch-python", help="an interpreter that has PyTorch")
    parser.add_argument("--tensorflow-python", help="an interpreter that has TensorFlow")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    libraries = {"torch": options.torch_python, "tensorflow": options.tensorflow_python}
    rows, speedup = [], {}
    for size in options.sizes:
        variants = all_of_ours(size, options.batch, options.steps, options.optimizers)
        with ExitStack() as stack:
            for library, python in libraries.items():
                if python:
                    variants += stack.enter_context(peers(library, python, size, options.batch))
            found = measure(variants, options.repeats, count=options.steps)
        for row in found:
            row |= {"size": size, "batch": options.batch, "ratio_to_first": row["median_ms"] / found[0]["median_ms"]}
            say(size, row)
        others = [row["median_ms"] for row in found if is_peer(row["name"])]
        if others:
            speedup[size] = min(others) / found[0]["median_ms"]
            print(f"{size:>4}²  {speedup[size]:.2f} times as fast as the best of the others", flush=True)
        rows += found
        write(options.json, rows, speedup_vs_best=speedup)


if __name__ == "__main__":
    with outputs():
        main()
