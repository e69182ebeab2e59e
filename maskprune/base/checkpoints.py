"""Arrays on disk as orbax checkpoints that are whole or do not count.

A checkpoint is a folder: what orbax writes, and a manifest, written last, that names every array and holds a digest
of every file. Without a sound manifest there is none; files are compared with it before anything is decoded, so an
altered byte is found before it can mislead a decoder. Knows arrays with names, and nothing of what they mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from maskprune.base.files import replace_file, sync_folder


FORMAT = 1  # raise it when the meaning of a checkpoint changes, and go on reading the older ones
MANIFEST = "manifest.json"

Arrays = dict[str, np.ndarray]


class CheckpointError(ValueError):
    """A checkpoint that is not there, is not complete, was altered, or is of a format this version does not know."""


def save(path: Path | str, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Writes a checkpoint; it counts once this returns. One that stands there already is replaced.

    Args:
        path: The folder.
        arrays: Arrays by name, on a device or the host, of any shape (orbax alone refuses empty ones).
        about: What JSON can hold.

    Raises:
        OSError: It cannot be written (orbax may raise others). What is left does not count as a checkpoint.
    """
    from orbax import checkpoint  # late: it takes a while

    path, host = Path(path).absolute(), {name: np.asarray(array) for name, array in arrays.items()}
    remove(path)
    with quiet(), checkpoint.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path, {"bytes": _joined(host)})
    files = sorted(each for each in path.rglob("*") if each.is_file())
    manifest = {
        "format": FORMAT,
        "about": dict(about),
        "arrays": [[name, array.dtype.name, list(array.shape)] for name, array in host.items()],
        "files": {each.relative_to(path).as_posix(): _digest_forced(each) for each in files},
    }
    for folder in {each.parent for each in files} | {path.parent}:
        sync_folder(folder)
    replace_file(path / MANIFEST, json.dumps({**manifest, "check": _check(manifest)}, indent=1).encode())
    return path


def load(path: Path | str, *, most: int | None = None) -> tuple[Arrays, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
        path: The folder.
        most: Bytes that its arrays may have together; None for any number. Asked before they are read.

    Returns:
        The arrays, on the host, and what `about` was.

    Raises:
        CheckpointError: It is not there, not complete, altered, too large, or of an unknown format.
    """
    path = Path(path).absolute()
    manifest = _manifest(path)
    shapes = [(name, jnp.dtype(kind), tuple(shape)) for name, kind, shape in manifest["arrays"]]
    size = sum(kind.itemsize * math.prod(shape) for _, kind, shape in shapes)
    if most is not None and size > most:
        raise CheckpointError(f"`{path}` holds {size} bytes of arrays, and at most {most} were expected.")
    for name, digest in manifest["files"].items():
        if _digest(path / name) != digest:
            raise CheckpointError(f"`{path / name}` is not what was written: it is damaged or was altered.")
    joined, found = _restored(path, size), {}
    for name, kind, shape in shapes:
        count = kind.itemsize * math.prod(shape)
        found[name], joined = joined[:count].view(kind).reshape(shape), joined[count:]
    return found, manifest["about"]


def remove(path: Path | str) -> None:
    """Removes a checkpoint, if there is one. It stops counting first."""
    path = Path(path)
    with contextlib.suppress(FileNotFoundError):
        (path / MANIFEST).unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def drop_incomplete(folder: Path | str) -> None:
    """Removes what is below a folder of checkpoints and is none: a program was killed while it wrote them."""
    for each in Path(folder).glob("*"):
        if each.is_dir() and not (each / MANIFEST).exists():
            shutil.rmtree(each, ignore_errors=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps orbax from printing tracebacks of what it raises anyway."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _joined(arrays: Arrays) -> np.ndarray:
    """All bytes as one array: orbax takes several milliseconds for each array, and refuses empty ones."""
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays.values() if array.size]
    return np.concatenate([*parts, np.zeros(1, np.uint8)])


def _restored(path: Path, size: int) -> np.ndarray:
    from orbax import checkpoint

    try:
        with quiet(), checkpoint.PyTreeCheckpointer() as checkpointer:
            found = checkpointer.metadata(path).item_metadata.tree["bytes"]  # before anything is allocated
            if tuple(found.shape) != (size + 1,) or found.dtype != np.uint8:
                raise ValueError(f"it holds {found.dtype}{tuple(found.shape)}, not the {size} bytes of its manifest")
            kind = {"bytes": checkpoint.RestoreArgs(restore_type=np.ndarray)}
            return checkpointer.restore(path, restore_args=kind)["bytes"]
    except Exception as error:  # orbax and tensorstore each have their own
        raise CheckpointError(f"`{path}` cannot be read: {error}") from error


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        sound = manifest.pop("check") == _check(manifest)
    except (OSError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is no complete checkpoint: {error}.") from error
    if not sound:
        raise CheckpointError(f"`{path / MANIFEST}` is not what was written: it is damaged or was altered.")
    if manifest["format"] > FORMAT:
        raise CheckpointError(
            f"`{path}` has format {manifest['format']}; maskprune here reads up to {FORMAT}: take a newer one."
        )
    return manifest


def _check(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}.") from error


def _digest_forced(path: Path) -> str:
    """The digest of a file that is then on the disk, not only on its way there."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _digest(path)
