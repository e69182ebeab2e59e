"""Archives of arrays (`.npz`) from anywhere: believed only as far as their bytes go.

An archive says how large its members are and what arrays they hold. Both are read first and compared with each other,
with the file's size and with a limit; only then is memory taken. Never a pickle, and nothing is unpacked to disk, so
names such as `../../a.npy` are names and no places.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zipfile
from pathlib import Path

import numpy as np


MOST_BYTES = 1 << 29  # of all arrays of a compressed archive together
MOST_MEMBERS, MOST_DIRECTORY = 10_000, 1 << 21
# Deflate makes at most 1032 bytes of one, so who claims more is lying.
MOST_RATIO = 1032
KINDS = "biufcSU"  # booleans, numbers and text: no objects, no records
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: Path | str, *, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive as NumPy writes them, by `savez` or `savez_compressed`.

    Args:
        path: the file.
        most_bytes: the most that all its arrays may take in memory, if any of them is compressed. What is stored
            plainly takes as much memory as the file has bytes.

    Returns:
        Name, without `.npy`, to array.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive, is damaged, lies about its sizes, or is larger than allowed.
    """
    size = _size(path)
    with _Opened(io.FileIO(path)) as file:
        try:
            return _read_all(file, size, most_bytes)
        except MemoryError as error:
            raise ValueError("it needs more memory than there is") from error
        except ValueError:
            raise
        except Exception as error:  # a damaged archive makes its reader raise nearly every built-in exception
            raise ValueError(str(error) or type(error).__name__) from error


def _read_all(file: _Opened, size: int, most_bytes: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        file.most = size
        members = archive.infolist()
        _check_sizes(members, size, most_bytes)
        return {member.filename.removesuffix(".npy"): _read(archive, member) for member in members}


class _Opened(io.BufferedReader):
    """A file of which the archive's directory, which is read at once, may only be a small part."""

    most = MOST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"its directory is said to take {size} bytes; more than {self.most} are refused")
        return super().read(size)


def _size(path: Path | str) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise ValueError("it is no file")
    return status.st_size


def _check_sizes(members: list[zipfile.ZipInfo], size: int, most_bytes: int) -> None:
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"it has {len(members)} members; more than {MOST_MEMBERS} are refused")
    if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
        raise ValueError("two of its members have the same name")
    packed, unpacked = (sum(getattr(member, f"{what}_size") for member in members) for what in ("compress", "file"))
    if packed > size or any(member.file_size > MOST_RATIO * member.compress_size for member in members):
        raise ValueError(f"it claims to hold {unpacked} bytes, which its {size} bytes cannot")
    if unpacked > most_bytes and unpacked > packed:
        raise ValueError(
            f"it would take {unpacked} bytes of memory; more than {most_bytes} are refused, unless stored without "
            "compression, as by `numpy.savez`"
        )


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in METHODS or member.flag_bits & 1:
        raise ValueError(f"its member {member.filename!r} is encrypted, or packed in a way that NumPy does not write")
    with archive.open(member) as file:
        # Version 1 has a header of at most 64 kB, of which NumPy believes 10; the others may claim four gigabytes.
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"its array {member.filename!r} is in a version of NumPy's format that is not read here")
        try:
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # of a parser of Python's own literals, in its own words
            raise ValueError(f"the header of its array {member.filename!r} cannot be read") from error
        if dtype.kind not in KINDS:
            raise ValueError(f"its array {member.filename!r} holds {dtype}, neither numbers nor text")
        if math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
            raise ValueError(
                f"its array {member.filename!r} claims to be {dtype}{list(shape)}, and its bytes are others"
            )
    with archive.open(member) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):  # at the end the sum is checked
            raise ValueError(f"its array {member.filename!r} is followed by something else")
        return array
