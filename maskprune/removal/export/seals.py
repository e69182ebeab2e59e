"""Seals: a digest at the end of a file, or beside its arrays, that tells damage which the format itself would not.

A flipped bit in a weight gives another network and no error. Files from elsewhere carry no seal and are read as they
are. A seal tells damage, not origin: whoever means harm can write one.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import numpy as np


MOST_BYTES = 1 << 31  # what protobuf allows


def sealed(content: bytes, mark: bytes) -> bytes:
    """The content, a mark that the format's own readers pass over, and the digest as 64 letters."""
    return content + mark + hashlib.sha256(content).hexdigest().encode()


def read_sealed(path: Path, mark: bytes) -> bytes:
    """The bytes of a file, seal included.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no file, is empty or larger than 2 GiB, or its bytes are not those that were sealed.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MOST_BYTES:
        raise ValueError(f"`{path}` is no program: it is empty, larger than {MOST_BYTES} bytes, or no file.")
    content = Path(path).read_bytes()
    body = content[: -64 - len(mark)]
    if content[len(body) : -64] == mark and content != sealed(body, mark):
        raise ValueError(f"`{path}` is damaged: its bytes are not those that were written.")
    return content


def digest_arrays(arrays: Mapping[str, np.ndarray], text: str = "") -> str:
    """A digest of names, types, shapes and values, and of a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode(errors="surrogatepass"))
        digest.update(array.tobytes())
    return digest.hexdigest()
