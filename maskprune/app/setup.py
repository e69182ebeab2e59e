"""A model and a task with all that trains and judges it: the one place where words become functions of the library.

jax and the rest of maskprune are imported inside functions, so that `--help` answers at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from maskprune.app.protocol import Pictures, Recipe


ENSEMBLE = ("ablation", "redundancy", "taylor-second")


def load_data(pictures: Pictures, progress: Any = None) -> Any:
    from maskprune import data

    names = ("size", "split_seed", "limit")
    options = {**{name: getattr(pictures, name) for name in names}, "progress": progress}
    if pictures.inputs and pictures.targets:
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

    return {"soap": maskprune.optim.soap, "adam": optax.adam}[recipe.optimizer](recipe.learning_rate)


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
        return None if SELECTORS[selector].blind else self.task.sample

    @property
    def activations(self) -> Any:
        """`activations(params, batch)` of the model, whole."""
        return lambda params, batch: self.model.activations(params, batch[0])

    def inside(self, values: Any) -> Any:
        """What is judged of pictures or channels: all but their border."""
        border = self.recipe.border
        return values[:, border : values.shape[1] - border, border : values.shape[2] - border]

    @property
    def curvature(self) -> Any:
        """`curvature(network, batch)`: the Gauss-Newton matrix of the task."""
        from maskprune.train import curvature

        return lambda network, batch: curvature.gauss_newton(self.task.residuals, network, batch, examples=4).matrix


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
    from maskprune import repair

    border = setup.recipe.border
    return {
        "none": lambda: None,
        "bias": lambda: repair.bias(setup.activations, border=border),
        "merge": repair.merge,
        "least-squares": lambda: repair.least_squares(setup.activations, border=border),
        "second-order": lambda: repair.second_order(setup.curvature),
    }[name]()


class Choosing(NamedTuple):
    """A selector of the command line. `make` gets the module `maskprune.select` and what the selector may ask."""

    make: Callable[[Any, Setup], Any]
    blind: bool = False  # looks at weights only; the others are shown a sample of training crops
    trains: bool = False  # which does not run inside other compiled code


def _plain(name: str, *arguments: Any, **options: Any) -> Choosing:
    """One that needs weights and nothing else."""
    return Choosing(lambda select, setup: getattr(select, name)(*arguments, **options), blind=True)


def _activation(statistic: str) -> Choosing:
    return Choosing(lambda select, setup: select.activation(setup.activations, statistic))


def _ablation(repair: str) -> Choosing:
    return Choosing(lambda select, setup: select.ablation(setup.task.loss, remove=make_repair(repair, setup)))


def _probe(share: float, **options: Any) -> Choosing:
    """One that trains a share of a session."""

    def make(select: Any, setup: Setup) -> Any:
        train = functools.partial(setup.training(), steps=max(1, int(setup.recipe.steps * share)))
        return select.probe(train, setup.task.evaluate, setup.optimizer, **options)

    return Choosing(make, blind=True, trains=True)


def _cut(setup: Setup) -> Any:
    whole_ones = setup.activations
    return lambda params, batch: {name: setup.inside(each) for name, each in whole_ones(params, batch).items()}


SELECTORS: dict[str, Choosing] = {
    **{f"cosine-{kind}": _plain("cosine", kind) for kind in ("min", "max", "mean", "median", "std")},
    **{f"abs-cosine-{kind}": _plain("cosine", kind, absolute=True) for kind in ("min", "max", "mean", "median", "std")},
    "sequential": _plain("sequential"),
    "random": _plain("random"),
    "magnitude-l1": _plain("magnitude", 1),
    "magnitude-l2": _plain("magnitude", 2),
    "uniform": Choosing(lambda select, setup: select.equal_shares(select.magnitude(1)), blind=True),
    "geometric-median": _plain("geometric_median"),
    "twin": _plain("twin"),
    "activation-mean": _activation("mean"),
    "activation-std": _activation("std"),
    "activation-zeros": _activation("zeros"),
    "taylor": Choosing(lambda select, setup: select.taylor(setup.task.loss)),
    "taylor-signed": Choosing(lambda select, setup: select.taylor(setup.task.loss, absolute=False)),
    "taylor-second": Choosing(lambda select, setup: select.taylor(setup.task.loss, 2, absolute=False)),
    "fisher": Choosing(lambda select, setup: select.fisher(setup.task.loss)),
    "information": Choosing(
        lambda select, setup: select.information(_cut(setup), lambda batch: setup.inside(batch[1])[..., 0])
    ),
    "redundancy": Choosing(lambda select, setup: select.redundancy(setup.activations, border=setup.recipe.border)),
    "surgeon": Choosing(lambda select, setup: select.surgeon(setup.curvature)),
    "ablation": Choosing(lambda select, setup: select.ablation(setup.task.loss)),
    "ablation-bias": _ablation("bias"),
    "ablation-repaired": _ablation("least-squares"),
    "probe": _probe(0.5),
    "probe-long": _probe(1, racing=False, orders=4),
    "ensemble": Choosing(lambda select, setup: select.ensemble([make_selector(each, setup) for each in ENSEMBLE])),
}


def make_selector(name: str, setup: Setup) -> Any:
    """The selector of that name, compiled where it can be."""
    import jax

    from maskprune import select

    choosing = SELECTORS[name]
    made = choosing.make(select, setup)
    return made if choosing.trains else jax.jit(made)
