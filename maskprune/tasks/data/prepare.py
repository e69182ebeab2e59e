"""Preparation: from items to integer crops, in parallel and with little memory.

Each item is read, given its target on the whole picture and cut; only the crops leave the worker, so that at most one
full picture per worker is alive. Workers are threads: decoding, numpy, scipy and hashing mostly run without the
interpreter lock, while processes would have to be spawned anew (a loaded jax must not be forked), which runs the user's
script a second time. It must know nothing of splits, caches or where the items come from.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from maskprune.tasks.data.cache import digest_content
from maskprune.tasks.data.crops import cut, encode, tile_corners
from maskprune.tasks.data.opening import Skipped, in_turn
from maskprune.tasks.data.pictures import decode_picture, quiet_pillow
from maskprune.tasks.data.sources import Item
from maskprune.tasks.data.targets import Target


Progress = Callable[[int, int], None]
A = TypeVar("A")
B = TypeVar("B")


class Crops(NamedTuple):
    """What stays of one picture: uint8[T, S, S], uint8 or uint16[T, S, S], and a digest of the whole picture."""

    inputs: np.ndarray
    targets: np.ndarray
    digest: str


def prepare(item: Item, target: Target | None, *, size: int, tiles: int) -> Crops:
    """Reads one item, computes its target on the whole picture and cuts both alike.

    Args:
        item: what to prepare; a ready target in it takes the place of `target`.
        target: what to compute, or None if the item has its own.
        size: side of a crop, in pixels.
        tiles: the most crops to cut.

    Raises:
        Skipped: the file cannot be read, the picture is smaller than a crop, or its target has another size.
        ValueError: the target function returned something other than a map of the picture's size in [0, 1].
    """
    picture = item.picture if isinstance(item.picture, np.ndarray) else decode_picture(item.picture)
    corners = tile_corners(*picture.shape, size=size, tiles=tiles)
    if not corners:
        raise Skipped(f"smaller than {size}")
    with in_turn(picture.size):
        wanted = _ready(item, picture) if item.target is not None else _computed(item, target, picture)
        return Crops(cut(picture, corners, size), cut(wanted, corners, size), digest_content(picture))


def _ready(item: Item, picture: np.ndarray) -> np.ndarray:
    assert item.target is not None
    wanted = item.target if isinstance(item.target, np.ndarray) else decode_picture(item.target, deep=True)
    if wanted.shape != picture.shape:
        raise Skipped("size mismatch")
    return wanted


def _computed(item: Item, target: Target | None, picture: np.ndarray) -> np.ndarray:
    if target is None:
        raise ValueError(f"target=None, but {item.name!r} has no target of its own; pass a Target")
    wanted = target(picture)
    if wanted.shape != picture.shape:
        raise ValueError(f"target {target.name!r} made {wanted.shape} of a picture {picture.shape}; the two must agree")
    return encode(wanted, binary=target.binary)


def prepare_all(
    items: list[Item],
    target: Target | None,
    *,
    size: int,
    tiles: int,
    workers: int | None,
    progress: Progress | None,
) -> Iterator[Crops | str]:
    """Prepares items in parallel and yields their crops, or the reason for none, in the order of the items.

    Args:
        items, target, size, tiles: as for `prepare`.
        workers: threads; None: as many as processors, at most 8.
        progress: called with (done, total) from the calling thread.
    """

    def one(item: Item) -> Crops | str:
        try:
            return prepare(item, target, size=size, tiles=tiles)
        except Skipped as skipped:
            return skipped.reason

    with quiet_pillow():
        for done, result in enumerate(in_parallel(one, items, workers), start=1):
            yield result
            if progress is not None:
                progress(done, len(items))


def in_parallel(function: Callable[[A], B], items: Iterable[A], workers: int | None) -> Iterator[B]:
    """`map` over threads, in order; what has not begun is dropped when the caller stops or an item raises."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1) if workers is None else workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
