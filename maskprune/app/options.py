"""What is wrong with a command line, said before any work is done.

A problem is a pair `(wrong, sentence)`. The functions here make one for each kind of option; the sentence names the
option, what was found, and what would be right. A value that was not given, None, is never wrong. Nothing here knows
what the options are for.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # what is not given is filled in, from a preset, before anything reads it
    from typing import Never as Unset
else:
    Unset = None
UNSET: Any = None

Problem = tuple[Any, str]
MOST_STEPS = 2**31 - 1  # they are counted in 32 bits
MOST_NUMBERS = 2**31 - 1  # in one array: 8 GiB of float32, and beyond what XLA can index with 32 bits
SEEDS = 2**32  # a key of JAX takes 32 bits of a seed; larger ones would silently repeat smaller ones
MOST_TOGETHER = 1024  # searches or networks side by side, each with a thread of its own


def refuse(program: str, problems: Iterable[Problem]) -> None:
    """Ends the program at the first `(wrong, sentence)` that is wrong.

    Raises:
        SystemExit: Something is wrong. The sentence was printed; the exit code is 2, as for unreadable command lines.
    """
    for wrong, sentence in problems:
        if wrong:
            print(f"{program}: {sentence}.", file=sys.stderr)
            end = SystemExit(f"{program}: {sentence}.")
            end.code = 2
            raise end


def whole(name: str, value: int | None, least: int = 1, most: int = MOST_STEPS) -> Problem:
    """A whole number in [least, most]."""
    return value is not None and not least <= value <= most, f"{name} is {value}: use {least} or more, at most {most}"


def positive(name: str, value: float | None, *, zero: bool = False, endless: bool = False) -> Problem:
    """A positive number; `zero` and `endless` say whether 0 and infinity are right too."""
    right = lambda value: (value > 0 or (zero and value == 0)) and (endless or value < math.inf)
    words = ("0 or a" if zero else "a") + (" positive number" if endless else " positive, finite number")
    return value is not None and not right(value), f"{name} is {value}: use {words}"


def share(name: str, value: float | None, interval: str = "(0, 1]") -> Problem:
    """A share in an interval, as it is written: a bracket includes its end, a parenthesis does not."""
    inside = lambda value: 0 < value < 1 or (value == 0 and interval[0] == "[") or (value == 1 and interval[-1] == "]")
    return value is not None and not inside(value), f"{name} is {value}: use a share in {interval}"


def several(name: str, values: Sequence[Any] | None, check: Callable[[str, Any], Problem] | None = None) -> Problem:
    """One value or more, each of which `check(name, value)` finds right."""
    wrong = [sentence for is_wrong, sentence in (check(name, each) for each in values or () if check) if is_wrong]
    missing = values is not None and not len(values)
    return bool(wrong) or missing, f"{name} is empty: give one or more" if missing else next(iter(wrong), "")


def seeds(name: str, first: int, count: int | None = 1, by: str = "") -> Problem:
    """A first seed, and as many after it as the option `by` says."""
    last = SEEDS - max(1, count or 1)
    words = f", because of {by} {count}" if by and count != 1 else ""
    return not 0 <= first <= last, f"{name} is {first}: use 0 or more, at most {last}{words}"


def existing(name: str, path: Path | None) -> Problem:
    """A file that is there."""
    return path is not None and not os.path.isfile(path), f"{name} is {path}, which is no file: give one that is there"


def folder(name: str, path: Path | None) -> Problem:
    """A folder that is there."""
    wrong = path is not None and not os.path.isdir(path)
    return wrong, f"{name} is {path}, which is no folder: give one that is there"


def source(name: str, path: Path | None) -> Problem:
    """A folder, or an archive of arrays."""
    right = lambda path: os.path.isdir(path) or (os.path.isfile(path) and zipfile.is_zipfile(path))
    wrong = path is not None and not right(path)
    return wrong, f"{name} is {path}, which is neither: give a folder of pictures or an .npz file that is there"


def output(name: str, path: Path | None) -> Problem:
    """A folder to write to, or a place where one can be made."""
    there = path
    while there is not None and not os.path.lexists(there) and there != there.parent:
        there = there.parent
    wrong = there is not None and not (os.path.isdir(there) and os.access(there, os.W_OK))
    words = f"{there} is no folder that can be written to" if wrong else why_no_name(path)
    return words, f"{name} is {path}, but {words}: give another folder"


def why_no_name(path: Path | None) -> str:
    """Why the system takes no such name, or "": it is too long, or has a letter that no name may have."""
    try:
        for part in () if path is None else path.parts:  # one by one: the system looks no further than a missing folder
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                os.lstat(part)
    except (OSError, ValueError) as error:
        return f"that can be no name ({getattr(error, 'strerror', None) or error})"
    return ""


def network(widths: Sequence[int], kernel: int, *, crop: int, batch: int) -> list[Problem]:
    """What may be wrong with a network, and with training it on crops."""
    field = 1 + (kernel - 1) * (len(widths) + 1)
    channels = [1, *widths, 1]
    arrays = [kernel**2 * one * other for one, other in itertools.pairwise(channels)]
    largest = max(*arrays, batch * crop**2 * max(channels))
    return [
        several("--widths", widths, lambda name, value: whole(name, value, most=MOST_NUMBERS)),
        (len(widths) > 64, f"--widths has {len(widths)} layers: use at most 64"),
        (kernel < 1 or kernel % 2 == 0, f"--kernel is {kernel}: use an odd size"),
        (
            crop < field,
            f"--crop is {crop}: an output pixel sees {field} by {field} (by --kernel and the number of --widths), "
            f"so use at least {field}, or a smaller --kernel",
        ),
        (
            largest > MOST_NUMBERS,
            f"--widths, --kernel, --batch and --crop ask for an array of {largest} numbers: make them smaller, so that "
            f"none has more than {MOST_NUMBERS}",
        ),
    ]
