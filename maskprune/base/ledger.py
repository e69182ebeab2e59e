"""The rows of a long study on disk, so that it goes on where it was interrupted.

A file of JSON lines: the first one says what the study is, every other one is a row. Every line holds a check of its
own; a line that was cut short by a crash or altered since is passed over. Rows are only ever added. Knows nothing of
what they mean.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from maskprune.base.files import read_file, replace_file


Row = dict[str, Any]


class Ledger:
    """Rows that survive the program that wrote them.

    Attributes:
        path: The file.
        about: What the study is: configuration, versions, whatever its reader should know.
        rows: All sound rows so far, oldest first.
        damaged: The numbers of the lines that were passed over, from 1.
    """

    def __init__(
        self, path: Path, about: Mapping[str, Any], rows: Iterable[Row] = (), damaged: Iterable[int] = ()
    ) -> None:
        self.path, self.about, self.rows, self.damaged = path, dict(about), list(rows), list(damaged)

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
                other = _difference(found.about.get(name), about.get(name))
                raise ValueError(
                    f"`{path}` holds a run or study with another {name}: {other}. Go on with that one, or use another "
                    "output folder."
                )
        return found

    @classmethod
    def read(cls, path: Path | str) -> Ledger:
        """Reads a ledger. Raises ValueError if the file is none, or its first line is damaged."""
        lines = read_file(path).split(b"\n")
        found = [(number, _sound(line)) for number, line in enumerate(lines, 1) if line]
        if not found or found[0][1] is None:
            raise ValueError(f"`{path}` is no record of a run or study, or its first line was altered.")
        rows = [row for _, row in found[1:] if row is not None]
        return cls(Path(path), found[0][1], rows, [number for number, row in found if row is None])

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows; once this returns they are on the disk.

        Raises:
            OSError: They cannot be written. The rows before them are safe, and the next ones can be added.
        """
        new = [json.loads(json.dumps(dict(row))) for row in rows]
        with self.path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() and _last_byte(file) != b"\n":
                file.write(b"\n")  # behind a line that was cut short
            file.write(b"".join(map(_line, new)))
            file.flush()
            os.fsync(file.fileno())
        self.rows += new

    def clear(self) -> None:
        """Drops all rows, and keeps what the study is."""
        replace_file(self.path, _line(self.about))
        self.rows, self.damaged = [], []

    def find(self, **values: Any) -> list[Row]:
        """The rows that hold these values."""
        return [row for row in self.rows if all(row.get(name) == value for name, value in values.items())]


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return file.read(1)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps({**row, "check": _check(row)}, allow_nan=True).encode() + b"\n"


def _sound(line: bytes) -> Row | None:
    """The row that a line holds, or None if the line is not what was written."""
    try:
        row = json.loads(line)
        return row if isinstance(row, dict) and row.pop("check", None) == _check(row) else None
    except (ValueError, RecursionError):
        return None


def _check(row: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(row, allow_nan=True).encode(), digest_size=8).hexdigest()


def _difference(old: Any, new: Any) -> str:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{old!r}, not {new!r}"
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(f"{name} is {old.get(name)!r}, not {new.get(name)!r}" for name in names)
