"""The rows of a long study on disk, so that it goes on where it was interrupted.

A file of JSON lines: the first one says what the study is, every other one is a row. Rows are only ever added; a line
that was cut short by a crash is dropped. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskprune.files import replace_file


Row = dict[str, Any]


class Ledger:
    """Rows that survive the program that wrote them.

    Attributes:
        path: The file.
        about: What the study is: configuration, versions, whatever its reader should know.
        rows: All rows so far, oldest first.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], rows: Iterable[Row] = ()) -> None:
        self.path, self.about, self.rows = path, dict(about), list(rows)

    @classmethod
    def open(cls, path: Path | str, about: Mapping[str, Any], *, same: Iterable[str] = ("config",)) -> Ledger:
        """Goes on with a study, or begins one.

        Args:
            path: The file; folders that are missing are made.
            about: What the study is, as JSON can hold it.
            same: Entries of `about` that must be what they were when the study was begun.

        Raises:
            ValueError: The file holds another study, or is no ledger.
        """
        path, about = Path(path), json.loads(json.dumps(about))
        if not path.exists():
            replace_file(path, _line(about))
            return cls(path, about)
        found = cls.read(path)
        for name in same:
            if found.about.get(name) != about.get(name):
                raise ValueError(
                    f"`{path}` holds a study with another {name}: {_difference(found.about.get(name), about.get(name))}"
                    f". Go on with that one, or use another output folder."
                )
        found._drop_what_is_torn()
        return found

    @classmethod
    def read(cls, path: Path | str) -> Ledger:
        """Reads a ledger. Raises ValueError if the file is none."""
        lines = Path(path).read_bytes().split(b"\n")[:-1]  # what follows the last line's end was cut short
        try:
            about, *rows = [json.loads(line) for line in lines]
        except ValueError as error:
            raise ValueError(f"`{path}` is no ledger of a study: {error}.") from error
        return cls(Path(path), about, rows)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows; once this returns they are on the disk."""
        new = [json.loads(json.dumps(dict(row))) for row in rows]
        with self.path.open("ab") as file:
            file.write(b"".join(map(_line, new)))
            file.flush()
            os.fsync(file.fileno())
        self.rows += new

    def find(self, **values: Any) -> list[Row]:
        """The rows that hold these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in values.items())]

    def _drop_what_is_torn(self) -> None:
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            replace_file(self.path, content[: content.rfind(b"\n") + 1])


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=True).encode() + b"\n"


def _difference(old: Any, new: Any) -> str:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old!r}, not {new!r}"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)!r}, not {new.get(name)!r}" for name in names)
