"""Whether two runs that should be the same are: answer by answer, and by what they left behind.

Reads the folders of runs only; times are left out, of which no two runs have the same. Knows nothing of how runs are
made.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskprune.base.files import read_file
from maskprune.base.ledger import Ledger, Row
from maskprune.minimizer.answers import has_ended, read_answers
from maskprune.tasks import models


MEMORY, NETWORK, HISTORY = "memory", "network.npz", "history.csv"
RESULT, REPORT = "result.json", "report.html"
NEEDED = {
    *(f"{size}_{when}" for size in ("masks", "multiply_adds") for when in ("before", "after")),
    *("seed", "final_score", "score_ratio", "relative_rmse", "steps", "seconds", "stop", "interrupted"),
}
TIMES = ("seconds", "inference_ms")  # what the names of measured times begin or end with


def differences(first: Path | str, second: Path | str) -> list[str]:
    """In what two finished runs differ, in sentences; the answer that came first, first. Empty if they are the same.

    Compared are the circumstances (versions, device), every answer of training, evaluation and selection, the bytes of
    every `network.npz`, and every `history.csv` and `result.json` but for times.

    Raises:
        ValueError: One of them is not finished.
        OSError: A file is missing.
    """
    first, second = Path(first), Path(second)
    check_files(first)
    runs = [_ledger(first), _ledger(second)]
    return [*_other_answers(*runs), *_other_files(first, second), *_other_facts(*runs)]


def check_files(folder: Path | str) -> None:
    """Whether what a finished run left is there and sound: what `differences` compares.

    Raises:
        ValueError: A file is damaged, or the run is not finished.
        OSError: A file is missing, or cannot be read.
    """
    folder = Path(folder)
    for place in _places(folder):
        models.load(folder / place / NETWORK)
        for name in (HISTORY, RESULT):
            _timeless(folder / place / name)


def results(folder: Path | str) -> list[dict[str, Any]]:
    """What the `result.json` of a finished run hold; one for every search.

    Raises:
        ValueError, OSError: See `check_files`.
    """
    check_files(folder)
    found = []
    for place in _places(Path(folder)):
        path, page = (Path(folder) / place / name for name in (RESULT, REPORT))
        found.append(json.loads(read_file(path)))
        if missing := NEEDED - found[-1].keys():
            raise ValueError(f"`{path}` is no result of a search: it lacks {sorted(missing)[0]!r}.")
        if not read_file(page).rstrip().endswith(b"</html>"):
            raise ValueError(f"`{page}` is damaged: its end is missing.")
    return found


def count_answers(folder: Path | str) -> int:
    """How many different questions a run asked."""
    return len(_answers(_ledger(Path(folder))))


def _ledger(folder: Path) -> Ledger:
    found = read_answers(folder / MEMORY)
    if not has_ended(found):
        raise ValueError(f"The run in `{folder}` is not finished: --resume it first.")
    return found


def _answers(run: Ledger) -> dict[str, tuple[str, Any]]:
    """Every answer by its question, with the name of who was asked, in the order in which they were given."""
    rows: list[Row] = [row for row in run.rows if "asked" in row]
    return {row["asked"]: (row["name"], row.get("ended", json.dumps(row.get("answer")))) for row in rows}


def _other_answers(one: Ledger, other: Ledger) -> Iterator[str]:
    answers, others = _answers(one), _answers(other)
    counts: dict[str, int] = {}
    for asked, (name, answer) in answers.items():
        counts[name] = counts.get(name, 0) + 1
        if asked not in others:
            yield f"{name} {counts[name]} was asked something else"
        elif others[asked][1] != answer:
            yield f"{name} {counts[name]} was asked the same, and gave another answer"
    if extra := others.keys() - answers.keys():
        yield f"the second run asked {len(extra)} questions that the first did not"


def _other_files(first: Path, second: Path) -> Iterator[str]:
    for folder in _places(first):
        for name in (NETWORK, HISTORY, RESULT):
            one, other = (_timeless(root / folder / name) for root in (first, second))
            if one != other:
                yield f"{folder / name} differs"


def _places(folder: Path) -> list[Path]:
    """Where in its folder a finished run left what it found, a place for every search."""
    (ended, *_) = _ledger(folder).find(finished=True)
    named = ended.get("folders") or sorted(path.parent.relative_to(folder) for path in folder.rglob(RESULT))
    return [Path(each) for each in named] or [Path()]  # a run of an earlier version did not say


def _timeless(path: Path) -> Any:
    """The content of a file without the times in it."""
    content = read_file(path)
    try:
        if path.suffix == ".csv":
            rows = [_without_times(row) for row in csv.DictReader(io.StringIO(content.decode()), strict=True)]
            if not rows or any(None in row or None in row.values() for row in rows):
                raise ValueError("a row has more or fewer columns than the first line names")
            return rows
        return _without_times(json.loads(content)) if path.suffix == ".json" else content
    except (ValueError, AttributeError, RecursionError, csv.Error) as error:
        raise ValueError(f"`{path}` is damaged, or not what a run writes: {error}.") from error


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (name.endswith(TIMES) or name.startswith(TIMES))}


def _other_facts(one: Ledger, other: Ledger) -> Iterator[str]:
    then, now = one.about.get("facts", {}), other.about.get("facts", {})
    for name in then:
        if then[name] != now.get(name):
            yield f"{name} was {then[name]} and is {now.get(name)}"
