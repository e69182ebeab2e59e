"""Scores that look at neighbourhoods or at thresholds, and so need the pictures, not their sums.

Structural similarity, the universal image quality index, and precision and recall of a thresholded picture. They
run on the host in float64 and are for reports, not for training. This file must not know networks, masks or data
sets; scikit-image is loaded only when `ssim` is called.
"""

from typing import NamedTuple

import numpy as np

from maskprune.tasks.losses import Picture, crop_border


_SSIM_WINDOW = 7  # pixels; scikit-image's default, the side of its uniform window


class PrecisionRecallF1(NamedTuple):
    """Shares in [0, 1]: of the found pixels that were right, of the wanted ones that were found, and their balance."""

    precision: float
    recall: float
    f1: float


def ssim(output: Picture, target: Picture, *, border: int = 0) -> float:
    """Mean structural similarity, from scikit-image: uniform 7×7 window, data range 1.

    Args:
        output: `float[N, H, W, C]` in [0, 1].
        target: the same shape and range.
        border: pixels left out on each side.

    Returns:
        The mean over pictures and channels, in [−1, 1]; 1 for equal pictures, blank ones included.

    Raises:
        ValueError: fewer than 7 pixels a side are left, or see `losses.crop_border`.

    References:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity.
        IEEE Transactions on Image Processing 13 (2004).
    """
    from skimage.metrics import structural_similarity

    pairs = _planes(output, target, border=border, window=_SSIM_WINDOW)
    scores = [structural_similarity(x, y, win_size=_SSIM_WINDOW, data_range=1.0) for x, y in pairs]
    return float(np.mean(np.asarray(scores, np.float64)))


def uiqi(output: Picture, target: Picture, *, border: int = 0, block: int = 8) -> float:
    """Universal Image Quality Index: correlation, brightness and contrast in one number.

    In every `block`×`block` window, sliding by one pixel, with means m, variances s² and covariance s_xy,
    Q = 4·s_xy·m_x·m_y / ((s_x² + s_y²)·(m_x² + m_y²)); the index is the mean Q. Where both windows are flat only
    brightness is compared, Q = 2·m_x·m_y / (m_x² + m_y²), and where both are zero Q = 1. Where both means are zero but
    the windows are not flat (which takes negative values) only structure is compared, Q = 2·s_xy / (s_x² + s_y²).

    Args:
        output: `float[N, H, W, C]`.
        target: the same shape.
        border: pixels left out on each side.
        block: side of the window in pixels, 2 or more.

    Returns:
        The mean over windows, channels and pictures, in [−1, 1]; 1 for equal pictures.

    Raises:
        ValueError: `block` is below 2 or does not fit in what `border` leaves, or see `losses.crop_border`.

    References:
        Wang, Bovik: A universal image quality index. IEEE Signal Processing Letters 9 (2002).
    """
    if block < 2:
        raise ValueError(f"block={block} has no variance; choose 2 or more (8 in the paper)")
    pairs = _planes(output, target, border=border, window=block)
    return float(np.mean([_quality_map(x, y, block).mean() for x, y in pairs]))


def _planes(output: Picture, target: Picture, *, border: int, window: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts both into pairs of `float64[H, W]`, one per picture and channel."""
    pair = [np.asarray(picture, np.float64) for picture in crop_border(output, target, border)]
    height, width = pair[0].shape[1:3]
    if min(height, width) < window:
        raise ValueError(
            f"border={border} leaves {height}×{width} pixels, fewer than the {window}×{window} window; "
            "choose a smaller border or larger pictures"
        )
    output_planes, target_planes = (np.moveaxis(picture, 3, 1).reshape(-1, height, width) for picture in pair)
    return list(zip(output_planes, target_planes, strict=True))


def _quality_map(x: np.ndarray, y: np.ndarray, block: int) -> np.ndarray:
    # Deviations from the mean are summed, never E[x²] − E[x]², whose cancellation would make a bright flat window
    # look structured. Means are taken relative to the window's first pixel, so that flat is exactly zero variance.
    mean_x, mean_y = _window_mean(x, block), _window_mean(y, block)
    var_x, var_y, cov = np.zeros_like(mean_x), np.zeros_like(mean_x), np.zeros_like(mean_x)
    for shifted_x, shifted_y in zip(_shifts(x, block), _shifts(y, block), strict=True):
        dx, dy = shifted_x - mean_x, shifted_y - mean_y
        var_x += dx * dx
        var_y += dy * dy
        cov += dx * dy
    structure = _ratio_or_one(2 * cov, var_x + var_y)
    brightness = _ratio_or_one(2 * mean_x * mean_y, mean_x**2 + mean_y**2)
    return np.clip(structure * brightness, -1, 1)  # [H − block + 1, W − block + 1]


def _window_mean(plane: np.ndarray, block: int) -> np.ndarray:
    shifts = _shifts(plane, block)
    first = shifts[0]
    return first + sum((shifted - first for shifted in shifts), np.zeros_like(first)) / len(shifts)


def _shifts(plane: np.ndarray, block: int) -> list[np.ndarray]:
    """Views of the plane, one per position in a window: `[i]` holds pixel i of every window."""
    height, width = (side - block + 1 for side in plane.shape)
    return [plane[row : row + height, column : column + width] for row, column in np.ndindex(block, block)]


def _ratio_or_one(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    empty = denominator == 0
    return np.where(empty, 1.0, numerator / np.where(empty, 1.0, denominator))


def precision_recall_f1(
    output: Picture, target: Picture, *, threshold: float = 0.5, border: int = 0
) -> PrecisionRecallF1:
    """Precision, recall and F1 of the pixels above a threshold, counted over all pictures together.

    Args:
        output: `float[N, H, W, C]`; a pixel is found where it is above `threshold` (equal is not above).
        target: the same shape; a pixel is wanted where it is above `threshold`.
        threshold: in units of the pictures.
        border: pixels left out on each side.

    Returns:
        Three shares in [0, 1]. A share 0/0 is 1 where nothing was to be found and nothing was found, else 0. All
        three are NaN if a pixel is not finite.

    Raises:
        ValueError: see `losses.crop_border`.

    Example:
        >>> import jax.numpy as jnp
        >>> target = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
        >>> output = jnp.array([0.9, 0.2, 0.1, 0.1]).reshape(1, 2, 2, 1)
        >>> precision_recall_f1(output, target).recall
        0.5
    """
    pair = [np.asarray(picture) for picture in crop_border(output, target, border)]
    if not all(np.isfinite(picture).all() for picture in pair):
        return PrecisionRecallF1(float("nan"), float("nan"), float("nan"))
    found, wanted = (picture > threshold for picture in pair)
    right = int((found & wanted).sum())
    blank = 1.0 if not found.any() and not wanted.any() else 0.0
    counts = (int(found.sum()), int(wanted.sum()), (int(found.sum()) + int(wanted.sum())) / 2)
    return PrecisionRecallF1(*(right / count if count else blank for count in counts))
