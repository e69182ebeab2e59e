"""What is a mask worth, by three tests, and does a mask that lost its weights find them again?

Trains networks, and for every mask of every one does three things, each from the same trained network: sets its kernel
to zero and lets everything learn (zeroed); disables and freezes it (disabled); sets its kernel to zero and lets nothing
but it and the output layer learn (zeroed alone). The score is taken before, at once and after a session. A control that
was not touched gets the same session. What a zeroed mask has become is compared with what it was.

    python experiments/worth.py
    python experiments/worth.py --preset study --task canny
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from maskprune.app.studies import Options, Row, Study, mean, run, single_masks, trained_start
from maskprune.report.terminal import outputs


SIZES = {
    "quick": {"networks": 2},
    "study": {"networks": 20},
    "full": {"networks": 20},
    "thesis": {"networks": 100},
}
TESTS = ("zeroed", "zeroed alone", "disabled")
RELEARNS = ("zeroed", "zeroed alone", "control")


@dataclasses.dataclass(frozen=True)
class Config:
    """How many networks are asked."""

    options: Annotated[Options, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Options)


# One network


def ask_network(study: Study, seed: int, train: Any) -> Row:
    """Three tests of every mask and one control, side by side."""
    import jax

    import maskprune as mp

    setup = study.setup
    start_key, session_key = jax.random.split(jax.random.key(seed))
    start = trained_start(setup, start_key, train, steps=study.recipe.first_steps)
    network = start.state.network
    tests = {
        "zeroed": mp.lab.worth.zeroed,
        "disabled": mp.lab.worth.disabled_and_frozen,
        "zeroed alone": mp.lab.worth.zeroed_alone,
    }
    jobs = [(test, *mask) for test in TESTS for mask in single_masks(network)]
    nothing = ("control", "", 0, mp.choose(network, {}))

    def job(alteration: Any, chosen: Any, train: Any) -> Any:
        one = lambda key, state: train([key], [state], steps=study.recipe.steps)[0]
        evaluate, optimizer = setup.task.evaluate, setup.optimizer
        return mp.lab.worth.worth(
            session_key, start.state, chosen, alteration=alteration, train=one, evaluate=evaluate, optimizer=optimizer
        )

    same = lambda network, chosen: network
    every = [nothing, *jobs]
    found = mp.run_together(
        [functools.partial(job, tests.get(test, same), chosen) for test, *_, chosen in every], train
    )
    (_, control), past = (every[0], found[0]), vectors(network)
    rows = [
        {"test": test, "layer": layer, "mask": number, **scores(each)}
        | (likeness(past[layer], vectors(each.state.network)[layer][number], number) if test != "disabled" else {})
        for (test, layer, number, _), each in zip(every[1:], found[1:], strict=True)
    ]
    untouched = vectors(control.state.network)
    moved = [
        {"test": "control", "layer": layer, "mask": number, **scores(control)}
        | likeness(past[layer], untouched[layer][number], number)
        for layer, number, _ in single_masks(network)
    ]
    return {"redrawn": len(start.redrawn), "masks": rows + moved}


def scores(found: Any) -> Row:
    return {"before": found.before, "at_once": found.at_once, "after": found.after}


def vectors(network: Any) -> dict[str, Any]:
    """Every mask's own numbers, kernel and bias, as a row: {layer: float[C, D]}."""
    import numpy as np

    from maskprune import select

    return {group.name: np.asarray(select.mask_vectors(group, network.params), float) for group in network.groups}


def likeness(past: Any, now: Any, number: int) -> Row:
    """How like a mask is to what it was, and to what the others of its layer were.

    Returns:
        `like_itself`, the cosine; `distance`, of the two relative to the past length; `like_another`, the largest
        cosine to another mask's past; `nearest`, whether none of those is larger than `like_itself`.
    """
    import numpy as np

    lengths = np.linalg.norm(past, axis=1) * np.linalg.norm(now)
    cosines = np.divide(past @ now, lengths, out=np.zeros(len(past)), where=lengths > 0)
    others = np.delete(cosines, number)
    distance = np.linalg.norm(now - past[number]) / (np.linalg.norm(past[number]) or math.nan)
    another = float(others.max()) if len(others) else math.nan
    own = float(cosines[number])
    nearest = bool(own >= another) if len(others) else True
    return {"like_itself": own, "distance": float(distance), "like_another": another, "nearest": float(nearest)}


# All networks


def flat(rows: Sequence[Row]) -> list[Row]:
    """One row a mask and test; scores afterwards also relative to the control."""
    found = []
    for row in rows:
        control = next(each["after"] for each in row["masks"] if each["test"] == "control")
        for each in row["masks"]:
            ratios = {
                "drop": 1 - each["at_once"] / (each["before"] or math.nan),
                "loss": 1 - each["after"] / (control or math.nan),
            }
            found.append({"network": row["seed"], **each, **ratios})
    return found


def summary(masks: Sequence[Row], tests: Sequence[str], columns: Sequence[str], layers: Sequence[str]) -> list[Row]:
    """Means over the masks of a test and a layer, with intervals from drawing networks again."""
    return [
        {
            "test": test,
            "layer": layer or "all",
            **{column: mean(_of(masks, test, layer), column) for column in columns},
            "masks": len(_of(masks, test, layer)),
            "networks": len({mask["network"] for mask in masks}),
        }
        for layer in ("", *layers)
        for test in tests
    ]


def _of(masks: Sequence[Row], test: str, layer: str) -> list[Row]:
    return [mask for mask in masks if mask["test"] == test and layer in ("", mask["layer"])]


def agreement(masks: Sequence[Row]) -> list[Row]:
    """Do the tests order masks alike? Spearman inside networks of what is lost after the session."""
    from maskprune.lab import statistics

    order = lambda mask: (mask["network"], mask["layer"], mask["mask"])
    by_test = {test: sorted(_of(masks, test, ""), key=order) for test in TESTS}
    networks = [mask["network"] for mask in by_test[TESTS[0]]]
    sides = {f"loss, {test}": [mask["loss"] for mask in found] for test, found in by_test.items()}
    sides = {"drop at once, disabled": [mask["drop"] for mask in by_test["disabled"]]} | sides
    names = list(sides)
    return [
        {"one": one, "other": other, "spearman": statistics.within(sides[one], sides[other], networks, "spearman")}
        for at, one in enumerate(names)
        for other in names[at + 1 :]
    ]


def ask(study: Study, config: Config) -> list[Row]:
    """Runs the study and writes its page. Returns one row a mask and test."""
    from maskprune.app.record import write_csv
    from maskprune.lab.study_page import Section, Table

    del config
    masks = flat(study.rows(functools.partial(ask_network, study)))
    layers = list(dict.fromkeys(mask["layer"] for mask in masks))
    worths = summary(masks, (*TESTS, "control"), ("before", "at_once", "after", "drop", "loss"), layers)
    relearned = summary(masks, RELEARNS, ("like_itself", "distance", "like_another", "nearest"), layers)
    study.write(
        title="What is a mask worth?",
        question="Three tests of one mask side by side: which of them lose what, and does a mask whose weights were "
        "set to zero find its past ones again?",
        answers=answers(worths, relearned),
        sections=[
            Section(
                "Scores before, at once and after",
                ["drop: share of the score lost at once. loss: share lost after the session, relative to the control."],
                [worth_picture(masks, layers)],
                [Table("worth", "Means over masks, 95 % intervals from drawing networks again", worths),
                 Table("agreement", "Do the tests order the masks of a network alike?", agreement(masks))],
            ),
            Section(
                "What zeroed masks have become",
                ["like itself: cosine of the mask's numbers after the session with those before it was zeroed. "
                 "distance: how far apart they are, in past lengths. like another: the largest cosine to another mask "
                 "of its layer, as that was. nearest: share of masks that are most like themselves. The control "
                 "tells how far a mask moves when nothing was done to it."],
                [likeness_picture(masks, layers)],
                [Table("relearned", "Means over masks, 95 % intervals from drawing networks again", relearned)],
            ),
        ],
    )  # fmt: skip
    write_csv(study.out / "masks.csv", masks)
    return masks


def answers(worths: Sequence[Row], relearned: Sequence[Row]) -> list[str]:
    words = lambda found: f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    losses = {row["test"]: row for row in worths if row["layer"] == "all"}
    alike = {row["test"]: row["like_itself"] for row in relearned if row["layer"] == "all"}
    return [
        "Lost after the session, relative to the control: "
        + ", ".join(f"{test} {words(losses[test]['loss'])}" for test in TESTS) + ".",
        "Cosine of a mask with its own past: "
        + ", ".join(f"{test} {words(alike[test])}" for test in RELEARNS) + ".",
    ]  # fmt: skip


def worth_picture(masks: Sequence[Row], layers: Sequence[str]) -> Any:
    from maskprune.lab.study_page import Picture
    from maskprune.report import plots

    panels = []
    for layer in layers:
        points = {test: ([m["drop"] for m in _of(masks, test, layer)], [m["loss"] for m in _of(masks, test, layer)])
                  for test in TESTS}  # fmt: skip
        panels.append(plots.Panel(layer, points))
    chart = plots.scatter([panels], xlabel="drop at once", ylabel="loss after the session")
    return Picture("worth", "Three tests", "One point for each mask and test. Below 0: better than the network that "
                   "lost nothing.", chart)  # fmt: skip


def likeness_picture(masks: Sequence[Row], layers: Sequence[str]) -> Any:
    from maskprune.lab.study_page import Picture
    from maskprune.report import plots

    panels = []
    for layer in layers:
        found = {test: _of(masks, test, layer) for test in RELEARNS}
        points = {t: ([m["like_itself"] for m in f], [m["like_another"] for m in f]) for t, f in found.items()}
        panels.append(plots.Panel(layer, points))
    chart = plots.scatter([panels], xlabel="cosine with its own past", ylabel="largest cosine with another's past")
    return Picture("relearned", "Who is who after the session", "Right: a mask is what it was. High: it has become "
                   "what another one was.", chart)  # fmt: skip


def main(config: Config) -> list[Row]:
    """Runs the study, or goes on with it. Returns one row a mask and test."""
    return run("worth", config, SIZES, ask)


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
