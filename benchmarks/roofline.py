"""How near do the convolutions come to what the processor could do at most?

The peak is measured: a C++ loop of nothing but independent multiply-adds (compiled here, for this processor), on one
core and on all. Beside it the layers of the 1-5-5-1 network on 3 pictures, each forward alone, and forward and
backward, many calls in one compiled loop. The first layer's pictures need no gradient, as in training. CPU only.

    python benchmarks/roofline.py --sizes 64 128 256 --json benchmarks/results/roofline_cpu.json
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from common import Row, measure, outputs, said, variant, write

import maskprune


WIDTHS = (1, 5, 5, 1)
TAPS = 25
SUMS, LANES = 24, 16  # independent sums; numbers in each
PEAK = """
typedef float Vector __attribute__((vector_size(64)));
extern "C" float run(long rounds) {
  Vector sums[SUMS], factor = {}, total = {};
#pragma GCC unroll 32
  for (int n = 0; n < SUMS; ++n) sums[n] = Vector{} + float(n);
  factor += 0.999f;
  for (long round = 0; round < rounds; ++round)
#pragma GCC unroll 32
    for (int n = 0; n < SUMS; ++n) sums[n] = sums[n] * factor + factor;
#pragma GCC unroll 32
  for (int n = 0; n < SUMS; ++n) total += sums[n];
  return total[0];
}
"""


def peak_gflops(threads: int, *, repeats: int = 7, rounds: int = 3_000_000) -> float:
    """The most that so many threads reach together, in 10^9 operations a second."""
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "peak.cc", Path(folder) / "peak.so"
        source.write_text(PEAK)
        options = ["-O3", "-march=native", f"-DSUMS={SUMS}", "-shared", "-fPIC"]
        subprocess.run(["g++", *options, "-o", str(library), str(source)], check=True)
        run = ctypes.CDLL(str(library)).run
    run.argtypes, run.restype = [ctypes.c_long], ctypes.c_float
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            began = time.perf_counter()
            list(pool.map(run, [rounds] * threads))
            found.append(2 * SUMS * LANES * rounds * threads / (time.perf_counter() - began) / 1e9)
    return max(found)


def calls(size: int, before: int, after: int, *, backward: bool, count: int = 50):
    """So many calls of one layer in one compiled loop, each waiting for the one before it."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, size, size, before))
    kernel, bias = jax.random.normal(keys[1], (5, 5, before, after)), jnp.zeros(after)
    g = jax.random.normal(keys[2], (3, size, size, after))
    layer = partial(maskprune.conv2d, relu=True)

    def once(kernel: jax.Array) -> jax.Array:
        """Something of everything that is computed."""
        if not backward:
            return layer(x, kernel, bias)[0, 0, 0, 0]
        moving = (x, kernel, bias) if before > 1 else (kernel, bias)
        _, pull = jax.vjp(lambda *given: layer(*((x,) if before == 1 else ()), *given), *moving)
        return jnp.stack([found.ravel()[0] for found in pull(g)]).sum()

    loop = jax.jit(lambda kernel: jax.lax.fori_loop(0, count, lambda _, k: k + 1e-30 * once(k), kernel))
    return lambda times: [loop(kernel) for _ in range(times)], count


def rows_of(size: int, repeats: int, peak: float) -> list[Row]:
    rows, work, spent = [], 0.0, 0.0
    for before, after in itertools.pairwise(WIDTHS):
        flops = 2 * TAPS * before * after * 3 * size**2
        factor = {False: 1, True: 3 if before > 1 else 2}
        for backward in (False, True):
            run, count = calls(size, before, after, backward=backward)
            (row,) = measure([variant("", run)], repeats, count=2)
            ms, operations = row["median_ms"] / count, flops * factor[backward]
            name = f"{before} to {after}, " + ("forward and backward" if backward else "forward")
            rows.append({"size": size, "name": name, "median_ms": ms, "spread": row["spread"]})
            rows[-1] |= {"gflops": operations / ms / 1e6, "share": operations / ms / 1e6 / peak}
            if backward:
                work, spent = work + operations, spent + ms
    every = {"size": size, "name": "all layers", "median_ms": spent, "spread": None, "gflops": work / spent / 1e6}
    return [*rows, {**every, "share": every["gflops"] / peak}]


def say(row: Row) -> None:
    print(
        f"{row['size']:>4}²  {row['name']:<30} {row['median_ms']:8.3f} ms  {row['gflops']:6.0f} GFLOP/s  "
        f"{row['share']:.0%} of the peak",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of the pictures")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("this measures a CPU: set JAX_PLATFORMS=cpu")
    cores = len(os.sched_getaffinity(0))
    peak = {"one_core_gflops": peak_gflops(1), "all_cores_gflops": peak_gflops(cores), "cores": cores}
    print(f"peak: {peak['one_core_gflops']:.0f} GFLOP/s on one core, {peak['all_cores_gflops']:.0f} on {cores}")
    every = (row for size in options.sizes for row in rows_of(size, options.repeats, peak["all_cores_gflops"]))
    rows = list(said(every, say))
    write(options.json, rows, peak=peak)


if __name__ == "__main__":
    with outputs():
        main()
