"""What is the best any pruning could do? Trains every sub-network of small networks, and measures searches against it.

A network of 5 and 5 masks has 961 usable sub-networks. Each is cut out of a trained parent, trained for a session and
scored; tables of the smallest networks, and the regret of searches replayed on them, come out. It goes on where it was
interrupted.

    python experiments/oracle.py --tier small
    python experiments/oracle.py --tier cpu --kinds ablation one-shot --parents 3 --out runs/oracle
    python experiments/oracle.py --report runs/oracle
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from maskprune.app.options import Problem, existing, network, output, refuse, seeds, several, share, whole
from maskprune.app.protocol import Pictures, Recipe, SelectorName, fill_in, in_a_sentence, problems_of
from maskprune.app.runs import going_on
from maskprune.app.setup import load_data, set_up
from maskprune.report.terminal import outputs


Kind = Literal["ablation", "one-shot", "equal", "path", "scratch"]
Tier = Literal["small", "cpu", "full"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Which sub-networks of which parents are trained, and how."""

    pictures: Annotated[Pictures, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Pictures)
    tier: Tier = "small"
    """small: 3+3 masks, minutes. cpu: 5+5 masks, minutes for a parent. full: 5+5, long sessions, for a GPU."""
    kinds: tuple[Kind, ...] = ("ablation", "one-shot")
    """ablation: not trained. one-shot: a short session. equal: one for every mask removed. path: masks leave one after
    another, the best ones of every size go on. scratch: every shape from fresh weights, the first session on top."""
    out: Path | None = None
    """Output folder, in which a study goes on if there is one. Default: runs/oracle-<tier>-<task>."""
    parents: int = 1
    """Trained networks, of this many seeds."""
    seed: int = 0
    """Of the first parent."""
    replicates: int = 1
    """Orders of the data in which every sub-network is trained: two tell how reliable a table is."""
    max_size: int | None = None
    """Only sub-networks of at most so many masks: small ones decide what the smallest is. Replay needs them all."""
    beam: int = 4
    """With path: networks of every size that go on."""
    draws: int = 3
    """With scratch: fresh starts of every shape."""
    selectors: tuple[SelectorName, ...] = get_args(SelectorName)
    """Whose scores of the parent's masks are noted, so that searches by them can be replayed."""
    widths: tuple[int, ...] | None = None
    """Masks of each prunable layer. Default: 5 5; 3 3 in tier small."""
    kernel: int = 5
    """Kernel size, odd."""
    form: Literal["compact", "masked"] | None = None
    """Train sub-networks cut out (a program for every shape) or masked (one for all). Default: compact where the
    CPU computes, except in tier small."""
    thresholds: tuple[float, ...] = (0.8, 0.85, 0.9, 0.95, 0.98, 1.0)
    """Shares of the reference score, in the report."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Recipe)
    report: tuple[Path, ...] = ()
    """Only write the report of the study in this folder; of several, if they hold other parents of the same study."""
    quiet: bool = False
    """Print nothing but errors."""


# What a tier changes: of the pictures, the recipe (over the preset "quick") and the network.
TIERS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "small": ({"size": 64}, {"crop": 32, "first_steps": 1200, "steps": 200}, (3, 3)),
    "cpu": ({"size": 128}, {"crop": 48, "first_steps": 800, "steps": 400}, (5, 5)),
    "full": ({}, {"crop": 128, "batch": 3, "first_steps": 10_000, "steps": 2_000}, (5, 5)),
}
NETWORKS_AT_ONCE = 128  # on a GPU


def resolve(config: Config) -> tuple[Config, Recipe]:
    """Fills in what was not given, from the tier and the preset, and checks it all before any work is done."""
    pictures, recipe, widths = TIERS[config.tier]
    plain = Pictures()
    chosen = {name: value for name, value in pictures.items() if getattr(config.pictures, name) == getattr(plain, name)}
    given = {name: value for name, value in dataclasses.asdict(config.recipe).items() if value is not None}
    source = dataclasses.replace(config.pictures, **chosen)
    filled = fill_in(Recipe(**{**recipe, **given}), "quick", source)
    config = dataclasses.replace(config, pictures=source, widths=widths if config.widths is None else config.widths)
    problems = [
        *problems_of(source, filled),
        *network(config.widths, config.kernel, crop=filled.crop, batch=filled.batch),
        (sum(config.widths) > 14, f"--widths is {config.widths}: that many masks cannot be enumerated"),
        *(whole(f"--{name}", getattr(config, name)) for name in ("parents", "replicates", "beam", "draws")),
        whole("--max-size", config.max_size),
        several("--kinds", config.kinds),
        seeds("--seed", config.seed, config.parents, "--parents"),
        whole("--first-steps", filled.first_steps),
        *of_report(config),
    ]
    refuse("oracle.py", problems)
    return config, filled


def of_report(config: Config) -> list[Problem]:
    """What may be wrong with the options that a report alone needs."""
    return [
        several("--thresholds", config.thresholds, share),
        *(existing("--report", each / "rows.jsonl") for each in config.report),
        output("--out", config.out),
    ]


# The run


OF_SEARCHES = ("strategy", "selector", "reference", "final_steps")  # no row of a table depends on them


def about(config: Config, recipe: Recipe, study: dict[str, Any], dataset: Any) -> dict[str, Any]:
    """What the study is. Under "config" whatever decides the rows there are; more rows may be asked for later."""
    from maskprune import record

    deciding = {name: getattr(config, name) for name in ("tier", "widths", "kernel", "beam")}
    pictures = {
        name: value if value is None else str(value) for name, value in dataclasses.asdict(config.pictures).items()
    }
    trains = {name: value for name, value in dataclasses.asdict(recipe).items() if name not in OF_SEARCHES}
    return {
        "config": {**deciding, **study, "pictures": pictures, "recipe": trains},
        "pictures": [dataset.source, dataset.summary()],
        "score": "macro soft F1 over all evaluation pictures",
        "versions": record.versions(),
        "device": record.device(),
    }


def run(config: Config, recipe: Recipe, out: Path, show: Any) -> None:
    """Does what is missing of the study in `out`."""
    import jax
    from oracle_study import Study, carry_out

    import maskprune

    on_cpu = jax.default_backend() == "cpu"
    form = config.form or ("compact" if on_cpu and config.tier != "small" else "masked")
    together = 1 if on_cpu else NETWORKS_AT_ONCE
    with in_a_sentence("oracle.py"):
        dataset = load_data(config.pictures, show.counting("pictures"))
        facts = about(config, recipe, {"form": form, "together": together}, dataset)
        ledger = maskprune.Ledger.open(out / "rows.jsonl", facts)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes)))
    model = maskprune.models.fcn(config.widths, kernel=config.kernel, initial=recipe.initial)
    setup = set_up(dataset, model, recipe)
    carry_out(Study(config, setup, ledger=ledger, masked=form == "masked", together=together, show=show))


def main(config: Config) -> Path:
    """Carries out a study, or goes on with it, and writes its report. Returns the page."""
    from maskprune.report.display import Display

    with Display(quiet=config.quiet) as show:
        if config.report:
            refuse("oracle.py", of_report(config))
            out = config.out or config.report[0]
        else:
            config, recipe = resolve(config)
            out = config.out or Path("runs") / f"oracle-{config.tier}-{config.pictures.task}"
            with going_on("oracle.py", out, show.say, at_once=True):
                run(config, recipe, out, show)
        import oracle_report

        with in_a_sentence("oracle.py"):
            page = oracle_report.write(config.report or (out,), out, config.thresholds)
        show.say(f"Report: {page}")
    return page


if __name__ == "__main__":
    with outputs():
        main(tyro.cli(Config, description=__doc__))
