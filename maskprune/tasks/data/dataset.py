"""Data sets from whatever the user has: the two functions that everything else calls.

`make_dataset` and `make_pairs` join the rooms beside this one: sources, preparation, assembly, cache. What comes out is
plain numpy; it must know nothing of devices, batches or networks.
"""

from dataclasses import astuple, replace
from pathlib import Path
from typing import Literal

from maskprune.base.checks import Count, Seed, strict
from maskprune.tasks.data import cache as store
from maskprune.tasks.data import targets as own_targets
from maskprune.tasks.data.assemble import Recipe, assemble
from maskprune.tasks.data.prepare import Progress, in_parallel, prepare_all
from maskprune.tasks.data.sources import Item, Source, limited, open_source, pair_source
from maskprune.tasks.data.split import Dataset as Dataset
from maskprune.tasks.data.split import Split as Split
from maskprune.tasks.data.split import pack, unpack
from maskprune.tasks.data.targets import Target


CacheFolder = Path | str | Literal["user"] | None
MEMORY = 4 << 30
BYTES_PER_PIXEL = 3  # one of the input, and at most two of the target


@strict
def make_dataset(
    target: Target,
    source: Path | str | None = None,
    *,
    size: int = 256,
    tiles: int | None = None,
    evaluation_share: float = 0.3,
    split_seed: Seed = 1,
    limit: int | None = None,
    memory: int = MEMORY,
    cache: CacheFolder = "user",
    workers: Count | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Makes a data set whose targets are computed from the pictures.

    The target is computed on the whole picture, then both are cut alike. Pictures smaller than a crop are skipped and
    counted, never padded. Of pictures with equal pixels one is kept. Memory holds the crops, of a folder of any size no
    more than `memory` bytes, twice while they are joined; one picture per worker, and of those above 16 million pixels
    one at a time, with up to 2 GB for its target; and a kilobyte for every file.

    Args:
        target: what is to be learned, such as `sobel()`.
        source: None for the photographs bundled with scikit-image; a folder of pictures; a VOCdevkit or BSDS500 root;
            an `.npz` with `pictures` uint8[N, H, W] or [N, H, W, 3], or with `inputs` uint8[N, H, W] and `targets`
            (uint8, uint16 or bool), which then take the place of `target`. Where there are folders `train` and `val`,
            they are the two sides; otherwise the split is drawn by picture.
        size: side of a crop, in pixels.
        tiles: the most crops per picture, from one grid in its centre; None: 4 for the bundled photographs, else 1.
        evaluation_share: the share of pictures to judge by, strictly between 0 and 1; each side gets at least one.
        split_seed: decides the split, and which pictures `limit` leaves.
        limit: the most pictures to read, at least 2; those that turn out unusable count.
        memory: the most bytes that crops may take, 3 per pixel. Of a folder with more, as many pictures as fit are
            drawn by `split_seed`, and `notes` says so.
        cache: "user" for a folder in the user's cache, another folder, or None. Keyed by content; never pruned. Only
            this library's own targets are stored, since a change in a user's function could not be seen.
        workers: threads; None: as many as processors, at most 8.
        progress: called with (done, total) pictures; not at all when the cache has the answer.

    Returns:
        The data set.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        FileNotFoundError: there is nothing at `source`.
        ValueError: an option is out of range, or fewer than two pictures can be used; says what was found.
    """
    opened = open_source(source)
    has_targets = any(item.target is not None for item in opened.items)
    recipe = Recipe(size, opened.tiles if tiles is None else tiles, evaluation_share, split_seed, limit)
    name = f"targets of {Path(opened.description).name}" if has_targets else target.name
    folder = _cache_folder(cache) if has_targets or target.function.__module__ == own_targets.__name__ else None
    goal = None if has_targets else target
    dataset = _make(opened, recipe, goal, folder, memory=memory, workers=workers, progress=progress)
    note = (f"the source has targets of its own; {target.name} was not computed",) if has_targets else ()
    return replace(dataset, target_name=name, notes=note + dataset.notes)


@strict
def make_pairs(
    inputs_dir: Path | str,
    targets_dir: Path | str,
    *,
    size: int = 256,
    tiles: int = 1,
    evaluation_share: float = 0.3,
    split_seed: Seed = 1,
    limit: int | None = None,
    memory: int = MEMORY,
    cache: CacheFolder = "user",
    workers: Count | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Makes a data set of the user's own task: a folder of pictures and a folder of targets.

    Files are matched by their path below the folder without the suffix. What has no partner, or a partner of another
    size, is skipped and counted. A target is grey, 8 or 16 bit; if one has 16 bits all are stored as uint16.

    Args:
        inputs_dir: pictures to look at.
        targets_dir: pictures to produce.
        size, tiles, evaluation_share, split_seed, limit, memory, cache, workers, progress: as for `make_dataset`.

    Returns:
        The data set; `binary` if every target pixel is 0 or the largest value.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        NotADirectoryError: one of the two is not a folder.
        ValueError: an option is out of range, or fewer than two pairs can be used; says what was found.
    """
    recipe = Recipe(size, tiles, evaluation_share, split_seed, limit)
    source = pair_source(inputs_dir, targets_dir)
    folder = _cache_folder(cache)
    dataset = _make(source, recipe, None, folder, memory=memory, workers=workers, progress=progress)
    return replace(dataset, target_name=Path(targets_dir).name)


def _cache_folder(cache: CacheFolder) -> Path | None:
    return store.user_folder() if cache == "user" else None if cache is None else Path(cache)


def _make(
    source: Source,
    recipe: Recipe,
    target: Target | None,
    folder: Path | None,
    *,
    memory: int,
    workers: int | None,
    progress: Progress | None,
) -> Dataset:
    recipe, notes = _within(memory, recipe, len(source.items))
    items = limited(source.items, recipe.limit, recipe.split_seed)
    key = "" if folder is None else _key(source._replace(items=items), recipe, target, workers)
    found = None if folder is None else store.load(folder, key)
    if found is not None:
        return replace(unpack(*found, source=source.description), notes=notes)
    crops = prepare_all(items, target, size=recipe.size, tiles=recipe.tiles, workers=workers, progress=progress)
    dataset = assemble(source._replace(items=items), recipe, crops, binary=target.binary if target else None)
    note = None if folder is None else store.save(folder, key, *pack(dataset))
    return replace(dataset, notes=notes if note is None else (*notes, note))


def _within(memory: int, recipe: Recipe, pictures: int) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe with a limit that the crops of as many pictures keep to, and a note where that leaves some out."""
    fits = memory // (BYTES_PER_PIXEL * recipe.tiles * recipe.size**2)
    if fits < 2:
        raise ValueError(f"memory={memory} does not hold the crops of two pictures; allow more, or a smaller size")
    if fits >= (pictures if recipe.limit is None else min(recipe.limit, pictures)):
        return recipe, ()
    note = f"of {pictures} pictures {fits} were drawn, whose crops fit into {memory} bytes; memory= allows more"
    return replace(recipe, limit=fits), (note,)


def _key(source: Source, recipe: Recipe, target: Target | None, workers: int | None) -> str:
    """A key of all that decides the arrays: bytes rather than dates of the files, names, options, target."""

    def line(item: Item) -> tuple[str, ...]:
        return (item.name, item.side or "", store.digest_content(item.picture), store.digest_content(item.target))

    lines = list(in_parallel(line, source.items, workers))
    goal = (target.function.__qualname__, target.options) if target else None
    return store.make_key(lines, sorted(source.skipped.items()), astuple(recipe), goal)
