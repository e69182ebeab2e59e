"""How small do networks become, by which order of removal and which threshold?

For every task and seed one network is trained, and from it every strategy searches at every threshold, all side by
side. What each one found is then trained from scratch, with as many steps as the whole search took: is the search
worth more than knowing the widths?

    python experiments/strategies.py
    python experiments/strategies.py --preset study --tasks sobel canny --thresholds 0.9 0.98
    python experiments/strategies.py --strategies cosine-max abs-cosine-max random --networks 50
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from maskprune.app.options import Problem, several, share
from maskprune.app.protocol import SelectorName, Task
from maskprune.app.setup import make_selector
from maskprune.app.studies import Options, Row, Study, from_scratch, resolve, result_of, run, search, trained_start
from maskprune.report.terminal import outputs


COSINES = tuple(name for name in get_args(SelectorName) if "cosine" in name)
BASELINES = ("random", "uniform", "magnitude-l1", "taylor")
THRESHOLDS = (0.85, 0.90, 0.95, 0.98, 1.00)
SIZES = {
    "quick": {"networks": 2, "strategies": ("cosine-max", "random"), "thresholds": (0.95,)},
    "study": {"networks": 5, "strategies": ("cosine-max", *BASELINES), "thresholds": (0.90, 0.98)},
    "full": {"networks": 10, "strategies": (*COSINES, *BASELINES), "thresholds": THRESHOLDS},
    "thesis": {"networks": 50, "strategies": (*COSINES, "sequential", *BASELINES), "thresholds": THRESHOLDS},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which strategies are compared."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)
    strategies: tuple[SelectorName, ...] | None = None
    """Selectors."""
    thresholds: tuple[float, ...] | None = None
    """A candidate is kept at this share of the reference score or more."""
    tasks: tuple[Task, ...] | None = None
    """Filters to imitate, one after another, in place of --task."""
    scratch: bool = True
    """Train what was found from scratch too."""


# One network


def ask_network(study: Study, config: Config, selectors: Any, seed: int, train: Any) -> Row:
    """Trains a network, and lets every strategy search from it at every threshold."""
    import jax

    import maskprune as mp

    recipe, setup = study.recipe, study.setup
    start_key, search_key, scratch_key = jax.random.split(jax.random.key(seed), 3)
    start = trained_start(setup, start_key, train, steps=recipe.first_steps)
    pairs = [(name, threshold) for name in config.strategies for threshold in config.thresholds]

    def job(name: str, threshold: float, train: Any) -> Row:
        found = search(
            study,
            search_key,
            train,
            selector=selectors[name],
            sample=setup.sample(name),
            threshold=threshold,
            start=start.state,
        )
        result = result_of(study, found)
        row = {"strategy": name, "threshold": threshold, **result, "steps": result["steps"] + start.steps}
        if config.scratch:
            row["scratch"] = from_scratch(study, scratch_key, train, widths=row["widths"], steps=row["steps"])
        return row

    found = mp.run_together([functools.partial(job, *pair) for pair in pairs], train)
    return {"redrawn": len(start.redrawn), "searches": found}


# All networks


def flat(rows: Sequence[Row], task: str) -> list[Row]:
    """One row a search."""
    found = []
    for row in rows:
        for each in row["searches"]:
            scratch = each.get("scratch") or {"score": math.nan}
            ratio = each["score"] / (each["initial"] or math.nan)
            again = scratch["score"] / (each["initial"] or math.nan)
            plain = {name: value for name, value in each.items() if name not in ("scratch", "widths")}
            widths = "+".join(map(str, each["widths"]))
            sizes = {"widths": widths, "masks": sum(each["widths"]), "ratio": ratio, "from_scratch": again}
            found.append({"task": task, "network": row["seed"], **plain, **sizes})
    return found


def summary(searches: Sequence[Row]) -> list[Row]:
    """Medians over networks of every task, threshold and strategy, and how often which size was found."""
    from maskprune.lab import statistics

    columns = {
        "masks": "masks",
        "multiply_adds": "multiply-adds",
        "ratio": "score ratio",
        "from_scratch": "score ratio from scratch",
        "steps": "steps",
        "rounds": "rounds",
        "training_seconds": "training seconds",
    }
    return [
        {
            "task": task,
            "threshold": threshold,
            "strategy": name,
            **{words: statistics.median([each[column] for each in found]) for column, words in columns.items()},
            "sizes": ", ".join(f"{size} ×{count}" for size, count in sorted(sizes(found).items())),
            "networks": len(found),
        }
        for (task, threshold, name), found in grouped(searches).items()
    ]


def grouped(searches: Sequence[Row]) -> dict[tuple[str, float, str], list[Row]]:
    groups: dict[tuple[str, float, str], list[Row]] = {}
    for each in searches:
        groups.setdefault((each["task"], each["threshold"], each["strategy"]), []).append(each)
    return groups


def sizes(searches: Sequence[Row]) -> Counter:
    return Counter(each["masks"] for each in searches)


def against(searches: Sequence[Row], baseline: str) -> list[Row]:
    """Mean differences to a baseline that searched from the same networks, with intervals from drawing them again."""
    from maskprune.lab import statistics

    groups, table = grouped(searches), []
    for (task, threshold, name), found in groups.items():
        other = {each["network"]: each for each in groups.get((task, threshold, baseline), [])}
        if name == baseline or not other:
            continue
        table.append(
            {
                "task": task,
                "threshold": threshold,
                "strategy": name,
                **{
                    words: statistics.mean([each[column] - other[each["network"]][column] for each in found])
                    for column, words in (
                        ("masks", "masks more"),
                        ("ratio", "score ratio more"),
                        ("steps", "steps more"),
                    )
                },
                "networks": len(found),
            }
        )
    return table


def worth_of_searching(searches: Sequence[Row]) -> list[Row]:
    """How much better what was found is than the same widths from scratch with as many steps."""
    from maskprune.lab import statistics

    return [
        {
            "task": task,
            "threshold": threshold,
            "strategy": name,
            "score ratio more": statistics.mean([each["ratio"] - each["from_scratch"] for each in found]),
            "better": f"{sum(each['ratio'] > each['from_scratch'] for each in found)} of {len(found)}",
        }
        for (task, threshold, name), found in grouped(searches).items()
    ]


def pictures(searches: Sequence[Row]) -> list[Any]:
    from maskprune.lab.study_page import Picture
    from maskprune.report import plots

    found = []
    for task in dict.fromkeys(each["task"] for each in searches):
        groups = {key[1:]: group for key, group in grouped(searches).items() if key[0] == task}
        rows = [(f"{name}, {threshold:g}", sizes(group)) for (threshold, name), group in groups.items()]
        image = plots.shares(rows, xlabel="networks", what="masks:")
        words = (
            "One bar for each strategy and threshold; its parts are final numbers of masks, the brightest the fewest."
        )
        found.append(Picture(f"sizes-{task}", f"Final sizes, {task}", words, image))
    panels = []
    for threshold in dict.fromkeys(each["threshold"] for each in searches):
        here = [each for each in searches if each["threshold"] == threshold]
        points = {}
        for name in dict.fromkeys(each["strategy"] for each in here):
            group = [each for each in here if each["strategy"] == name]
            shift = 0.06 * (len(points) - 2)  # or equal sizes would hide each other
            points[name] = ([each["masks"] + shift for each in group], [each["ratio"] for each in group])
        panels.append(plots.Panel(f"threshold {threshold:g}", points))
    image = plots.scatter([panels[first : first + 3] for first in range(0, len(panels), 3)],
                          xlabel="masks left", ylabel="score ratio")  # fmt: skip
    words = "One point for each search, set a little apart by strategy. Left and high is better."
    return [*found, Picture("score-against-size", "Score against size", words, image)]


def write_page(study: Study, config: Config, searches: Sequence[Row]) -> None:
    from maskprune.app.record import write_csv
    from maskprune.lab.study_page import Section, Table

    table = summary(searches)
    smallest = min(table, key=lambda row: (row["masks"].value, -row["score ratio"].value))
    beside = [
        Table("against_random", "Mean differences to random, from the same networks", against(searches, "random"))
    ]
    again = [Table("scratch", "Mean advantage over the same widths from scratch with as many steps",
                   worth_of_searching(searches))] if config.scratch else []  # fmt: skip
    study.write(
        title="Which strategy leaves the smallest network?",
        question="Every strategy removes masks from the same trained networks until nothing more can go: how many are "
        "left, how good is the result, and what did it cost?",
        answers=[
            f"The smallest median: {smallest['masks'].value:g} masks, by {smallest['strategy']} at threshold "
            f"{smallest['threshold']:g} ({smallest['task']}), score ratio {smallest['score ratio'].value:.3f}.",
        ],
        sections=[
            Section(
                "Sizes, scores, costs",
                ["Score ratio: final score over that of the network the search began with. Steps include the first "
                 "session. Intervals are those of a median over networks."],
                pictures(searches),
                [Table("summary", "Medians over networks, with intervals", table)],
            ),
            Section("Side by side", ["Intervals from drawing networks again."], [], [*beside, *again]),
        ],
    )  # fmt: skip
    write_csv(study.out / "searches.csv", searches)


def ask(study: Study, config: Config) -> tuple[Study, list[Row]]:
    """The searches of one task."""
    selectors = {name: make_selector(name, study.setup) for name in config.strategies}
    rows = study.rows(functools.partial(ask_network, study, config, selectors))
    return study, flat(rows, study.options.pictures.task)


def problems(config: Config) -> list[Problem]:
    return [
        several("--strategies", config.strategies),
        several("--thresholds", config.thresholds, share),
        ("pairs" in (config.tasks or ()), "--tasks holds pairs: use --task pairs with --inputs and --targets"),
    ]


def main(config: Config) -> list[Row]:
    """Runs the study task by task, or goes on with it. Returns one row a search."""
    options = config.options
    tasks = config.tasks or (options.pictures.task,)
    out = options.out or Path("runs") / f"strategies-{'-'.join(tasks)}-{options.preset}"
    of_task = lambda task: dataclasses.replace(
        options, pictures=dataclasses.replace(options.pictures, task=task), out=out / task
    )
    each = [dataclasses.replace(config, options=of_task(task), tasks=None) for task in tasks]
    for of_one in [config, *each]:  # all of them before the first one begins
        resolve("strategies", of_one, SIZES, problems)
    found = [run("strategies", of_one, SIZES, ask, problems) for of_one in each]
    searches = [row for _, rows in found for row in rows]
    write_page(dataclasses.replace(found[-1][0], out=out), config, searches)
    return searches


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
