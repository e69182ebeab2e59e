"""What can go wrong when a network is written for other programs."""

from __future__ import annotations


class ExportError(RuntimeError):
    """What was written does not compute what the function does, or cannot be written."""


class Uncovered(ValueError):
    """Part of a function that a format does not cover."""


class Unfit(ValueError):
    """A function does not run on inputs of some size.

    Attributes:
        leaves: The parameters that the failing operation read, such as "`d1/kernel` of shape (24, 3)".
        place: The line of the user's code, such as `model.py:12`; "" where none is known.
    """

    def __init__(self, line: str, leaves: tuple[str, ...] = (), place: str = "") -> None:
        super().__init__(line)
        self.leaves, self.place = leaves, place


def first_line(error: BaseException) -> str:
    """The first line of a message, short enough to stand in another; its end often says most."""
    line = next(iter(str(error).splitlines()), type(error).__name__)
    return line if len(line) <= 400 else f"{line[:200]} … {line[-200:]}"
