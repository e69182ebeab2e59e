"""Assembly: from the crops of single pictures to a data set split by picture.

Here a picture that occurs twice is dropped, the sides are drawn, and the crops are copied into two arrays with hardly
more memory than the arrays need. It must know nothing of files, of how crops are made, or of caches.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from maskprune.tasks.data.crops import widen
from maskprune.tasks.data.prepare import Crops
from maskprune.tasks.data.sources import Item, Source
from maskprune.tasks.data.split import Dataset, Split, checksum, describe_skips


@dataclass(frozen=True)
class Recipe:
    """The options that, with the files' bytes, decide every value of a data set."""

    size: int
    tiles: int
    evaluation_share: float
    split_seed: int
    limit: int | None

    def __post_init__(self):
        for name, least in (("size", 1), ("tiles", 1), ("limit", 2)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if not 0 < self.evaluation_share < 1:
            raise ValueError(f"evaluation_share={self.evaluation_share} must lie between 0 and 1, both excluded")


def assemble(source: Source, recipe: Recipe, results: Iterable[Crops | str], *, binary: bool | None) -> Dataset:
    """Makes a data set of prepared pictures.

    Args:
        source: its items, in the order of `results`.
        recipe: share and seed of the split.
        results: for each item its crops, or why it has none.
        binary: whether the targets are; None: look.

    Returns:
        The data set, without a target's name.

    Raises:
        ValueError: one side of the split would have no picture.
    """
    kept, skipped = _distinct(source, results)
    held_out = _held_out([item for item, _ in kept], recipe)
    if not 0 < len(held_out) < len(kept):
        raise ValueError(_too_few(source, len(kept), len(held_out), skipped))
    dtype = np.result_type(*(crops.targets.dtype for _, crops in kept))
    sides = [[pair for i, pair in enumerate(kept) if (i in held_out) == wanted] for wanted in (False, True)]
    kept.clear()  # from here on each picture's crops are freed as soon as they are copied
    train, evaluation = (_stack(side, dtype) for side in sides)
    return Dataset(
        train=train,
        evaluation=evaluation,
        target_name="",
        binary=_is_binary(train) and _is_binary(evaluation) if binary is None else binary,
        source=source.description,
        skipped=dict(skipped),
        notes=(),
        checksum=checksum(train, evaluation),
    )


def _distinct(source: Source, results: Iterable[Crops | str]) -> tuple[list[tuple[Item, Crops]], Counter[str]]:
    """The usable pictures, each once: of equal ones the first, so that one in `train` is kept out of `val`."""
    kept: list[tuple[Item, Crops]] = []
    skipped, seen = Counter(source.skipped), set()
    for item, result in zip(source.items, results, strict=True):
        if isinstance(result, str) or result.digest in seen:
            skipped[result if isinstance(result, str) else "duplicate"] += 1
            continue
        seen.add(result.digest)
        kept.append((item, result))
    return kept, +skipped  # without reasons that did not occur


def _held_out(items: list[Item], recipe: Recipe) -> set[int]:
    """The indices to judge by: as the folders ask, otherwise drawn; both sides get one if there are two."""
    if any(item.side is not None for item in items):
        return {i for i, item in enumerate(items) if item.side == "evaluation"}
    count = min(max(1, round(recipe.evaluation_share * len(items))), len(items) - 1)
    order = np.random.default_rng(recipe.split_seed).permutation(len(items))
    return set(order[: max(0, count)].tolist())


def _too_few(source: Source, usable: int, held_out: int, skipped: Counter[str]) -> str:
    return (
        f"source {source.description}: {usable} usable pictures, {held_out} of them for evaluation; "
        f"training and evaluation need at least one each; {describe_skips(skipped)}. "
        "Pass a folder with more pictures, or a smaller size"
    )


def _stack(pictures: list[tuple[Item, Crops]], dtype: np.dtype) -> Split:
    """Copies crops into one array each for inputs and targets, emptying the list on the way."""
    count, size = sum(len(crops.inputs) for _, crops in pictures), pictures[0][1].inputs.shape[-1]
    inputs = np.empty((count, size, size, 1), np.uint8)
    targets = np.empty((count, size, size, 1), dtype)
    names: list[str] = []
    pictures.reverse()
    while pictures:
        item, crops = pictures.pop()
        place = slice(len(names), len(names) + len(crops.inputs))
        inputs[place, ..., 0], targets[place, ..., 0] = crops.inputs, widen(crops.targets, dtype)
        names += [item.name] * len(crops.inputs)
    return Split(inputs, targets, tuple(names))


def _is_binary(split: Split) -> bool:
    targets = split.targets
    return bool(((targets == 0) | (targets == np.iinfo(targets.dtype).max)).all())
