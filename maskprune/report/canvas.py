"""Pixel craft for ``drawings``: colours, text, strokes, and pictures placed beside or under each other.

Every function takes values and gives back a new picture, so a large picture is an expression over smaller ones. This
file knows PIL and NumPy and one palette; it must not know what a mask, a layer or a round is, and it imports nothing
from maskprune.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont


class Palette(NamedTuple):
    """The colours of every picture, as ``#rrggbb``; negative and positive also differ in lightness and in hue."""

    paper: str = "#131519"
    zero: str = "#20242b"
    ink: str = "#eceae4"
    faint: str = "#8f959f"
    rule: str = "#343a44"
    negative: str = "#ff5a4d"
    positive: str = "#35d399"
    broken: str = "#ffc83d"


PALETTE = Palette()
_DIMMED = 0.4  # what is left of a disabled mask: still readable, clearly not alive


def rgb(colour: str) -> np.ndarray:
    """``#rrggbb`` as f32[3] in 0–255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


def _blend(amount: np.ndarray, start: str, end: str) -> np.ndarray:
    return rgb(start) + amount[..., None] * (rgb(end) - rgb(start))


def _painted(colours: np.ndarray, finite: np.ndarray) -> Image.Image:
    painted = np.where(finite[..., None], colours, rgb(PALETTE.broken))
    return Image.fromarray(np.rint(painted).astype(np.uint8))


def signed(values: np.ndarray, peak: float) -> Image.Image:
    """One pixel per value of f32[H, W]: negative red, positive green, full colour at ``peak``, amber if not finite."""
    finite = np.isfinite(values)
    amount = np.clip(np.where(finite, values, 0.0) / (peak or 1.0), -1.0, 1.0).astype(np.float32)
    negative = _blend(-amount, PALETTE.zero, PALETTE.negative)
    return _painted(np.where((amount < 0)[..., None], negative, _blend(amount, PALETTE.zero, PALETTE.positive)), finite)


def bar(value: float, peak: float, size: tuple[int, int]) -> Image.Image:
    """A number as a bar from the middle: left and red if negative, right and green if positive, full at ``peak``."""
    result = Image.new("RGB", size, PALETTE.zero)
    draw, middle, bottom = ImageDraw.Draw(result), size[0] // 2, size[1] - 1
    end = middle + round(float(np.clip(np.nan_to_num(value) / (peak or 1.0), -1, 1)) * middle)
    if end != middle:
        colour = PALETTE.positive if end > middle else PALETTE.negative
        draw.rectangle((min(middle, end), 0, max(middle, end), bottom), fill=colour)
    draw.line((middle, 0, middle, bottom), fill=PALETTE.faint)
    return result


def peak(values: np.ndarray) -> float:
    """The largest magnitude among the finite values, 0 if there is none."""
    return float(np.abs(np.where(np.isfinite(values), values, 0.0)).max(initial=0.0))


def grey(values: np.ndarray, low: float, high: float) -> Image.Image:
    """One pixel per value of f32[H, W]: black at ``low``, white at ``high``, amber if not finite."""
    finite = np.isfinite(values)
    amount = np.clip((np.where(finite, values, low) - low) / ((high - low) or 1.0), 0.0, 1.0).astype(np.float32)
    return _painted(_blend(amount, "#000000", "#ffffff"), finite)


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    """Every pixel as a square of ``factor`` × ``factor`` pixels."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def fitted(image: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side at most ``side``: whole pixels when enlarged, averaged when shrunk."""
    longest = max(image.size)
    if longest <= side:
        return enlarged(image, side // longest)
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def dimmed(image: Image.Image) -> Image.Image:
    """The picture faded towards the paper."""
    return Image.blend(Image.new("RGB", image.size, PALETTE.paper), image, _DIMMED)


def struck(image: Image.Image, *, cross: bool, stroke: str = PALETTE.ink) -> Image.Image:
    """The picture dimmed, with one diagonal stroke over it, or two for a cross."""
    result = dimmed(image)
    draw, (right, bottom) = ImageDraw.Draw(result), (image.width - 1, image.height - 1)
    draw.line((0, bottom, right, 0), fill=stroke, width=2 if cross else 1)
    if cross:
        draw.line((0, 0, right, bottom), fill=stroke, width=2)
    return result


def dashed(image: Image.Image, where: np.ndarray, cell: int) -> Image.Image:
    """A dark minus sign in every chosen cell of an enlarged picture: where is bool[H, W], so colour is not alone."""
    result = image.copy()
    draw, margin = ImageDraw.Draw(result), cell // 3
    for y, x in np.argwhere(where) * cell:
        middle = y + cell // 2
        draw.line((x + margin, middle, x + cell - 1 - margin, middle), fill=PALETTE.paper, width=1)
    return result


@cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    # matplotlib ships this face, so that every machine draws the same letters
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def _line(words: str) -> str:
    # names of files may hold line breaks, and bytes that are no text, neither of which can be drawn
    return re.sub(r"[\r\n\v\f]+", " ", words.encode("utf8", "replace").decode())


def text(words: str, size: int, *, colour: str = PALETTE.ink, bold: bool = False) -> Image.Image:
    """One line of text on the paper, as high as the font's own line."""
    font, words = _font(size, bold), _line(words)
    width, height = int(np.ceil(font.getlength(words))), sum(font.getmetrics())
    result = Image.new("RGB", (max(1, width), height), PALETTE.paper)
    ImageDraw.Draw(result).text((0, 0), words, font=font, fill=colour)
    return result


def shortened(words: str, size: int, width: int, *, bold: bool = False) -> str:
    """``words`` cut with an ellipsis so that they fit into ``width`` pixels."""
    font, words = _font(size, bold), _line(words)
    if font.getlength(words) <= width:
        return words
    while words and font.getlength(words + "…") > width:
        words = words[:-1]
    return words + "…"


def blank(width: int, height: int) -> Image.Image:
    """Empty paper."""
    return Image.new("RGB", (max(1, width), max(1, height)), PALETTE.paper)


def beside(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Left to right, tops aligned."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    result, x = blank(width, max(image.height for image in images)), 0
    for image in images:
        result.paste(image, (x, 0))
        x += image.width + gap
    return result


def under(images: Sequence[Image.Image], gap: int, *, centred: bool = False) -> Image.Image:
    """Top to bottom, left edges aligned or centred."""
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    result, y = blank(max(image.width for image in images), height), 0
    for image in images:
        result.paste(image, ((result.width - image.width) // 2 if centred else 0, y))
        y += image.height + gap
    return result


def grid(images: Sequence[Image.Image], per_row: int, gap: int) -> Image.Image:
    """Row after row of at most ``per_row`` pictures."""
    rows = [images[start : start + per_row] for start in range(0, len(images), per_row)]
    return under([beside(row, gap) for row in rows], gap)


def framed(image: Image.Image, margin: int) -> Image.Image:
    """The picture with ``margin`` pixels of paper around it."""
    result = blank(image.width + 2 * margin, image.height + 2 * margin)
    result.paste(image, (margin, margin))
    return result
