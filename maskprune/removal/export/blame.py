"""Which parameter, and which line, keeps a function from running on inputs of another size.

Read from the traceback: the frames of JAX at its end belong to the operation that failed, and hold its operands. An
operand is a parameter, or was made from the one parameter of its shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.jaxpr.internals import Tracer
from maskprune.masks.jaxpr.lines import OWN
from maskprune.removal.export.errors import Unfit, first_line


JAX = Path(jax.__file__).parent
LIBRARIES = {"flax", "haiku", "equinox", "numpy"}


def unfit(error: Exception, params: Any) -> Unfit:
    """What is known about an error that a function of these (traced) parameters raised."""
    frames = list(_frames(error))
    named = leaves_by_path(params)
    leaves = tuple(f"`{path or 'params'}` of shape {np.shape(named[path])}" for path in _operands(frames, named))
    return Unfit(first_line(error), leaves, _place(frames))


def _frames(error: Exception) -> list[tuple[FrameType, int]]:
    """The frames from the innermost outwards, with their lines."""
    found, trace = [], error.__traceback__
    while trace is not None:
        found.append((trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return found[::-1]


def _operands(frames: list[tuple[FrameType, int]], named: Mapping[str, Any]) -> list[str]:
    for frame, _ in frames:
        if JAX not in Path(frame.f_code.co_filename).parents:
            return []  # the user's own code raised it, or called what did
        arrays = list(_arrays(frame.f_locals))
        found = [path for path, leaf in named.items() if np.ndim(leaf) and any(leaf is array for array in arrays)]
        if found := found or _of_one_shape(arrays, named):
            return found
    return []


def _of_one_shape(arrays: list[Any], named: Mapping[str, Any]) -> list[str]:
    """The parameters that alone have the shape of an operand, cast or turned round as it may be."""
    found = []
    for shape in {_core(np.shape(array)) for array in arrays}:
        alike = [path for path, leaf in named.items() if _core(np.shape(leaf)) == shape]
        found += alike if len(alike) == 1 and shape else []
    return found


def _core(shape: tuple[Any, ...]) -> tuple[int, ...]:
    known = all(isinstance(size, int) for size in shape)
    return tuple(sorted(size for size in shape if size != 1)) if known and math.prod(shape) else ()


def _arrays(names: Mapping[str, Any]) -> Iterator[Any]:
    for value in names.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, Tracer):
                yield item


def _place(frames: list[tuple[FrameType, int]]) -> str:
    """The innermost line that belongs to no library."""
    for frame, line in frames:
        path = Path(frame.f_code.co_filename)
        if not _of_library(path) and not path.name.startswith("<"):
            return f"{path.name}:{line}"
    return ""


def _of_library(path: Path) -> bool:
    installed = any(pair[0].endswith("-packages") and pair[1] in LIBRARIES for pair in itertools.pairwise(path.parts))
    return installed or not {JAX, OWN}.isdisjoint(path.parents)
