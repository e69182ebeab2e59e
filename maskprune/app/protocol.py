"""What may be asked for on a command line: which task, from which pictures, trained and searched by which recipe.

What becomes of these words stands in `setup`. Imports nothing that loads jax, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from maskprune.app.options import UNSET, Problem, Unset, folder, positive, seeds, share, source, whole


Task = Literal["sobel", "canny", "threshold", "local-mean", "otsu", "adaptive", "pairs"]
Preset = Literal["quick", "study", "full", "thesis"]
SelectorName = Literal[
    "cosine-min", "cosine-max", "cosine-mean", "cosine-median", "cosine-std",
    "abs-cosine-min", "abs-cosine-max", "abs-cosine-mean", "abs-cosine-median", "abs-cosine-std",
    "sequential", "random", "magnitude-l1", "magnitude-l2", "uniform",
    "activation-mean", "activation-std", "activation-zeros", "taylor", "geometric-median",
    "taylor-signed", "taylor-second", "fisher", "twin", "information", "redundancy", "surgeon",
    "ablation", "ablation-bias", "ablation-repaired", "probe", "probe-long", "ensemble",
]  # fmt: skip
MOST_SIDE = 16_384  # of a picture, in pixels


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What to learn, and from which pictures."""

    task: Task = "sobel"
    """The filter to imitate; "pairs" learns your own from --inputs and --targets."""
    data: Path | None = None
    """Folder of pictures, VOCdevkit or BSDS500 root, or .npz. Default: photographs bundled with scikit-image."""
    inputs: Path | None = None
    """With --task pairs: folder of input pictures."""
    targets: Path | None = None
    """With --task pairs: folder of target pictures, matched by name without its ending."""
    size: int = 256
    """Side of the stored pictures, cut from the centre of each photograph."""
    split_seed: int = 1
    """Decides which pictures are trained on and which are judged by."""
    limit: int | None = None
    """Use at most this many pictures."""
    level: float | None = None
    """With --task threshold: the grey level, in [0, 1]. Default: 0.5."""


StrategyName = Literal[
    "auto", "one-by-one", "ablation", "raced", "batches", "bisect", "beam", "grow", "regrow", "random", "uniform", "l1",
    "taylor",
]  # fmt: skip


class Strategy(NamedTuple):
    """A way to search: a plan of `maskprune.strategies`, the rules it goes with, and in which order masks go.

    `sessions` is its budget: no round begins after so many sessions' worth of steps.
    """

    plan: Callable[[Any], Any]
    rules: dict[str, Any]
    selector: SelectorName
    sessions: int | None = None

    def budget(self, steps: int) -> int | None:
        """Of all rounds, where a session has so many steps; None for no limit."""
        return self.sessions and self.sessions * steps


RACED = {"candidates": 4, "racing": True}
STRATEGIES: dict[str, Strategy] = {
    "auto": Strategy(lambda moves: moves.auto(), {**RACED, "early": 0.0}, "ablation", sessions=40),
    "one-by-one": Strategy(lambda moves: moves.one_by_one, {}, "cosine-max"),
    "ablation": Strategy(lambda moves: moves.one_by_one, {}, "ablation"),
    "random": Strategy(lambda moves: moves.one_by_one, {}, "random"),
    "l1": Strategy(lambda moves: moves.one_by_one, {}, "magnitude-l1"),
    "uniform": Strategy(lambda moves: moves.one_by_one, {}, "uniform"),
    "taylor": Strategy(lambda moves: moves.one_by_one, {}, "taylor"),
    "raced": Strategy(lambda moves: moves.one_by_one, RACED, "ablation"),
    "batches": Strategy(lambda moves: moves.one_by_one, {"count": 4}, "ablation"),
    "bisect": Strategy(lambda moves: moves.bisect, {**RACED, "candidates": 8}, "ablation"),
    "beam": Strategy(lambda moves: moves.beam(3), {"candidates": 3}, "ablation"),
    "grow": Strategy(lambda moves: moves.grow, RACED, "ablation"),
    "regrow": Strategy(lambda moves: moves.chain(moves.one_by_one, moves.regrow), RACED, "ablation"),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train and search. Every field not given comes from the preset."""

    initial: Literal["he", "thesis"] | Unset = UNSET
    """Distribution of the initial weights."""
    optimizer: Literal["soap", "adam"] | Unset = UNSET
    """soap: Adam in the gradients' eigenbasis, a plateau and down. adam: plain, constant rate."""
    learning_rate: float | Unset = UNSET
    """Peak learning rate."""
    batch: int | Unset = UNSET
    """Crops (or pictures) per step."""
    crop: int | Unset = UNSET
    """Side of a training crop, in pixels; the size of the pictures takes them whole."""
    border: int | Unset = UNSET
    """Pixels left out at each side, in losses and scores: zero padding makes false edges there."""
    ceiling: float | Unset = UNSET
    """The largest output that counts as right in the F1 score and loss; inf for the source document's formula."""
    first_steps: int | Unset = UNSET
    """Steps of the first, long session."""
    steps: int | Unset = UNSET
    """Steps of the short session after each removal."""
    final_steps: int | Unset = UNSET
    """Steps of a last session for the network that was found; 0 for none."""
    reference: Literal["initial", "previous", "best"] | Unset = UNSET
    """Whose score a candidate is compared with."""
    strategy: StrategyName | Unset = UNSET
    """How the next masks to try are found. auto: what measured best. one-by-one: the source document's."""
    selector: SelectorName | Unset = UNSET
    """Which mask goes next. Default: the strategy's own."""


QUICK = Recipe(
    initial="he",
    optimizer="soap",
    learning_rate=1e-2,
    batch=8,
    crop=64,
    border=6,
    ceiling=1.0,
    first_steps=800,
    steps=400,
    final_steps=800,
    reference="initial",
    strategy="auto",
)
STUDY = dataclasses.replace(QUICK, crop=48, final_steps=400, strategy="one-by-one")
GLANCE = dataclasses.replace(STUDY, first_steps=400, steps=200, final_steps=200)  # the studies' own "quick"
PRESETS = {
    "quick": QUICK,
    "study": STUDY,
    "full": dataclasses.replace(QUICK, crop=96, first_steps=4000, steps=1000, final_steps=4000),
    "thesis": dataclasses.replace(
        QUICK,
        initial="thesis",
        optimizer="adam",
        learning_rate=1e-3,
        batch=3,
        crop=256,
        border=0,
        ceiling=math.inf,
        first_steps=10_000,
        steps=2_000,
        final_steps=0,
        reference="previous",
        strategy="one-by-one",
    ),
}


def fill_in(recipe: Recipe, preset: str | Recipe, pictures: Pictures) -> Recipe:
    """The recipe with everything that was not given taken from the preset."""
    given = {name: value for name, value in dataclasses.asdict(recipe).items() if value is not None}
    filled = dataclasses.replace(PRESETS[preset] if isinstance(preset, str) else preset, **given)
    if filled.selector is None:
        filled = dataclasses.replace(filled, selector=STRATEGIES[filled.strategy].selector)
    shrinks = filled.crop > pictures.size and "crop" not in given
    return dataclasses.replace(filled, crop=pictures.size) if shrinks else filled


def problems_of(pictures: Pictures, recipe: Recipe) -> list[Problem]:
    """What may be wrong with pictures and a filled-in recipe, by the options' names."""
    pairs, level = pictures.task == "pairs", pictures.level
    return [
        (pairs != bool(pictures.inputs and pictures.targets), "--task pairs goes with --inputs and --targets, both"),
        (pairs and pictures.data is not None, "--data does not go with --task pairs; use --inputs and --targets"),
        (not pairs and (pictures.inputs or pictures.targets), "--inputs and --targets go with --task pairs"),
        (level is not None and pictures.task != "threshold", "--level goes with --task threshold"),
        share("--level", level, "[0, 1]"),
        whole("--size", pictures.size, most=MOST_SIDE),
        seeds("--split-seed", pictures.split_seed),
        whole("--limit", pictures.limit, 2),
        source("--data", pictures.data),
        folder("--inputs", pictures.inputs),
        folder("--targets", pictures.targets),
        positive("--ceiling", recipe.ceiling, endless=True),
        positive("--learning-rate", recipe.learning_rate),
        whole("--batch", recipe.batch),
        whole("--steps", recipe.steps),
        whole("--first-steps", recipe.first_steps, 0),
        whole("--final-steps", recipe.final_steps, 0),
        whole("--border", recipe.border, 0),
        (
            not 2 * recipe.border < recipe.crop <= pictures.size,
            f"--crop is {recipe.crop}: use more than twice the border ({recipe.border}), at most --size",
        ),
    ]


@contextlib.contextmanager
def in_a_sentence(program: str) -> Iterator[None]:
    """For what depends on the user's files: the library says what is wrong, and a traceback adds nothing."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SystemExit(f"{program}: {error}") from error
