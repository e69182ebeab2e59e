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

from maskprune.ledger import Ledger, Row
from maskprune.memory import has_ended, read_answers


MEMORY = "memory"
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
    runs = [_ledger(first), _ledger(second)]
    return [*_other_answers(*runs), *_other_files(first, second), *_other_facts(*runs)]


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
    for path in sorted(first.rglob("result.json")):
        folder = path.parent.relative_to(first)
        for name in ("network.npz", "history.csv", "result.json"):
            one, other = ((root / folder / name).read_bytes() for root in (first, second))
            if _timeless(name, one) != _timeless(name, other):
                yield f"{folder / name} differs"


def _timeless(name: str, content: bytes) -> Any:
    """The content of a file without the times in it."""
    if name.endswith(".csv"):
        return [_without_times(row) for row in csv.DictReader(io.StringIO(content.decode()))]
    return _without_times(json.loads(content)) if name.endswith(".json") else content


def _without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not (name.endswith(TIMES) or name.startswith(TIMES))}


def _other_facts(one: Ledger, other: Ledger) -> Iterator[str]:
    then, now = one.about.get("facts", {}), other.about.get("facts", {})
    for name in then:
        if then[name] != now.get(name):
            yield f"{name} was {then[name]} and is {now.get(name)}"
