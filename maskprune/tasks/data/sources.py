"""Sources: where pictures come from, as one list of items to prepare.

A folder, a VOCdevkit or BSDS500 root, an `.npz` file, a pair of folders or the bundled photographs all become a
`Source`: items with a name, a picture, perhaps a ready target, and perhaps the side of the split that the folders ask
for. Nothing is decoded here, except arrays that come as arrays. It must know nothing of targets, crops or storage.
"""

from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from maskprune.base.archives import read_npz
from maskprune.tasks.data.pictures import bundled_pictures, find_pictures, picture_folders, to_grey


Side = Literal["train", "evaluation"]


class Item(NamedTuple):
    """One picture to prepare: its name, a file or uint8[H, W], a ready target or None, and its side if it has one."""

    name: str
    picture: Path | np.ndarray
    target: Path | np.ndarray | None = None
    side: Side | None = None


class Source(NamedTuple):
    """All items of a source, what was left out and why, and the tiles to take per picture if nobody says."""

    description: str
    items: list[Item]
    skipped: Counter[str]
    tiles: int = 1


def open_source(source: Path | str | None) -> Source:
    """The source that `make_dataset` means by its argument.

    Args:
        source: None for the bundled photographs, a folder, or an `.npz` file.

    Raises:
        FileNotFoundError: there is nothing at this path.
        ValueError: a file that is no `.npz`, or one without usable arrays.
    """
    if source is None:
        items = [Item(name, picture) for name, picture in bundled_pictures()]
        return Source("photographs bundled with scikit-image", items, Counter(), tiles=4)
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise FileNotFoundError(f"source={str(path)!r} does not exist; pass a folder of pictures, an .npz file or None")
    return _npz(path)


def _folder(root: Path) -> Source:
    items = [Item(path.relative_to(root).as_posix(), path) for path in find_pictures(root)]
    items, skipped = _with_sides(root, items)
    return Source(str(root), items, skipped)


def _with_sides(root: Path, items: list[Item]) -> tuple[list[Item], Counter[str]]:
    """Gives items below `train` and `val` their sides where both folders exist; then what is in neither is left out."""
    for base in picture_folders(root):
        if (base / "train").is_dir() and (base / "val").is_dir():
            break
    else:
        return items, Counter()
    prefix = "" if base == root else base.relative_to(root).as_posix() + "/"
    sided = [item._replace(side=_side(item.name.removeprefix(prefix))) for item in items]
    kept = [item for item in sided if item.side is not None]
    return kept, Counter({"outside train and val": len(items) - len(kept)})


def _side(name: str) -> Side | None:
    first = name.split("/", 1)[0]
    return "train" if first == "train" else "evaluation" if first == "val" else None


def pair_source(inputs_dir: Path | str, targets_dir: Path | str) -> Source:
    """Two folders, matched by the path of each file below its folder without the suffix.

    Args:
        inputs_dir: folder of pictures; `train` and `val` in it are honoured.
        targets_dir: folder of targets, arranged alike.

    Raises:
        NotADirectoryError: one of the two is not a folder.
    """
    inputs_dir, targets_dir = Path(inputs_dir), Path(targets_dir)
    inputs, doubled = _by_stem(inputs_dir)
    targets, doubled_targets = _by_stem(targets_dir)
    items = [
        Item(path.relative_to(inputs_dir).as_posix(), path, targets[stem])
        for stem, path in inputs.items()
        if stem in targets
    ]
    items, skipped = _with_sides(inputs_dir, items)
    skipped["input without target"] = len(inputs.keys() - targets.keys())
    skipped["target without input"] = len(targets.keys() - inputs.keys())
    skipped["name with two suffixes"] = doubled + doubled_targets
    return Source(f"{inputs_dir} with targets in {targets_dir}", items, skipped)


def _by_stem(root: Path) -> tuple[dict[str, Path], int]:
    paths = find_pictures(root)
    stems: dict[str, Path] = {}
    for path in paths:
        stems.setdefault(path.relative_to(root).with_suffix("").as_posix(), path)
    return stems, len(paths) - len(stems)


def _npz(path: Path) -> Source:
    arrays = _load_npz(path)
    if "pictures" in arrays:
        pictures = _checked(path, "pictures", arrays["pictures"], np.uint8)
        items = [Item(f"{i:06d}", to_grey(picture)) for i, picture in enumerate(pictures)]
    elif {"inputs", "targets"} <= arrays.keys():
        inputs = _checked(path, "inputs", arrays["inputs"], np.uint8)
        targets = _checked(path, "targets", arrays["targets"], np.uint8, np.uint16, np.bool_)
        if len(inputs) != len(targets):
            raise ValueError(f"{path}: {len(inputs)} inputs but {len(targets)} targets; there must be as many")
        items = [
            Item(f"{i:06d}", to_grey(x), _grey_target(t)) for i, (x, t) in enumerate(zip(inputs, targets, strict=True))
        ]
    else:
        names = ", ".join(map(repr, sorted(arrays))) or "nothing"
        raise ValueError(f"{path} holds {names[:200]}; it must hold `pictures`, or `inputs` and `targets`")
    return Source(str(path), items, Counter())


def _load_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path)
    except ValueError as error:
        raise ValueError(f"source={str(path)!r} is not a usable .npz file: {error}") from error


def _checked(path: Path, name: str, array: np.ndarray, *dtypes: type) -> np.ndarray:
    """The array as [N, H, W], or [N, H, W, 3] where colour makes sense."""
    if array.ndim == 4 and array.shape[-1] == 1:
        array = array[..., 0]
    colour = name != "targets" and array.ndim == 4 and array.shape[-1] == 3
    if array.dtype not in dtypes or not (array.ndim == 3 or colour):
        wanted = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise ValueError(f"{path}: {name} is {array.dtype}{list(array.shape)}; store {wanted} as [N, H, W]")
    return array


def _grey_target(target: np.ndarray) -> np.ndarray:
    return target.astype(np.uint8) * np.uint8(255) if target.dtype == np.bool_ else target


def limited(items: list[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` items, chosen by `seed`, in their order; each side keeps its share and at least one item."""
    if limit is None or limit >= len(items):
        return items
    rng = np.random.default_rng(seed)
    evaluation = [i for i, item in enumerate(items) if item.side == "evaluation"]
    others = [i for i, item in enumerate(items) if item.side != "evaluation"]
    count = max(1, limit * len(evaluation) // len(items)) if evaluation else 0
    chosen = [*rng.permutation(evaluation)[:count], *rng.permutation(others)[: limit - count]]
    return [items[int(i)] for i in sorted(chosen)]
