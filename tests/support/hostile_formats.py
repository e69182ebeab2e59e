"""Picture files from their parts, so that a test can lie in any of them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(values: np.ndarray | Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image = values if isinstance(values, Image.Image) else Image.fromarray(values)
    image.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes | None = None, *, extra: bytes = b"", kind: int = 0) -> bytes:
    """A PNG of 8 bits from its raw rows; without them, one that claims a size and holds nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(data or b"", 9))
    return b"\x89PNG\r\n\x1a\n" + header + extra + rows + chunk(b"IEND", b"")


def bmp(width: int, height: int, rle: bytes | None = None) -> bytes:
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, int(rle is not None), len(rle or b""), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 1024) + sizes + palette + (rle or b"")


def gif(width: int, height: int, blocks: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes((0, 0, 0, 255, 255, 255)) + blocks


def frame(left: int, top: int, width: int, height: int, data: bytes = b"\x02\x02\x44\x01\x00") -> bytes:
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + data


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"", *, following: int = 0) -> bytes:
    """A TIFF of one directory at place 8; a tag is (type, count, value or place of the value)."""
    body = struct.pack("<H", len(tags))
    body += b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\x00\x08\x00\x00\x00" + body + struct.pack("<I", following) + data


def tiff_tags(width: int, height: int, **changes: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The tags of an uncompressed grey picture whose strip begins at place 200; `t273=...` replaces one."""
    tags = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        273: 200,
        277: 1,
        278: height,
        279: min(width * height, 2**32 - 1),
    }
    return {tag: (4, 1, value) for tag, value in tags.items()} | {int(t[1:]): entry for t, entry in changes.items()}


def resized(content: bytes, place: bytes, after: int, size: bytes) -> bytes:
    """A picture whose header claims another size, written `after` bytes behind `place`."""
    at = content.index(place) + after
    return content[:at] + size + content[at + len(size) :]
