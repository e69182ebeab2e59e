"""Is searching better than trying every size?

The alternative to a search is to train every combination of widths from scratch and take the smallest one that is good
enough. For every seed this program does both: the full grid with sessions as long as a search's first and last one
together; the grid once more with no more steps in all than the search spent; and the search.

    python experiments/grid.py
    python experiments/grid.py --preset study --task canny --threshold 0.98
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from maskprune.app.options import Problem, share
from maskprune.app.setup import make_selector
from maskprune.app.studies import Options, Row, Study, from_scratch, result_of, run, search
from maskprune.report.terminal import outputs


SIZES = {
    "quick": {"networks": 1},
    "study": {"networks": 5},
    "full": {"networks": 5},
    "thesis": {"networks": 10},
}
GRIDS = ("full", "equal")


@dataclasses.dataclass(frozen=True)
class Config:
    """What is good enough."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)
    threshold: float = 0.95
    """A network is good enough at this share of the largest one's score or more."""


# One seed


def ask_seed(study: Study, threshold: float, seed: int, train: Any) -> Row:
    """A search, the grid, and the grid at the price of the search."""
    import jax

    import maskprune as mp

    recipe, setup = study.recipe, study.setup
    search_key, grid_key = jax.random.split(jax.random.key(seed))
    selector = make_selector(recipe.selector, setup)
    sample = setup.sample(recipe.selector)
    found = search(study, search_key, train, selector=selector, sample=sample, threshold=threshold)
    result = result_of(study, found)
    cells = list(itertools.product(*(range(1, width + 1) for width in study.options.widths)))
    lengths = {"full": recipe.first_steps + recipe.final_steps, "equal": max(1, result["steps"] // len(cells))}
    draws = {"full": 4, "equal": 1}  # dead starts drawn again would cost more than the search did
    jobs = [
        lambda train, name=name, at=at, cell=cell: from_scratch(
            study, jax.random.fold_in(grid_key, at), train, widths=cell, steps=lengths[name], draws=draws[name]
        )
        for name in GRIDS
        for at, cell in enumerate(cells)
    ]
    trained = mp.run_together(jobs, train)
    return {"search": result, "full": trained[: len(cells)], "equal": trained[len(cells) :]}


# All seeds


def best_cell(cells: Sequence[Row], threshold: float) -> Row:
    """The fewest masks that are good enough beside the largest network of the same grid; then the best score."""
    required = threshold * cells[-1]["score"]
    fine = [cell for cell in cells if cell["score"] >= required]
    return min(fine or [cells[-1]], key=lambda cell: (sum(cell["widths"]), -cell["score"]))


def choices(row: Row, threshold: float) -> dict[str, Row]:
    """What each way hands back for one seed, with what it spent and what it is worth when fully trained."""
    reference = row["full"][-1]["score"]
    by_widths = {tuple(cell["widths"]): cell["score"] for cell in row["full"]}
    found = {"search": {**row["search"], "trained": row["search"]["score"]}}
    for name in GRIDS:
        cell = best_cell(row[name], threshold)
        spent = sum(each["steps"] for each in row[name])
        found[name] = {**cell, "steps": spent, "trained": by_widths[tuple(cell["widths"])]}
    for each in found.values():
        each["ratio"] = each["trained"] / (reference or math.nan)
    return found


def comparison(rows: Sequence[Row], threshold: float) -> list[Row]:
    """Medians over seeds of each way; the last row is the best of as many searches as one full grid costs."""
    from maskprune.lab import statistics

    every = [choices(row, threshold) for row in rows]
    words = {
        "full": "grid, every size fully trained",
        "equal": "grid, for the steps of one search",
        "search": "one search",
    }
    table = []
    for way, name in words.items():
        found = [each[way] for each in every]
        columns = {
            "masks": [sum(each["widths"]) for each in found],
            "score": [each["score"] for each in found],
            "score once trained": [each["trained"] for each in found],
            "share of the largest": [each["ratio"] for each in found],
            "steps": [each["steps"] for each in found],
        }
        medians = {column: statistics.median(values) for column, values in columns.items()}
        table.append({"way": name, **medians, "found": spelled(found), "seeds": len(found)})
    afford = [each["full"]["steps"] // each["search"]["steps"] for each in every]
    count = max(1, min(int(sorted(afford)[len(afford) // 2]), len(every)))
    tried = [each["search"] for each in every[:count]]
    best = min(tried, key=lambda each: (sum(each["widths"]), -each["score"]))
    single = lambda value: statistics.Estimate(float(value), math.nan, math.nan, 1)
    spent = sum(each["steps"] for each in tried)
    columns = {"masks": sum(best["widths"]), "score": best["score"], "score once trained": best["score"],
               "share of the largest": best["ratio"], "steps": spent}  # fmt: skip
    table.append({
        "way": f"the best of {count} searches", **{name: single(value) for name, value in columns.items()},
        "found": spelled([best]), "seeds": count,
    })  # fmt: skip
    return table


def spelled(found: Sequence[Row]) -> str:
    """How often which widths were found."""
    counts: dict[str, int] = {}
    for each in found:
        name = "+".join(map(str, each["widths"]))
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items(), key=lambda pair: -pair[1]))


def cells_table(rows: Sequence[Row]) -> list[Row]:
    """Every size: median and best score of both grids, and how many starts learned."""
    from maskprune.lab import statistics

    table = []
    for at, cell in enumerate(rows[0]["full"]):
        row = {"widths": "+".join(map(str, cell["widths"])), "masks": sum(cell["widths"])}
        for name, words in (("full", "fully trained"), ("equal", "equal steps")):
            scores = [each[name][at]["score"] for each in rows]
            row[f"median, {words}"] = statistics.median(scores)
            row[f"best, {words}"] = max(scores)
            row[f"learned, {words}"] = sum(each[name][at]["learned"] for each in rows)
        row["relative RMSE, fully trained"] = statistics.median([each["full"][at]["relative_rmse"] for each in rows])
        table.append(row)
    return table


def picture(rows: Sequence[Row], threshold: float) -> list[Any]:
    """The lattice of scores; nothing to draw unless there are two prunable layers."""
    import numpy as np

    from maskprune.lab.study_page import Picture
    from maskprune.report import plots

    most = rows[0]["full"][-1]["widths"]
    if len(most) != 2:
        return []
    on_lattice = lambda values: np.array(values, float).reshape(most)
    scores = {name: [on_lattice([cell["score"] for cell in row[name]]) for row in rows] for name in GRIDS}
    every = [choices(row, threshold) for row in rows]
    framed = {way: [tuple(width - 1 for width in each[way]["widths"]) for each in every] for way in every[0]}
    panels = [
        plots.Lattice("median, fully trained", np.median(scores["full"], axis=0), framed["full"]),
        plots.Lattice("best, fully trained", np.max(scores["full"], axis=0), framed["search"]),
        plots.Lattice("median, for a search's steps", np.median(scores["equal"], axis=0), framed["equal"]),
    ]
    names = [[str(width + 1) for width in range(side)] for side in most]
    image = plots.lattice(panels, rows=names[0], columns=names[1], xlabel="masks in layer 2", ylabel="masks in layer 1")
    words = (
        "Scores of all sizes from scratch. Framed: what the grid chose (left and right), what searches found (middle)."
    )
    return [Picture("lattice", "Every size", words, image)]


def ask(study: Study, config: Config) -> list[Row]:
    """Runs the study and writes its page. Returns what each way handed back."""
    from maskprune.lab.study_page import Section, Table

    rows = study.rows(functools.partial(ask_seed, study, config.threshold))
    table = comparison(rows, config.threshold)
    study.write(
        title="Searching, or trying every size?",
        question=f"Which is the smallest network with {config.threshold:.0%} of the largest one's score, and what does "
        "it cost to know: by training every size from scratch, or by a search that removes masks?",
        answers=[
            f"{row['way'].capitalize()}: {row['masks'].value:g} masks, {row['share of the largest'].value:.2f} of the "
            f"largest network's score, {row['steps'].value:.0f} steps ({row['found']})."
            for row in table
        ],
        sections=[
            Section(
                "What each way hands back",
                ["Score once trained is that of the same widths from scratch with full sessions, and for a search its "
                 "own final score. The short grid draws no start again, or it would cost more than the search. "
                 "Intervals are those of a median over seeds."],
                picture(rows, config.threshold),
                [Table("comparison", "Medians over seeds, with intervals", table),
                 Table("cells", "Every size, from scratch", cells_table(rows))],
            )
        ],
    )  # fmt: skip
    return table


def problems(config: Config) -> list[Problem]:
    sizes = math.prod(config.options.widths)
    return [
        share("--threshold", config.threshold),
        (sizes > 4096, f"--widths is {config.options.widths}: {sizes} sizes cannot all be trained, use fewer masks"),
    ]


def main(config: Config) -> list[Row]:
    """Runs the study, or goes on with it. Returns the rows of its comparison."""
    return run("grid", config, SIZES, ask, problems)


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
