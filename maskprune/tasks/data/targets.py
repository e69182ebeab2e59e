"""Targets: what a network is to learn, as functions from a grey picture to a map of the same size.

Each function takes a picture in [0, 1] and returns float32 in [0, 1] or bool. A `Target` is such a function with its
options as plain data, so that results can be stored under it and a worker can be told about it. Nothing here knows of
files, crops, data sets or jax.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maskprune.base.checks import strict


# Differences below this are rounding, not picture: in an 8-bit picture the smallest difference between a pixel and the
# mean of 25 is 1.6e-4. Without it, flat areas would be decided by noise in the last bit.
MARGIN = 1e-6
# The smallest step of an 8-bit picture has a Sobel magnitude of 9e-3 after smoothing with sigma sqrt(2); rounding gives
# some 1e-6 on a blank one.
FAINTEST_EDGE = 1e-4


@dataclass(frozen=True)
class Target:
    """A target by name, function and options; call it with a picture.

    Attributes:
        name: how reports and file names call it.
        function: `function(picture: float32[H, W] in [0, 1], **options) -> [H, W]`, bool if `binary`, otherwise float
            in [0, 1]. A function at module level can be sent to other processes.
        binary: True for a yes or no per pixel.
        options: (name, value) pairs for `function`, sorted by name; values are numbers, strings or None.
    """

    name: str
    function: Callable[..., np.ndarray]
    binary: bool
    options: tuple[tuple[str, float | int | str | None], ...] = ()

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The target map, [H, W], of uint8[H, W] or of float[H, W] in [0, 1]."""
        return self.function(unit(picture), **dict(self.options))


def unit(picture: np.ndarray) -> np.ndarray:
    """A picture as float32 in [0, 1]: uint8 and uint16 over their largest value, floats are taken as given."""
    if np.issubdtype(picture.dtype, np.unsignedinteger):
        return picture.astype(np.float32) / np.float32(np.iinfo(picture.dtype).max)
    return picture.astype(np.float32)


def sobel() -> Target:
    """The strength of edges: see `sobel_edges`."""
    return Target("sobel", sobel_edges, binary=False)


@strict
def canny(*, sigma: float = math.sqrt(2), low: float | None = None, high: float | None = None) -> Target:
    """Thin edges: see `canny_edges`.

    Args:
        sigma: the smoothing in pixels, positive.
        low: where an edge may continue; None: 0.4 × high.
        high: where an edge may begin; None: the magnitude that 70 % of the picture's pixels do not exceed.

    Raises:
        ValueError: sigma is not positive, or low is above high.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be positive")
    if low is not None and high is not None and low > high:
        raise ValueError(f"low={low} is above high={high}; edges begin at high and continue down to low")
    return Target("canny", canny_edges, binary=True, options=(("high", high), ("low", low), ("sigma", sigma)))


@strict
def threshold(level: float = 0.5) -> Target:
    """Pixels above a fixed level in [0, 1]; a pixel at the level is not above it.

    Raises:
        ValueError: level is outside [0, 1].
    """
    if not 0 <= level <= 1:
        raise ValueError(f"level={level} must lie in [0, 1], the range of a picture")
    return Target("threshold", above_level, binary=True, options=(("level", level),))


@strict
def local_mean(window: int = 5) -> Target:
    """Pixels above the mean of the square window around them.

    Args:
        window: side in pixels, odd, at least 3; the picture's border is replicated.

    Raises:
        ValueError: window is even or below 3.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window={window} must be odd and at least 3, so that it has a centre and neighbours")
    return Target("local_mean", above_local_mean, binary=True, options=(("window", window),))


def otsu() -> Target:
    """Pixels above Otsu's level of the whole picture: see `above_otsu`."""
    return Target("otsu", above_otsu, binary=True)


@strict
def adaptive(*, sigma: float = 5.0, offset: float = 0.0) -> Target:
    """Pixels above the Gaussian-weighted mean around them, less an offset.

    Args:
        sigma: of the weights, in pixels, positive; the picture's border is replicated.
        offset: subtracted from the mean, in [-1, 1]; a positive one also takes pixels slightly below it.

    Raises:
        ValueError: sigma is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} must be positive")
    return Target("adaptive", above_gaussian_mean, binary=True, options=(("offset", offset), ("sigma", sigma)))


def sobel_edges(picture: np.ndarray) -> np.ndarray:
    """sqrt(gx² + gy²) / sqrt(20), with the integer Sobel kernels and a replicated border.

    sqrt(20) is the true maximum for a picture in [0, 1] (an edge of 4 with 2 across it), so the range is [0, 1].

    Args:
        picture: float32[H, W] in [0, 1].

    Returns:
        float32[H, W] in [0, 1].
    """
    wide = np.pad(picture, 1, mode="edge")
    down = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    across = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    magnitude = np.hypot(down[:, 2:] - down[:, :-2], across[2:] - across[:-2])
    return np.minimum(magnitude / np.float32(math.sqrt(20)), np.float32(1))  # 1 + rounding is not a value


def canny_edges(picture: np.ndarray, *, sigma: float, low: float | None, high: float | None) -> np.ndarray:
    """Canny's edges by scikit-image, with automatic thresholds where none are given.

    Canny, A Computational Approach to Edge Detection, 1986.

    Args:
        picture: float32[H, W] in [0, 1].
        sigma, low, high: as for `canny`, on the scale of `canny_magnitude`.

    Returns:
        bool[H, W].
    """
    from skimage import feature  # late: it takes a noticeable part of a second

    if high is None:
        high = max(float(np.quantile(canny_magnitude(picture, sigma), 0.7)), low or 0.0, FAINTEST_EDGE)
    low = 0.4 * high if low is None else low
    return feature.canny(picture, sigma=sigma, low_threshold=low, high_threshold=high)


def canny_magnitude(picture: np.ndarray, sigma: float) -> np.ndarray:
    """The gradient magnitude that scikit-image's Canny compares with its thresholds.

    Gaussian smoothing in which only pixels inside the picture count, then the integer Sobel kernels.

    Args:
        picture: float32[H, W] in [0, 1].
        sigma: of the smoothing, in pixels.

    Returns:
        float32[H, W], from 0 to at most sqrt(20).
    """
    from scipy import ndimage

    inside = ndimage.gaussian_filter(np.ones_like(picture), sigma, mode="constant")
    smooth = ndimage.gaussian_filter(picture, sigma, mode="constant") / inside
    return np.hypot(ndimage.sobel(smooth, axis=0), ndimage.sobel(smooth, axis=1))


def above_level(picture: np.ndarray, *, level: float) -> np.ndarray:
    """bool[H, W]: where the picture is above `level`."""
    return picture > np.float32(level)


def above_local_mean(picture: np.ndarray, *, window: int) -> np.ndarray:
    """bool[H, W]: where the picture is above the mean of `window` × `window` pixels around; flat areas are not."""
    from scipy import ndimage

    exact = picture.astype(np.float64)
    return exact - ndimage.uniform_filter(exact, window, mode="nearest") > MARGIN


def above_gaussian_mean(picture: np.ndarray, *, sigma: float, offset: float) -> np.ndarray:
    """bool[H, W]: where the picture is above the Gaussian mean around, less `offset`; ties are not above."""
    from scipy import ndimage

    exact = picture.astype(np.float64)
    return exact - ndimage.gaussian_filter(exact, sigma, mode="nearest") + offset > MARGIN


def above_otsu(picture: np.ndarray) -> np.ndarray:
    """bool[H, W]: where the picture, in 256 levels, is above Otsu's threshold; nowhere in a blank picture.

    Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979.
    """
    from skimage import filters  # late: it takes a noticeable part of a second

    levels = np.rint(picture * 255).astype(np.uint8)
    return levels > filters.threshold_otsu(levels)
