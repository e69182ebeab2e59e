"""What an exhaustive study says: tables, pictures and a page, from its rows alone. `oracle.py` calls it at the end."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import maskprune
from maskprune import record
from maskprune.base.files import replace_file
from maskprune.lab import mask_sets, regret, statistics, table_search


Row = dict[str, Any]
RANDOM = 20  # replays of the random order for each parent
TRAINED = ("one-shot", "equal")
PAPER, INK, FAINT = "#131519", "#eceae4", "#8f959f"
COLOURS = ("#35d399", "#ffc83d", "#6ea8fe", "#ff5a4d", "#c792ea", "#eceae4", "#8f959f", "#f78c6c")


class Truth(NamedTuple):
    """The table of one parent: mean scores over the orders of the data, and what they are compared with."""

    kind: str
    parent: int
    table: regret.Table
    reference: float
    steps: int  # of a session


def write(studies: Sequence[Path], folder: Path, thresholds: Sequence[float]) -> Path:
    """Writes CSV tables, pictures and `report.html` of one study, kept in one folder or several. Returns the page."""
    ledgers = [maskprune.Ledger.read(study / "rows.jsonl") for study in studies]
    about, rows = ledgers[0].about, [row for ledger in ledgers for row in ledger.rows]
    if any(ledger.about["config"] != about["config"] for ledger in ledgers):
        raise ValueError(f"the folders {', '.join(map(str, studies))} hold studies of different configurations")
    sizes = about["config"]["widths"]
    truths = [truth for kind in ("ablation", *TRAINED, "path") for truth in truths_of(rows, kind)]
    # Only a table of all sub-networks can be searched.
    whole = [each for each in truths if len(each.table.scores) == len(mask_sets.every(sizes)) and each.kind in TRAINED]
    tables = {
        "smallest": smallest_rows(truths, thresholds),
        "shapes": shape_rows(truths, rows),
        "replayed": [row for kind in TRAINED for row in replayed_rows(of_kind(whole, kind), rows, thresholds)],
        "steps": [row for kind in TRAINED for row in step_rows(of_kind(whole, kind), rows)],
        "reliability": reliability_rows(rows),
    }
    tables = {name: found for name, found in tables.items() if found}
    for name, found in tables.items():
        record.write_csv(folder / f"{name}.csv", found)
    charts = {"lattice": lattice(tables.get("shapes", []), sizes), "front": fronts(truths)}
    if "replayed" in tables:
        charts["regret"] = regret_curves(tables["replayed"])
    pictures = {name: png(chart) for name, chart in charts.items()}
    for name, content in pictures.items():
        replace_file(folder / f"{name}.png", content)
    return replace_file(folder / "report.html", page(about, tables, list(pictures)).encode())


# From rows to tables of one parent


def truths_of(rows: Sequence[Row], kind: str) -> list[Truth]:
    every = [row for row in rows if row["kind"] == kind]
    return [truth_of(rows, [row for row in every if row["parent"] == seed], kind, seed) for seed in parents(every)]


def truth_of(rows: Sequence[Row], own: Sequence[Row], kind: str, seed: int) -> Truth:
    found: dict[str, list[float]] = {}
    for row in own:
        found.setdefault(row["alive"], []).append(row["score"])
    together = np.nanmax if kind == "path" else np.mean  # a path's set is as good as the best way to it
    scores = {
        each: float(together(score)) for each, score in found.items() if kind != "path" or not np.isnan(score).all()
    }
    costs = {row["alive"]: row["multiply_adds"] for row in own}
    judged = [row for row in rows if row["parent"] == seed and row["kind"] in ("parent", "control")]
    start = next(row for row in judged if row["kind"] == "parent")
    costs[start["alive"]] = start["multiply_adds"]
    means = [np.mean([row["score"] for row in judged if row["kind"] == name]) for name in ("parent", "control")]
    # A short session with a fresh optimizer may harm a trained network: the whole one counts as the better of both.
    reference = float(means[0] if kind == "ablation" else np.nanmax(means))
    scores[start["alive"]] = reference
    steps = max((row["steps"] for row in judged if row["kind"] == "control"), default=1)
    return Truth(kind, seed, regret.Table(scores, costs), reference, steps)


def parents(rows: Iterable[Row]) -> list[int]:
    return sorted({row["parent"] for row in rows})


def of_kind(truths: Iterable[Truth], kind: str) -> list[Truth]:
    return [each for each in truths if each.kind == kind]


# Tables


def smallest_rows(truths: Sequence[Truth], thresholds: Sequence[float]) -> list[Row]:
    """n* of every parent, and what any search that removes one mask at a time can reach."""
    found = []
    for kind, parent, table, reference, _ in truths:
        for threshold in thresholds:
            required = threshold * reference
            fewest = regret.smallest(table, required)
            if fewest == mask_sets.count(table.whole) and fewest - 1 not in regret.front(table.scores):
                continue  # the study was kept to small ones, none of which will do
            fit = [each for each in regret.feasible(table, required) if mask_sets.count(each) == fewest]
            row = {"kind": kind, "parent": parent, "threshold": threshold, "reference": reference, "smallest": fewest}
            row |= {"best_of_that_size": max(fit, key=lambda each: table[each], default=""), "how_many": len(fit)}
            row |= {"least_multiply_adds": regret.cheapest(table, required)}
            if len(table.scores) == len(mask_sets.every([len(side) for side in table.whole.split(" ")])):
                reach, greedy = regret.reachable(table, required), regret.greedy_size(table, required)
                row |= {"one_at_a_time": reach, "gap": reach - fewest, "greedy": greedy, "greedy_gap": greedy - fewest}
            found.append(row)
    return found


def shape_rows(truths: Sequence[Truth], rows: Sequence[Row]) -> list[Row]:
    """The best score of every shape, relative to the reference, over parents; from scratch best and median of draws."""
    found: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for kind, _, table, reference, _ in truths:
        best: dict[tuple[int, ...], float] = {}
        for each in table.scores:
            best[mask_sets.shape(each)] = max(table[each], best.get(mask_sets.shape(each), -math.inf))
        for shape, score in best.items():
            found.setdefault((kind, shape), []).append(score / reference)
    scale = np.mean([row["score"] for row in rows if row["kind"] == "parent"])
    for row in (row for row in rows if row["kind"] == "scratch"):
        found.setdefault(("scratch", tuple(row["shape"])), []).append(row["score"] / scale)
    return [
        {
            "kind": kind,
            "shape": " ".join(map(str, shape)),
            "masks": sum(shape),
            "mean": float(np.mean(scores)),
            "median": float(np.median(scores)),
            "best": float(np.max(scores)),
            "networks": len(scores),
        }
        for (kind, shape), scores in found.items()
    ]


def strategies(rows: Sequence[Row], truth: Truth) -> dict[str, list[table_search.Policy]]:
    """Orders of removal by name, several where chance decides."""
    own = [row for row in rows if row["parent"] == truth.parent]
    named = {row["selector"]: [table_search.by_scores(row["scores"])] for row in own if row["kind"] == "selector"}
    found = {"random": [table_search.shuffled(seed) for seed in range(RANDOM)], "sequential": [table_search.sequential]}
    ablation = truths_of(own, "ablation")
    if ablation and ablation[0].table.scores.keys() == truth.table.scores.keys():
        found["ablation"] = [table_search.best_first(ablation[0].table)]
    found["oracle greedy"] = [table_search.best_first(truth.table)]
    return found | {name: policies for name, policies in named.items() if name not in found}


def replayed_rows(truths: Sequence[Truth], rows: Sequence[Row], thresholds: Sequence[float]) -> list[Row]:
    """Regret of every strategy, with intervals over parents, and paired with the random order."""
    found, orders = [], [strategies(rows, truth) for truth in truths]
    names = [name for name in (orders[0] if orders else {}) if all(name in each for each in orders)]
    for threshold in thresholds:
        baseline: np.ndarray | None = None
        for name in names:
            pairs = zip(truths, orders, strict=True)
            values = np.array([measured(truth, order[name], threshold) for truth, order in pairs])
            baseline = values[:, 0] if baseline is None else baseline  # "random" comes first
            size, better = statistics.mean(values[:, 0]), statistics.mean(values[:, 0] - baseline)
            row = {"kind": truths[0].kind, "strategy": name, "threshold": threshold, "parents": len(truths)}
            row |= {"size_regret": size.value, "low": size.low, "high": size.high}
            row |= {"against_random": better.value, "against_low": better.low, "against_high": better.high}
            names_of_rest = (
                "no_regret",
                "multiply_adds_regret",
                "score_regret",
                "violations",
                "mean_regret_while_running",
            )
            found.append(row | dict(zip(names_of_rest, np.nanmean(values[:, 1:], axis=0).tolist(), strict=True)))
    return found


def measured(truth: Truth, policies: Sequence[table_search.Policy], threshold: float) -> list[float]:
    """Size regret, whether it is 0, cost regret, score regret, violation and regret while running."""
    _, _, table, reference, steps = truth
    required, fewest, whole = threshold * reference, regret.smallest(table, threshold * reference), table.whole
    horizon = steps * 2.0 * mask_sets.count(whole)
    every = []
    for policy in policies:
        trials = table_search.replay(
            policy, table, maskprune.Rules(threshold=threshold), reference=reference, steps=steps
        )
        lost = regret.regret(table, table_search.found(trials, whole), required)
        area = regret.anytime(table_search.course(trials, whole), fewest, horizon=horizon).area
        every.append([lost.size, float(lost.size == 0), lost.cost, lost.score, float(lost.violation), area])
    return np.mean(every, axis=0).tolist()


def step_rows(truths: Sequence[Truth], rows: Sequence[Row]) -> list[Row]:
    """How good single choices are on the way down, and how well the scores of the parent's masks order what follows."""
    found: dict[str, list[list[float]]] = {}
    for truth in truths:
        table = truth.table
        for name, policies in strategies(rows, truth).items():
            steps = [step for policy in policies for step in walk(table, policy)]
            found.setdefault(name, []).append(np.mean(steps, axis=0).tolist() + list(ranked(table, policies[0])))
    names = ("hit_rate", "step_regret", "chance_hit_rate", "chance_step_regret", "spearman", "kendall")
    kind = truths[0].kind if truths else ""
    return [
        {"kind": kind, "strategy": name, "parents": len(each), **dict(zip(names, mean(each), strict=True))}
        for name, each in found.items()
    ]


def walk(table: regret.Table, policy: table_search.Policy) -> list[regret.StepQuality]:
    """The quality of every choice from the whole network to the smallest."""
    held, found = table.whole, []
    while mask_sets.removable(held):
        mask = policy(held)[0]
        found.append(regret.step_quality(table, held, mask))
        held = mask_sets.without(held, mask)
    return found


def ranked(table: regret.Table, policy: table_search.Policy) -> regret.Agreement:
    """Rank correlation of the first order with what each single removal leads to: 1 if the best one goes first."""
    order, children = list(policy(table.whole)), table.children(table.whole)
    return regret.agreement([-order.index(mask) for mask in children], [table[child] for child in children.values()])


def mean(values: Sequence[Sequence[float]]) -> list[float]:
    return np.mean(np.array(values, float), axis=0).tolist()


def reliability_rows(rows: Sequence[Row]) -> list[Row]:
    """How well two orders of the data agree, which bounds how well any criterion can agree with the table."""
    found = []
    for kind in TRAINED:
        for seed in parents(row for row in rows if row["kind"] == kind):
            own = [row for row in rows if row["kind"] == kind and row["parent"] == seed]
            orders = sorted({row["replicate"] for row in own})
            scores = [{row["alive"]: row["score"] for row in own if row["replicate"] == order} for order in orders]
            shared = sorted(set.intersection(*(set(each) for each in scores)))
            measured = np.array([[each[alive_set] for alive_set in shared] for each in scores])
            measured = np.where(np.isnan(measured), -1.0, measured)  # failed: below all others
            if len(orders) > 1 and len(shared) > 2:
                agreed = regret.agreement(measured[0], measured[1])
                row = {"kind": kind, "parent": seed, "networks": len(shared), "orders": len(orders)}
                found.append(row | agreed._asdict() | {"ceiling": regret.ceiling(measured)})
    return found


# Pictures and the page


def sheet(panels: int, xlabel: str, ylabel: str, *, width: float = 5.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(max(10.0, width * panels), 14 / 3), dpi=120, facecolor=PAPER, layout="constrained")
    every = figure.subplots(1, panels, squeeze=False)[0]
    for axes in every:
        axes.set_facecolor(PAPER)
        axes.set_xlabel(xlabel, color=FAINT)
        axes.set_ylabel(ylabel, color=FAINT)
        axes.tick_params(colors=FAINT, length=0)
        axes.spines[:].set_visible(False)
    return figure, every


def lattice(shapes: Sequence[Row], sizes: Sequence[int]) -> Figure:
    """The best score of every shape, relative to the reference, one panel for each kind; nothing but two layers."""
    kinds = list(dict.fromkeys(row["kind"] for row in shapes)) if len(sizes) == 2 else []
    figure, every = sheet(max(1, len(kinds)), "masks in layer 2", "masks in layer 1")
    for axes, kind in zip(every, kinds, strict=False):
        values = np.full(sizes, np.nan)
        for row in (row for row in shapes if row["kind"] == kind):
            first, second = map(int, row["shape"].split())
            values[first - 1, second - 1] = row["mean"]
            axes.text(second, first, f"{row['mean']:.2f}", color=INK, ha="center", va="center")
        axes.imshow(
            values, extent=(0.5, sizes[1] + 0.5, sizes[0] + 0.5, 0.5), cmap="viridis", vmin=0.3, vmax=1.1, alpha=0.6
        )
        axes.set_xticks(range(1, sizes[1] + 1))
        axes.set_yticks(range(1, sizes[0] + 1))
        axes.set_title(kind, color=INK)
    return figure


def fronts(truths: Sequence[Truth]) -> Figure:
    """Score against size: every sub-network a dot, the best ones joined, one panel for each kind."""
    kinds = list(dict.fromkeys(truth.kind for truth in truths))
    figure, every = sheet(max(1, len(kinds)), "masks left", "score / reference")
    for axes, kind in zip(every, kinds, strict=False):
        axes.set_title(kind, color=INK)
        for number, (_, parent, table, reference, _) in enumerate(of_kind(truths, kind)):
            colour, best = COLOURS[number % len(COLOURS)], regret.front(table.scores)
            values = np.array([[mask_sets.count(each), table[each] / reference] for each in table.scores])
            shift = 0.3 * (np.random.default_rng(0).random(len(values)) - 0.5)
            axes.plot(values[:, 0] + shift, values[:, 1], ".", color=colour, markersize=2, alpha=0.4)
            axes.plot(list(best), [score / reference for score in best.values()], color=colour, label=f"seed {parent}")
        if len(axes.lines) <= 16:  # more would hide the points
            axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def regret_curves(replayed: Sequence[Row]) -> Figure:
    """Masks too many against the threshold, for the strategies that a reader looks for and the best of the others."""
    kinds = list(dict.fromkeys(row["kind"] for row in replayed))
    figure, every = sheet(len(kinds), "threshold", "masks more than necessary")
    for axes, kind in zip(every, kinds, strict=True):
        own = [row for row in replayed if row["kind"] == kind]
        total = lambda name, own=own: sum(row["size_regret"] for row in own if row["strategy"] == name)
        known = ["oracle greedy", "random", "sequential", "ablation"]
        others = sorted({row["strategy"] for row in own} - set(known), key=total)[:4]
        for name, colour in zip([*known, *others], COLOURS, strict=False):
            points = [row for row in own if row["strategy"] == name]
            axes.plot(
                [p["threshold"] for p in points], [p["size_regret"] for p in points], "-o", color=colour, label=name
            )
        axes.set_title(kind, color=INK)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
    return figure


def png(figure: Figure) -> bytes:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content, metadata={"Software": ""})
    return content.getvalue()


WORDS = {
    "smallest": "The fewest masks that reach a share of the reference score, and what one removal at a time can reach. "
    "The reference is the whole network as it was or after one more session, whichever scores better.",
    "shapes": "The best sub-network of every shape, relative to the reference.",
    "replayed": "Searches replayed on the table: every set is retrained once from the parent, weights do not add up.",
    "steps": "How often the best mask is chosen on the way down, and how well masks are ordered at its beginning.",
    "reliability": "How well two orders of the data agree; no criterion can agree with the table beyond the ceiling.",
    "lattice": "Best score by shape, relative to the reference, mean of the parents (from scratch: of the draws).",
    "front": "Every sub-network, and the best ones of each size.",
    "regret": "Masks more than necessary; mean of the parents.",
}


def page(about: Row, tables: dict[str, list[Row]], pictures: Sequence[str]) -> str:
    config = about["config"]
    title = f"Every sub-network: {config['pictures']['task']}, widths {config['widths']}"
    facts = f"{about['score']}; {'; '.join(about['pictures'])}; {about['device']}"
    style = (
        f"body{{background:{PAPER};color:{INK};font:15px sans-serif;max-width:1200px;margin:3em auto}}img{{width:100%}}"
    )
    style += "td,th{padding:2px 10px;text-align:right}table{border-collapse:collapse;font-size:13px}"
    shown = [f"<h2>{name}</h2><p>{WORDS[name]}</p><img src='{name}.png' alt='{name}'>" for name in pictures]
    shown += [
        f"<h2>{name}</h2><p>{WORDS[name]} <a href='{name}.csv'>CSV</a></p>{table(tables[name])}" for name in tables
    ]
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(title)}</title><style>{style}</style>"
    return f"{head}<h1>{html.escape(title)}</h1><p>{html.escape(facts)}</p>{''.join(shown)}"


def table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cell = lambda value: f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))
    line = lambda row: "".join(f"<td>{cell(row.get(name, ''))}</td>" for name in names)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line(row)}</tr>' for row in rows)}</table>"
