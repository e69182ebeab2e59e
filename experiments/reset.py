"""Does it matter that the optimizer starts afresh after every alteration?

Trains networks, removes every mask of every one, and trains on twice from the same weights, on the same batches: with a
fresh optimizer, as everywhere else, and with the moments that the first session left. Compared are the scores at looks
during the session.

    python experiments/reset.py
    python experiments/reset.py --preset study --optimizer adam --learning-rate 1e-3
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from maskprune.app.studies import Options, Row, Study, learning_curves, run, score, single_masks, trained_start
from maskprune.report.terminal import outputs


SIZES = {"quick": {"networks": 2}, "study": {"networks": 10}, "full": {"networks": 20}, "thesis": {"networks": 50}}
LOOKS = (0.125, 0.25, 0.5, 1.0)  # of a session


@dataclasses.dataclass(frozen=True)
class Config:
    """How many networks are asked."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)


def ask_network(study: Study, seed: int, train: Any) -> Row:
    """Every mask removed, and trained on with a fresh optimizer and with the old one."""
    import jax
    import numpy as np

    import maskprune as mp

    setup = study.setup
    start_key, session_key = jax.random.split(jax.random.key(seed))
    start = trained_start(setup, start_key, train, steps=study.recipe.first_steps).state
    masks = single_masks(start.network)
    networks = [mp.disable(start.network, chosen) for *_, chosen in masks]
    keep = lambda network: dataclasses.replace(start, network=network, step=jax.device_put(np.int32(0)))
    states = [make(network) for make in (setup.fresh, keep) for network in networks]
    curves = learning_curves(study, states, [session_key] * len(states), train, LOOKS)
    found = [
        {"layer": layer, "mask": number, "fresh": fresh, "kept": kept}
        for (layer, number, _), fresh, kept in zip(masks, curves[: len(masks)], curves[len(masks) :], strict=True)
    ]
    return {"score": score(setup, start), "masks": found}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Mean scores at every look, relative to those before, and what the fresh optimizer gains; 95 % intervals."""
    from maskprune.lab import statistics

    masks = [(row["seed"], row["score"], mask) for row in rows for mask in row["masks"]]
    networks = [network for network, *_ in masks]
    table = []
    for at, look in enumerate(LOOKS):
        ratios = {name: [mask[name][at] / score for _, score, mask in masks] for name in ("fresh", "kept")}
        ratios["fresh - kept"] = [one - other for one, other in zip(ratios["fresh"], ratios["kept"], strict=True)]
        means = {name: statistics.mean(values, networks) for name, values in ratios.items()}
        table.append({"share of the session": look, **means, "networks": len(rows), "masks": len(masks)})
    return table


def ask(study: Study, config: Config) -> list[Row]:
    """Runs the study and writes its page. Returns one row a look."""
    from maskprune.lab.study_page import Picture, Section, Table
    from maskprune.report import plots

    del config
    rows = study.rows(functools.partial(ask_network, study))
    table = summary(rows)
    every = [
        (mask["kept"][-1] / row["score"], mask["fresh"][-1] / row["score"]) for row in rows for mask in row["masks"]
    ]
    panel = plots.Panel("all masks", {"one mask": tuple(map(list, zip(*every, strict=True)))})
    chart = plots.scatter([[panel]], xlabel="moments kept", ylabel="fresh optimizer")
    last = table[-1]["fresh - kept"]
    study.write(
        title="Does the reset of the optimizer matter?",
        question="The same weights and batches, with fresh moments and with those of the session before.",
        answers=[f"After the session a fresh optimizer is ahead by {last.value:.3f} "
                 f"({last.low:.3f} to {last.high:.3f}) of the score before."],
        sections=[
            Section(
                "Scores at looks",
                ["Relative to the score before a mask was removed."],
                [Picture("reset", "After the session", "One point for each mask. Above the diagonal: the reset helped.",
                         chart)],
                [Table("reset", "Means over masks, 95 % intervals from drawing networks again", table)],
            ),
        ],
    )  # fmt: skip
    return table


def main(config: Config) -> list[Row]:
    """Runs the study, or goes on with it. Returns one row a look."""
    return run("reset", config, SIZES, ask)


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
