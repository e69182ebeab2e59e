"""How small can a network be and still do its job?

Trains a small fully convolutional network to imitate an image filter on real photographs, then switches its masks
(convolution output channels) off one by one, trains on, and steps back when the score fell. Leaves a physically smaller
network that computes the same, pictures, and a report.

    python experiments/minimize.py --task sobel
    python experiments/minimize.py --task canny --data ~/photos --preset full
    python experiments/minimize.py --task pairs --inputs before/ --targets after/
    python experiments/minimize.py --resume runs/sobel-20261127-130000
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from options import MOST_TOGETHER, existing, network, output, positive, refuse, seeds, share, whole
from protocol import (
    STRATEGIES,
    TRAINING,
    Pictures,
    Preset,
    Recipe,
    Setup,
    fill_in,
    in_a_sentence,
    load_data,
    make_repair,
    make_selector,
    problems_of,
    set_up,
)
from runs import (
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
from terminal import outputs


# Configuration. jax and maskprune are imported below, inside functions, so that --help answers at once.


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
    widths: tuple[int, ...] | None = None
    """Masks of each prunable layer. Default: 5 5."""
    kernel: int | None = None
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
    count: int | None = None
    """Masks removed at once. Default: the strategy's own, as for the next three."""
    candidates: int | None = None
    """Choices tried side by side in every round, of which the best one is kept."""
    racing: bool | None = None
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
    refuse("minimize.py", problems)
    return config, recipe


def rules_of(config: Config, recipe: Recipe) -> dict[str, Any]:
    """The rules that a strategy brings along, where the user gave no others."""
    own = {"count": 1, "candidates": 1, "racing": False, "early": None} | STRATEGIES[recipe.strategy].rules
    if config.candidates == 1:
        own |= {"racing": False, "early": None}  # nothing to race
    return {name: value if getattr(config, name) is None else getattr(config, name) for name, value in own.items()}


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
    return made if setup.recipe.selector.startswith(TRAINING) else jax.jit(made)


# The run


def run(config: Config, given: Config, recipe: Recipe, out: Path, show: Any, interrupt: Any) -> list[dict[str, Any]]:
    """Runs all searches, or goes on with them. Returns what their `result.json` hold."""
    import maskprune

    with in_a_sentence("minimize.py"):
        dataset = load_data(config.pictures, show.counting("pictures"))
        saved, model = start_model(config, recipe)
        decided = {**dataclasses.asdict(config), "recipe": dataclasses.asdict(recipe)}
        data = dataset.checksum + digest_file(config.start_from)
        memory = remember("minimize.py", given, out, decided=decided, data=data, say=show.say, interrupt=interrupt)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes, *slower())))
    with memory:
        setup = set_up(dataset, model, recipe, loss=config.loss, flips=config.flips, memory=memory)
        try:
            found = searches(config, setup, saved, show)
        except (maskprune.NothingLearned, maskprune.NoReference) as error:
            raise SystemExit(f"minimize.py: {error}") from error
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
            plan=strategy.plan(maskprune.moves),
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
    given = begun_with("minimize.py", config)
    config, recipe = resolve(given)
    compute_exactly(config.deterministic)
    import maskprune
    from maskprune.display import Display

    interrupt = interrupt or maskprune.Interrupt()
    out = config.out or Path("runs") / f"{config.pictures.task}-{datetime.now():%Y%m%d-%H%M%S}"
    with Display(quiet=config.quiet) as show, working_in("minimize.py", out, resume=config.resume is not None):
        if finished(out):
            show.say(f"The run in {out} is finished: there is nothing to go on with.")
            found = results("minimize.py", out)
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


if __name__ == "__main__":
    with outputs():
        config = tyro.cli(Config, description=__doc__)
        from maskprune import Interrupt

        with Interrupt() as interrupt:
            result = main(config, interrupt)
        sys.exit(interrupt.code if result["interrupted"] else 0)
