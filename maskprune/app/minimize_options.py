"""The options of `maskprune minimize`, filled in and checked before any work is done."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from maskprune.app.options import (
    MOST_TOGETHER,
    UNSET,
    Unset,
    existing,
    network,
    output,
    positive,
    refuse,
    seeds,
    share,
    whole,
)
from maskprune.app.protocol import STRATEGIES, Pictures, Preset, Recipe, fill_in, problems_of


PROGRAM = "minimize"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to learn, from which pictures, and how far to go."""

    pictures: Annotated[Pictures, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Pictures)
    out: Path | None = None
    """Output folder. Default: runs/<task>-<time>."""
    resume: Path | None = None
    """Go on with the run in this folder, with the options it was begun with."""
    repeat: Path | None = None
    """Do again what was done in this folder, with the same options, into --out."""
    preset: Preset = "quick"
    """quick: minutes. full: longer sessions. thesis: the source document's literal protocol (hours on a CPU)."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Recipe)
    seed: int = 0
    """Decides initial weights, batches and random choices; not the split of the pictures."""
    threshold: float = 0.95
    """A candidate is kept at this share of the reference score or more."""
    widths: tuple[int, ...] | Unset = UNSET
    """Masks of each prunable layer. Default: 5 5."""
    kernel: int | Unset = UNSET
    """Kernel size, odd. Default: 5."""
    loss: Literal["auto", "mse", "mae", "f1"] = "auto"
    """Training loss. auto: mse for continuous targets, f1 for binary ones."""
    reverse: bool = False
    """Turn the selector's order round."""
    objective: Literal["masks", "params", "macs"] = "masks"
    """What to save: masks, or parameters or multiply-adds, by which the selector's scores are then weighed."""
    standardize: bool = False
    """Compare the selector's scores across layers only after standardizing them layer by layer."""
    control: bool = False
    """Give the reference network every short session too, so that more training is not mistaken for fewer masks."""
    retry: Literal["accepted", "never"] = "accepted"
    """Whether refused masks are tried again after the next acceptance."""
    count: int | Unset = UNSET
    """Masks removed at once. Default: the strategy's own, as for the next three."""
    candidates: int | Unset = UNSET
    """Choices tried side by side in every round, of which the best one is kept."""
    racing: bool | Unset = UNSET
    """Let the worse half of the candidates drop out whenever their session has doubled."""
    early: float | None = None
    """End sessions that pass already, and those that would pass with at most this probability."""
    repair: Literal["none", "bias", "merge", "least-squares", "second-order"] = "none"
    """What makes up for a mask when it goes, before anything is trained."""
    replicas: int = 1
    """Whole searches at once, with this seed and the ones after it."""
    min_enabled: int = 1
    """Masks that stay in every layer."""
    minimize_layers: bool = False
    """When no mask may go any more, try to do without whole layers."""
    max_rounds: int | None = None
    """Stop after this many rounds."""
    max_steps: int | None = None
    """Start no round after this many steps in rounds."""
    max_seconds: float | None = None
    """Start no round after this many seconds of search."""
    target_masks: int | None = None
    """Stop when no more masks than this are left."""
    stagnation: float | None = None
    """End a session early when its error improves by less than this share over five looks, such as 0.01."""
    flips: bool = False
    """Mirror training crops at random; for filters that know no direction."""
    start_from: Path | None = None
    """A saved network.npz to minimize, in place of training one."""
    deterministic: bool = False
    """On a GPU: the same bits every time, more slowly. On a CPU they always are, for one number of cores."""
    save_every: float = 1.0
    """Seconds of training that a crash may cost at most, beside the steps that are computed at once."""
    quiet: bool = False
    """Print nothing but errors."""


def resolve(config: Config) -> tuple[Config, Recipe]:
    """Fills in what was not given, from the preset and the defaults, and checks it all before any work is done."""
    recipe, saved = fill_in(config.recipe, config.preset, config.pictures), config.start_from is not None
    shape = [config.widths, config.kernel, config.recipe.initial]
    defaults = {"widths": (5, 5), "kernel": 5}
    config = dataclasses.replace(config, **{k: v for k, v in defaults.items() if getattr(config, k) is None})
    config = dataclasses.replace(config, **(rules := rules_of(config, recipe)))
    problems = [
        *problems_of(config.pictures, recipe),
        (saved and shape != [None] * 3, "--widths, --kernel and --initial do not go with --start-from"),
        *([] if saved else network(config.widths, config.kernel, crop=recipe.crop, batch=recipe.batch)),
        existing("--start-from", config.start_from),
        output("--out", config.out),
        share("--threshold", config.threshold),
        whole("--count", rules["count"]),
        whole("--candidates", rules["candidates"], most=MOST_TOGETHER),
        whole("--replicas", config.replicas, most=MOST_TOGETHER),
        seeds("--seed", config.seed, config.replicas, "--replicas"),
        share("--early", config.early, "[0, 1)"),
        share("--stagnation", config.stagnation, "(0, 1)"),
        whole("--max-rounds", config.max_rounds, 0),
        whole("--max-steps", config.max_steps, 0),
        positive("--max-seconds", config.max_seconds, zero=True, endless=True),
        whole("--target-masks", config.target_masks),
        whole("--min-enabled", config.min_enabled),
        (
            not saved and config.min_enabled >= max(config.widths, default=2) > 1,
            f"--min-enabled is {config.min_enabled}: no layer of --widths has more masks, so none could go",
        ),
        (rules["racing"] and rules["candidates"] < 2, "--racing goes with --candidates 2 or more"),
        (
            config.stagnation is not None and max(rules["candidates"], config.replicas) > 1,
            "--stagnation ends a session by itself: use --candidates 1, and no --replicas",
        ),
        (
            config.minimize_layers and recipe.strategy in ("bisect", "beam", "grow"),
            f"--minimize-layers does not go with --strategy {recipe.strategy}, which knows masks only; use auto",
        ),
        positive("--save-every", config.save_every, zero=True, endless=True),
        (recipe.first_steps < 1 and not saved, "--first-steps 0 goes with --start-from only"),
    ]
    refuse(PROGRAM, problems)
    return config, recipe


def rules_of(config: Config, recipe: Recipe) -> dict[str, Any]:
    """The rules that a strategy brings along, where the user gave no others."""
    own = {"count": 1, "candidates": 1, "racing": False, "early": None} | STRATEGIES[recipe.strategy].rules
    if config.candidates == 1:
        own |= {"racing": False, "early": None}  # nothing to race
    return {name: value if getattr(config, name) is None else getattr(config, name) for name, value in own.items()}
