"""What the experiments share: which task, from which pictures, trained by which recipe, and the names of the selectors.

The one place where words of the command line become functions of the library. jax and maskprune are imported inside
functions, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from options import Problem, folder, positive, seeds, share, source, whole


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
# Selectors that look at weights only; the others are shown a sample of training crops.
BLIND = ("cosine", "abs-cosine", "sequential", "random", "magnitude", "uniform", "geometric", "twin", "probe")
MOST_SIDE = 16_384  # of a picture, in pixels
TRAINING = ("probe",)  # selectors that train, which does not run inside other compiled code


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
    """A way to search: a plan of `maskprune.moves`, the rules it goes with, and in which order masks go.

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

    initial: Literal["he", "thesis"] | None = None
    """Distribution of the initial weights."""
    optimizer: Literal["soap", "adam"] | None = None
    """soap: Adam in the gradients' eigenbasis, a plateau and down. adam: plain, constant rate."""
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
    strategy: StrategyName | None = None
    """How the next masks to try are found. auto: what measured best. one-by-one: the source document's."""
    selector: SelectorName | None = None
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


# Names of the command line to factories of the library

ENSEMBLE = ("ablation", "redundancy", "taylor-second")


def load_data(pictures: Pictures, progress: Any = None) -> Any:
    from maskprune import data

    names = ("size", "split_seed", "limit")
    options = {**{name: getattr(pictures, name) for name in names}, "progress": progress}
    if pictures.task == "pairs":
        return data.make_pairs(pictures.inputs, pictures.targets, **options)
    target = {
        "sobel": data.sobel,
        "canny": data.canny,
        "threshold": lambda: data.threshold(0.5 if pictures.level is None else pictures.level),
        "local-mean": data.local_mean,
        "otsu": data.otsu,
        "adaptive": data.adaptive,
    }[pictures.task]()
    return data.make_dataset(target, pictures.data, **options)


def make_optimizer(recipe: Recipe) -> Any:
    import optax

    import maskprune

    return {"soap": maskprune.soap, "adam": optax.adam}[recipe.optimizer](recipe.learning_rate)


def make_loss(name: str, recipe: Recipe, dataset: Any) -> Any:
    from maskprune import losses

    # Measured with the quick recipe, two seeds each, first session only, score of the ten masks. Sobel: mae 0.94, mse
    # 0.90, f1 0.89; but under mae small networks stick (relative RMSE 0.33 at widths 1, 3, where mse reaches 0.04), and
    # small is what we are after. Canny: mae 0.73 or dead, f1 0.65, mse 0.57: f1 is the surer one where most is blank.
    name = ("f1" if dataset.binary else "mse") if name == "auto" else name
    return {"mse": losses.mse, "mae": losses.mae, "f1": functools.partial(losses.soft_f1, ceiling=recipe.ceiling)}[name]


@dataclasses.dataclass(frozen=True)
class Setup:
    """A model and a task with everything that trains and judges it."""

    model: Any
    dataset: Any
    task: Any
    optimizer: Any
    recipe: Recipe
    memory: Any = None  # what training is told again, where it was interrupted

    def fresh(self, network: Any) -> Any:
        import maskprune

        return maskprune.init_state(network, self.optimizer)

    def start(self, key: Any, params: Any = None) -> Any:
        """A state to train: a fresh draw of the weights, or the given ones."""
        import maskprune

        params = self.model.init(key) if params is None else params
        return self.fresh(maskprune.init_network(params, self.model.groups))

    @functools.cached_property
    def step(self) -> Any:
        import maskprune

        return maskprune.make_train_step(self.task.loss, self.optimizer)

    def training(self, watch: Callable[[int, int], Any] | None = None) -> Any:
        """`train(keys, states, *, steps, share=1.0)`, sessions side by side; compiled once for all calls."""
        import maskprune

        return maskprune.train_many(self.population, self.task.data, watch=watch)

    @functools.cached_property
    def population(self) -> Any:
        import maskprune

        made = maskprune.make_population(self.step, self.task.draw)
        return made if self.memory is None else self.memory.population(made)

    def sample(self, selector: str) -> Any:
        """The training crops a selector wants to see, or None."""
        return None if selector.startswith(BLIND) else self.task.sample


def set_up(
    dataset: Any, model: Any, recipe: Recipe, *, loss: str = "auto", flips: bool = False, memory: Any = None
) -> Setup:
    """Joins a model and pictures by a filled-in recipe."""
    import maskprune

    task = maskprune.picture_task(
        model.apply,
        dataset,
        loss=make_loss(loss, recipe, dataset),
        border=recipe.border,
        batch=recipe.batch,
        crop=recipe.crop,
        ceiling=recipe.ceiling,
        flips=flips,
    )
    return Setup(model, dataset, task, make_optimizer(recipe), recipe, memory)


def make_repair(name: str, setup: Setup) -> Any:
    """What makes up for a mask when it goes; None for nothing."""
    from maskprune import curvature, repair

    border = setup.recipe.border
    activations = lambda params, batch: setup.model.activations(params, batch[0])
    measure = lambda network, batch: curvature.gauss_newton(setup.task.residuals, network, batch, examples=4).matrix
    return {
        "none": lambda: None,
        "bias": lambda: repair.bias(activations, border=border),
        "merge": repair.merge,
        "least-squares": lambda: repair.least_squares(activations, border=border),
        "second-order": lambda: repair.second_order(measure),
    }[name]()


def make_selector(name: str, setup: Setup) -> Any:
    """The selector of that name, compiled."""
    import jax

    from maskprune import curvature, select

    task, border = setup.task, setup.recipe.border
    activations = lambda params, batch: setup.model.activations(params, batch[0])
    inside = lambda values: values[:, border : values.shape[1] - border, border : values.shape[2] - border]
    cut = lambda params, batch: {name: inside(values) for name, values in activations(params, batch).items()}
    measure = lambda network, batch: curvature.gauss_newton(task.residuals, network, batch, examples=4).matrix
    family, _, kind = name.rpartition("-")
    plain = {
        "sequential": select.sequential,
        "random": select.random,
        "geometric-median": select.geometric_median,
        "taylor": lambda: select.taylor(task.loss),
        "taylor-signed": lambda: select.taylor(task.loss, absolute=False),
        "taylor-second": lambda: select.taylor(task.loss, 2, absolute=False),
        "fisher": lambda: select.fisher(task.loss),
        "uniform": lambda: select.equal_shares(select.magnitude(1)),
        "twin": select.twin,
        "information": lambda: select.information(cut, lambda batch: inside(batch[1])[..., 0]),
        "redundancy": lambda: select.redundancy(activations, border=border),
        "surgeon": lambda: select.surgeon(measure),
        "ablation": lambda: select.ablation(task.loss),
        "ablation-bias": lambda: select.ablation(task.loss, remove=make_repair("bias", setup)),
        "ablation-repaired": lambda: select.ablation(task.loss, remove=make_repair("least-squares", setup)),
        "probe": lambda: _probe(setup, setup.recipe.steps // 2),
        "probe-long": lambda: _probe(setup, setup.recipe.steps, racing=False, orders=4),
        "ensemble": lambda: select.ensemble([make_selector(each, setup) for each in ENSEMBLE]),
    }
    families = {
        "cosine": lambda: select.cosine(kind),
        "abs-cosine": lambda: select.cosine(kind, absolute=True),
        "magnitude": lambda: select.magnitude({"l1": 1, "l2": 2}[kind]),
        "activation": lambda: select.activation(activations, kind),
    }
    made = (plain.get(name) or families[family])()
    return made if name.startswith(TRAINING) else jax.jit(made)


def _probe(setup: Setup, steps: int, **options: Any) -> Any:
    from maskprune import select

    train = functools.partial(setup.training(), steps=max(1, steps))
    return select.probe(train, setup.task.evaluate, setup.optimizer, **options)
