"""Writes the tables of `docs/findings.md` from the CSV files in `docs/findings/`, which the studies left.

A table stands between `<!-- NAME -->` and `<!-- end -->`; the words around it are not touched.

    python experiments/findings.py
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tyro

from maskprune.base.files import replace_file
from maskprune.report.terminal import outputs


PAGE = Path(__file__).parent.parent / "docs" / "findings.md"
Row = Mapping[str, str]


class Shown(NamedTuple):
    """A file under `docs/findings/`, and what of it the page shows.

    Attributes:
        file: Of a study.
        columns: {heading: (column, format of numbers)}; its interval is shown too if it has `_low` and `_high`.
        where: Which rows.
        order: By what they are sorted, if they are.
    """

    file: str
    columns: dict[str, tuple[str, str]]
    where: Callable[[Row], bool] = lambda row: True
    order: Callable[[Row], float] | None = None


def selectors(folder: str) -> Shown:
    columns = {
        "selector": ("selector", ""),
        "with drop": ("drop", "+.2f"),
        "with best": ("best", "+.2f"),
        "share of the ceiling": ("share of ceiling", ".0%"),
    }
    return Shown(f"{folder}/selectors.csv", columns, order=lambda row: float(row["best"] or "nan"))


def searches(folder: str) -> Shown:
    columns = {
        "strategy": ("strategy", ""),
        "threshold": ("threshold", ".2f"),
        "parents": ("parents", ".0f"),
        "undecided": ("undecided", ".0f"),
        "no regret": ("no regret", ".0%"),
        "masks": ("masks", ".2f"),
        "score ratio": ("score ratio", ".3f"),
        "steps, median": ("steps, median", ".0f"),
        "of the protocol's, most": ("share of the protocol's steps, most", ".1%"),
    }
    return Shown(f"{folder}/summary.csv", columns)


def means(file: str, *columns: str, where: Callable[[Row], bool] = lambda row: True) -> Shown:
    """Columns as they are, numbers with two digits."""
    return Shown(file, {name: (name, ".2f") for name in columns}, where)


TABLES = {
    "searches-sobel": searches("searches-sobel"),
    "baselines-sobel": searches("baselines-sobel"),
    "searches-threshold": searches("searches-threshold"),
    "baselines-threshold": searches("baselines-threshold"),
    "correlations-sobel": selectors("correlations-sobel"),
    "correlations-sobel-4": selectors("correlations-sobel-4"),
    "correlations-canny": selectors("correlations-canny"),
    "strategies": means(
        "strategies/summary.csv", "strategy", "threshold", "masks", "score ratio", "score ratio from scratch", "sizes"
    ),
    "grid": means("grid/comparison.csv", "way", "masks", "score", "score once trained", "steps", "found"),
    "reset": means("reset/reset.csv", "share of the session", "fresh", "kept", "fresh - kept"),
    "repairs": means("repairs/repairs.csv", "repair", "at_once", "after", "steps", "recovered"),
    "worth": means("worth/worth.csv", "test", "at_once", "after", "loss", where=lambda row: row["layer"] == "all"),
    "relearned": means(
        "worth/relearned.csv", "test", "like_itself", "like_another", "nearest", where=lambda row: row["layer"] == "all"
    ),
}


def cell(row: Row, column: str, form: str) -> str:
    """A value in words, with its interval if it has one."""

    def words(text: str) -> str:
        try:
            number = float(text)
        except ValueError:
            return text
        return "–" if not math.isfinite(number) else format(number, ".0f" if abs(number) >= 100 else form)

    value, low, high = row[column], row.get(f"{column}_low", ""), row.get(f"{column}_high", "")
    known = low and high and math.isfinite(float(low)) and math.isfinite(float(high))
    return f"{words(value)} ({words(low)} to {words(high)})" if known else words(value)


def markdown(shown: Shown, rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if shown.where(row)]
    chosen = sorted(chosen, key=shown.order) if shown.order else chosen
    lines = [[cell(row, column, form) for column, form in shown.columns.values()] for row in chosen]
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in [list(shown.columns), ["---"] * len(shown.columns), *lines]
    )


def filled(page: str, folder: Path) -> str:
    """The page with every table written anew.

    Raises:
        SystemExit: A table that is not known, or a file that is not there.
    """

    def table(found: re.Match[str]) -> str:
        name = found[1]
        if name not in TABLES:
            raise SystemExit(f"findings.py: the page has a table {name!r}; known are {', '.join(TABLES)}.")
        path = folder / TABLES[name].file
        if not path.exists():
            raise SystemExit(f"findings.py: {path} is missing; copy it from the folder of the study.")
        with path.open(newline="", encoding="utf-8") as file:
            return f"<!-- {name} -->\n{markdown(TABLES[name], list(csv.DictReader(file)))}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Writes the page."""
    replace_file(PAGE, filled(PAGE.read_text("utf-8"), PAGE.with_suffix("")).encode())


if __name__ == "__main__":
    with outputs():
        tyro.cli(main, description=__doc__)
