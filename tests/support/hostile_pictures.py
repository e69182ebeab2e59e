"""A folder of broken and odd picture files, made from a seed, with what must become of each.

    python tests/hostile_pictures.py DIR

Nothing binary is kept in the repository: good pictures are written here, then cut, bent and lied about. `make_corpus`
returns a `Case` per file; whatever reads the folder can be compared with it file by file and in its counts.
"""

import io
import os
import pickle
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from hostile_formats import bmp, chunk, encode, frame, gif, png, resized, tiff, tiff_tags
from PIL import Image


KEPT, EITHER, HIDDEN = "kept", "either", "not listed"
UNREADABLE, LARGE, PARTS = "unreadable", "too large", "too many parts"
SHAPE = (40, 36)
PILLOW = int(PIL.__version__.partition(".")[0])
ENCODINGS = {
    "png": {"format": "PNG"},
    "jpg": {"format": "JPEG", "quality": 95},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"},
    "pgm": {"format": "PPM"},
    "webp": {"format": "WEBP", "lossless": True},
}


class Case(NamedTuple):
    """One file: its name below the folder, its bytes, and what must become of it.

    Attributes:
        name: may hold bytes that are no text.
        content: the file; None where something else than a plain file is made.
        expected: "kept", the reason why not, "either" (damage that a format cannot notice) or "not listed".
        values: the grey picture, uint8[H, W], where it can be known to the last bit.
    """

    name: bytes
    content: bytes | None
    expected: str
    values: np.ndarray | None = None


def make_corpus(folder: Path, seed: int = 0) -> list[Case]:
    """Writes all files into a folder, which is made. Equal seeds give equal files.

    Returns:
        What was made, links and pipes included.
    """
    rng = np.random.default_rng(seed)
    makers = (truncated, flipped, noise, misnamed, foreign, claims, bombs, odd, turned, named)
    return write(folder, (case for maker in makers for case in maker(rng))) + special(folder, rng)


def write(folder: Path, cases: Iterable[Case]) -> list[Case]:
    """Writes some files into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = list(cases)
    for case in cases:
        path = os.path.join(os.fsencode(folder), case.name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "xb") as file:
            file.write(case.content or b"")
    return cases


def picture(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape or SHAPE, np.uint8)


def truncated(rng: np.random.Generator) -> Iterator[Case]:
    for ending, options in ENCODINGS.items():
        content = encode(picture(rng), **options)
        yield Case(f"cut/whole.{ending}".encode(), content, KEPT)
        for share in (0, 0.002, 0.01, 0.03, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97):
            cut = content[: int(share * len(content))]
            yield Case(f"cut/{share}.{ending}".encode(), cut, UNREADABLE if cut else "empty file")


def flipped(rng: np.random.Generator) -> Iterator[Case]:
    for ending, options in ENCODINGS.items():
        for i in range(8):
            content = bytearray(encode(picture(rng), **options))
            for place in rng.integers(0, len(content), 1 + i):
                content[place] ^= 1 << int(rng.integers(8))
            yield Case(f"flip/{i}.{ending}".encode(), bytes(content), EITHER)


def noise(rng: np.random.Generator) -> Iterator[Case]:
    for ending in ENCODINGS:
        yield Case(f"noise/all.{ending}".encode(), rng.bytes(3000), UNREADABLE)
        head = encode(picture(rng), **ENCODINGS[ending])[:16]
        yield Case(f"noise/headed.{ending}".encode(), head + rng.bytes(3000), EITHER)
    for i, size in enumerate((1, 2, 3, 7, 8, 100, 4096)):
        yield Case(f"noise/zeros{i}.png".encode(), bytes(size), UNREADABLE)


def misnamed(rng: np.random.Generator) -> Iterator[Case]:
    for ending, other in zip(ENCODINGS, [*list(ENCODINGS)[1:], "png"], strict=True):
        values = picture(rng)
        known = None if "JPEG" in ENCODINGS[ending]["format"] else values
        content = encode(values, **ENCODINGS[ending])
        yield Case(f"misnamed/{ending.replace('.', '-')}.{other}".encode(), content, KEPT, known)
        yield Case(f"misnamed/{ending}.txt".encode(), content, HIDDEN)
    yield Case(b"misnamed/upper.PNG", encode(values := picture(rng), "PNG"), KEPT, values)
    yield Case(b"misnamed/.hidden.png", encode(picture(rng), "PNG"), HIDDEN)
    yield Case(b"misnamed/bare", encode(picture(rng), "PNG"), HIDDEN)


class Payload:
    """What a pickle would do to whoever loads it."""

    def __reduce__(self):
        return os.mkdir, ("pickle-was-loaded",)


def foreign(rng: np.random.Generator) -> Iterator[Case]:
    """Formats that are not on the list, some of which Pillow would read, or hand to other programs."""
    for name in (
        "ICO",
        "ICNS",
        "EPS",
        "PCX",
        "TGA",
        "SGI",
        "DDS",
        "MSP",
        "XBM",
        "SPIDER",
        "JPEG2000",
        "AVIF",
    ):
        side = picture(rng, 32, 32)
        image = Image.fromarray(side > 99) if name in ("MSP", "XBM") else Image.fromarray(side)
        with suppress(KeyError, OSError):  # not in every build of Pillow
            yield Case(f"foreign/{name}.png".encode(), encode(image, name), UNREADABLE)
    archive, arrays = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("../../escaped.png"), encode(picture(rng), "PNG"))
    np.save(arrays, picture(rng))
    text = {
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 36\n(x) (w) file\n",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><script>alert(1)</script></svg>",
        "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
        "html": b"<html><script>alert(1)</script><img src=x onerror=alert(1)></html>",
        "psd": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 36, 40, 8, 3) + bytes(9000),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(2000),
        "exe": b"MZ" + bytes(2000),
        "sh": b"#!/bin/sh\ntouch was-run\n",
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "wmf": b"\xd7\xcd\xc6\x9a" + bytes(2000),
        "xpm": b'/* XPM */\nstatic char *a[] = {"40 36 1 1", "a c #ffffff"};',
        "qoi": b"qoif" + struct.pack(">II", 36, 40) + b"\x03\x00" + bytes(900),
        "pickle": pickle.dumps(Payload()),
        "zip": archive.getvalue(),
        "npy": arrays.getvalue(),
    }
    for i, (name, content) in enumerate(text.items()):
        for ending in ("png", "jpg", "tiff"):
            yield Case(f"foreign/{i}.{name}.{ending}".encode(), content, UNREADABLE)


def claims(rng: np.random.Generator) -> Iterator[Case]:
    """Headers that claim sizes beyond any limit, and sizes that are none."""
    for side in (8_001, 30_000, 65_535, 1_000_000, 2**31 - 1):
        yield Case(f"claims/{side}.png".encode(), png(side, side), LARGE)
        yield Case(f"claims/{side}.bmp".encode(), bmp(side, side), LARGE)
        yield Case(f"claims/{side}.tif".encode(), tiff(tiff_tags(side, side)), LARGE)
        yield Case(f"claims/{side}.pgm".encode(), b"P5\n%d %d\n255\n" % (side, side), LARGE)
    for side in (8_001, 30_000, 65_535):
        jpeg, size = encode(picture(rng), "JPEG"), struct.pack(">HH", side, side)
        yield Case(f"claims/{side}.jpg".encode(), resized(jpeg, b"\xff\xc0", 5, size), LARGE)
        yield Case(f"claims/{side}.gif".encode(), gif(side, side, frame(0, 0, 1, 1) + b";"), LARGE)
        yield Case(f"claims/outside{side}.gif".encode(), gif(9, 9, frame(9, 9, side - 9, side - 9) + b";"), LARGE)
    webp = resized(encode(picture(rng), "WEBP"), b"\x9d\x01\x2a", 3, struct.pack("<HH", 16_383, 16_383))
    yield Case(b"claims/16383.webp", webp, LARGE if PILLOW >= 13 else UNREADABLE)
    yield Case(b"claims/tile.tif", tiff(tiff_tags(40, 36, t322=(4, 1, 40_000), t323=(4, 1, 40_000))), LARGE)
    for name, content in {
        "zero.png": png(0, 40),
        "zero.bmp": bmp(0, 40),
        "zero.tif": tiff(tiff_tags(0, 40)),
        "zero.pgm": b"P5\n0 40\n255\n",
        "minus.pgm": b"P5\n-40 -40\n255\n" + bytes(1600),
        "digits.pgm": b"P5\n" + b"9" * 5000 + b" 1\n255\n",
        "depth.pgm": b"P5\n40 36\n70000\n" + bytes(9000),
        "nan.pfm": b"Pf\n40 36\nnan\n" + bytes(9000),
        "strip.tif": tiff(tiff_tags(40, 36, t273=(4, 1, 2**32 - 1))),
        "short.tif": tiff(tiff_tags(40, 36)),
        "count.tif": tiff(tiff_tags(40, 36, t279=(4, 2**32 - 1, 8))),
        "unknown.tif": tiff(tiff_tags(40, 36, t259=(4, 1, 9999))),
        "far.tif": b"II*\x00\xff\xff\xff\xff" + bytes(100),
        "itself.tif": b"II*\x00\x04\x00\x00\x00" + bytes(100),
    }.items():
        yield Case(b"claims/" + name.encode(), content, UNREADABLE)


def bombs(rng: np.random.Generator) -> Iterator[Case]:
    """Small files that would be much work."""
    rows, grey = bytes(37 * 40), np.zeros(SHAPE, np.uint8)
    long = zlib.compress(bytes(100_000_000), 9)
    yield Case(b"bombs/flat.png", png(2000, 1500, bytes(2001 * 1500)), KEPT, np.zeros((1500, 2000), np.uint8))
    yield Case(b"bombs/behind.png", png(36, 40, rows + bytes(100_000_000)), EITHER)
    yield Case(b"bombs/text.png", png(36, 40, rows, extra=chunk(b"zTXt", b"a\0\0" + long)), EITHER)
    yield Case(b"bombs/language.png", png(36, 40, rows, extra=chunk(b"iTXt", b"a\0\1\0\0\0" + long)), EITHER)
    yield Case(b"bombs/profile.png", png(36, 40, rows, extra=chunk(b"iCCP", b"a\0\0" + long)), EITHER)
    yield Case(b"bombs/texts.png", png(36, 40, rows, extra=chunk(b"tEXt", b"a\0" + bytes(900_000)) * 80), EITHER)
    yield Case(b"bombs/chunks.png", png(36, 40, rows, extra=chunk(b"abCd", b"") * 320_000), PARTS)
    yield Case(b"bombs/behind-chunks.png", png(36, 40, rows)[:-12] + chunk(b"abCd", b"") * 320_000, PARTS)
    yield Case(b"bombs/comment.pgm", b"P5\n#" + b" " * 1_000_000 + b"\n36 40\n255\n" + grey.tobytes(), PARTS)
    yield Case(b"bombs/spaces.pgm", b"P5" + b" " * 1_000_000 + b"36 40\n255\n" + grey.tobytes(), PARTS)
    yield Case(b"bombs/plain.ppm", b"P3\n1000 1000\n255\n" + b"1 " * 3_000_000, LARGE)
    yield Case(b"bombs/depth.pgm", b"P5\n1000 1000\n4095\n" + bytes(2_000_000), LARGE)
    yield Case(b"bombs/rle.bmp", bmp(60_000, 1_000, b"\0\2\xff\xff" * 1000), LARGE)
    yield Case(b"bombs/lines.bmp", bmp(500_000, 1, b"\1\1\0\0" * 1000 + b"\0\1"), EITHER)
    yield Case(b"bombs/jumps.bmp", bmp(500_000, 1, b"\0\2\xff\xff" * 1000), EITHER)
    yield Case(b"bombs/frames.gif", gif(36, 40, frame(0, 0, 36, 40) * 5_000 + b";"), "animated")
    yield Case(b"bombs/endless.gif", gif(36, 40, frame(0, 0, 36, 40) * 5_000), "animated")
    yield Case(b"bombs/comments.gif", gif(36, 40, b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0;"), UNREADABLE)
    yield Case(b"bombs/blocks.gif", gif(36, 40, b"!\xfe\1 \0" * 300_000 + frame(0, 0, 36, 40) + b";"), PARTS)
    loop = tiff(tiff_tags(36, 40), bytes(78) + bytes(1440), following=8)
    yield Case(b"bombs/loop.tif", loop, EITHER)
    same = {1000 + i: (7, 900_000, 0) for i in range(500)}
    yield Case(b"bombs/tags.tif", tiff(tiff_tags(36, 40) | same, bytes(1_000_000)), EITHER)
    yield Case(b"bombs/many.tif", tiff({t: (4, 1, 1) for t in range(65_000)} | tiff_tags(36, 40), bytes(2000)), EITHER)
    jpeg = encode(np.zeros((2000, 2000), np.uint8), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(b"\xff\xc4") : -2]
    yield Case(b"bombs/scans.jpg", jpeg[:-2] + last * 20_000 + b"\xff\xd9", PARTS)
    film = encode(values := picture(rng, 60, 60), "JPEG") + b"\xff\xda" * 500_000
    yield Case(b"bombs/film.jpg", film, KEPT, np.asarray(Image.open(io.BytesIO(encode(values, "JPEG")))))


def largest(rng: np.random.Generator) -> Iterator[Case]:
    """The most that is allowed, in the forms that take longest; not part of the corpus."""
    side = 8000
    for kind, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        yield Case(
            f"largest/{kind}.png".encode(), png(side, side, bytes((channels * side + 1) * side), kind=kind), KEPT
        )
    for mode in ("F", "I", "RGBA", "CMYK"):
        yield Case(
            f"largest/{mode}.tif".encode(), encode(Image.new(mode, (side, side)), "TIFF", compression="lzma"), KEPT
        )
    for mode in ("RGB", "CMYK"):
        progressive = encode(Image.new(mode, (side, side), 99), "JPEG", progressive=True)
        yield Case(f"largest/{mode}.jpg".encode(), progressive, KEPT)
    yield Case(b"largest/a.webp", encode(Image.new("RGB", (8000, 4000)), "WEBP", method=0), KEPT)
    yield Case(b"largest/a.gif", encode(Image.new("P", (side, side)), "GIF"), KEPT)
    yield Case(b"largest/depth.ppm", b"P6\n1000 500\n99\n" + bytes(1_500_000), KEPT)
    yield Case(b"largest/plain.ppm", b"P3\n1000 500\n255\n" + b"1 " * 1_500_000, KEPT)
    yield Case(b"largest/dots.bmp", bmp(1000, 500, (b"\2\1" * 500 + b"\0\0") * 500), KEPT)


def odd(rng: np.random.Generator) -> Iterator[Case]:
    """What is whole and unusual."""
    deep, small = rng.integers(0, 65_536, SHAPE).astype(np.uint16), picture(rng)
    scaled = ((deep.astype(np.uint32) + 128) // 257).astype(np.uint8)
    yield Case(b"odd/16.png", encode(deep, "PNG"), KEPT, scaled)
    deep = deep[::-1]
    yield Case(b"odd/16.tif", encode(deep, "TIFF"), KEPT, scaled[::-1])
    yield Case(b"odd/16.pgm", b"P5\n36 40\n65535\n" + deep[:, ::-1].astype(">u2").tobytes(), KEPT, scaled[::-1, ::-1])
    colour = struct.pack(">IIBBBBB", 36, 40, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + rng.bytes(36 * 6) for _ in range(40))
    parts = chunk(b"IHDR", colour) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    yield Case(b"odd/16rgb.png", b"\x89PNG\r\n\x1a\n" + parts, KEPT)
    yield Case(b"odd/signed.tif", encode(small.astype(np.int32) * 257, "TIFF"), KEPT, small)
    yield Case(b"odd/negative.tif", encode(-small.astype(np.int32) - 1, "TIFF"), "integers outside 16 bits")
    yield Case(b"odd/wide.tif", encode(small.astype(np.int32) + 70_000, "TIFF"), "integers outside 16 bits")
    share = rng.random(SHAPE, np.float32)
    yield Case(b"odd/float.tif", encode(share, "TIFF"), KEPT, np.rint(share * np.float64(255)).astype(np.uint8))
    for name, bad in {"nan": np.nan, "infinite": np.inf, "above": 1.5, "below": -0.1, "huge": 3e38}.items():
        share = rng.random(SHAPE, np.float32)
        share[7, 7] = bad
        yield Case(f"odd/{name}.tif".encode(), encode(share, "TIFF"), "floats outside [0, 1]")
    cmyk = Image.fromarray(picture(rng, *SHAPE, 4), "CMYK")
    yield Case(b"odd/cmyk.jpg", encode(cmyk, "JPEG"), KEPT)
    yield Case(b"odd/cmyk.tif", encode(cmyk, "TIFF"), KEPT)
    alpha = picture(rng, *SHAPE, 2)
    alpha[..., 1] = np.where(alpha[..., 1] > 99, 255, 0)
    shown = np.where(alpha[..., 1] > 0, alpha[..., 0], 255).astype(np.uint8)
    yield Case(b"odd/la.png", encode(Image.fromarray(alpha, "LA"), "PNG"), KEPT, shown)
    bits = picture(rng) > 127
    yield Case(b"odd/1.png", encode(bits, "PNG"), KEPT, np.where(bits, 255, 0).astype(np.uint8))
    yield Case(b"odd/1.tif", encode(~bits, "TIFF", compression="group4"), KEPT, np.where(bits, 0, 255).astype(np.uint8))
    yield Case(b"odd/1.pbm", encode(bits[::-1], "PPM"), KEPT, np.where(bits[::-1], 255, 0).astype(np.uint8))
    palette = Image.fromarray(picture(rng) % 4, "P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 255])
    greys = np.array([255, 76, 255, 255], np.uint8)[np.asarray(palette)]
    yield Case(b"odd/palette.png", encode(palette, "PNG", transparency=bytes((0, 255, 0, 255))), KEPT, greys)
    yield Case(b"odd/palette.gif", encode(palette, "GIF", transparency=0), KEPT)
    yield Case(
        b"odd/pages.tif", encode(small, "TIFF", save_all=True, append_images=[Image.fromarray(small)]), "several pages"
    )
    for name in ("GIF", "PNG", "WEBP"):
        more = [Image.fromarray(picture(rng)) for _ in range(3)]
        yield Case(
            f"odd/moving.{name}".encode().lower(), encode(small, name, save_all=True, append_images=more), "animated"
        )
    for name, shape in {"1x1": (1, 1), "row": (1, 3000), "column": (3000, 1), "31": (31, 400)}.items():
        yield Case(f"odd/{name}.png".encode(), encode(values := picture(rng, *shape), "PNG"), KEPT, values)


def turned(rng: np.random.Generator) -> Iterator[Case]:
    """Every EXIF orientation, three that do not exist, and notes that are broken."""
    upright = [lambda a: a, np.fliplr, lambda a: np.rot90(a, 2), np.flipud]
    upright += [np.transpose, lambda a: np.rot90(a, -1), lambda a: np.rot90(a, 2).T, lambda a: np.rot90(a, 1)]
    for orientation in (*range(1, 9), 0, 9, 65_535):
        exif, values = Image.Exif(), picture(rng)
        exif[0x0112] = orientation
        shown = upright[orientation - 1](values) if 1 <= orientation <= 8 else values
        for ending in ("png", "webp", "tif"):
            content = encode(values + ord(ending[0]), **ENCODINGS[ending], exif=exif)
            yield Case(f"turned/{orientation}.{ending}".encode(), content, KEPT, shown + ord(ending[0]))
    for i, note in enumerate((b"", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + rng.bytes(200))):
        content = encode(values := picture(rng), "PNG", exif=b"Exif\0\0" + note)
        yield Case(f"turned/broken{i}.png".encode(), content, KEPT, values)


NAMES = (
    b"new\nline", b"return\rand\ttab", b"escape\x1b[2J\x1b[31m\x07bell", b"quote'\"`", b"<img src=x onerror=alert(1)>",
    b"\"><script>alert(1)", b"javascript:alert(1)", b"&lt;b&gt;&amp;", b"[red]rich[bold]", b"[link=file:]x",
    b"\\[bold]", b"{{ 7 * 7 }}{% raw %}", b"$(touch was-run)`touch was-run`;|&", b"%s%n%x{0}", b"$x^2_{$\\frac",
    b"-rf --help", b"=1+1", b" spaces ", b"~", b"\xff\xfe\x80", b"caf\xe9", b"\xed\xa0\x80", b"\xe2\x80\xaeesrever",
    b"\x01\x02\x7f", b"\xf0\x9f\x98\x80", b"e\xcc\x81" * 20, b"x" * 251, b"a,b;c", b"con", b"..", b"\xc2\x9b31m",
)  # fmt: skip


def named(rng: np.random.Generator) -> Iterator[Case]:
    """Good pictures under names that are not."""
    for name in NAMES:
        yield Case(
            b"named/" + name + b".png",
            encode(values := picture(rng), "PNG"),
            KEPT if name[:1] != b"." else HIDDEN,
            values,
        )
    deep = b"/".join([b"deep"] * 60)
    yield Case(b"named/" + deep + b"/a.png", encode(values := picture(rng), "PNG"), KEPT, values)


def special(folder: Path, rng: np.random.Generator) -> list[Case]:
    """What is no plain file: links in circles and to nowhere, pipes, sockets, devices, holes, what may not be read."""
    place = folder / "special"
    (place / "folder.png").mkdir(parents=True)
    for name, target in {"self": "self.png", "there": "back.png", "back": "there.png", "nowhere": "gone/a.png"}.items():
        (place / f"{name}.png").symlink_to(target)
    (place / "up").symlink_to("..")
    (place / "zero.png").symlink_to("/dev/zero")
    (place / "whole.png").write_bytes(encode(values := picture(rng), "PNG"))
    (place / "z-again.png").symlink_to("whole.png")
    os.mkfifo(place / "pipe.png")
    with open(place / "hole.png", "wb") as file:
        file.truncate(1 << 40)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as end:  # a path may be too long for one
        end.bind(str(place / "socket.png"))
    (place / "forbidden.png").write_bytes(encode(picture(rng), "PNG"))
    (place / "forbidden.png").chmod(0)
    may = KEPT if os.access(place / "forbidden.png", os.R_OK) else UNREADABLE
    expected = {
        "self": UNREADABLE,
        "there": UNREADABLE,
        "back": UNREADABLE,
        "nowhere": UNREADABLE,
        "zero": "not a file",
    }
    expected |= {"pipe": "not a file", "hole": LARGE, "forbidden": may, "z-again": HIDDEN}
    expected |= {"socket": "not a file"} if (place / "socket.png").exists() else {}
    cases = [Case(f"special/{name}.png".encode(), None, what) for name, what in expected.items()]
    return [*cases, Case(b"special/whole.png", None, KEPT, values)]


if __name__ == "__main__":
    made = make_corpus(Path(sys.argv[1]))
    print(f"{len(made)} files in {sys.argv[1]}")
