"""What a program meets at its outputs: encodings that lack a letter, readers that went away, and no output at all.

Imports nothing of maskprune, so that a program's `--help` need not wait for JAX, and knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any


NO_READER = 141  # as shells have it after SIGPIPE
PLAIN = {
    "✔": "+", "✘": "x", "■": "#", "□": ".", "×": "x", "²": "2", "–": "-", "…": "...", "·": "*", "⁻": "-", "\u202f": " ",
}  # fmt: skip


@contextlib.contextmanager
def outputs() -> Iterator[None]:
    """Around a whole program: what an output cannot encode is written as `\\u2714`, and a reader who has seen enough
    (`--help | head`) ends the program without a word.

    Raises:
        SystemExit: With 141, where nobody reads any more.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the program began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  (for as long as the program runs)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except BrokenPipeError:
        discard_outputs()
        raise SystemExit(NO_READER) from None


def discard_outputs() -> None:
    """Sends what outputs that fail still hold nowhere, so that Python has nothing to complain of at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, or none any more
            try:
                stream.flush()
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


def encodable(text: str, stream: Any) -> str:
    """Text in letters that a stream can encode: plain ones in place of marks and squares, and else `\\u2714`."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
        return text
    except (UnicodeEncodeError, LookupError):
        plain = "".join(letter if _fits(letter, encoding) else PLAIN.get(letter, letter) for letter in text)
        return "".join(letter if _fits(letter, encoding) else ascii(letter)[1:-1] for letter in plain)


def _fits(letter: str, encoding: str) -> bool:
    try:
        letter.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
