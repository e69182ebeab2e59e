"""How small can a network be and still do its job?

Trains a small fully convolutional network to imitate an image filter on real photographs, then switches its masks
(convolution output channels) off one by one, trains on, and steps back when the score fell. Leaves a physically smaller
network that computes the same, pictures, and a report.

    maskprune minimize --task sobel
    maskprune minimize --task canny --data ~/photos --preset full
    maskprune minimize --task pairs --inputs before/ --targets after/
    maskprune minimize --resume runs/sobel-20261127-130000
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from maskprune.app.minimize_options import PROGRAM, Config, resolve
from maskprune.app.protocol import STRATEGIES, Recipe, in_a_sentence
from maskprune.app.runs import (
    OWN,
    begun_with,
    compute_exactly,
    digest_file,
    finished,
    plain,
    remember,
    results,
    slower,
    working_in,
    writing,
)
from maskprune.app.setup import SELECTORS, Setup, load_data, make_repair, make_selector, set_up


def choosing(config: Config, setup: Setup, network: Any) -> Any:
    """The selector as the options turn and weigh it."""
    import jax

    import maskprune
    from maskprune import select

    made = make_selector(setup.recipe.selector, setup)
    made = select.standardize(made) if config.standardize else made
    if config.objective != "masks":
        measure = {"params": "parameters", "macs": "multiply_adds"}[config.objective]
        model = setup.model
        cost = maskprune.cost(model.apply, network.params, setup.task.sample[0], groups=model.groups)
        made = select.weigh(made, cost.saving(measure))
    made = select.reverse(made) if config.reverse else made
    return made if SELECTORS[setup.recipe.selector].trains else jax.jit(made)


# The run


def run(config: Config, given: Config, recipe: Recipe, out: Path, show: Any, interrupt: Any) -> list[dict[str, Any]]:
    """Runs all searches, or goes on with them. Returns what their `result.json` hold."""
    import maskprune

    with in_a_sentence(PROGRAM):
        dataset = load_data(config.pictures, show.counting("pictures"))
        saved, model = start_model(config, recipe)
        decided = {**dataclasses.asdict(config), "recipe": dataclasses.asdict(recipe)}
        data = dataset.checksum + digest_file(config.start_from)
        memory = remember(PROGRAM, given, out, decided=decided, data=data, say=show.say, interrupt=interrupt)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes, *slower())))
    with memory:
        setup = set_up(dataset, model, recipe, loss=config.loss, flips=config.flips, memory=memory)
        try:
            found = searches(config, setup, saved, show)
        except (maskprune.NothingLearned, maskprune.NoReference) as error:
            raise SystemExit(f"{PROGRAM}: {error}") from error
        show.end()
        if not found:
            show.say(f"Interrupted before anything was learned; --resume {out} goes on.")
            raise SystemExit(interrupt.code or 130)
        written, placed = [], True
        for seed, each in found.items():
            put = functools.partial(write, config, setup, each, seed, show)
            result, fine = writing(folder_of(out, config, seed), put, show.say)
            written, placed = [*written, result], placed and fine
        if placed and not any(each.interrupted for each in found.values()):
            folders = [str(folder_of(out, config, seed).relative_to(out)) for seed in found]
            memory.finish({"seeds": list(found), "folders": folders})
    return written


def folder_of(out: Path, config: Config, seed: int) -> Path:
    """Where what one search found is written."""
    return out if config.replicas == 1 else out / f"seed-{seed}"


def searches(config: Config, setup: Setup, saved: Any, show: Any) -> dict[int, Any]:
    """What every search found, by its seed; those that were interrupted too early are left out."""
    import jax

    import maskprune

    task, recipe, memory = setup.task, setup.recipe, setup.memory
    train, latest = make_training(config, setup, show)
    strategy = STRATEGIES[recipe.strategy]
    most_steps = strategy.budget(recipe.steps) if config.max_steps is None else config.max_steps
    first_steps = recipe.first_steps if saved is None else config.recipe.first_steps or 0

    def search(train: Any, *, seed: int, show: Any) -> Any:
        return maskprune.search(
            jax.random.key(seed),
            functools.partial(setup.start, params=saved),
            train=train,
            evaluate=memory.recalling("evaluate", task.evaluate),
            trouble=task.trouble,
            optimizer=setup.optimizer,
            selector=lambda network: memory.recalling("select", choosing(config, setup, network)),
            batch=setup.task.sample if config.repair != "none" else setup.sample(recipe.selector),
            rules=make_rules(config, recipe),
            limits=maskprune.Limits(
                rounds=config.max_rounds, steps=most_steps, seconds=config.max_seconds, masks=config.target_masks
            ),
            plan=strategy.plan(maskprune.strategies),
            remove=make_repair(config.repair, setup),
            init=setup.model.init,
            lengths=maskprune.Lengths(first_steps, recipe.steps, recipe.final_steps),
            show=show,
            latest=latest,
            clock=memory.clock,
        )

    seeds = range(config.seed, config.seed + config.replicas)
    if config.replicas == 1:
        every = [search(train, seed=config.seed, show=show)]
    else:
        tagged = {seed: show.tagged(f"seed-{seed}:") for seed in seeds}
        every = maskprune.run_together(
            [functools.partial(search, seed=seed, show=tagged[seed]) for seed in seeds], train
        )
    return {seed: found for seed, found in zip(seeds, every, strict=True) if found is not None}


def write(config: Config, setup: Setup, found: Any, seed: int, show: Any, out: Path) -> dict[str, Any]:
    """Writes everything about one search into a folder. Returns what its `result.json` holds."""
    import maskprune

    decided = {name: value for name, value in plain(config).items() if name not in OWN}
    result = {
        "maskprune": maskprune.__version__,
        "task": config.pictures.task,
        "seed": seed,
        "border": setup.recipe.border,
        "config": {**decided, "recipe": plain(setup.recipe)},
        **maskprune.summarize(found, model=setup.model, task=setup.task, dataset=setup.dataset),
    }
    maskprune.write_outcome(out, found, result, model=setup.model, dataset=setup.dataset)
    for written in maskprune.export_saved(out / "network.npz", out):
        show.say(f"wrote {written.path.relative_to(out.parent) if config.replicas > 1 else written.path.name}")
    return result


def make_training(config: Config, setup: Setup, show: Any) -> tuple[Any, Any]:
    """How sessions are trained, alone or side by side, and the state they last reached."""
    import maskprune

    reached: dict[str, Any] = {}
    if max(config.candidates, config.replicas) > 1:

        def many(members: int, steps: int) -> Any:
            bar = show.session(show.upcoming if members == 1 else f"{members} sessions side by side", steps)

            def look(states: Any, losses: Any) -> str:
                reached.update(state=maskprune.unstack(states)[0] if members == 1 else None)
                return bar(states, losses)

            return look

        return setup.training(many), lambda: reached.get("state")

    def watch(steps: int) -> Any:
        looks = [show.session(show.upcoming, steps), lambda state, losses: reached.update(state=state) or ""]
        looks += [maskprune.stagnation(improvement=config.stagnation, patience=5)] if config.stagnation else []
        return lambda state, losses: next(filter(None, [look(state, losses) for look in looks]), "")

    session = setup.memory.session(maskprune.make_session(setup.step, setup.task.draw))
    return maskprune.train_alone(session, setup.task.data, watch=watch), lambda: reached.get("state")


def make_rules(config: Config, recipe: Recipe) -> Any:
    import maskprune

    return maskprune.Rules(
        threshold=config.threshold,
        reference=recipe.reference,
        control=config.control,
        retry=config.retry,
        min_enabled=config.min_enabled,
        count=config.count,
        layers=config.minimize_layers,
        candidates=config.candidates,
        racing=config.racing,
        early=config.early,
    )


def start_model(config: Config, recipe: Recipe) -> tuple[Any, Any]:
    """The saved parameters to start from, or None, and the model they belong to."""
    import maskprune

    if config.start_from is None:
        return None, maskprune.models.fcn(config.widths, kernel=config.kernel, initial=recipe.initial)
    _, params = maskprune.models.load(config.start_from)
    kernels = [layer["kernel"].shape for layer in params.values()]
    return params, maskprune.models.fcn([shape[3] for shape in kernels[:-1]], kernel=[shape[0] for shape in kernels])


def headline(result: dict[str, Any], report: Path) -> str:
    before, after = (sum(result[f"masks_{when}"].values()) for when in ("before", "after"))
    share = result["multiply_adds_after"] / result["multiply_adds_before"]
    score, rmse = (math.nan if result[name] is None else result[name] for name in ("final_score", "relative_rmse"))
    return (
        f"{after} of {before} masks {tuple(result['masks_after'].values())}, {share:.0%} of the multiply-adds, "
        f"score {score:.3f} ({result['score_ratio'] or 0:.2f} of the original), "
        f"relative RMSE {rmse:.3f}, {result['steps']} steps in {result['seconds']:.0f} s. "
        f"It ended because {result['stop']}.\nReport: {report}"
    )


def main(config: Config, interrupt: Any = None) -> dict[str, Any]:
    """Runs one search, or as many as --replicas says. Returns what `result.json` holds, of the smallest network."""
    given = begun_with(PROGRAM, config)
    config, recipe = resolve(given)
    compute_exactly(config.deterministic)
    import maskprune
    from maskprune.report.display import Display

    interrupt = interrupt or maskprune.Interrupt()
    out = config.out or Path("runs") / f"{config.pictures.task}-{datetime.now():%Y%m%d-%H%M%S}"
    with Display(quiet=config.quiet) as show, working_in(PROGRAM, out, resume=config.resume is not None):
        if finished(out):
            show.say(f"The run in {out} is finished: there is nothing to go on with.")
            found = results(PROGRAM, out)
        else:
            found = run(config, given, recipe, out, show, interrupt)
        smallest = min(found, key=lambda result: (sum(result["masks_after"].values()), -(result["final_score"] or 0)))
        for result in found if config.replicas > 1 else []:
            seed = f"seed-{result['seed']}"
            show.say(f"{seed}: {headline(result, out / seed / 'report.html')}")
        if config.replicas > 1:
            show.say(f"The smallest network is that of seed-{smallest['seed']}.")
        else:
            show.say(headline(smallest, out / "report.html"))
        if smallest["interrupted"]:
            show.say(f"--resume {out} goes on from here.")
        elif not finished(out):  # a disk that failed; what it did not take was told
            raise SystemExit(1)
    return smallest


def start(config: Config) -> None:
    """`main` as the command line runs it: a signal stops it in good order, and the exit code says so."""
    from maskprune import Interrupt

    with Interrupt() as interrupt:
        result = main(config, interrupt)
    sys.exit(interrupt.code if result["interrupted"] else 0)
