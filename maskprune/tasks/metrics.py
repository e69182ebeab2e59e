"""How good an output is: the scores that decide and the errors reported beside them.

The pictures stay on the device: `picture_sums` reduces each to six numbers there, and `scores_from_sums` turns the
collected rows into scores on the host in float64, so an evaluation set of any size is scored as one. Scores are
finite for finite pictures, blank ones included, and NaN as soon as one pixel is not finite: a broken candidate
must not look good. This file must not know networks, masks or data sets. Scores that need the pictures themselves
(`ssim`, `uiqi`, `precision_recall_f1`) are in `quality` and can be had from here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import Positive, strict
from maskprune.tasks.losses import Picture, crop_border, overlap, picture_total
from maskprune.tasks.quality import PrecisionRecallF1 as PrecisionRecallF1
from maskprune.tasks.quality import precision_recall_f1 as precision_recall_f1
from maskprune.tasks.quality import ssim as ssim
from maskprune.tasks.quality import uiqi as uiqi
from maskprune.train.accurate_sums import centred


Average = Literal["macro", "micro"]

PSNR_CAP = 100.0  # dB, given to equal pictures; float32 pictures in [0, 1] that differ rarely come near

# Pictures of different sizes leave about 1e-14 of ΣT² behind as the spread of one constant; below this it is flat.
_FLAT_SHARE = 1e-12


class _Columns(NamedTuple):
    """The columns of `picture_sums`, with O the output and T the target."""

    error: np.ndarray  # Σ|O − T|
    overlap: np.ndarray  # Σ min(O, 1)·T
    squared_error: np.ndarray  # Σ (O − T)²
    target: np.ndarray  # Σ T
    spread: np.ndarray  # Σ (T − mean of the picture's T)²
    pixels: np.ndarray  # how many numbers were summed

    @property
    def power(self) -> np.ndarray:
        """Σ T², from two numbers of which neither is small because two large ones cancelled."""
        return self.spread + self.target**2 / self.pixels


@strict
def picture_sums(output: Picture, target: Picture, *, border: int = 0, ceiling: Positive = 1.0) -> jax.Array:
    """Reduces each picture to the six sums that every score here is made of. Runs under `jit` and `vmap`.

    Args:
        output: `float[N, H, W, C]`.
        target: the same shape.
        border: pixels left out on each side.
        ceiling: the largest output that counts in TP, see `losses.soft_f1`.

    Returns:
        `float32[N, 6]`, each to about 2e-7 of itself; the columns are Σ|O − T|, TP = Σ min(O, ceiling)·T, Σ(O − T)²,
        ΣT, Σ(T − mean of T)² and the number of pixels. Rows of many batches may be concatenated.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    output, target = crop_border(output, target, border)
    difference = output - target
    pixels = jnp.full(output.shape[0], output[0].size, jnp.float32)
    apart = centred(target, axis=(1, 2, 3))
    terms = (jnp.abs(difference), overlap(output, target, ceiling), jnp.square(difference), target, jnp.square(apart))
    return jnp.stack([*(picture_total(term).astype(jnp.float32) for term in terms), pixels], axis=1)


@strict
def scores_from_sums(sums: Picture, *, average: Average = "macro") -> dict[str, float]:
    """Turns the rows of `picture_sums` into scores, in float64 on the host.

    Args:
        sums: `float[N, 6]`, N ≥ 1, as `picture_sums` returns it.
        average: how `f1` is formed: "macro", the mean over pictures of 2TP / (2TP + E), or "micro", the same of the
            pooled sums. The other scores are always pooled over all pictures.

    Returns:
        * `f1`: soft F1 score, in [0, 1] for non-negative pictures, higher is better. Nothing to find and nothing
          found (0/0): 1. Where negative values make 2TP + E ≤ 0 although E > 0: 0.
        * `mae`, `mse`: mean absolute and mean squared error.
        * `relative_rmse`: √(Σ(O − T)² / ΣT²). For an all-zero target the mean square of a target of ones takes the
          place of its own: √mse, so 0 only if the output is blank too.
        * `r2`: 1 − SSE/SST. For a flat target (SST below 1e-12 of ΣT², where float32 sums cannot tell): 1 if the
          error is 0, else 0.
        * `psnr`: 10·log10(1/mse) in dB for a peak of 1, at most 100, which equal pictures get.

        All are NaN if any sum is not finite.

    Raises:
        ValueError: `sums` has another shape or no rows, or `average` is neither word.

    Example:
        >>> import jax.numpy as jnp
        >>> half = jnp.full((1, 8, 8, 1), 0.5)
        >>> scores_from_sums(picture_sums(half, 2 * half))["f1"]
        0.6666666666666666
    """
    rows = np.asarray(sums, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(_Columns._fields) or not len(rows):
        raise ValueError(f"sums has shape {rows.shape}, expected [N, 6] with N ≥ 1; pass the rows of picture_sums")
    scorers = {"f1": _macro_f1 if average == "macro" else _micro_f1, **_POOLED}
    if not np.isfinite(rows).all():
        return dict.fromkeys(scorers, float("nan"))
    columns = _Columns(*rows.T)
    return {name: float(scorer(columns)) for name, scorer in scorers.items()}


def _macro_f1(columns: _Columns) -> float:
    return float(np.mean(f1_of(columns.error, columns.overlap)))


def _micro_f1(columns: _Columns) -> float:
    return float(f1_of(columns.error.sum(), columns.overlap.sum()))


@strict
def f1_of(error: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """2TP / (2TP + E) of sums E = Σ|O − T| and TP, with the ends that `scores_from_sums` tells of."""
    whole = 2 * overlap + error
    empty = whole <= 0
    return np.where(empty, error == 0, 2 * overlap / np.where(empty, 1, whole))


def _mae_of(columns: _Columns) -> float:
    return columns.error.sum() / columns.pixels.sum()


def _mse_of(columns: _Columns) -> float:
    return columns.squared_error.sum() / columns.pixels.sum()


def _relative_rmse_of(columns: _Columns) -> float:
    power = columns.power.sum() or columns.pixels.sum()
    return np.sqrt(columns.squared_error.sum() / power)


def _r2_of(columns: _Columns) -> float:
    residual, pixels = columns.squared_error.sum(), columns.pixels
    between = columns.target / pixels - columns.target.sum() / pixels.sum()  # of the pictures' means
    spread = np.sum(columns.spread + pixels * between**2)
    return 1 - residual / spread if spread > _FLAT_SHARE * columns.power.sum() else float(residual == 0)


def _psnr_of(columns: _Columns) -> float:
    return min(PSNR_CAP, -10 * np.log10(max(_mse_of(columns), np.finfo(np.float64).tiny)))


_POOLED: dict[str, Callable[[_Columns], float]] = {
    "mae": _mae_of,
    "mse": _mse_of,
    "relative_rmse": _relative_rmse_of,
    "r2": _r2_of,
    "psnr": _psnr_of,
}


@strict
def soft_f1(output: Picture, target: Picture, *, border: int = 0, average: Average = "macro") -> float:
    """Soft F1 score of `[N, H, W, C]` pictures, in [0, 1], higher is better; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border), average=average)["f1"]


@strict
def mae(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Mean absolute error of `[N, H, W, C]` pictures; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border))["mae"]


@strict
def mse(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Mean squared error of `[N, H, W, C]` pictures; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border))["mse"]


@strict
def relative_rmse(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Root of squared error over squared target, pooled over `[N, H, W, C]` pictures; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border))["relative_rmse"]


@strict
def r2(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Share of the target's variance explained, pooled over `[N, H, W, C]` pictures, ≤ 1; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border))["r2"]


@strict
def psnr(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB for a peak of 1, pooled, at most 100; see `scores_from_sums`.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `losses.crop_border`.
    """
    return scores_from_sums(picture_sums(output, target, border=border))["psnr"]
