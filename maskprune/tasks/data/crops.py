"""Crops: which squares of a picture are kept, and how a target is stored in integers.

Pure functions on numpy arrays. Pictures and targets are stored as integers because a data set must fit in memory:
uint8 for pictures and for yes-or-no targets (0 and 255), uint16 for continuous targets, where 8 bits would cost a
relative error of one per cent in faint edges. A stored value divided by the largest of its type is the value in [0, 1].
"""

import numpy as np


def tile_corners(height: int, width: int, *, size: int, tiles: int) -> list[tuple[int, int]]:
    """The upper left corners of up to `tiles` squares that do not overlap, as one grid in the picture's centre.

    The grid has as many squares as fit and are allowed, and of equally many the squarest shape; one tile is the centre
    crop.

    Args:
        height, width: of the picture, in pixels.
        size: side of a square, in pixels.
        tiles: the most squares to take, at least 1.

    Returns:
        (row, column) pairs, row by row; empty if the picture is smaller than one square.
    """
    shapes = [(r, min(width // size, tiles // r)) for r in range(1, min(height // size, tiles) + 1)]
    shapes = [(r, c) for r, c in shapes if c > 0]
    if not shapes:
        return []
    rows, columns = max(shapes, key=lambda shape: (shape[0] * shape[1], -abs(shape[0] - shape[1])))
    top, left = (height - rows * size) // 2, (width - columns * size) // 2
    return [(top + r * size, left + c * size) for r in range(rows) for c in range(columns)]


def cut(picture: np.ndarray, corners: list[tuple[int, int]], size: int) -> np.ndarray:
    """Copies squares out of a picture, so that the picture itself can be freed.

    Args:
        picture: [H, W].
        corners: upper left corners, from `tile_corners`.
        size: side of a square, in pixels.

    Returns:
        [T, size, size], of the picture's type.
    """
    return np.stack([picture[row : row + size, column : column + size] for row, column in corners])


def encode(values: np.ndarray, *, binary: bool) -> np.ndarray:
    """A target in integers.

    Args:
        values: [H, W], bool if `binary`, otherwise float in [0, 1].
        binary: True for a yes or no per pixel.

    Returns:
        uint8[H, W] of 0 and 255 if `binary`, otherwise uint16[H, W].

    Raises:
        ValueError: values are not finite or lie outside [0, 1], or are other than 0 and 1 although `binary`.
    """
    values = np.asarray(values)
    if values.size and not (values.min() >= 0 and values.max() <= 1):  # a NaN fails both
        raise ValueError(f"a target's values must lie in [0, 1], found {values.min()} to {values.max()}; rescale them")
    if not binary:
        return np.rint(values * np.float64(65535)).astype(np.uint16)
    if values.dtype != np.bool_ and not np.isin(values, (0, 1)).all():
        raise ValueError("a binary target's values must be 0 or 1, found others; return bool or say binary=False")
    return np.where(values, np.uint8(255), np.uint8(0))


def widen(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """uint8 values as uint16 of the same worth (v / 255 = 257 v / 65535 exactly); values of `dtype` as they are."""
    return values if values.dtype == dtype else values.astype(dtype) * np.asarray(257, dtype)
