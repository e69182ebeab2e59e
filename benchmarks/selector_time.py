"""What does it cost to choose the next mask, by each selector?

On the 1-5-5-1 network and on a wide one, with a sample of 32 crops of 64 pixels, as the main program's default has it;
beside it one training step (Adam, batch of 8 such crops), and what every choice costs in training steps. A selector is
timed as `minimize` calls it, and compiled (`jax.jit`). All take turns.

    python benchmarks/selector_time.py --json benchmarks/results/selector_time_cpu.json

(Not called selectors.py: Python has a module of that name, which programs in this folder would then no longer find.)
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from common import Problem, Row, Variant, calls, measure, outputs, problem, title, variant, write

import maskprune
from maskprune import select


STEP = "training step"
COMPILED = ", compiled"


def selectors(found: Problem) -> dict[str, Any]:
    """One of each family, and both forms of a statistic where their cost might differ."""
    activations = found.model.activations
    return {
        "cosine-max": select.cosine("max"),
        "cosine-median": select.cosine("median"),
        "magnitude-l1": select.magnitude(1),
        "magnitude-l2": select.magnitude(2),
        "activation-mean": select.activation(activations, "mean"),
        "activation-std": select.activation(activations, "std"),
        "activation-zeros": select.activation(activations, "zeros"),
        "taylor": select.taylor(found.loss),
        "taylor-second": select.taylor(found.loss, 2),
        "fisher": select.fisher(found.loss),
        "ablation": select.ablation(found.loss),
        "information": select.information(activations, lambda pictures: pictures),
        "twin": select.twin(),
        "geometric-median": select.geometric_median(),
        "sequential": select.sequential(),
        "random": select.random(),
    }


def training(found: Problem) -> Variant:
    session, key = maskprune.make_session(found.step, found.draw), jax.random.key(0)
    state = found.state(key)
    return variant(STEP, lambda steps: session.run(key, state, found.pictures, steps)[0].step)


def variants(width: int, size: int, *, batch: int, sample: int, names: Sequence[str] | None) -> list[Variant]:
    found, key = problem(size, batch, widths=(width, width)), jax.random.key(0)
    network, pictures = found.state(key).network, jax.random.uniform(key, (sample, size, size, 1))
    made = [training(found)]
    every = selectors(found)
    for name, selector in ((name, every[name]) for name in names or every):
        made.append(calls(name, partial(selector, key, network, pictures)))
        made.append(calls(name + COMPILED, partial(jax.jit(selector), key, network, pictures)))
    return made


def rows_of(width: int, options: argparse.Namespace) -> list[Row]:
    made = variants(width, options.size, batch=options.batch, sample=options.sample, names=options.names)
    found = measure(made, options.repeats, count=options.calls, budget=options.budget)
    for row in found:
        row |= {"network": title((width, width)), "size": options.size, "batch": options.batch}
        row |= {"sample": options.sample, "steps": row["median_ms"] / found[0]["median_ms"]}
        print(
            f"{row['network']:<10} {row['name']:<30} {row['median_ms']:9.3f} ms  spread {row['spread']:.2f}  "
            f"{row['steps']:7.2f} training steps  (first call {row['compile_s']:.2f} s)",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[5, 64], help="masks of each of the two layers")
    parser.add_argument("--names", nargs="+", help="selectors; default: all")
    parser.add_argument("--size", type=int, default=64, help="side of the crops")
    parser.add_argument("--batch", type=int, default=8, help="crops of a training step")
    parser.add_argument("--sample", type=int, default=32, help="crops that selectors see")
    parser.add_argument("--calls", type=int, default=20, help="calls a timing, at most")
    parser.add_argument("--budget", type=float, default=0.2, help="seconds a timing, where one call does not take more")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    rows = [row for width in options.widths for row in rows_of(width, options)]
    write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
