"""How long does it take to find the masks of a published network, and to plan the removal of half of them?

Times `maskprune.trace` and `make_plan` on abstract arrays: nothing is allocated. Every timing is of a model built anew,
so that no cache of JAX helps; the part of `trace` that JAX and Flax take to make the jaxpr is also timed by itself.
Beside it torch-pruning's dependency graph of the same networks, in a process of its own. Rounds over all networks
alternate between the two, after a warm-up, garbage collected before. Times of the clock depend on who else uses the
machine; times of the processor depend less. Deeper ResNets show how the time grows with depth.

    python benchmarks/trace_time.py --torch-python ../torch/bin/python --json benchmarks/results/trace_time_cpu.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from architectures import ARCHITECTURES, build

import maskprune
from maskprune.report.terminal import outputs


Sample = dict[str, Any]
TORCH = Path(__file__).with_name("torch_architectures.py")
DEEPER = ("resnet50", "resnet101", "resnet152")


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, milliseconds of the clock, milliseconds of the processor. No garbage collection, as in `timeit`."""
    gc.collect()
    gc.disable()
    began, worked = time.perf_counter(), time.process_time()
    found = function()
    taken = (time.perf_counter() - began) * 1e3, (time.process_time() - worked) * 1e3
    gc.enable()
    return found, *taken


def ours(name: str) -> Sample:
    apply, params, state, pictures = build(name)
    jaxpr, jaxpr_ms, jaxpr_cpu_ms = timed(lambda: jax.make_jaxpr(lambda *args: apply(*args))(params, state, pictures))
    groups, trace_ms, trace_cpu_ms = timed(lambda: maskprune.trace(apply, params, pictures, model_state=state))
    half = {group.name: np.arange(group.size) % 2 == 0 for group in groups}
    _, plan_ms, plan_cpu_ms = timed(lambda: maskprune.make_plan(groups, half).cut(params))
    return {
        "name": name,
        "equations": len(jaxpr.jaxpr.eqns),
        "groups": len(groups),
        "masks": sum(group.size for group in groups),
        "jaxpr_ms": jaxpr_ms,
        "jaxpr_cpu_ms": jaxpr_cpu_ms,
        "trace_ms": trace_ms,
        "plan_ms": plan_ms,
        "trace_cpu_ms": trace_cpu_ms,
        "plan_cpu_ms": plan_cpu_ms,
    }


def theirs(python: Path, names: Iterable[str]) -> tuple[dict[str, str], list[Sample]]:
    """Versions, and one sample of every network after a warm-up of the same process."""
    command = [str(python), "-W", "ignore", str(TORCH), *names, "--repeats", "1"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"torch-pruning could not be timed with {python}: {found.stderr.strip().splitlines()[-1:]}")
    versions, *samples = (json.loads(line) for line in found.stdout.splitlines())
    return versions, samples[1::2]


def summarize(who: str, samples: list[Sample]) -> Sample:
    """Medians, and the spread of trace and plan together: the ratio of the 90 % to the 10 % quantile."""
    row: Sample = {"by": who, "name": samples[0]["name"]}
    for sample in samples:
        sample["together_ms"] = sample["trace_ms"] + sample["plan_ms"]
        sample["together_cpu_ms"] = sample["trace_cpu_ms"] + sample["plan_cpu_ms"]
    for key in samples[0]:
        if key.endswith("_ms"):
            row[key] = float(np.median([sample[key] for sample in samples]))
        elif key != "name":
            row[key] = samples[0][key]
    low, high = np.quantile([sample["together_ms"] for sample in samples], [0.1, 0.9])
    return row | {"spread": high / low}


def table(rows: list[Sample]) -> str:
    lines = [
        f"{'':16} {'by':14} {'masks':>6} {'jaxpr':>7} {'trace':>7} {'plan':>7} {'both':>7} {'cpu':>7} {'spread':>7}"
    ]
    for row in rows:
        numbers = [f"{row[key]:7.0f}" if key in row else " " * 7 for key in ("jaxpr_ms", "trace_ms", "plan_ms")]
        numbers += [f"{row[key]:7.0f}" for key in ("together_ms", "together_cpu_ms")]
        lines.append(f"{row['name']:16} {row['by']:14} {row['masks']:6} {' '.join(numbers)} {row['spread']:7.2f}")
    return "\n".join(lines)


def growth(rows: list[Sample]) -> str:
    """Processor time by equation of the deeper networks, relative to the shallowest: 1 means linear in depth."""
    found = {row["name"]: row["together_cpu_ms"] / row["equations"] for row in rows if row["by"] == "maskprune"}
    if not all(name in found for name in DEEPER):
        return ""
    ratios = ", ".join(f"{name} {found[name] / found[DEEPER[0]]:.2f}" for name in DEEPER)
    return f"Time per equation, relative: {ratios}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--repeats", type=int, default=7, help="timings of each network")
    parser.add_argument("--torch-python", type=Path, help="a Python with torch and torch-pruning")
    parser.add_argument("--json", type=Path, help="also write the result here")
    options = parser.parse_args()
    samples: dict[tuple[str, str], list[Sample]] = {}
    versions = maskprune.record.versions()
    for repeat in range(-1, options.repeats):  # the first round is a warm-up
        found = [("maskprune", ours(name)) for name in options.names]
        if options.torch_python and repeat >= 0:
            other, rows = theirs(options.torch_python, options.names)
            versions |= other
            found += [("torch-pruning", row) for row in rows]
        for who, sample in found if repeat >= 0 else []:
            samples.setdefault((sample["name"], who), []).append(sample)
    rows = [summarize(who, samples[name, who]) for name, who in sorted(samples, key=lambda key: key[1])]
    rows.sort(key=lambda row: options.names.index(row["name"]))
    print(table(rows), growth(rows), sep="\n")
    if options.json:
        facts = {"device": maskprune.record.device(), "versions": versions, "repeats": options.repeats}
        facts |= {"load": os.getloadavg()[0]}  # more than the cores: others were at work
        maskprune.record.write_json(options.json, {**facts, "rows": rows})


if __name__ == "__main__":
    with outputs():
        main()
