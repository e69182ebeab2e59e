"""A picture-to-picture task: how batches are drawn, what is learned, and how well it is done.

The one place where data, losses and metrics meet a model; everything above works with these plain functions and knows
no pictures.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.network import Params
from maskprune.removal.compaction import judged
from maskprune.tasks import losses, metrics
from maskprune.tasks.data.batches import DeviceSplit, Parts, draw_batch, to_device, to_unit
from maskprune.tasks.data.split import Dataset, Split
from maskprune.tasks.data.targets import unit
from maskprune.train.memory_retry import with_less_memory
from maskprune.train.step import TrainState


PictureLoss = Callable[..., jax.Array]
Batch = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class PictureTask:
    """A task as plain functions.

    Attributes:
        loss: `loss(params, batch) -> float32[]`, for `make_train_step`.
        residuals: `residuals(params, batch) -> float32[R]`: output minus target of every pixel that counts. Their mean
            square is the loss where that is `losses.mse`. For curvature.
        draw: `draw(key, data) -> batch`, for `make_session`: random crops, (inputs, targets), float32[B, c, c, 1] each.
        data: The training pictures on the device, for `session.run`.
        evaluate: `evaluate(state) -> {"score": ..., "f1": ..., ...}` over all evaluation pictures. The score is the
            macro soft F1; `"flat"` the share of pictures whose output is the same everywhere, 1 for a dead network.
            Memory that turns out too small halves the pictures looked at by one program, up to three times, with a
            warning; the numbers are the same, bit for bit.
        trouble: `trouble(state) -> str`: why a trained start is no use, or "": it neither explains a tenth of the
            variance nor scores clearly above the best constant output. For `train_start`.
        draw_sample: `draw_sample() -> batch`.
        sample: One fixed batch of training crops, for selectors; drawn when it is first asked for, which takes a while.
    """

    loss: Callable[[Params, Batch], jax.Array]
    residuals: Callable[[Params, Batch], jax.Array]
    draw: Callable[[jax.Array, DeviceSplit], Batch]
    data: DeviceSplit
    evaluate: Callable[[TrainState], dict[str, float]]
    trouble: Callable[[TrainState], str]
    draw_sample: Callable[[], Batch]

    @functools.cached_property
    def sample(self) -> Batch:
        return self.draw_sample()


@strict
def picture_task(
    apply: Callable[[Params, jax.Array], jax.Array],
    dataset: Dataset,
    *,
    loss: PictureLoss = losses.mse,
    border: int = 6,
    batch: int = 8,
    crop: int = 64,
    sample: int = 32,
    ceiling: float = 1.0,
    flips: bool = False,
) -> PictureTask:
    """Joins a model and pictures.

    Args:
        apply: `apply(params, pictures) -> outputs`, float32[N, H, W, 1] both.
        dataset: From `maskprune.data`.
        loss: `loss(outputs, targets, border=...)`, one of `maskprune.losses` or of their form.
        border: Pixels left out at each side of a crop or picture, in the loss and in the scores, because zero padding
            makes false edges there.
        batch: Crops of a batch.
        crop: Their side, in pixels.
        sample: Crops of `PictureTask.sample`.
        ceiling: The largest output that counts as right in the score, see `losses.soft_f1`.
        flips: Mirrors crops at random, left to right and top to bottom: for filters that know no direction.

    Raises:
        ValueError: The border is negative or leaves nothing of a crop, or the crop is larger than the pictures.
    """
    if border < 0:
        raise ValueError(f"`border` is {border}: it must be 0 or more.")
    if not 2 * border < crop <= dataset.size:
        raise ValueError(
            f"`crop` is {crop}: it must be larger than twice the border ({border}) and at most {dataset.size}, the "
            f"side of the pictures."
        )
    data = to_device(dataset.train)

    def batch_loss(params: Params, found: Batch) -> jax.Array:
        inputs, targets = found
        return loss(apply(params, inputs), targets, border=border)

    def residuals(params: Params, found: Batch) -> jax.Array:
        inputs, targets = found
        output, target = losses.crop_border(apply(params, inputs), targets, border)
        return (output - target).reshape(-1)

    def draw(key: jax.Array, split: DeviceSplit) -> Batch:
        return draw_batch(key, split, batch=batch, crop=crop, flips=flips)

    evaluate = _evaluation(apply, dataset.evaluation, border=border, ceiling=ceiling)
    trouble = _blindness(evaluate, constant_score(dataset.evaluation.targets[:16], border=border))
    draw_fixed = jax.jit(functools.partial(draw_batch, batch=sample, crop=crop))
    sample_of = lambda: draw_fixed(jax.random.key(0), data)
    return PictureTask(batch_loss, residuals, draw, data, evaluate, trouble, sample_of)


def _evaluation(
    apply: Callable[..., jax.Array], split: Split, *, border: int, ceiling: float
) -> Callable[[TrainState], dict[str, float]]:
    @functools.partial(jax.jit, static_argnums=0)
    def sums(apply: Callable[..., jax.Array], params: Params, pictures: DeviceSplit) -> tuple[jax.Array, jax.Array]:
        def one(picture: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            inputs, targets = (to_unit(side)[None] for side in picture)
            output = apply(params, inputs)
            inside, _ = losses.crop_border(output, targets, border)
            found = metrics.picture_sums(output, targets, border=border, ceiling=ceiling)[0]
            return found, jnp.max(inside) == jnp.min(inside)

        return jax.lax.map(one, (pictures.inputs, pictures.targets))  # one at a time: it stays in the cache

    parts = Parts(split)

    def evaluate(state: TrainState) -> dict[str, float]:
        judge = functools.partial(sums, *judged(apply, state.network))
        compute = lambda: [jax.device_get(judge(part)) for part in parts.on_device()]
        rows, flat = (np.concatenate(each) for each in zip(*with_less_memory(compute, parts.halve), strict=True))
        scores = metrics.scores_from_sums(rows)
        return {"score": scores["f1"], **scores, "flat": float(np.mean(flat))}

    return evaluate


def _blindness(evaluate: Callable[[TrainState], dict[str, float]], blind: float) -> Callable[[TrainState], str]:
    def trouble(state: TrainState) -> str:
        found = evaluate(state)
        if not np.isfinite(found["score"]):
            return f"its score is {found['score']}"
        if found["r2"] >= 0.1 or found["score"] >= blind + 0.1 * (1.0 - blind):
            return ""
        what = "the same everywhere, and " * (found["flat"] == 1) + "no better than a constant"
        return (
            f"its output is {what} (score {found['score']:.3f}, a constant reaches {blind:.3f}; R² {found['r2']:.2f})"
        )

    return trouble


def constant_score(targets: np.ndarray, *, border: int = 0, levels: int = 12) -> float:
    """The macro soft F1 of the best output that is the same everywhere.

    Args:
        targets: uint8 or uint16[N, H, W, 1], as stored in a `Split`.
        border: Pixels left out at each side.
        levels: How many constants are tried, from the mean of the targets up to 1.
    """
    values = unit(targets)
    constants = np.geomspace(max(float(values.mean(dtype=float)), 1e-3), 1.0, levels, dtype=np.float32)
    rows, columns = (slice(border, side - border) for side in values.shape[1:3])
    values = values[:, rows, columns].reshape(len(values), -1)
    total = values.sum(axis=1, dtype=float)
    errors = [np.abs(values - level).sum(axis=1, dtype=float) for level in constants]
    scores = [metrics.f1_of(error, level * total) for error, level in zip(errors, constants, strict=True)]
    return float(np.max(np.mean(scores, axis=1)))
