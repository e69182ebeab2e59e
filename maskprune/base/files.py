"""Files written whole or not at all, and folders that one program at a time writes to.

A reader never meets half a file, whatever happens in between: content is written under another name, forced to the
disk, and moved into place.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import filelock


DRAFT = ".{}.tmp"  # the name of a file that is being written, with 16 random digits
LOCK = ".lock"


def replace_file(path: Path | str, content: bytes) -> Path:
    """Writes `content` under another name in the same folder, then moves it into place. Makes missing folders.

    Raises:
        OSError: It cannot be written. What stood there before still stands.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(DRAFT.format(secrets.token_hex(8)))  # short, however long the other name is
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # moved, or on a disk that takes nothing any more
            draft.unlink()
    return path


@contextlib.contextmanager
def drafted(path: Path | str) -> Iterator[Path]:
    """Another name in the same folder, under which a file or folder is written, checked, and moved into place at last.

    If the `with` block raises, nothing stays of it, and what stood there before still stands. Makes missing folders.

    Raises:
        OSError: It cannot be moved into place.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = (path.with_name(DRAFT.format(secrets.token_hex(8))) for _ in range(2))
    try:
        yield draft
        for folder in [draft, *draft.rglob("*")] if draft.is_dir() else []:
            if folder.is_dir():
                sync_folder(folder)
        if path.is_dir() and draft.is_dir():
            os.replace(path, old)
        os.replace(draft, path)
        sync_folder(path.parent)
    finally:
        for left in (*path.parent.glob(f"{draft.name}*"), old):  # some writers add an ending of their own
            _remove(left)
        for folder in made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _remove(path: Path) -> None:
    """Whatever it is, if it is there; a disk that takes nothing any more keeps it."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()


def read_file(path: Path | str) -> bytes:
    """The bytes of an ordinary file. Raises OSError for anything else: a pipe would be waited for without end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"`{path}` is no ordinary file.")
        return file.read()


def sync_folder(folder: Path | str) -> None:
    """Forces the names in a folder to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def drop_drafts(folder: Path | str) -> None:
    """Removes what a program that was killed had begun to write."""
    for ending in ("", ".*"):
        for draft in list(Path(folder).rglob(DRAFT.format("[0-9a-f]" * 16) + ending)):
            _remove(draft)


@contextlib.contextmanager
def claim(folder: Path | str) -> Iterator[Path]:
    """Makes a folder and keeps every other program that asks out of it, until the end of the `with` block.

    The claim goes with the program, however it ends: nothing has to be tidied up after a crash.

    Raises:
        BlockingIOError: Another program writes to the folder now.
        OSError: The folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK, blocking=False, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"`{folder}` is being written to by another program: wait for it, or use another folder."
        ) from error
    try:
        yield folder
    finally:
        lock.release()
