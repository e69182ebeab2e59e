"""How near do real searches come to the smallest network there is?

Takes the parents and the tables of `oracle.py`, runs whole searches from the same parents, and compares what they find
with the smallest network of the table that reaches the same score: the size regret. Every search is judged at every
threshold; the rows are kept, and it goes on where it was interrupted.

    python experiments/oracle.py --tier cpu --max-size 5 --parents 20 --out runs/oracle
    python experiments/searches.py --oracle runs/oracle
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from maskprune.app.options import Problem, existing, output, refuse, several, share, whole
from maskprune.app.protocol import STRATEGIES, Pictures, Recipe, StrategyName, in_a_sentence
from maskprune.app.runs import going_on
from maskprune.app.setup import Setup, load_data, make_selector, set_up
from maskprune.report.terminal import outputs


PROTOCOL = 10_000 + 52 * 2_000  # steps the source document's protocol may take for ten masks
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Which searches, from which parents, judged at which thresholds."""

    oracle: tuple[Path, ...]
    """Folders of `oracle.py`: one study, in one folder or several that hold different parents."""
    strategies: tuple[StrategyName, ...] = ("auto", "one-by-one")
    """Ways to search. auto is what `minimize.py` does by itself."""
    thresholds: tuple[float, ...] = (0.85, 0.9, 0.95, 0.98, 1.0)
    """Shares of the reference score that are kept."""
    sessions: int | None = None
    """No round begins after so many sessions' worth of steps. Default: the strategy's own budget."""
    parents: int | None = None
    """Use at most this many parents. Default: all."""
    out: Path = Path("runs/searches")
    """Output folder, in which a study goes on if there is one."""
    quiet: bool = False
    """Print nothing but errors."""


def problems(config: Config) -> list[Problem]:
    """What may be wrong with the options, by their names."""
    return [
        several("--oracle", config.oracle, lambda name, folder: existing(name, folder / "rows.jsonl")),
        several("--strategies", config.strategies),
        several("--thresholds", config.thresholds, share),
        whole("--sessions", config.sessions, 0),
        whole("--parents", config.parents),
        output("--out", config.out),
    ]


def rebuild(about: dict[str, Any]) -> Setup:
    """The setup of an oracle study, from what its ledger says."""
    import maskprune

    config = about["config"]
    paths = {"data", "inputs", "targets"}
    numbers = {"size": int, "split_seed": int, "limit": int, "level": float}
    kept = {name: value for name, value in config["pictures"].items() if value is not None}
    read = lambda name: Path if name in paths else numbers.get(name, str)
    pictures = Pictures(**{name: read(name)(value) for name, value in kept.items()})
    recipe = Recipe(**config["recipe"])
    model = maskprune.models.fcn(config["widths"], kernel=config["kernel"], initial=recipe.initial)
    return set_up(load_data(pictures), model, recipe)


def search(setup: Setup, params: Any, strategy: Any, *, seed: int, threshold: float, train: Any, selector: Any) -> Row:
    """One whole search from a parent."""
    import jax

    import maskprune

    began, task = time.perf_counter(), setup.task
    rounds = list(
        maskprune.minimize(
            jax.random.fold_in(jax.random.key(seed), 2**21),
            setup.start(jax.random.key(0), params),
            train=lambda key, state: train([key], [state], share=1.0)[0],
            train_many=train,
            evaluate=task.evaluate,
            optimizer=setup.optimizer,
            selector=selector,
            batch=setup.sample(strategy.selector),
            rules=maskprune.Rules(threshold=threshold, **strategy.rules),
            limits=maskprune.Limits(steps=strategy.budget(setup.recipe.steps)),
            plan=strategy.plan(maskprune.strategies),
            init=setup.model.init,
        )
    )
    last = rounds[-1]
    judged = task.evaluate(last.state)
    return {
        "parent": seed,
        "threshold": threshold,
        "alive": maskprune.lab.subnetworks.alive_of(last.state.network),
        "masks": sum(maskprune.count_enabled(last.state.network).values()),
        "score": judged["score"],
        "relative_rmse": judged["relative_rmse"],
        "reference": rounds[0].score,
        "rounds": last.number,
        "steps": sum(each.steps for each in rounds),
        "seconds": round(time.perf_counter() - began, 2),
    }


def run(config: Config, show: Any) -> list[Row]:
    """Every search that is missing. Returns all rows."""
    import maskprune
    from maskprune import record

    with in_a_sentence("searches.py"):
        studies = [maskprune.Ledger.read(folder / "rows.jsonl") for folder in config.oracle]
    about = studies[0].about
    refuse("searches.py", [(any(s.about["config"] != about["config"] for s in studies), "--oracle: studies differ")])
    setup = rebuild(about)
    facts = {
        "config": {**about["config"], "sessions": config.sessions},
        "versions": record.versions(),
        "device": record.device(),
    }
    with in_a_sentence("searches.py"):
        ledger = maskprune.Ledger.open(config.out / "rows.jsonl", facts)
    files = sorted((path for folder in config.oracle for path in (folder / "parents").glob("seed-*.npz")), key=seed_of)
    train = maskprune.of_length(setup.training(), setup.recipe.steps)
    selectors = {name: make_selector(STRATEGIES[name].selector, setup) for name in config.strategies}
    for path in files[: config.parents]:
        for threshold in config.thresholds:
            for name in config.strategies:
                known = {"parent": seed_of(path), "threshold": threshold, "strategy": name}
                if ledger.find(**known):
                    continue
                params, strategy = maskprune.models.load(path)[1], STRATEGIES[name]
                if config.sessions is not None:
                    strategy = strategy._replace(sessions=config.sessions)
                options = {"seed": seed_of(path), "threshold": threshold, "train": train, "selector": selectors[name]}
                row = {"strategy": name, **search(setup, params, strategy, **options)}
                ledger.add([row])
                show.say(f"{known}: {row['masks']} masks, score {row['score']:.3f}, {row['steps']} steps")
    return ledger.rows


def seed_of(path: Path) -> int:
    return int(path.stem.removeprefix("seed-"))


# The comparison with the table


def compare(
    rows: list[Row], tables: list[Row], *, first_steps: int, usable: Mapping[int, int] | None = None
) -> list[Row]:
    """Every search beside the smallest network of its parent's table that reaches the same.

    Args:
        rows: Of the searches.
        tables: Of the oracle.
        first_steps: Of the parents' own session, which count as well.
        usable: How many sub-networks there are of every size: a size counts if all of them and of every smaller size
            are in the table. None where what is in a table is complete.
    """
    found = []
    for row in rows:
        own = [each for each in tables if each["parent"] == row["parent"] and each["kind"] in TRAINED]
        whole = lambda size, own=own: usable is None or complete(own, size, usable[size])
        every = sorted({each["masks"] for each in own} if usable is None else usable)
        sizes = list(itertools.takewhile(whole, every))
        required = row["threshold"] * row["reference"]
        fit = [each for each in own if each["score"] >= required and each["masks"] in sizes]
        least = min((each["masks"] for each in fit), default=None)
        beyond = next(size for size in itertools.count(min(every, default=0)) if size not in sizes)
        best = {size: max(each["score"] for each in own if each["masks"] == size) for size in sizes}
        truth = beyond if least is None else least  # nothing in the table fits: the smallest has at least this many
        found.append(
            row
            | {
                "smallest": least if least is not None else f">={beyond}",
                "regret": row["masks"] - truth,
                "score_regret": best[row["masks"]] - row["score"] if row["masks"] in best else math.nan,
                "protocol_share": (row["steps"] + first_steps) / PROTOCOL,
                "known": least is not None or row["masks"] <= beyond,
            }
        )
    return found


def complete(rows: list[Row], size: int, usable: int) -> bool:
    """Whether a parent's table holds all sub-networks of a size, in one kind of training."""
    known = [{row["alive"] for row in rows if (row["masks"], row["kind"]) == (size, kind)} for kind in TRAINED]
    return max(map(len, known)) >= usable


TRAINED = ("one-shot", "equal", "path")


def summarize(compared: list[Row]) -> list[Row]:
    """Strategy and threshold: how often nothing is lost, and what is, with intervals over parents."""
    import numpy as np
    from scipy import stats

    from maskprune.lab import statistics

    groups: dict[tuple[str, float], list[Row]] = {}
    for row in compared:
        groups.setdefault((row["strategy"], row["threshold"]), []).append(row)
    summary = []
    for (name, threshold), own in sorted(groups.items()):
        known = [row for row in own if row["known"]]
        lost = [max(0, row["regret"]) for row in known]
        none = sum(each == 0 for each in lost)
        # Clopper and Pearson 1934
        sure = stats.binomtest(none, len(lost)).proportion_ci() if lost else (math.nan, math.nan)
        summary.append(
            {
                "strategy": name,
                "threshold": threshold,
                "parents": len(known),
                "undecided": len(own) - len(known),
                "no regret": statistics.Estimate(none / len(lost) if lost else math.nan, *sure, len(lost)),
                "regret": statistics.mean(lost),
                "smaller than the table": sum(row["regret"] < 0 for row in own),
                "masks": float(np.mean([row["masks"] for row in own])),
                "score ratio": float(np.mean([row["score"] / row["reference"] for row in own])),
                "relative rmse, median": float(np.median([row["relative_rmse"] for row in own])),
                "steps, median": float(np.median([row["steps"] for row in own])),
                "share of the protocol's steps, most": max(row["protocol_share"] for row in own),
                "seconds, median": float(np.median([row["seconds"] for row in own])),
            }
        )
    return summary


def main(config: Config) -> list[Row]:
    """Runs the searches and writes the comparison. Returns its rows."""
    import maskprune
    from maskprune import record
    from maskprune.base import files
    from maskprune.lab import study_page
    from maskprune.report.display import Display

    refuse("searches.py", problems(config))
    with Display(quiet=config.quiet) as show, going_on("searches.py", config.out, show.say, at_once=True):
        rows = run(config, show)
        tables = [row for folder in config.oracle for row in maskprune.Ledger.read(folder / "rows.jsonl").rows]
        about = maskprune.Ledger.read(config.oracle[0] / "rows.jsonl").about["config"]
        usable = Counter(map(maskprune.lab.mask_sets.count, maskprune.lab.mask_sets.every(about["widths"])))
        compared = compare(rows, tables, first_steps=about["recipe"]["first_steps"], usable=usable)
        summary = summarize(compared)
        record.write_csv(config.out / "searches.csv", compared)
        files.replace_file(config.out / "summary.csv", study_page.as_csv(summary))
        for row in summary:
            show.say(
                f"{row['strategy']:>12} at {row['threshold']:.2f}: no regret in {row['no regret'].value:.0%} of "
                f"{row['parents']} parents, {row['masks']:.1f} masks, median of {row['steps, median']:.0f} steps"
            )
    return summary


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
