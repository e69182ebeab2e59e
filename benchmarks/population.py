"""What does training many networks side by side gain over training one after another?

Milliseconds of one step of one member (1-5-5-1 network, Adam, mean squared error, float32; every member draws its own
batch) in `make_population`, against one step of a single `make_session`. The two take turns. A timing has as many steps
as fit into `--budget` seconds at the pace of the population before it, at least one; a population of which one step
would take longer than `--longest` seconds is left out. Memory is what the compiled program of one group needs.

    python benchmarks/population.py --sizes 64 --members 1 4 16 64 --json benchmarks/results/population_cpu.json
    python benchmarks/population.py --sizes 64 --members 16 --at-once 1 2 4 8 16
    python benchmarks/population.py --sizes 64 --members 1 4 16 64 --invariant

With `--invariant` a population whose members' bits do not depend on their company takes turns with the usual one, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from common import CHUNK, Problem, Row, fitting, outputs, problem, program_memory, said, summary, write

import maskprune


POOL = 16  # pictures that batches are drawn from
Timed = Callable[[int], tuple[float, Any]]  # milliseconds of one step of one member, and what is said of the run


def single(found: Problem) -> Timed:
    session, key = maskprune.make_session(found.step, found.draw, chunk=CHUNK), jax.random.key(0)
    state = found.state(key)

    def run(steps: int) -> tuple[float, Any]:
        _, report = session.run(key, state, found.pictures, steps)
        return (report.seconds - report.compile_seconds) / steps * 1e3, report

    return run


def side_by_side(found: Problem, members: int, at_once: int | None, *, invariant: bool = False) -> Timed:
    population = maskprune.make_population(found.step, found.draw, chunk=CHUNK, at_once=at_once, invariant=invariant)
    keys = jax.random.split(jax.random.key(0), members)
    states = found.states(keys)

    def run(steps: int) -> tuple[float, Any]:
        _, report = population.run(keys, states, found.pictures, steps)
        pace = (report.seconds - report.compile_seconds) / steps / members * 1e3
        return pace, (report, program_memory(population.programs()[-1]))

    return run


def compare(alone: Timed, together: Timed, counts: tuple[int, int], repeats: int) -> Row:
    """Both alternately, after a first run of the population, which compiles."""
    _, (first, memory) = together(1)
    times = [(alone(counts[0])[0], together(counts[1])[0]) for _ in range(repeats)]
    one, each = (summary(column) for column in zip(*times, strict=True))
    return {
        **each,
        "steps": counts[1],
        "at_once": first.at_once,
        "compile_s": first.compile_seconds,
        "steps_per_s": 1e3 / each["median_ms"],
        "single_ms": one["median_ms"],
        "single_spread": one["spread"],
        "ratio_to_single": each["median_ms"] / one["median_ms"],
        **memory,
    }


def compare_modes(usual: Timed, invariant: Timed, steps: int, repeats: int) -> Row:
    """A member's step in the invariant mode and in the usual one, in turns, after a first run of the former."""
    invariant(1)
    times = [(usual(steps)[0], invariant(steps)[0]) for _ in range(repeats)]
    one, other = (summary(column) for column in zip(*times, strict=True))
    return {
        "invariant_ms": other["median_ms"],
        "invariant_spread": other["spread"],
        "ratio_of_invariant": other["median_ms"] / one["median_ms"],
    }


def rows_of(size: int, options: argparse.Namespace) -> Iterator[Row]:
    found = problem(size, options.batch, pool=POOL)
    alone = single(found)
    alone(CHUNK)
    pace, _ = alone(CHUNK)  # what a run costs by itself is not a step's pace
    steps = fitting(options.steps, options.budget, pace)
    for at_once in options.at_once or [None]:
        pace_now = pace
        for members in options.members:
            if pace_now * members > options.longest * 1e3:
                print(f"{size:>4}²  {members:>5} members: left out, a step would take {pace_now * members / 1e3:.0f} s")
                continue
            counts = steps, fitting(options.steps, options.budget, pace_now * members)
            together = side_by_side(found, members, at_once)
            row = compare(alone, together, counts, options.repeats)
            if options.invariant:
                fixed = side_by_side(found, members, at_once, invariant=True)
                row |= compare_modes(together, fixed, counts[1], options.repeats)
            pace_now = row["median_ms"]
            yield {"size": size, "batch": options.batch, "members": members, "own_choice": at_once is None, **row}


def say(row: Row) -> None:
    print(
        f"{row['size']:>4}²  {row['members']:>5} members, {row['at_once']:>4} at once  {row['median_ms']:8.4f} ms  "
        f"spread {row['spread']:.2f}  {row['ratio_to_single']:.2f} × a single session's {row['single_ms']:.3f} ms  "
        f"{_invariant(row)}"
        f"{row['steps_per_s']:8.0f} steps/s  {row['program_mb'] or 0:7.1f} MB  (compiled in {row['compile_s']:.1f} s)",
        flush=True,
    )


def _invariant(row: Row) -> str:
    return f"invariant {row['ratio_of_invariant']:.2f} × that  " if "ratio_of_invariant" in row else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256], help="sides of the pictures")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16, 64], help="networks side by side")
    parser.add_argument("--at-once", type=int, nargs="+", help="members trained at once; default: its own choice")
    parser.add_argument("--invariant", action="store_true", help="compare with the invariant mode, too")
    parser.add_argument("--batch", type=int, default=3, help="pictures a step")
    parser.add_argument("--steps", type=int, default=CHUNK, help="steps a timing, at most")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds a timing, where one step does not take more")
    parser.add_argument("--longest", type=float, default=15.0, help="seconds that one step may take")
    parser.add_argument("--repeats", type=int, default=7, help="timings of each")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    rows: list[Row] = []
    for size in options.sizes:
        rows += said(rows_of(size, options), say)
        write(options.json, rows)


if __name__ == "__main__":
    with outputs():
        main()
