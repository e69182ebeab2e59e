"""Writes `benchmarks/README.md` and its plots from `benchmarks/results/*.json`.

A result belongs to the benchmark whose name its file begins with, as in `train_step_cpu_avx2.json`. Kinds that were not
measured are named with their command. Nothing is timed here.

    python benchmarks/tables.py
"""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from peers_train_step import is_peer

from maskprune.report.terminal import outputs


HERE = Path(__file__).parent
Result = dict[str, Any]
Rows = list[dict[str, Any]]
HEAD = """# Benchmarks

Written by `python benchmarks/tables.py` from `benchmarks/results/*.json`: change those, or the program. Every command
has `--help`. Variants take turns, after a warm-up; compilation is timed apart. Times are medians; the spread is the
ratio of the 90 % to the 10 % quantile. Quote ratios: times depend on the machine and on who else uses it, and these
machines are shared.
"""
PACKAGES = ("jax", "jaxlib", "flax", "torch", "torch-pruning", "scikit-learn")


class Section(NamedTuple):
    """A benchmark: the name that its files begin with, what is said of it, and how its rows are shown."""

    name: str
    title: str
    text: str
    command: str
    table: Callable[[Result], str]
    plot: Callable[[Result], Figure] | None = None


# Markdown


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ms(value: float | None) -> str:
    return "" if value is None else f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} ×" if value < 10 else f"{value:.1f} ×"


def number(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def squared(size: int) -> str:
    return f"{size}²"


def unique(rows: Rows, key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def where(rows: Rows, **wanted: Any) -> Rows:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def span(values: Iterable[float], form: str = ".2f") -> str:
    """The smallest and the largest of several numbers."""
    ends = [format(end(every), form) for every in [sorted(values)] for end in (min, max)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)


def about(result: Result) -> str:
    """The machine and what ran on it."""
    words = [f"{name} {result['versions'][name]}" for name in PACKAGES if name in result.get("versions", {})]
    words = [result["processor"], *words] if result.get("processor") else words
    if result.get("driver"):
        words.insert(0, f"driver {result['driver']}")
    if result.get("convolution"):
        words.insert(0, f"convolution {result['convolution']}")
    spreads = [row["spread"] for row in result.get("rows", []) if row.get("spread")]
    words += [f"spread {span(spreads)}"] if spreads else []
    words += [f"load {result['load']:.1f}"] if "load" in result else []
    return "; ".join([result.get("device", "unknown machine"), *words])


# Training step


def best_peer(rows: Rows) -> dict[str, Any] | None:
    """The fastest that is not this library, in float32."""
    others = [row for row in rows if is_peer(row["name"])]
    return min(others, key=lambda row: row["median_ms"], default=None)


def train_step(result: Result) -> str:
    rows, sizes = result["rows"], unique(result["rows"], "size")
    first = rows[0]["name"]
    lines = []
    for name in unique(rows, "name"):
        found = {row["size"]: row for size in sizes for row in where(rows, name=name, size=size)}
        cells = [times(found[size]["ratio_to_first"]) if size in found else "" for size in sizes]
        if name == first:
            cells = [f"1 ({ms(found[size]['median_ms'])})" if size in found else "" for size in sizes]
        lines.append([name, *cells, f"{max(row['compile_s'] for row in found.values()):.1f} s"])
    verdict = []
    for size in sizes:
        here = where(rows, size=size)
        if peer := best_peer(here):
            ratio = peer["median_ms"] / here[0]["median_ms"]
            verdict.append(f"{squared(size)}: **{times(ratio)}** ({peer['name']})")
    table = markdown(["time relative to the first row", *map(squared, sizes), "first call, at most"], lines)
    said = wrapped(f"The best that is not this library takes, at {'; '.join(verdict)}.") if verdict else ""
    return f"{table}\n\n{said}".rstrip()


def train_step_plot(result: Result) -> Figure:
    rows, sizes = result["rows"], unique(result["rows"], "size")
    names = unique(rows, "name")
    figure = Figure(figsize=(3 + 2.6 * len(sizes), 0.9 + 0.28 * len(names)), dpi=100, layout="constrained")
    for panel, size in zip(figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0], sizes, strict=True):
        found = {row["name"]: row for row in where(rows, size=size)}
        shown = [name for name in names if name in found]
        ratios = [found[name]["ratio_to_first"] for name in shown]
        colors = ["tab:blue" if name.startswith("maskprune") else "silver" for name in shown]
        bars = panel.barh([names.index(name) for name in shown], ratios, color=colors)
        panel.bar_label(bars, [times(ratio) for ratio in ratios], padding=3, fontsize=8)
        panel.set_title(f"{squared(size)} pixels, 1 = {ms(where(rows, size=size)[0]['median_ms'])}", fontsize=9)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_xlim(0, 1.2 * max(ratios))
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    return figure


# Other benchmarks, one function each


def inference(result: Result) -> str:
    rows, sizes = result["rows"], unique(result["rows"], "size")
    lines = []
    for network in unique(rows, "network"):
        for form in unique(rows, "name"):
            found = {row["size"]: row for row in where(rows, network=network, name=form)}
            cells = [times(found[size]["ratio_to_full"]) if size in found else "" for size in sizes]
            if form == "full":
                cells = [f"1 ({ms(found[size]['median_ms'])})" if size in found else "" for size in sizes]
            macs = f"{next(iter(found.values()))['multiply_adds']:,}"
            lines.append([f"{network}, {form}", macs, *cells])
    return markdown(["time relative to the full network", "multiply-adds a pixel", *map(squared, sizes)], lines)


def population(result: Result) -> str:
    lines = [
        [
            squared(row["size"]),
            f"{row['members']}",
            f"{row['at_once']}" + ("" if row.get("own_choice", True) else " (asked for)"),
            ms(row["median_ms"]),
            ms(row["single_ms"]),
            times(row["ratio_to_single"]),
            f"{row['steps_per_s']:,.0f}",
            f"{row.get('steps', '')}",
            number(row.get("program_mb")),
        ]
        for row in result["rows"]
    ]
    head = ["pictures", "members", "at once", "a member's step", "a single session's", "ratio"]
    return markdown([*head, "network-steps a second", "steps a timing", "program, MB"], lines)


def population_plot(result: Result) -> Figure:
    rows = [row for row in result["rows"] if row.get("own_choice", True)]
    figure = Figure(figsize=(6, 3.4), dpi=100, layout="constrained")
    panel = figure.subplots()
    for size in unique(rows, "size"):
        found = sorted(where(rows, size=size), key=lambda row: row["members"])
        panel.plot(
            [row["members"] for row in found],
            [row["ratio_to_single"] for row in found],
            marker="o",
            label=f"{squared(size)} pixels",
        )
    panel.axhline(1, color="gray", linewidth=0.8, linestyle="--")
    panel.set_xscale("log", base=2)
    members = sorted(unique(rows, "members"))
    panel.set_xticks(members, [str(each) for each in members])
    ratios = [row["ratio_to_single"] for row in rows]
    if ratios and max(ratios) > 8 * min(ratios):
        panel.set_yscale("log")
    else:
        panel.set_ylim(bottom=0)
    panel.set_xlabel("members of the population")
    panel.set_ylabel("time of a member's step\n(1: a single session)")
    panel.spines[["top", "right"]].set_visible(False)
    if rows:
        panel.legend(frameon=False)
    return figure


def minimization(result: Result) -> str:
    lines = []
    for row in result["rows"]:
        masks = " ".join(f"({','.join(map(str, each))})" for each in row["masks"])
        lines.append(
            [
                " ".join(
                    [row["run"], *(f"`{each}`" for each in [" ".join([*row["arguments"], *row["options"]])] if each)]
                ),
                f"{row['seed']}",
                f"{row['wall_s']:.1f}",
                f"{row['search_s']:.1f}",
                f"{row['compile_s']:.1f}",
                f"{row['not_training']:.0%}",
                f"{row['steps']:,}",
                masks,
                span(row["scores"], ".3f"),
            ]
        )
    head = [
        "run",
        "first seed",
        "wall, s",
        "search, s",
        "compiling, s",
        "not training",
        "steps",
        "masks left",
    ]
    said = []
    if ratio := result.get("replicas_speedup"):
        said.append(f"Searches at once: **{ratio:.2f} times** as fast as the same seeds one after another.")
    if ratio := result.get("candidates_ratio"):
        said.append(f"With candidates a search takes {times(ratio)} the time of the default (median).")
    return markdown([*head, "score"], lines) + ("\n\n" + " ".join(said) if said else "")


def convergence(result: Result) -> str:
    rows = result["rows"]
    kinds = list(dict.fromkeys((row["network"], row["start"]) for row in rows))
    lines = []
    for name in unique(rows, "name"):
        cells = [name]
        for network, start in kinds:
            row = next(iter(where(rows, network=network, start=start, name=name)), None)
            cells.append(f"**{row['median']:.4f}** ({span(row['relative_rmse'], '.3f')})" if row else "")
        mine = where(rows, name=name)
        cells += [times(float(np.median([row["ratio_to_first"] for row in mine])))]
        cells += [f"{np.mean([row['good'] for row in mine]):.0%}"]
        lines.append(cells)
    head = ["relative RMSE, median (span)", *(f"{network}, {start}" for network, start in kinds)]
    return markdown([*head, "time of a step", f"below {result['good']:g}"], lines)


def selector_time(result: Result) -> str:
    rows, networks = result["rows"], unique(result["rows"], "network")
    names = [name for name in unique(rows, "name") if not name.endswith(", compiled")]
    lines = []
    for name in names:
        cells = [name]
        for network in networks:
            for full in (name, f"{name}, compiled"):
                row = next(iter(where(rows, network=network, name=full)), None)
                cells.append(f"{ms(row['median_ms'])} = {number(row['steps'], '.3g')}" if row else "")
        lines.append(cells)
    head = [f"{network}{form}" for network in networks for form in ("", ", compiled")]
    return markdown(["time = training steps", *head], lines)


def memory(result: Result) -> str:
    lines = [
        [
            squared(row["size"]),
            f"{row['members']} members, {row['at_once']} at once" if row["members"] else "single session",
            number(row["start_mb"], ".0f"),
            number(row["peak_mb"], ".0f"),
            *(number(row.get(key)) for key in ("argument_mb", "output_mb", "temp_mb", "program_mb")),
            number(row.get("device_peak_mb"), ".0f"),
        ]
        for row in result["rows"]
    ]
    head = ["pictures", "", "process before", "process, peak", "arguments", "results", "temporaries", "program in all"]
    head.append("device, peak")
    keep = [i for i in range(len(head)) if i != len(head) - 1 or any(line[i] for line in lines)]
    return markdown([head[i] for i in keep], [[line[i] for i in keep] for line in lines])


def trust(result: Result) -> str:
    lines = [
        [
            row["kind"],
            squared(row["size"]),
            f"{row['name']}, {row.get('optimizer', 'soap')}",
            f"{row['ratio']:.3f}",
            f"{row['results']} of {row['runs']} runs" if "runs" in row else "",
        ]
        for row in result["rows"]
    ]
    return markdown(["", "pictures", "", "time, ratio to the first", "different results"], lines)


def soak(result: Result) -> str:
    rows = result["rows"]
    marks = [rows[round(share * (len(rows) - 1))] for share in (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)]
    lines = [[f"{row['minutes']:.0f}", f"{row['resident_mb']:.0f}"] for row in marks]
    said = f"{len(rows)} runs in {rows[-1]['minutes'] / 60:.2f} hours; growth after the first fifth: "
    said += "too few runs." if result["growth"] is None else f"{result['growth']:.2%}."
    return f"{said}\n\n" + markdown(["minutes", "megabytes"], lines)


def roofline(result: Result) -> str:
    rows, peak = result["rows"], result["peak"]
    sizes = unique(rows, "size")
    lines = []
    for name in unique(rows, "name"):
        found = {row["size"]: row for row in where(rows, name=name)}
        cells = [f"{found[size]['gflops']:.0f} ({found[size]['share']:.0%})" if size in found else "" for size in sizes]
        lines.append([name, *cells])
    said = (
        f"The peak is {peak['one_core_gflops']:.0f} GFLOP/s on one core and {peak['all_cores_gflops']:.0f} on "
        f"{peak['cores']}."
    )
    return f"{said}\n\n" + markdown(["GFLOP/s (share of the peak)", *map(squared, sizes)], lines)


def step_profile(result: Result) -> str:
    rows = result["rows"]
    kinds = list(dict.fromkeys((row["size"], row["members"]) for row in rows))
    lines = []
    for name in unique(rows, "name"):
        found = [next(iter(where(rows, name=name, size=size, members=members)), None) for size, members in kinds]
        lines.append([name, *(f"{row['us_a_step']:.3g} ({row['share']:.0%})" if row else "" for row in found)])
    heads = [squared(size) + (f", {members} members" if members else ", one network") for size, members in kinds]
    return markdown(["microseconds of a step", *heads], sorted(lines))


def trace_time(result: Result) -> str:
    lines = []
    for name in unique(result["rows"], "name"):
        by = {row["by"]: row for row in where(result["rows"], name=name)}
        mine, other = by["maskprune"], by.get("torch-pruning")
        seconds = [mine["together_ms"] / 1e3, mine["jaxpr_ms"] / 1e3, mine["together_cpu_ms"] / 1e3]
        theirs = (
            [f"{other['together_ms'] / 1e3:.2f}", times(mine["together_ms"] / other["together_ms"])] if other else []
        )
        lines.append([name, f"{mine['masks']:,}", *(f"{each:.2f}" for each in seconds), *(theirs or ["", ""])])
    head = ["", "masks", "trace and plan, s", "of which Flax and JAX write the jaxpr", "processor, s"]
    return markdown([*head, "torch-pruning, s", "ours relative to it"], lines)


def digits(result: Result) -> str:
    lines = []
    for library in ("maskprune", "torch-pruning"):
        part: Result = result.get(library) or {"rows": []}
        for method in unique(part["rows"], "method"):
            rows = where(part["rows"], method=method)
            mean = lambda key, rows=rows: float(np.mean([row[key] for row in rows]))
            shares = [f"{mean(key) / part[key]:.0%}" for key in ("multiply_adds", "parameters")]
            speeds = [[row["times"][batch]["speedup"] for row in rows] for batch in rows[0]["times"]]
            accuracy = f"{mean('accuracy_before'):.3f} → {mean('accuracy_after'):.3f}"
            lines.append(
                [
                    f"{library}, {method}",
                    f"{len(rows)}",
                    accuracy,
                    *shares,
                    *(times(float(np.median(each))) for each in speeds),
                ]
            )
    batches = next((list(r["times"]) for part in result.values() for r in part.get("rows", [])), [])
    head = ["", "seeds", "test accuracy full → pruned", "multiply-adds", "parameters"]
    return markdown([*head, *(f"speed-up, batch {batch}" for batch in batches)], lines)


def about_digits(result: Result) -> list[str]:
    return [f"{library}: {about(result[library])}" for library in ("maskprune", "torch-pruning") if library in result]


SECTIONS = (
    Section(
        "train_step",
        "Training step",
        "One step of the 1-5-5-1 network (3 pictures, mean squared error, float32, the data on the device) in the "
        "compiled loop that sessions use, by convolution and optimizer, and in other libraries. `adam` unless another "
        "optimizer is named.",
        "python benchmarks/train_step.py --sizes 64 128 256 --torch-python ... --tensorflow-python ... --json FILE",
        train_step,
        train_step_plot,
    ),
    Section(
        "population",
        "Populations",
        "Many 1-5-5-1 networks side by side (Adam, 3 pictures a step, every member draws its own) against a single "
        "session: the time of one step of one member. `at once` is the library's own choice unless it says otherwise; "
        "the program's memory is that of one such group. To start a run takes the host some milliseconds for every "
        "group, which weighs where a timing has few steps.",
        "python benchmarks/population.py --sizes 64 --members 1 4 16 64 256 1024 4096 --json FILE",
        population,
        population_plot,
    ),
    Section(
        "inference",
        "Inference",
        "One picture through the full network, through the masked one (half of its masks disabled, effective "
        "parameters computed inside the call), and through the compacted one.",
        "python benchmarks/inference.py --sizes 64 128 256 --json FILE",
        inference,
    ),
    Section(
        "minimization",
        "Whole minimizations",
        "`experiments/minimize.py --task sobel` as a user starts it, from the start of its process to its exit. Not "
        "training is all but the sessions themselves: imports, data, compiling, choosing, judging and the report. With "
        "several searches at once, their search time is that of the longest, their steps are summed.",
        "python benchmarks/minimization.py --runs quick candidates replicas --seeds 3 --replicas 3 --json FILE",
        minimization,
    ),
    Section(
        "convergence",
        "Recipes of training",
        "The relative RMSE that a session reaches in the time of the first recipe's, on the evaluation pictures of the "
        "Sobel task: several seeds, the same starts and the same wall time for all recipes, compilation apart. "
        "`scratch` is a fresh draw that is not blind, `continued` a network that lost a mask. The last column counts "
        "all sessions of a recipe.",
        "python benchmarks/convergence.py --seeds 3 --json FILE",
        convergence,
    ),
    Section(
        "selector_time",
        "Selectors",
        "Scoring all masks once, as `minimize` calls a selector and compiled by `jax.jit`, beside one training step "
        "(Adam, batch of 8 crops of 64 pixels; selectors see 32 such crops).",
        "python benchmarks/selector_time.py --json FILE",
        selector_time,
    ),
    Section(
        "memory",
        "Memory",
        "Megabytes. Each line is a process of its own that trains a few steps: its size after the imports, its peak "
        "(compiling included), and what the compiled program of one group of members needs.",
        "python benchmarks/memory.py --sizes 128 256 --json FILE",
        memory,
    ),
    Section(
        "trust",
        "Saving, and the same bits",
        "Sessions of the 1-5-5-1 network that take turns: without saving, with a save every second, and with one after "
        "every chunk of 100 steps, each until all is on the disk; and processes that take turns, with and without "
        "`--deterministic`: how long, and how many different results.",
        "python benchmarks/trust.py --sizes 64 256 --json FILE",
        trust,
    ),
    Section(
        "soak",
        "Hours of minimizing in one process",
        "The resident memory of one process that runs small minimizations one after another, measured after each.",
        "python benchmarks/soak.py --hours 2 --json FILE",
        soak,
    ),
    Section(
        "roofline",
        "The convolutions and the peak",
        "Operations a second of the layers of the 1-5-5-1 network (3 pictures, in the way the library takes) on all "
        "cores, and what share that is of a loop of nothing but multiply-adds.",
        "python benchmarks/roofline.py --sizes 64 128 256 --json FILE",
        roofline,
    ),
    Section(
        "step_profile",
        "A step on a GPU, kernel by kernel",
        "What the device works in one step, kernels timed one after another by JAX's profiler. In a session short "
        "kernels run side by side, so the sum is not the time of a step.",
        "python benchmarks/step_profile.py --sizes 64 256 --members 0 64 --json FILE",
        step_profile,
    ),
    Section(
        "trace_time",
        "Tracing",
        "`trace` and `make_plan` together on published networks, on abstract arrays, beside the dependency graph of "
        "torch-pruning and its plan.",
        "python benchmarks/trace_time.py --torch-python ... --json FILE",
        trace_time,
    ),
    Section(
        "digits",
        "A ResNet on digits",
        "Pruned to half of the multiply-adds and trained on, and torch-pruning on the same architecture, data, split "
        "and budget; means over seeds, of speed-ups the median. On 360 test pictures the differences in accuracy are "
        "noise.",
        "python experiments/digits.py --seeds 3 --methods taylor uniform none random; "
        "python benchmarks/digits_torch_pruning.py",
        digits,
    ),
)


def section_of(name: str) -> Section | None:
    """The section with the longest name that a file's name begins with."""
    found = [section for section in SECTIONS if name == section.name or name.startswith(section.name + "_")]
    return max(found, key=lambda section: len(section.name), default=None)


def load(folder: Path) -> dict[str, Result]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def render(results: dict[str, Result]) -> str:
    """The whole page."""
    parts = [HEAD]
    for section in SECTIONS:
        mine = {name: result for name, result in results.items() if section_of(name) is section}
        parts.append(f"## {section.title}\n\n{wrapped(section.text)}\n\n```\n{section.command}\n```\n")
        parts += [block(section, name, result) for name, result in mine.items()] or ["Not measured yet.\n"]
    return "\n".join(parts)


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def block(section: Section, name: str, result: Result) -> str:
    machines = about_digits(result) if section.name == "digits" else [about(result)]
    picture = f"\n\n![{section.title}: {name}](plots/{name}.png)" if section.plot else ""
    source = f"[`{name}.json`](results/{name}.json): " + "; ".join(machines) + "."
    note = f"\n\n{wrapped(result['note'])}" if result.get("note") else ""
    return f"### {name}\n\n{wrapped(source)}{note}\n\n{section.table(result)}{picture}\n"


def draw(results: dict[str, Result], folder: Path) -> None:
    for name, result in results.items():
        section = section_of(name)
        if section and section.plot:
            folder.mkdir(parents=True, exist_ok=True)
            section.plot(result).savefig(folder / f"{name}.png", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for README.md and plots/")
    options = parser.parse_args()
    results = load(options.results)
    for name in results:
        if section_of(name) is None:
            print(f"{name}.json belongs to no benchmark known here and is left out.")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "README.md").write_text(render(results), "utf-8")
    draw(results, options.out / "plots")


if __name__ == "__main__":
    with outputs():
        main()
