"""How small can a network be and still do its job?

Trains a small fully convolutional network to imitate an image filter on real photographs, then switches its masks
(convolution output channels) off one by one, trains on, and steps back when the score fell. Leaves a physically smaller
network that computes the same, pictures, and a report.

    python experiments/minimize.py --task sobel
    python experiments/minimize.py --task canny --data ~/photos --preset full
    python experiments/minimize.py --task pairs --inputs before/ --targets after/
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


# Configuration. jax and maskprune are imported below, inside functions, so that --help answers at once.

Task = Literal["sobel", "canny", "threshold", "local-mean", "otsu", "adaptive", "pairs"]
SelectorName = Literal[
    "cosine-min", "cosine-max", "cosine-mean", "cosine-median", "cosine-std",
    "abs-cosine-min", "abs-cosine-max", "abs-cosine-mean", "abs-cosine-median", "abs-cosine-std",
    "sequential", "random", "magnitude-l1", "magnitude-l2",
    "activation-mean", "activation-std", "activation-zeros", "taylor", "geometric-median",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train and search. Every field not given comes from the preset."""

    initial: Literal["he", "thesis"] | None = None
    """Distribution of the initial weights."""
    optimizer: Literal["soap", "adam"] | None = None
    """soap: Adam in the gradients' eigenbasis, cosine schedule. adam: plain, constant rate."""
    learning_rate: float | None = None
    """Peak learning rate."""
    batch: int | None = None
    """Crops (or pictures) per step."""
    crop: int | None = None
    """Side of a training crop, in pixels; the size of the pictures takes them whole."""
    border: int | None = None
    """Pixels left out at each side, in losses and scores: zero padding makes false edges there."""
    ceiling: float | None = None
    """The largest output that counts as right in the F1 score and loss; inf for the source document's formula."""
    first_steps: int | None = None
    """Steps of the first, long session."""
    steps: int | None = None
    """Steps of the short session after each removal."""
    final_steps: int | None = None
    """Steps of a last session for the network that was found; 0 for none."""
    reference: Literal["initial", "previous", "best"] | None = None
    """Whose score a candidate is compared with."""
    selector: SelectorName | None = None
    """Which mask goes next."""


QUICK = Recipe(
    initial="he",
    optimizer="soap",
    learning_rate=2e-2,
    batch=8,
    crop=64,
    border=6,
    ceiling=1.0,
    first_steps=800,
    steps=600,
    final_steps=800,
    reference="initial",
    selector="cosine-max",
)
PRESETS = {
    "quick": QUICK,
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
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to learn, from which pictures, and how far to go."""

    task: Task = "sobel"
    """The filter to imitate; "pairs" learns your own from --inputs and --targets."""
    data: Path | None = None
    """Folder of pictures, VOCdevkit or BSDS500 root, or .npz. Default: photographs bundled with scikit-image."""
    inputs: Path | None = None
    """With --task pairs: folder of input pictures."""
    targets: Path | None = None
    """With --task pairs: folder of target pictures, matched by name without its ending."""
    out: Path | None = None
    """Output folder. Default: runs/<task>-<time>."""
    preset: Literal["quick", "full", "thesis"] = "quick"
    """quick: minutes. full: longer sessions. thesis: the source document's literal protocol (hours on a CPU)."""
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes] = Recipe()
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
    count: int = 1
    """Masks removed at once."""
    candidates: int = 1
    """Choices tried side by side in every round, of which the best one is kept."""
    racing: bool = False
    """Let the worse half of the candidates drop out whenever their session has doubled."""
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
    size: int = 256
    """Side of the stored pictures, cut from the centre of each photograph."""
    split_seed: int = 1
    """Decides which pictures are trained on and which are judged by."""
    limit: int | None = None
    """Use at most this many pictures."""
    level: float | None = None
    """With --task threshold: the grey level, in [0, 1]. Default: 0.5."""
    start_from: Path | None = None
    """A saved network.npz to minimize, in place of training one."""
    quiet: bool = False
    """Print nothing but errors."""


def resolve(config: Config) -> tuple[Config, Recipe]:
    """Fills in what was not given, from the preset and the defaults, and checks it all before any work is done."""
    given = {name: value for name, value in dataclasses.asdict(config.recipe).items() if value is not None}
    recipe = dataclasses.replace(PRESETS[config.preset], **given)
    if recipe.crop > config.size and "crop" not in given:
        recipe = dataclasses.replace(recipe, crop=config.size)
    pairs, saved = config.task == "pairs", config.start_from is not None
    shape, given_level = [config.widths, config.kernel, given.get("initial")], config.level
    defaults = {"widths": (5, 5), "kernel": 5, "level": 0.5}
    config = dataclasses.replace(config, **{k: v for k, v in defaults.items() if getattr(config, k) is None})
    problems = [
        (pairs != bool(config.inputs and config.targets), "--task pairs goes with --inputs and --targets, both"),
        (pairs and config.data is not None, "--data does not go with --task pairs; use --inputs and --targets"),
        (not pairs and (config.inputs or config.targets), "--inputs and --targets go with --task pairs"),
        (given_level is not None and config.task != "threshold", "--level goes with --task threshold"),
        (saved and shape != [None] * 3, "--widths, --kernel and --initial do not go with --start-from"),
        (not 0 < config.threshold <= 1, f"--threshold is {config.threshold}: use a share in (0, 1]"),
        (min(config.widths, default=0) < 1, f"--widths is {config.widths}: give one number or more, each at least 1"),
        (config.kernel < 1 or config.kernel % 2 == 0, f"--kernel is {config.kernel}: use an odd size"),
        (not 0 <= config.level <= 1, f"--level is {config.level}: use a grey level in [0, 1]"),
        (config.count < 1, f"--count is {config.count}: use 1 or more"),
        (min(config.candidates, config.replicas) < 1, "--candidates and --replicas must be at least 1"),
        (config.racing and config.candidates < 2, "--racing goes with --candidates 2 or more"),
        (
            config.stagnation is not None and max(config.candidates, config.replicas) > 1,
            "--stagnation ends a session by itself; it does not go with --candidates and --replicas",
        ),
        (config.min_enabled < 1, f"--min-enabled is {config.min_enabled}: use 1 or more"),
        (config.stagnation is not None and not 0 < config.stagnation < 1, "--stagnation must lie between 0 and 1"),
        (not recipe.ceiling > 0, f"--ceiling is {recipe.ceiling}: use a positive number"),
        (not recipe.learning_rate > 0, f"--learning-rate is {recipe.learning_rate}: use a positive number"),
        (min(recipe.batch, recipe.steps) < 1, "--batch and --steps must be at least 1"),
        (min(recipe.first_steps, recipe.final_steps, recipe.border) < 0, "steps and border must not be negative"),
        (recipe.first_steps < 1 and not saved, "--first-steps 0 goes with --start-from only"),
        (
            not 2 * recipe.border < recipe.crop <= config.size,
            f"--crop is {recipe.crop}: use more than twice the border ({recipe.border}), at most --size",
        ),
    ]
    for wrong, message in problems:
        if wrong:
            raise SystemExit(f"minimize.py: {message}.")
    return config, recipe


@contextlib.contextmanager
def in_a_sentence() -> Iterator[None]:
    """For what depends on the user's files: the library says what is wrong, and a traceback adds nothing."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SystemExit(f"minimize.py: {error}") from error


# Names of the command line to factories of the library


def load_data(config: Config, progress: Any) -> Any:
    from maskprune import data

    options = {"size": config.size, "split_seed": config.split_seed, "limit": config.limit, "progress": progress}
    if config.task == "pairs":
        return data.make_pairs(config.inputs, config.targets, **options)
    target = {
        "sobel": data.sobel,
        "canny": data.canny,
        "threshold": lambda: data.threshold(config.level),
        "local-mean": data.local_mean,
        "otsu": data.otsu,
        "adaptive": data.adaptive,
    }[config.task]()
    return data.make_dataset(target, config.data, **options)


def make_selector(config: Config, recipe: Recipe, model: Any, task: Any, network: Any) -> Any:
    import jax

    import maskprune
    from maskprune import select

    plain = {"sequential": select.sequential, "random": select.random, "taylor": lambda: select.taylor(task.loss)}
    family, _, kind = recipe.selector.rpartition("-")
    made = {
        "cosine": lambda: select.cosine(kind),
        "abs-cosine": lambda: select.cosine(kind, absolute=True),
        "magnitude": lambda: select.magnitude({"l1": 1, "l2": 2}[kind]),
        "activation": lambda: select.activation(lambda params, batch: model.activations(params, batch[0]), kind),
        "geometric": select.geometric_median,
        "": plain.get(kind),
    }[family]()
    made = select.standardize(made) if config.standardize else made
    if config.objective != "masks":
        measure = {"params": "parameters", "macs": "multiply_adds"}[config.objective]
        cost = maskprune.cost(model.apply, network.params, task.sample[0], groups=model.groups)
        made = select.weigh(made, cost.saving(measure))
    return jax.jit(select.reverse(made) if config.reverse else made)


def make_optimizer(recipe: Recipe) -> Any:
    import optax

    import maskprune

    return {"soap": maskprune.soap, "adam": optax.adam}[recipe.optimizer](recipe.learning_rate)


def make_loss(config: Config, recipe: Recipe, dataset: Any) -> Any:
    from maskprune import losses

    # Measured with the quick recipe, two seeds each, first session only, score of the ten masks. Sobel: mae 0.94, mse
    # 0.90, f1 0.89; but under mae small networks stick (relative RMSE 0.33 at widths 1, 3, where mse reaches 0.04), and
    # small is what we are after. Canny: mae 0.73 or dead, f1 0.65, mse 0.57: f1 is the surer one where most is blank.
    name = ("f1" if dataset.binary else "mse") if config.loss == "auto" else config.loss
    return {"mse": losses.mse, "mae": losses.mae, "f1": functools.partial(losses.soft_f1, ceiling=recipe.ceiling)}[name]


# The run


def run(config: Config, recipe: Recipe, out: Path, show: Any) -> list[dict[str, Any]]:
    """Runs all searches. Returns what their `result.json` hold."""
    import jax

    import maskprune

    with in_a_sentence():
        dataset = load_data(config, show.counting("pictures"))
        saved, model = start_model(config, recipe)
    show.say("\n".join((dataset.source, dataset.summary(), *dataset.notes)))
    task = maskprune.picture_task(
        model.apply,
        dataset,
        loss=make_loss(config, recipe, dataset),
        border=recipe.border,
        batch=recipe.batch,
        crop=recipe.crop,
        ceiling=recipe.ceiling,
        flips=config.flips,
    )
    optimizer = make_optimizer(recipe)
    train, latest = make_training(config, task, optimizer, show)
    first_steps = recipe.first_steps if saved is None else config.recipe.first_steps or 0

    def draw(key: Any) -> Any:
        params = model.init(key) if saved is None else saved
        return maskprune.init_state(maskprune.init_network(params, model.groups), optimizer)

    def search(train: Any, *, seed: int, show: Any) -> Any:
        return maskprune.search(
            jax.random.key(seed),
            draw,
            train=train,
            evaluate=task.evaluate,
            trouble=task.trouble,
            optimizer=optimizer,
            selector=functools.partial(make_selector, config, recipe, model, task),
            batch=task.sample if recipe.selector.startswith(("activation", "taylor")) else None,
            rules=make_rules(config, recipe),
            limits=maskprune.Limits(
                rounds=config.max_rounds, steps=config.max_steps, seconds=config.max_seconds, masks=config.target_masks
            ),
            lengths=maskprune.Lengths(first_steps, recipe.steps, recipe.final_steps),
            show=show,
            latest=latest,
        )

    def write(found: Any, seed: int, out: Path) -> dict[str, Any]:
        result = {"maskprune": maskprune.__version__, "task": config.task, "seed": seed, "border": recipe.border}
        result["config"] = {**dataclasses.asdict(config), "recipe": dataclasses.asdict(recipe)}
        result |= maskprune.summarize(found, model=model, task=task, dataset=dataset)
        maskprune.write_outcome(out, found, result, model=model, dataset=dataset)
        for written in maskprune.export_saved(out / "network.npz", out):
            show.say(f"wrote {written.path.relative_to(out.parent) if config.replicas > 1 else written.path.name}")
        return result

    seeds = range(config.seed, config.seed + config.replicas)
    if config.replicas == 1:
        every = [search(train, seed=config.seed, show=show)]
    else:
        tagged = {seed: show.tagged(f"seed-{seed}:") for seed in seeds}
        every = maskprune.run_together(
            [functools.partial(search, seed=seed, show=tagged[seed]) for seed in seeds], train
        )
    show.end()
    learned = [(found, seed) for found, seed in zip(every, seeds, strict=True) if found is not None]
    if not learned:
        raise SystemExit("minimize.py: interrupted before anything was learned; nothing was written.")
    folder = lambda seed: out if config.replicas == 1 else out / f"seed-{seed}"
    return [write(found, seed, folder(seed)) for found, seed in learned]


def make_training(config: Config, task: Any, optimizer: Any, show: Any) -> tuple[Any, Any]:
    """How sessions are trained, alone or side by side, and the state they last reached."""
    import maskprune

    step, reached = maskprune.make_train_step(task.loss, optimizer), {}
    if max(config.candidates, config.replicas) > 1:
        population = maskprune.make_population(step, task.draw)
        label = lambda members: f"{members} sessions side by side"
        together = lambda members, steps: show.session(label(members), steps)
        return maskprune.train_many(population, task.data, watch=together), lambda: None

    def watch(steps: int) -> Any:
        looks = [show.session(show.upcoming, steps), lambda state, losses: reached.update(state=state) or ""]
        looks += [maskprune.stagnation(improvement=config.stagnation, patience=5)] if config.stagnation else []
        return lambda state, losses: next(filter(None, [look(state, losses) for look in looks]), "")

    session = maskprune.make_session(step, task.draw)
    return maskprune.train_alone(session, task.data, watch=watch), lambda: reached.get("state")


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
    return (
        f"{after} of {before} masks {tuple(result['masks_after'].values())}, {share:.0%} of the multiply-adds, "
        f"score {result['final_score']:.3f} ({result['score_ratio'] or 0:.2f} of the original), "
        f"relative RMSE {result['relative_rmse']:.3f}, {result['steps']} steps in {result['seconds']:.0f} s. "
        f"It ended because {result['stop']}.\nReport: {report}"
    )


def main(config: Config) -> dict[str, Any]:
    """Runs one search, or as many as --replicas says. Returns what `result.json` holds, of the smallest network."""
    config, recipe = resolve(config)
    from maskprune.display import Display

    out = config.out or Path("runs") / f"{config.task}-{datetime.now():%Y%m%d-%H%M%S}"
    with in_a_sentence():
        out.mkdir(parents=True, exist_ok=True)
    with Display(quiet=config.quiet) as show:
        results = run(config, recipe, out, show)
        smallest = min(results, key=lambda result: (sum(result["masks_after"].values()), -result["final_score"]))
        for result in results if config.replicas > 1 else []:
            seed = f"seed-{result['seed']}"
            show.say(f"{seed}: {headline(result, out / seed / 'report.html')}")
        if config.replicas > 1:
            show.say(f"The smallest network is that of seed-{smallest['seed']}.")
        else:
            show.say(headline(smallest, out / "report.html"))
    return smallest


if __name__ == "__main__":
    result = main(tyro.cli(Config, description=__doc__))
    sys.exit(130 if result["interrupted"] else 0)
