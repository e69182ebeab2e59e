"""How long does one picture take: through the full network, the masked one, and the compacted one?

Of the 1-5-5-1 network and of a wider one, half of the masks disabled. The masked network computes its effective
parameters inside the call, from masks that are data; the compacted one has no trace of them left. All take turns.

    python benchmarks/inference.py --sizes 64 128 256 --json benchmarks/results/inference_cpu.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
from common import Row, Variant, calls, measure, outputs, title, write

import maskprune
from maskprune.tasks.models.fcn import multiply_adds


FORMS = ("full", "masked", "compacted")


def half_disabled(widths: Sequence[int]) -> tuple[maskprune.models.FCN, maskprune.Network]:
    """Every second mask, counted through all layers."""
    model = maskprune.models.fcn(widths)
    network = maskprune.init_network(model.init(jax.random.key(0)), model.groups)
    masks = [(group.name, number) for group in model.groups for number in range(group.size)]
    weak = {group.name: [number for name, number in masks[::2] if name == group.name] for group in model.groups}
    return model, maskprune.disable(network, maskprune.choose(network, weak))


def variants(widths: Sequence[int], size: int) -> tuple[list[Variant], list[int]]:
    """The three forms, and the multiply-adds per pixel of each."""
    model, network = half_disabled(widths)
    picture = jax.random.uniform(jax.random.key(1), (1, size, size, 1))
    masked = lambda network, picture: model.apply(maskprune.effective_params(network), picture)
    small_apply, small = maskprune.compact(model.apply, network)  # not compared here: nothing is compiled yet
    given = [(model.apply, network.params), (masked, network), (small_apply, small)]
    found = [
        calls(form, partial(jax.jit(apply), what, picture)) for form, (apply, what) in zip(FORMS, given, strict=True)
    ]
    return found, [multiply_adds(network.params)] * 2 + [multiply_adds(small)]


def rows_of(widths: Sequence[int], size: int, *, calls: int, repeats: int, budget: float) -> list[Row]:
    made, counted = variants(widths, size)
    found = measure(made, repeats, count=calls, budget=budget)
    for row, count in zip(found, counted, strict=True):
        row |= {"network": title(widths), "size": size, "multiply_adds": count}
        row["ratio_to_full"] = row["median_ms"] / found[0]["median_ms"]
        print(
            f"{size:>4}²  {row['network']:<10} {row['name']:<10} {row['median_ms']:8.3f} ms  spread "
            f"{row['spread']:.2f}  {row['ratio_to_full']:.2f} × the full one  (first call {row['compile_s']:.1f} s)",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of the picture")
    parser.add_argument("--widths", type=int, nargs="+", default=[5, 32], help="masks of each of the two layers")
    parser.add_argument("--calls", type=int, default=20, help="calls a timing, at most")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds a timing, where one call does not take more")
    parser.add_argument("--repeats", type=int, default=9, help="timings of each variant")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    settings = {"calls": options.calls, "repeats": options.repeats, "budget": options.budget}
    each = [(width, size) for width in options.widths for size in options.sizes]
    rows = [row for width, size in each for row in rows_of((width, width), size, **settings)]
    write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
