"""How long does one training step take, by convolution and by optimizer?

Trains the 1-5-5-1 network in the compiled loop that sessions use. All variants live in one process and take turns,
after a warm-up; compilation is timed apart. Quote ratios: absolute times depend on the machine and on who else uses it.

    python benchmarks/train_step.py --sizes 64 128 --json result.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import maskprune


class Variant(NamedTuple):
    name: str
    run: Callable[[], Any]
    compile_s: float


def make_variant(name: str, size: int, batch: int, steps: int, *, way: str, optimizer: Any) -> Variant:
    model = maskprune.models.fcn((5, 5), convolution=partial(maskprune.conv2d, way=way))
    key = jax.random.key(0)
    pictures = jax.random.uniform(key, (batch, size, size, 1))
    loss = lambda params, found: maskprune.losses.mse(model.apply(params, found), 0.5 * found)
    session = maskprune.make_session(maskprune.make_train_step(loss, optimizer), lambda key, data: data, chunk=steps)
    state = maskprune.init_state(maskprune.init_network(model.init(key), model.groups), optimizer)
    run = lambda: session.run(key, state, pictures, steps)
    began = time.perf_counter()
    run()
    return Variant(name, run, time.perf_counter() - began)


def measure(variants: list[Variant], steps: int, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds a step: median, and the spread as the ratio of the 90 % to the 10 % quantile."""
    times: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(repeats):
        for variant in variants:
            began = time.perf_counter()
            variant.run()
            times[variant.name].append((time.perf_counter() - began) / steps * 1e3)
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
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        make = partial(make_variant, size=size, batch=options.batch, steps=options.steps)
        variants = [
            make("maskprune, native convolution, adam", way="native", optimizer=optax.adam(1e-3)),
            make("maskprune, native convolution, soap", way="native", optimizer=maskprune.soap()),
            make("maskprune, blocked convolution, adam", way="blocked", optimizer=optax.adam(1e-3)),
            make("maskprune, blocked convolution, soap", way="blocked", optimizer=maskprune.soap()),
            make("XLA convolution, adam", way="xla", optimizer=optax.adam(1e-3)),
        ]
        found = measure(variants, options.steps, options.repeats)
        for row in found:
            row |= {"size": size, "batch": options.batch, "ratio_to_first": row["median_ms"] / found[0]["median_ms"]}
            print(
                f"{size:>4}²  {row['name']:<40} {row['median_ms']:8.2f} ms  spread {row['spread']:.2f}  "
                f"{row['ratio_to_first']:5.2f} × the first  (first call {row['compile_s']:.1f} s)",
                flush=True,
            )
        rows += found
    if options.json:
        facts = {"device": maskprune.record.device(), "versions": maskprune.record.versions(), "precision": "float32"}
        maskprune.record.write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
