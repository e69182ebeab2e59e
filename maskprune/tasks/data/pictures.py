"""Pictures as grey arrays: finding the files and reading one.

A folder of a user's pictures holds everything: photographs, drawings with transparency, medical 16-bit files, half of a
download, a text file with the wrong suffix. This file decides once what becomes of each kind, and says so in
`read_picture`. It hands out plain numpy arrays and must know nothing of crops, targets, data sets or jax.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from maskprune.base.checks import Count, strict
from maskprune.tasks.data.opening import FORMATS, MAX_PIXELS, Opened, check_header, in_turn
from maskprune.tasks.data.opening import Skipped as Skipped


JPEGS, TIFFS = (".jpg", ".jpeg", ".jpe", ".jfif"), (".tif", ".tiff")
NETPBM = (".pbm", ".pgm", ".ppm", ".pnm", ".pfm")
SUFFIXES = frozenset((*JPEGS, *TIFFS, *NETPBM, ".png", ".apng", ".bmp", ".dib", ".gif", ".webp"))
STRIP = 1 << 22  # pixels that are turned to grey at once
BUNDLED = (
    "astronaut",
    "camera",
    "coffee",
    "chelsea",
    "rocket",
    "coins",
    "clock",
    "brick",
    "grass",
    "gravel",
)


def picture_folders(root: Path) -> list[Path]:
    """The folders below `root` that hold its pictures.

    Args:
        root: a VOCdevkit (or one year of it), a BSDS500 root (or its `data` folder), or any other folder.

    Returns:
        The `JPEGImages` folders of a VOC root; the `images` folder with `train`, `val` or `test` of a BSDS500 root;
        otherwise `[root]`.
    """
    voc = [folder for folder in sorted(root.glob("VOC*/JPEGImages")) if folder.is_dir()]
    if voc or (root / "JPEGImages").is_dir():
        return voc or [root / "JPEGImages"]
    for base in ("BSDS500/data/images", "data/images", "images"):
        if any((root / base / part).is_dir() for part in ("train", "val", "test")):
            return [root / base]
    return [root]


@strict
def find_pictures(root: Path | str) -> list[Path]:
    """All files below a folder that look like pictures, by their suffix.

    The suffix is a hint only: `read_picture` decides by content. Hidden files and folders are left out, links to
    folders are not followed (so loops are harmless), folders that may not be listed are passed over, and of several
    links to one file the first is kept.

    Args:
        root: a folder of any depth, or a VOCdevkit or BSDS500 root, of which only the photographs are taken.

    Returns:
        Paths, sorted by their path relative to `root`.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        NotADirectoryError: `root` is not a folder.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise NotADirectoryError(f"root={str(root)!r} is not a folder; pass a folder that holds pictures")
    found = [path for folder in picture_folders(root) for path in _walk(folder)]
    distinct: dict[str, Path] = {}
    for path in sorted(found, key=lambda path: path.relative_to(root).as_posix()):
        distinct.setdefault(os.path.realpath(path), path)
    return list(distinct.values())


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(parent, name)


@strict
def read_picture(path: Path | str, *, max_pixels: Count = MAX_PIXELS, deep: bool = False) -> np.ndarray:
    """Reads one file as a grey picture.

    | found | treatment |
    | --- | --- |
    | colour | BT.601 grey: 0.299 R + 0.587 G + 0.114 B, rounded |
    | palette, CMYK | converted to RGB, then as colour |
    | 1 bit | 0 or 255 |
    | 16-bit grey | divided by 257 and rounded (65535 becomes 255); 16-bit colour is cut to its upper 8 bits by Pillow |
    | wider integers | as 16-bit if all values fit, else skipped: "integers outside 16 bits" |
    | floats | times 255 if all finite and in [0, 1], else skipped: "floats outside [0, 1]" |
    | transparency | laid on white, as on paper (16-bit grey: ignored) |
    | EXIF orientation | applied; damaged EXIF data is ignored |
    | several frames | skipped: "animated"; a TIFF: "several pages"; a JPEG with previews (MPO): the first is taken |
    | more than `max_pixels`, or 400 MB | skipped: "too large", from the header, before anything is decoded |
    | more than half a million pixels in a BMP with run lengths, a PPM in text or of odd depth | likewise |
    | more than 32 million in a WebP | likewise |
    | hundreds of scans of a JPEG, a million chunks, blocks or comments | skipped: "too many parts" |
    | no bytes | skipped: "empty file" |
    | a pipe, device or folder | skipped: "not a file", without opening it |
    | damaged, cut short, another format, not permitted, gone | skipped: "unreadable" |

    Formats: PNG, JPEG, TIFF, BMP, GIF, PPM, WebP, recognised by content. Pillow's warnings are silenced during the call
    (process-wide, as Python's warning filters are).

    Args:
        path: the file; a link to a file is followed.
        max_pixels: the most pixels (width × height) to decode; Pillow's own limit, about 179 million, stays in force.
        deep: keep 16 bits where the file has them (16-bit grey, floats) and return uint16 for it.

    Returns:
        uint8[H, W]; with `deep`, uint8 or uint16.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        Skipped: the file cannot serve, for one of the reasons above.
    """
    with quiet_pillow():
        return decode_picture(path, max_pixels=max_pixels, deep=deep)


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keeps Pillow's warnings about odd files from reaching the user; they become reasons instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def decode_picture(path: Path | str, *, max_pixels: int = MAX_PIXELS, deep: bool = False) -> np.ndarray:
    """`read_picture` without touching the warning filters, which threads share: the caller does it once for all."""
    try:
        with Opened(path) as file, Image.open(file, formats=FORMATS) as image:
            check_header(image, file, max_pixels)
            with in_turn(image.width * image.height):
                _load_upright(image)
                return _grey(image, deep)
    except Skipped:
        raise
    except Image.DecompressionBombError as error:
        raise Skipped("too large") from error
    except Exception as error:  # damaged files make decoders raise nearly every built-in exception
        raise Skipped("unreadable") from error


def _load_upright(image: Image.Image) -> None:
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # the pixels are fine: a damaged note about them must not cost the picture
        return


def _grey(image: Image.Image, deep: bool) -> np.ndarray:
    """Strip by strip: a large picture is held once, and not five times in the types on the way."""
    rows = max(1, STRIP // image.width)
    strips = [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]
    first = _grey_strip(image.crop(strips[0]), deep)
    grey = np.empty((image.height, image.width), first.dtype)
    grey[: len(first)] = first
    for strip in strips[1:]:
        grey[strip[1] : strip[3]] = _grey_strip(image.crop(strip), deep)
    return grey


def _grey_strip(image: Image.Image, deep: bool) -> np.ndarray:
    if image.mode.startswith("I"):
        return _from_integers(np.asarray(image), deep)
    if image.mode == "F":
        return _from_floats(np.asarray(image), deep)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return _bt601(image)


def _bt601(image: Image.Image) -> np.ndarray:
    # Pillow's RGB to L is BT.601 in 16-bit fixed point with rounding. A grey picture passes through it unchanged.
    return np.array(image if image.mode == "L" else image.convert("RGB").convert("L"))


def _from_integers(values: np.ndarray, deep: bool) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise Skipped("integers outside 16 bits")
    return values.astype(np.uint16) if deep else ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _from_floats(values: np.ndarray, deep: bool) -> np.ndarray:
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise Skipped("floats outside [0, 1]")
    dtype = np.uint16 if deep else np.uint8
    return np.rint(values.astype(np.float64) * np.iinfo(dtype).max).astype(dtype)


def to_grey(picture: np.ndarray) -> np.ndarray:
    """BT.601 grey of an array.

    Args:
        picture: uint8[H, W] (returned as it is) or uint8[H, W, 3].

    Returns:
        uint8[H, W].
    """
    return picture if picture.ndim == 2 else _bt601(Image.fromarray(picture))


def bundled_pictures() -> list[tuple[str, np.ndarray]]:
    """The ten photographs inside the scikit-image package: no download, clear licences.

    Returns:
        (name, uint8[H, W]) pairs, always in the same order; the smallest side is 300 pixels.
    """
    from skimage import data  # late: it takes a noticeable part of a second

    return [(name, to_grey(np.asarray(getattr(data, name)()))) for name in BUNDLED]
