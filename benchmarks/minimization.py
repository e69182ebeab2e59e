"""How long does a whole minimization take, as a user starts it: one, with candidates, and several at once?

Starts `experiments/minimize.py --task sobel` in a process of its own and measures from its start to its exit; the rest
comes from the result.json it leaves. Kinds of run: `quick` is the default preset; `candidates` tries K choices in every
round, racing; `replicas` runs R whole searches at once, to be compared with the `quick` runs of the same seeds;
`thesis` is the literal protocol of the source document (hours on a CPU). What follows `--` is handed on.

Training is what sessions took, without compiling them; the rest of the wall time is imports, data, compiling, choosing,
judging, and writing the report.

    python benchmarks/minimization.py --seeds 3 --json benchmarks/results/minimization_cpu.json
    python benchmarks/minimization.py --add --runs replicas --replicas 3 --json benchmarks/results/minimization_cpu.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from common import Row, outputs, write


PROGRAM = Path(__file__).parents[1] / "experiments" / "minimize.py"
RUNS = ("quick", "candidates", "replicas", "thesis")


def plan(runs: Sequence[str], *, seeds: int, candidates: int, replicas: int) -> Iterator[tuple[str, int, list[str]]]:
    """Kind, first seed and options of every run; kinds that have several seeds take turns."""
    options = {"quick": [], "candidates": ["--candidates", str(candidates), "--racing"]}
    for seed in range(seeds):
        yield from ((kind, seed, options[kind]) for kind in ("quick", "candidates") if kind in runs)
    if "replicas" in runs:
        yield "replicas", 0, ["--replicas", str(replicas)]
    if "thesis" in runs:
        yield "thesis", 0, ["--preset", "thesis"]


def start(seed: int, options: Sequence[str], out: Path) -> float:
    """Runs the main program; the seconds it took from start to exit."""
    command = [sys.executable, str(PROGRAM), "--task", "sobel", "--quiet", "--seed", str(seed), "--out", str(out)]
    began = time.perf_counter()
    subprocess.run([*command, *options], check=True)
    return time.perf_counter() - began


def read(out: Path, wall_s: float) -> Row:
    """What the searches of one run left behind. Searches that ran at once took as long as the longest of them."""
    paths = sorted(out.glob("result.json")) + sorted(out.glob("seed-*/result.json"))
    results = [json.loads(path.read_text("utf-8")) for path in paths]
    search_s = max(each["seconds"] for each in results)
    compile_s = sum(each["compile_seconds"] for each in results)
    training_s = sum(each["training_seconds"] for each in results)
    return {
        "searches": len(results),
        "wall_s": wall_s,
        "search_s": search_s,
        "compile_s": compile_s,
        "steps": sum(each["steps"] for each in results),
        "rounds": sum(each["rounds"] for each in results),
        "masks": [list(each["masks_after"].values()) for each in results],
        "scores": [each["final_score"] for each in results],
        "relative_rmse": [each["relative_rmse"] for each in results],
        "outside_search": 1 - search_s / wall_s,
        "training_s": training_s,
        "not_training": 1 - training_s / wall_s,
    }


def compare(rows: Sequence[Row]) -> Row:
    """Ratios of wall times: candidates to quick runs of the same seeds, R searches one after another to R at once."""
    wall = {(row["run"], row["seed"], tuple(row["options"])): row["wall_s"] for row in rows}
    quick = {(seed, options): seconds for (run, seed, options), seconds in wall.items() if run == "quick"}
    found, pairs = {}, []
    for row in rows:
        extra = tuple(row["options"])
        seeds = range(row["seed"], row["seed"] + row["searches"])
        if row["run"] == "replicas" and all((seed, extra) in quick for seed in seeds):
            found["replicas_speedup"] = sum(quick[seed, extra] for seed in seeds) / row["wall_s"]
        if row["run"] == "candidates" and (row["seed"], extra) in quick:
            pairs.append(row["wall_s"] / quick[row["seed"], extra])
    return found | ({"candidates_ratio": float(np.median(pairs))} if pairs else {})


def say(row: Row) -> None:
    masks = " ".join(f"({','.join(map(str, each))})" for each in row["masks"])
    scores = " ".join(f"{each:.3f}" for each in row["scores"])
    print(
        f"{row['run']:<10} seed {row['seed']}  {row['wall_s']:7.1f} s  search {row['search_s']:7.1f} s  compiling "
        f"{row['compile_s']:4.1f} s  not training {row['not_training']:.0%}  {row['steps']:>6} steps  "
        f"masks {masks}  score {scores}",
        flush=True,
    )


def kept(path: Path | None, rows: Sequence[Row]) -> list[Row]:
    """The rows of a file but for those measured anew."""
    if path is None or not path.exists():
        return []
    name = lambda row: (row["run"], row["seed"], row["options"])
    anew = [name(row) for row in rows]
    return [row for row in json.loads(path.read_text("utf-8"))["rows"] if name(row) not in anew]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["quick"])
    parser.add_argument("--seeds", type=int, default=1, help="quick and candidates run with seeds 0, 1, ...")
    parser.add_argument("--candidates", type=int, default=4, help="choices tried in every round")
    parser.add_argument("--replicas", type=int, default=3, help="searches at once")
    parser.add_argument("--add", action="store_true", help="keep what the file holds of other runs")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("options", nargs="*", help="after --: options for minimize.py")
    options = parser.parse_args()
    rows = []
    counts = {"seeds": options.seeds, "candidates": options.candidates, "replicas": options.replicas}
    for kind, seed, own in plan(options.runs, **counts):
        with tempfile.TemporaryDirectory() as folder:
            wall_s = start(seed, [*own, *options.options], Path(folder) / "run")
            found = read(Path(folder) / "run", wall_s)
        rows.append({"run": kind, "seed": seed, "arguments": own, "options": options.options, **found})
        say(rows[-1])
    every = (kept(options.json, rows) if options.add else []) + rows
    ratios = compare(every)
    print(*(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), sep="\n")
    write(options.json, every, **ratios)


if __name__ == "__main__":
    with outputs():
        main()
