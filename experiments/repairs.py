"""Does it pay to make up for a mask when it goes? Less is lost at once; is less training needed afterwards?

Trains networks, removes every mask of every one in five ways (nothing made up for; its mean folded into biases; merged
into its twin; by least squares; by the second-order step), and trains each on. Every way sees the same batches. What
counts is the score at once, after the session, and the step at which the score first reaches the required share of
what it was.

    python experiments/repairs.py
    python experiments/repairs.py --preset study --task canny
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from maskprune.app.options import share
from maskprune.app.setup import make_repair
from maskprune.app.studies import Options, Row, Study, learning_curves, mean, run, score, single_masks, trained_start
from maskprune.report.terminal import outputs


SIZES = {"quick": {"networks": 2}, "study": {"networks": 10}, "full": {"networks": 20}, "thesis": {"networks": 50}}
REPAIRS = ("none", "bias", "merge", "least-squares", "second-order")
LOOKS = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a session
HARMLESS = 0.02  # masks whose loss costs less than this share of the score need no repair


@dataclasses.dataclass(frozen=True)
class Config:
    """How many networks are asked, and what they must reach."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)
    threshold: float = 0.95
    """The share of the score before that counts as recovered."""


def ask_network(study: Study, seed: int, train: Any, *, threshold: float) -> Row:
    """Every mask removed in every way, the same session for all."""
    import jax

    setup = study.setup
    start_key, session_key = jax.random.split(jax.random.key(seed))
    start = trained_start(setup, start_key, train, steps=study.recipe.first_steps)
    network, before = start.state.network, score(setup, start.state)
    ways = {name: removal(name, setup) for name in REPAIRS}
    jobs = [(name, *mask) for name in REPAIRS for mask in single_masks(network)]
    states = [setup.fresh(ways[name](network, chosen)) for name, *_, chosen in jobs]
    at_once = [score(setup, state) for state in states]
    trained = learning_curves(study, states, [session_key] * len(states), train, LOOKS)
    curves = [[first, *rest] for first, rest in zip(at_once, trained, strict=True)]
    rows = [
        {"repair": name, "layer": layer, "mask": number, **outcome(curve, before, threshold, study.recipe.steps)}
        for (name, layer, number, _), curve in zip(jobs, curves, strict=True)
    ]
    return {"redrawn": len(start.redrawn), "score": before, "masks": rows}


def removal(name: str, setup: Any) -> Any:
    """`(network, chosen) -> network`, compiled."""
    import jax

    import maskprune as mp

    repair = make_repair(name, setup)
    if repair is None:
        return mp.disable
    made = jax.jit(repair)
    return lambda network, chosen: made(network, chosen, setup.task.sample)


def outcome(curve: Sequence[float], before: float, threshold: float, steps: int) -> Row:
    """Ratios to the score before, and the steps until the threshold; twice the session if it was not reached."""
    ratios = [value / before for value in curve]
    reached = [share for share, ratio in zip((0.0, *LOOKS), ratios, strict=True) if ratio >= threshold]
    return {
        "at_once": ratios[0],
        "after": ratios[-1],
        "steps": steps * (reached[0] if reached else 2.0),
        "recovered": float(bool(reached)),
    }


# All networks


def flat(rows: Sequence[Row]) -> list[Row]:
    """One row a mask and repair, without the masks that nobody misses."""
    found = []
    for row in rows:
        lost = {(m["layer"], m["mask"]): 1 - m["at_once"] for m in row["masks"] if m["repair"] == "none"}
        found += [
            {"network": row["seed"], **mask} for mask in row["masks"] if lost[mask["layer"], mask["mask"]] > HARMLESS
        ]
    return found


def summary(masks: Sequence[Row]) -> list[Row]:
    """Means over the masks of a repair, and their differences to none, with intervals from drawing networks again."""
    columns = ("at_once", "after", "steps", "recovered")
    plain = {_place(mask): mask for mask in masks if mask["repair"] == "none"}
    found = []
    for name in REPAIRS:
        own = [mask for mask in masks if mask["repair"] == name]
        less = [{"network": m["network"], **{c: m[c] - plain[_place(m)][c] for c in columns}} for m in own]
        found.append(
            {
                "repair": name,
                **{column: mean(own, column) for column in columns},
                "steps more than none": mean(less, "steps"),
                "at once more than none": mean(less, "at_once"),
                "masks": len(own),
                "networks": len({mask["network"] for mask in own}),
            }
        )
    return found


def _place(mask: Row) -> tuple[Any, ...]:
    return mask["network"], mask["layer"], mask["mask"]


def ask(study: Study, config: Config) -> list[Row]:
    """Runs the study and writes its page. Returns one row a mask and repair."""
    from maskprune.app.record import write_csv
    from maskprune.lab.study_page import Picture, Section, Table
    from maskprune.report import plots

    masks = flat(study.rows(functools.partial(ask_network, study, threshold=config.threshold)))
    rows = summary(masks)
    of = lambda name, column: [mask[column] for mask in masks if mask["repair"] == name]
    panel = plots.Panel("masks that are missed", {name: (of(name, "at_once"), of(name, "after")) for name in REPAIRS})
    chart = plots.scatter([[panel]], xlabel="score at once, of the one before", ylabel="after the session")
    words = lambda found: f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
    study.write(
        title="Does repair on removal save training?",
        question="A mask goes, and the rest makes up for it at once: what is kept, and how many steps are saved?",
        answers=[f"{row['repair']}: {words(row['at_once'])} of the score at once, {words(row['steps'])} steps."
                 for row in rows],
        sections=[
            Section(
                "At once and after",
                [f"Masks whose removal costs more than {HARMLESS:.0%} of the score. steps: until {config.threshold:g} "
                 "of the score before is reached again, at the first of the looks after 0, 1/8, 1/4, 1/2, 3/4 and all "
                 "of a session; twice a session where it was not reached."],
                [Picture("repairs", "Repairs", "One point for each mask and repair.", chart)],
                [Table("repairs", "Means over masks, 95 % intervals from drawing networks again", rows)],
            ),
        ],
    )  # fmt: skip
    write_csv(study.out / "masks.csv", masks)
    return masks


def main(config: Config) -> list[Row]:
    """Runs the study, or goes on with it. Returns one row a mask and repair."""
    return run("repairs", config, SIZES, ask, more=lambda config: [share("--threshold", config.threshold)])


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
