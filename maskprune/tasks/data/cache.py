"""A cache of prepared arrays on disk, keyed by content.

An entry is one `.npz` file named by a digest of everything that decides its content: the bytes of the files, the
options and the versions of the libraries that compute. It is written under another name and then renamed, so that a
reader never meets half a file; an entry that cannot be read counts as absent. A cache that cannot be written is no
error, only a note. It stores arrays and a small dictionary and must know nothing of what they mean.
"""

import hashlib
import json
import os
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from maskprune.base.archives import read_npz
from maskprune.tasks.data.opening import MAX_BYTES


# Raise it when the meaning of an entry changes.
FORMAT = 1
LIBRARIES = ("numpy", "pillow", "scikit-image", "scipy")


def user_folder() -> Path | None:
    """`$XDG_CACHE_HOME/maskprune`, else `~/.cache/maskprune`; None where there is no home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(root):  # the XDG specification has relative paths ignored
        return Path(root, "maskprune")
    try:
        return Path.home() / ".cache" / "maskprune"
    except RuntimeError:
        return None


def digest_content(content: Path | np.ndarray | None) -> str:
    """A digest of a file's bytes or of an array's type, shape and values; a word for what will not be read."""
    if content is None:
        return "none"
    if isinstance(content, np.ndarray):
        head = f"{content.dtype}{content.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(content).tobytes()).hexdigest()
    try:
        status = os.stat(content)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return "not a file"
        if status.st_size > MAX_BYTES:  # such as a hole of a terabyte
            return "too large"
        with open(content, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def make_key(*parts: object) -> str:
    """A name for the entry that follows from `parts` (anything JSON can write) and from the libraries' versions."""
    whole = [FORMAT, [version(name) for name in LIBRARIES], parts]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:40]


def load(folder: Path, key: str) -> tuple[dict[str, np.ndarray], dict] | None:
    """The arrays and the dictionary stored under `key`, or None where there is no sound entry."""
    try:
        arrays = read_npz(folder / f"{key}.npz")
        meta = json.loads(arrays.pop("meta").tobytes())
    except Exception:  # absent, cut short, overwritten, not permitted: computing again is the answer to all
        return None
    return (arrays, meta) if meta.get("key") == key else None


def save(folder: Path, key: str, arrays: dict[str, np.ndarray], meta: dict) -> str | None:
    """Stores an entry.

    Args:
        folder: made if it is absent.
        key: from `make_key`.
        arrays: any names but "meta".
        meta: anything JSON can write.

    Returns:
        None, or a note that says why nothing was stored.
    """
    text = json.dumps({**meta, "key": key}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{key}.npz", {**arrays, "meta": np.frombuffer(text, np.uint8)})
    except OSError as error:
        return f"nothing was cached in {folder}: {error.strerror or error}"
    return None


def _write(path: Path, arrays: dict[str, Any]) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
