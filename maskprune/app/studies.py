"""What studies share: their options, their ledger, and one job for every network, run in blocks that survive a stop.

A study asks the same of many networks that differ in their seed. `Study.rows` runs one job per seed and keeps one row
of each; sessions of a block of networks are trained side by side. Nothing here knows what is asked.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from maskprune.app.options import MOST_TOGETHER, UNSET, Problem, Unset, network, output, refuse, seeds, whole
from maskprune.app.protocol import (
    GLANCE,
    PRESETS,
    STRATEGIES,
    Pictures,
    Preset,
    Recipe,
    fill_in,
    in_a_sentence,
    problems_of,
)
from maskprune.app.runs import MEMORY, compute_exactly, going_on, slower
from maskprune.app.setup import Setup, load_data, set_up


Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """What every study may be told."""

    pictures: Annotated[Pictures, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Pictures)
    out: Path | None = None
    """Output folder; a study that is there already goes on. Default: runs/<study>-<task>-<preset>."""
    preset: Preset = "quick"
    """quick: a minute or two. study: about a quarter of an hour on a CPU. full, thesis: longer sessions."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = dataclasses.field(default_factory=Recipe)
    networks: int | Unset = UNSET
    """Networks that are asked, which differ in initial weights and order of the data. More of them extend a study."""
    seed: int = 0
    """Seed of the first network; the others have the ones after it."""
    widths: tuple[int, ...] = (5, 5)
    """Masks of each prunable layer."""
    kernel: int = 5
    """Kernel size, odd."""
    at_once: int = 1
    """Networks whose sessions are trained side by side: many keep a GPU busy. A stop costs at most their work."""
    deterministic: bool = False
    """On a GPU: the same bits every time, more slowly. On a CPU they always are, for one number of cores."""
    quiet: bool = False
    """Print nothing but errors."""


def problems(options: Options, recipe: Recipe) -> list[Problem]:
    """What may be wrong with the options, by their names."""
    return [
        *problems_of(options.pictures, recipe),
        *network(options.widths, options.kernel, crop=recipe.crop, batch=recipe.batch),
        output("--out", options.out),
        whole("--networks", options.networks),
        whole("--at-once", options.at_once, most=MOST_TOGETHER),
        seeds("--seed", options.seed, options.networks, "--networks"),
        whole("--first-steps", recipe.first_steps),
    ]


def chosen(config: Any, sizes: Mapping[str, Mapping[str, Any]]) -> Any:
    """A study's configuration with the sizes that were not given taken from its preset."""
    preset = sizes[config.options.preset]
    own = {name: value for name, value in preset.items() if name != "networks" and getattr(config, name) is None}
    networks = preset["networks"] if config.options.networks is None else config.options.networks
    return dataclasses.replace(config, **own, options=dataclasses.replace(config.options, networks=networks))


@dataclasses.dataclass(frozen=True)
class Study:
    """A study at work. Build it with `begin`.

    Attributes:
        out: Its folder.
        options: Its options, complete.
        setup: The model and its task.
        ledger: The rows so far.
        show: The display.
    """

    out: Path
    options: Options
    setup: Setup
    ledger: Any
    show: Any

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    def rows(self, job: Callable[..., Row]) -> list[Row]:
        """One row for every network, in the order of the seeds; those that the ledger holds are not asked again.

        Args:
            job: `job(seed, train) -> row`, with `train(keys, states, *, steps, share=1.0)`. Blocks are the same after
                a stop, so what a network is told does not depend on it.
        """
        import maskprune as mp

        count, known = self.options.networks, {row["seed"] for row in self.ledger.rows}
        train = self.setup.training(lambda members, steps: self.show.session(self._label(members), steps))
        for first in range(0, count, self.options.at_once):
            numbers = range(first, min(first + self.options.at_once, count))
            block = [self.options.seed + number for number in numbers]
            if known.issuperset(block):
                continue
            found = mp.run_together([functools.partial(job, seed) for seed in block], train)
            new = [{"seed": seed, **row} for seed, row in zip(block, found, strict=True) if seed not in known]
            self.ledger.add(new)
            self.setup.memory.forget()
            known |= {row["seed"] for row in new}
            self.show.end()
            self.show.say(f"{min(first + len(block), count)} of {count} networks")
        wanted = range(self.options.seed, self.options.seed + count)
        rows = {row["seed"]: row for row in self.ledger.rows}
        return [rows[seed] for seed in wanted]

    def _label(self, members: int) -> str:
        return f"{members} sessions side by side" if members > 1 else "session"

    def write(self, *, title: str, question: str, sections: Sequence[Any], answers: Sequence[str] = ()) -> Path:
        """The page of the study. It tells the command, the configuration and what the numbers rest on."""
        from maskprune.lab import study_page

        about = self.ledger.about
        path = study_page.write_study(
            self.out,
            title=title,
            question=question,
            answers=answers,
            sections=sections,
            command=command(about["config"]["study"]),
            settings={**about["config"], "networks": self.options.networks, "first seed": self.options.seed},
            facts=list(about["facts"].items()),
        )
        self.show.say(f"Report: {path}")
        return path


def folder_of(program: str, options: Options) -> Path:
    return options.out or Path("runs") / f"{program}-{options.pictures.task}-{options.preset}"


def begin(program: str, config: Any, recipe: Recipe, show: Any, interrupt: Any) -> Study:
    """Reads the pictures and opens the ledger of a study, or goes on with the one that is there."""
    import maskprune as mp

    options, out = config.options, folder_of(program, config.options)
    with in_a_sentence(f"{program}.py"):
        dataset = load_data(options.pictures, show.counting("pictures"))
        about = _about(program, config, recipe, dataset)
        ledger = mp.Ledger.open(out / "rows.jsonl", about)
        memory = mp.Memory.open(
            out / MEMORY, about, say=show.say, same=("config",), asked_to_stop=lambda: interrupt.asked
        )
    model = mp.models.fcn(options.widths, kernel=options.kernel, initial=recipe.initial)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes, *slower())))
    return Study(out, options, set_up(dataset, model, recipe, memory=memory), ledger, show)


def _about(program: str, config: Any, recipe: Recipe, dataset: Any) -> Row:
    import maskprune as mp

    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name != "options"}
    shape = {"widths": config.options.widths, "kernel": config.options.kernel}
    pictures = dataclasses.asdict(config.options.pictures)
    settings = {"study": program, **own, **shape, "pictures": pictures, "recipe": dataclasses.asdict(recipe)}
    facts = {
        "Data": dataset.summary(),
        "Source": dataset.source,
        "Device": mp.record.device(),
        "Convolution": mp.conv.describe_way(),
        "Versions": ", ".join(f"{name} {version}" for name, version in mp.record.versions().items()),
    }
    return json.loads(json.dumps({"config": settings, "facts": facts}, default=str))


def resolve(program: str, config: Any, sizes: Mapping[str, Any], more: Any = ()) -> tuple[Any, Recipe]:
    """Fills in what was not given, and refuses what is wrong before any work is done. See `run`."""
    config = chosen(config, sizes)
    preset = GLANCE if config.options.preset == "quick" else PRESETS[config.options.preset]
    recipe = fill_in(config.options.recipe, preset, config.options.pictures)
    refuse(f"{program}.py", [*problems(config.options, recipe), *(more(config) if more else ())])
    return config, recipe


def run(program: str, config: Any, sizes: Mapping[str, Any], ask: Callable[[Study, Any], Any], more: Any = ()) -> Any:
    """Resolves a study's options, and lets `ask(study, config)` do it.

    Args:
        program: Name of the experiment.
        config: Its configuration, with `options`.
        sizes: For every preset, the values of what was not given.
        ask: Runs the study and writes its page.
        more: `more(config) -> problems` of its own options.
    """
    from maskprune.report.display import Display

    config, recipe = resolve(program, config, sizes, more)
    compute_exactly(config.options.deterministic)
    with (
        Display(quiet=config.options.quiet) as show,
        going_on(f"{program}.py", folder_of(program, config.options), show.say) as interrupt,
    ):
        study = begin(program, config, recipe, show, interrupt)
        with study.setup.memory as memory:
            found = ask(study, config)
            memory.forget()
        return found


def trained_start(setup: Setup, key: Any, train: Any, *, steps: int) -> Any:
    """A long session from a fresh draw; dead draws are drawn again: `maskprune.train_start`."""
    import maskprune as mp

    return mp.train_start(key, setup.start, _one(train, steps), trouble=setup.task.trouble)


def _one(train: Any, steps: int) -> Any:
    def one(key: Any, state: Any, share: float) -> Any:
        (found,) = train([key], [state], steps=steps, share=share)
        return found

    return one


def from_scratch(study: Study, key: Any, train: Any, *, widths: Sequence[int], steps: int, draws: int = 4) -> Row:
    """Trains a network of other widths from its own initial distribution, in the arrays of the full one.

    Of `draws` starts that do not learn the last one is kept: a shape that hardly ever learns should look like it.
    """
    import maskprune as mp

    setup, left = study.setup, iter(range(draws - 1))

    def trouble(state: Any) -> str:
        reason = setup.task.trouble(state)
        return reason if reason and next(left, None) is not None else ""

    start = mp.train_start(key, functools.partial(narrow, study, widths), _one(train, steps), trouble=trouble)
    found = setup.task.evaluate(start.state)
    return {
        "widths": list(widths),
        "score": float(found["score"]),
        "relative_rmse": float(found["relative_rmse"]),
        "steps": start.steps,
        "learned": not setup.task.trouble(start.state),
    }


def narrow(study: Study, widths: Sequence[int], key: Any) -> Any:
    """A fresh network of these widths, as enabled masks of the full one."""
    import jax
    import numpy as np

    import maskprune as mp

    options, model = study.options, study.setup.model
    small = mp.models.fcn(widths, kernel=options.kernel, initial=study.recipe.initial).init(key)
    grow = lambda leaf, like: np.pad(
        leaf, [(0, most - size) for size, most in zip(leaf.shape, like.shape, strict=True)]
    )
    params = jax.tree.map(grow, jax.device_get(small), jax.eval_shape(model.init, key))
    network = mp.init_network(params, model.groups)
    extra = {group.name: range(width, group.size) for group, width in zip(network.groups, widths, strict=True)}
    return study.setup.fresh(mp.disable(network, mp.choose(network, extra)))


def search(
    study: Study, key: Any, train: Any, *, selector: Any, sample: Any, threshold: float, start: Any = None
) -> Any:
    """One whole search as `--strategy` says: `maskprune.search`. With `start`, from there, without a first session.

    Raises:
        KeyboardInterrupt: Somebody stopped it. Half a search is no row of a study.
    """
    import maskprune as mp
    from maskprune.report.display import Display

    setup, recipe = study.setup, study.recipe
    strategy = STRATEGIES[recipe.strategy]
    found = mp.search(
        key,
        setup.start if start is None else lambda key: start,
        train=train,
        evaluate=setup.task.evaluate,
        trouble=setup.task.trouble,
        optimizer=setup.optimizer,
        selector=lambda network: selector,
        batch=sample,
        rules=mp.Rules(threshold=threshold, reference=recipe.reference, **strategy.rules),
        limits=mp.Limits(steps=strategy.budget(recipe.steps)),
        plan=strategy.plan(mp.strategies),
        init=setup.model.init,
        lengths=mp.Lengths(0 if start is not None else recipe.first_steps, recipe.steps, recipe.final_steps),
        show=Display(quiet=True),
    )
    if found is None or found.interrupted:
        raise KeyboardInterrupt
    return found


def result_of(study: Study, found: Any) -> Row:
    """What a search found, in numbers."""
    import maskprune as mp

    judged = study.setup.task.evaluate(found.state)
    return {
        "widths": list(mp.count_enabled(found.state.network).values()),
        "score": float(judged["score"]),
        "relative_rmse": float(judged["relative_rmse"]),
        "initial": float(found.rows[0]["score"]),
        **mp.record.fcn_size(found.state.network),
        "steps": found.steps,
        "rounds": sum(row["verdict"] in ("accepted", "refused") for row in found.rows),
        "training_seconds": round(found.training_seconds, 3),
    }


def learning_curves(
    study: Study, states: Sequence[Any], keys: Sequence[Any], train: Any, looks: Sequence[float]
) -> list[list[float]]:
    """Scores at the looks, shares of one session, for every state: [state][look]. Every state has a key."""
    curves: list[list[float]] = [[] for _ in states]
    for share in looks:
        states = [state for state, _ in train(keys, states, steps=study.recipe.steps, share=share)]
        for curve, state in zip(curves, states, strict=True):
            curve.append(score(study.setup, state))
    return curves


def mean(masks: Sequence[Row], column: str) -> Any:
    """The mean of a column over masks, with its interval from drawing networks again."""
    from maskprune.lab import statistics

    return statistics.mean([mask[column] for mask in masks], [mask["network"] for mask in masks])


def score(setup: Setup, state: Any) -> float:
    return float(setup.task.evaluate(state)["score"])


def single_masks(network: Any) -> list[tuple[str, int, Any]]:
    """Every mask as (layer, number, the choice of it alone)."""
    import maskprune as mp

    every = [(group.name, number) for group in network.groups for number in range(group.size)]
    return [(name, number, mp.choose(network, {name: [number]})) for name, number in every]


def command(program: str) -> str:
    """What was typed to start the program."""
    given = sys.argv[1:] if Path(sys.argv[0]).stem == program else []
    return shlex.join(["python", f"experiments/{program}.py", *given])
