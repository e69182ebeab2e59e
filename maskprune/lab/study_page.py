"""A study as one page: the question, tables with intervals, pictures, and the command that repeats it.

`write_study` takes plain rows and pictures. A cell may be a number with its interval, such as `statistics.Estimate` or
`statistics.Correlation`: the page shows it as one, and the CSV file beside it holds every part. This file must not know
how the numbers came about, nor matplotlib, jax or flax.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from maskprune.base.files import replace_file
from maskprune.report import wording as wording
from maskprune.report.page import render, write_plates


class Table(NamedTuple):
    """Rows under one name.

    Attributes:
        name: Of the CSV file, without its ending.
        caption: What it shows.
        rows: `{column: value}` each; values are text, numbers, or tuples with `value`, `low` and `high`.
    """

    name: str
    caption: str
    rows: Sequence[Mapping[str, Any]]


class Picture(NamedTuple):
    """A picture with its words, and the name of its file."""

    name: str
    title: str
    caption: str
    image: Image.Image


class Section(NamedTuple):
    """A part of the page: paragraphs, then pictures, then tables."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


class Column(NamedTuple):
    """A column of a table on the page; numbers stand to the right."""

    name: str
    title: str
    right: bool


def write_study(
    folder: Path,
    *,
    title: str,
    question: str,
    sections: Sequence[Section],
    command: str,
    answers: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    facts: Sequence[tuple[str, Any]] = (),
    version: str = "",
) -> Path:
    """Writes `NAME.csv` for every table, `pictures/NAME.png` for every picture, and `report.html`, which shows them.

    Equal arguments give equal bytes. Every value is escaped; the page loads nothing.

    Args:
        folder: Where to write; made if it does not exist.
        title: Of the page.
        question: What the study asks, in a sentence.
        sections: The evidence, in order.
        command: How to repeat the study.
        answers: The result in sentences, if it can be said in sentences.
        settings: The configuration, nested as it likes.
        facts: Names and values: data, device, versions.
        version: Of maskprune.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: Two tables, or two pictures, that would be the same file.
    """
    tables = [table for section in sections for table in section.tables]
    if len({table.name for table in tables}) < len(tables):
        raise ValueError(f"`sections` holds tables of the same name: {[table.name for table in tables]}; rename one.")
    for table in tables:
        replace_file(folder / f"{table.name}.csv", as_csv(table.rows))
    pictures = [picture for section in sections for picture in section.pictures]
    plates = iter(write_plates(folder, {each.name: (each.title, each.caption, each.image) for each in pictures}))
    values = {
        "title": title,
        "question": question,
        "answers": answers,
        "sections": [(section, [next(plates) for _ in section.pictures]) for section in sections],
        "command": command,
        "facts": facts,
        "settings": list(wording.flattened(settings)),
        "version": version,
    }
    page = render("study.html.j2", values, filters={"columns": _columns, "cell": _cell})
    return replace_file(folder / "report.html", page)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A table as a CSV file. `x` with an interval becomes `x`, `x_low`, `x_high` and whatever else it holds."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue().encode()


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        parts = value._asdict() if hasattr(value, "_asdict") else {"value": value}
        flat |= {name if part == "value" else f"{name}_{part}": each for part, each in parts.items()}
    return flat


def _columns(table: Table) -> list[Column]:
    names = dict.fromkeys(name for row in table.rows for name in row)
    words = lambda name: all(isinstance(row.get(name), str | None) for row in table.rows)
    return [Column(name, name.replace("_", " "), not words(name)) for name in names]


def _cell(value: Any) -> tuple[str, str]:
    """A value in words, and its interval."""
    if hasattr(value, "_asdict"):
        known = math.isfinite(value.low) and math.isfinite(value.high)
        return _number(value.value), f"{_number(value.low)} … {_number(value.high)}" if known else ""
    return _number(value), ""


def _number(value: Any) -> str:
    if isinstance(value, float):
        return wording.UNKNOWN if math.isnan(value) else f"{value:.2f}" if 0.1 <= abs(value) < 100 else _small(value)
    return wording.number(value)


def _small(value: float) -> str:
    return f"{value:.3f}" if 1e-3 <= abs(value) < 0.1 else "0" if value == 0 else wording.number(value, 2)
