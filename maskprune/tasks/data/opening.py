"""What is looked at before a picture is decoded, so that no file can take more time or memory than it is worth.

All limits stand here. A decoder believes what a file says of itself: how large it is, how often its parts are gone
through, how many there are. This file asks first, and knows nothing of grey values.
"""

import io
import os
import re
import stat
import threading
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from PIL import Image


FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM", "WEBP")
MAX_PIXELS = 64_000_000
MAX_BYTES = 400_000_000  # 64 million pixels of three times 16 bits
MAX_READS = 600_000  # of parts of one file: about a second's worth
# Decoders that Pillow has in Python take one or two microseconds per pixel; WebP keeps four copies while it decodes.
MAX_SLOW_PIXELS = 500_000
MAX_WEBP_PIXELS = 32_000_000
MAX_SCANNED = 1_500_000_000  # pixels × scans of a progressive JPEG, at 0.6 ns each where a scan holds nothing
# A picture above this many pixels needs some gigabyte for itself or for its target: such pictures take turns.
LARGE = 16_000_000
_large_pictures = threading.Lock()


class Skipped(Exception):
    """A file that cannot serve as a picture.

    Attributes:
        reason: a short, stable text to count by, such as "unreadable".
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class Opened(io.BufferedReader):
    """A file that is read a limited number of times.

    A file of many small parts, such as a million empty PNG chunks, would otherwise take minutes of somebody's Python.

    Raises:
        Skipped: it is no file, empty, too large, or cannot be opened.
    """

    def __init__(self, path: Path | str):
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                raise Skipped("not a file")
            if status.st_size == 0:
                raise Skipped("empty file")
            if status.st_size > MAX_BYTES:
                raise Skipped("too large")
            super().__init__(io.FileIO(path))
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise Skipped("unreadable") from error
        self.left = MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise Skipped("too many parts")
        return super().read(size)


def in_turn(pixels: int) -> AbstractContextManager[object]:
    """Lets one large picture at a time be worked on, and any number of others."""
    return _large_pictures if pixels > LARGE else nullcontext()


def check_header(image: Image.Image, file: Opened, max_pixels: int) -> None:
    """Looks at what a file says of itself, before anything is decoded.

    Raises:
        Skipped: it is larger than allowed, or animated.
    """
    pixels = image.width * image.height
    if pixels > min(max_pixels, _decodable(image)) or _tile_pixels(image) > max_pixels:
        raise Skipped("too large")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise Skipped("several pages" if image.format == "TIFF" else "animated")
    if image.format in ("JPEG", "MPO") and pixels * _count_scans(file) > MAX_SCANNED:
        raise Skipped("too many parts")


def _decodable(image: Image.Image) -> int:
    if any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ())):
        return MAX_SLOW_PIXELS
    return MAX_WEBP_PIXELS if image.format == "WEBP" else MAX_PIXELS


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of one tile of a TIFF, which is decoded whole even where the picture is smaller; 0 elsewhere."""
    tags = getattr(image, "tag_v2", {})
    width, height = (tags.get(tag, 0) for tag in (322, 323))
    return width * height if isinstance(width, int) and isinstance(height, int) else 0


def _count_scans(file: Opened) -> int:
    """How often a JPEG goes over its pixels, if that may be often."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    # Most have few of these two bytes anywhere. Where they are many, maybe in a film that a telephone has appended, the
    # segments are followed from one to the next.
    few = data.count(b"\xff\xda")
    return few if few <= 10 else _walk_scans(data)


def _walk_scans(data: bytes) -> int:
    scans, place = 0, 2
    marker = re.compile(
        rb"\xff([\x02-\xcf\xd9-\xfe])"
    )  # not a stuffed zero, a restart or a start: these have no length
    while (found := marker.search(data, place)) and found[1] != b"\xd9":
        scans += found[1] == b"\xda"
        place = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    return scans
