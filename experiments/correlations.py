"""Which score tells beforehand what a mask is worth?

Trains networks, and then for every mask of every one: disables and freezes it, trains on, and compares with the same
network trained on as it was. `drop` is the share of the score that is lost at once; `best` is the best score in the
second half of the session, relative to the best of the reference. Every selector's scores are correlated with both.

    python experiments/correlations.py
    python experiments/correlations.py --preset study
    python experiments/correlations.py --task canny --networks 100 --replicates 4 --at-once 16
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import tyro

from maskprune.app.options import Problem, several, whole
from maskprune.app.protocol import SelectorName
from maskprune.app.setup import make_selector
from maskprune.app.studies import Options, Row, Study, learning_curves, run, score, single_masks, trained_start
from maskprune.report.terminal import outputs


LOOKS = (0.6, 0.7, 0.8, 0.9, 1.0)  # of the session, at which children are scored: its second half
OUTCOMES = ("drop", "best")
METHODS = ("pearson", "kendall", "spearman")
SIZES = {
    "quick": {"networks": 3, "replicates": 2},
    "study": {"networks": 20, "replicates": 2},
    "full": {"networks": 20, "replicates": 2},
    "thesis": {"networks": 100, "replicates": 1},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How many networks are asked, and how surely."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)
    replicates: int | None = None
    """Orders of the data that every child is trained with. Two or more tell how well `best` repeats itself, which no
    selector can surpass."""
    selectors: tuple[SelectorName, ...] = get_args(SelectorName)
    """Whose scores are compared."""


# One network


def ask_network(study: Study, selectors: Any, replicates: int, seed: int, train: Any) -> Row:
    """Everything that is asked of one network: its masks' scores, `drop`, and `best` of every replicate."""
    import jax

    import maskprune as mp

    setup = study.setup
    start_key, select_key, child_key = jax.random.split(jax.random.key(seed), 3)
    start = trained_start(setup, start_key, train, steps=study.recipe.first_steps)
    network, before = start.state.network, score(setup, start.state)
    masks = single_masks(network)
    states = [setup.fresh(network), *(setup.fresh(mp.disable(network, one)) for *_, one in masks)]
    at_once = [score(setup, state) for state in states]
    keys = [jax.random.fold_in(child_key, replicate) for replicate in range(replicates) for _ in states]
    every = learning_curves(study, states * replicates, keys, train, LOOKS)
    curves = [every[first : first + len(states)] for first in range(0, len(every), len(states))]  # of every replicate
    scores = {
        name: jax.device_get(selector(select_key, network, setup.sample(name))) for name, selector in selectors.items()
    }
    rows = []
    for child, (layer, number, _) in enumerate(masks, start=1):
        bests = [max(curve[child]) / (max(curve[0]) or math.nan) for curve in curves]
        lasts = [curve[child][-1] / (curve[0][-1] or math.nan) for curve in curves]
        drop = 1 - at_once[child] / (before or math.nan)
        columns = {name: float(found[layer][number]) for name, found in scores.items()}
        rows.append({"layer": layer, "mask": number, "drop": drop, "best": bests, "last": lasts, "scores": columns})
    return {"score": before, "redrawn": len(start.redrawn), "masks": rows}


# All networks


def flat(rows: Sequence[Row]) -> list[Row]:
    """One row a mask."""
    return [
        {
            "network": row["seed"],
            "layer": mask["layer"],
            "mask": mask["mask"],
            "drop": mask["drop"],
            "best": sum(mask["best"]) / len(mask["best"]),
            "last": sum(mask["last"]) / len(mask["last"]),
            **{f"best_{number}": value for number, value in enumerate(mask["best"], start=1)},
            **mask["scores"],
        }
        for row in rows
        for mask in row["masks"]
    ]


def table(masks: Sequence[Row], names: Sequence[str], *, inside: bool) -> list[Row]:
    """Pearson, Kendall and Spearman of every selector with both outcomes; p values of one method adjusted together."""
    from maskprune.lab import statistics

    networks = [mask["network"] for mask in masks]
    way = statistics.within if inside else lambda x, y, c, m: statistics.correlation(x, y, m, clusters=c)
    pairs = [(outcome, name) for outcome in OUTCOMES for name in names]
    columns = {name: [mask[name] for mask in masks] for name in (*OUTCOMES, *names)}
    found = {
        method: statistics.adjusted([way(columns[name], columns[outcome], networks, method) for outcome, name in pairs])
        for method in METHODS
    }
    return [
        {"outcome": outcome, "selector": name, **{method: found[method][at] for method in METHODS}}
        for at, (outcome, name) in enumerate(pairs)
    ]


def ceiling(masks: Sequence[Row], replicates: int) -> Any:
    """The correlation inside networks that a perfect score would have with `best`, as a number with its interval.

    The square root of the reliability of the mean of the replicates (Spearman 1904), from the correlation of single
    ones (Spearman's, averaged over pairs on Fisher's z scale) by the formula of Spearman and Brown.
    """
    from maskprune.lab import statistics

    def of(networks: Sequence[Sequence[Row]]) -> float:
        found = []
        for one, other in itertools.combinations(range(1, replicates + 1), 2):
            x, y = ([mask[f"best_{each}"] for masks in networks for mask in masks] for each in (one, other))
            where = [number for number, masks in enumerate(networks) for _ in masks]
            found.append(statistics.within(x, y, where, "spearman").value)
        single = sum(found) / len(found)
        return math.sqrt(max(0.0, statistics.spearman_brown(single, replicates)))

    clusters = [list(group) for _, group in itertools.groupby(masks, key=lambda mask: mask["network"])]
    return statistics.bootstrap(clusters, of, resamples=500) if replicates > 1 else None


def halves(masks: Sequence[Row], replicates: int) -> float:
    """How well the mean of half of the replicates agrees with that of the other half, over all ways to halve them."""
    import numpy as np

    from maskprune.lab import statistics

    found, networks = [], [mask["network"] for mask in masks]
    every = np.array([[mask[f"best_{number}"] for number in range(1, replicates + 1)] for mask in masks])
    for one in itertools.combinations(range(replicates), replicates // 2):
        other = [number for number in range(replicates) if number not in one][: len(one)]
        sides = every[:, list(one)].mean(axis=1), every[:, other].mean(axis=1)
        found.append(statistics.within(*sides, networks, "spearman").value)
    return float(np.mean(found))


def tables(masks: Sequence[Row], names: Sequence[str], limit: Any) -> list[Any]:
    from maskprune.lab.study_page import Table

    inside = table(masks, names, inside=True)
    for row in inside:
        row["p of Spearman"] = row["spearman"].p_holm
    spearman = {(row["selector"], row["outcome"]): row["spearman"] for row in inside}
    share = lambda found: -found.value / limit.value if limit is not None and limit.value > 0 else None
    short = [
        {
            "selector": name,
            **{outcome: spearman[name, outcome] for outcome in OUTCOMES},
            "share of ceiling": share(spearman[name, "best"]),
        }
        for name in names
    ]
    layers = list(dict.fromkeys(mask["layer"] for mask in masks))
    by_layer = [
        {"layer": layer, **row}
        for layer in layers
        for row in table([mask for mask in masks if mask["layer"] == layer], names, inside=False)
    ]
    return [
        Table("selectors", "Spearman inside networks, in short", short),
        Table("within", "Inside networks, averaged on Fisher's z scale: what a selector needs", inside),
        Table("pooled", "All masks of all networks together", table(masks, names, inside=False)),
        Table("layers", "Layer by layer, all networks together", by_layer),
        Table("masks", "Every mask: the raw material", masks[:20]),
    ]


def pictures(masks: Sequence[Row], inside: Sequence[Row], limit: Any) -> list[Any]:
    from maskprune.lab.study_page import Picture
    from maskprune.report import plots

    of = lambda outcome: {row["selector"]: row["spearman"] for row in inside if row["outcome"] == outcome}
    drop, best = of("drop"), of("best")
    order = sorted(best, key=lambda name: best[name].value if math.isfinite(best[name].value) else 1.0)
    lines = {"": 0.0} | ({"ceiling": -limit.value} if limit is not None else {})
    chart = plots.intervals(
        [(name, {"with drop": drop[name], "with best": best[name]}) for name in order],
        xlabel="Spearman correlation inside networks, 95 % interval",
        lines=lines,
    )
    layers = list(dict.fromkeys(mask["layer"] for mask in masks))
    networks = itertools.groupby(masks, key=lambda mask: mask["network"])
    least = [min(group, key=lambda mask: mask["drop"]) for _, group in networks]

    def panel(title: str, found: Sequence[Row], layer: str | None) -> Any:
        shown = {name: [m for m in found if m["layer"] == name and layer in (None, name)] for name in layers}
        points = {name: ([m["drop"] for m in group], [m["best"] for m in group]) for name, group in shown.items()}
        return plots.Panel(title, points)

    every = [(None, "all layers"), *((layer, layer) for layer in layers)]
    panels = [
        [panel(f"{words}, every mask", masks, layer) for layer, words in every],
        [panel(f"{words}, best choice", least, layer) for layer, words in every],
    ]
    points = plots.scatter(panels, xlabel="drop at once", ylabel="best afterwards")
    return [
        Picture("correlations", "What each score says", "Right of 0: masks that the selector keeps longest lose much "
                "when they go (drop), or are better after all (best). A good selector is far right in drop, and far "
                "left in best.", chart),
        Picture("drop_against_best", "What is lost at once, and what is left after training on", "Each point is a "
                "mask. Best choice: the one mask of each network whose loss at once is least.", points),
    ]  # fmt: skip


def ask(study: Study, config: Config) -> list[Row]:
    """Runs the study and writes its page. Returns one row a mask."""

    from maskprune.app.record import write_csv
    from maskprune.lab.study_page import Section

    names = list(config.selectors)
    selectors = {name: make_selector(name, study.setup) for name in names}
    rows = study.rows(functools.partial(ask_network, study, selectors, config.replicates))
    masks = flat(rows)
    limit = ceiling(masks, config.replicates)
    found = tables(masks, names, limit)
    first, second = pictures(masks, found[1].rows, limit)
    signs = (
        "A selector's score is as it gives it: the lowest goes first, so the cosine selectors score -cos. The right "
        "signs are + with drop and - with best."
    )
    study.write(
        title="Which score tells what a mask is worth?",
        question="Disable a mask, train on, and see what is lost at once (drop) and how good the network is afterwards "
        "relative to one that lost nothing (best): which score, taken before, agrees with either?",
        answers=answers(config.replicates, masks, found[1].rows, limit),
        sections=[
            Section("Scores against outcomes", [signs], [first], found[:4]),
            Section("Drop against gain", [], [second], found[4:]),
        ],
    )
    write_csv(study.out / "masks.csv", masks)
    return masks


def answers(replicates: int, masks: Sequence[Row], inside: Sequence[Row], limit: Any) -> list[str]:
    from maskprune.lab import statistics

    networks, drops = [mask["network"] for mask in masks], [mask["drop"] for mask in masks]
    lines = [f"{len(set(networks))} networks with {len(masks)} masks."]
    for outcome, sign in (("drop", 1), ("best", -1)):
        known = [row for row in inside if row["outcome"] == outcome and math.isfinite(row["spearman"].value)]
        if known:
            top = max(known, key=lambda row: sign * row["spearman"].value)
            found = top["spearman"]
            lines.append(
                f"With {outcome}, {top['selector']} agrees most: {found.value:.2f} "
                f"({found.low:.2f} to {found.high:.2f}) by Spearman inside networks."
            )
    both = statistics.within(drops, [mask["best"] for mask in masks], networks, "spearman")
    lines.append(f"Drop itself agrees with best by {both.value:.2f} ({both.low:.2f} to {both.high:.2f}).")
    if limit is not None:
        lines.append(
            f"No score can agree with best by more than {limit.value:.2f} ({limit.low:.2f} to {limit.high:.2f}): that "
            f"is how well it repeats itself under another order of the data, by the formula of Spearman and Brown."
        )
        half = replicates // 2
        lines.append(
            f"Without a formula: the mean of {half} of its {replicates} orders agrees with that of {half} others by "
            f"{halves(masks, replicates):.2f}."
        )
    else:
        lines.append("Each child was trained once, so how well best repeats itself is not known: see --replicates.")
    return lines


def problems(config: Config) -> list[Problem]:
    return [
        whole("--replicates", config.replicates),
        several("--selectors", config.selectors),
    ]


def main(config: Config) -> list[Row]:
    """Runs the study, or goes on with it. Returns one row a mask."""
    return run("correlations", config, SIZES, ask, problems)


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
