"""Comparing a module that was rebuilt on small widths with the small function, for the Flax adapters.

A module's code may hold a width of its own, which nothing but running it shows. Knows no framework.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np


class RebuildError(ValueError):
    """The module's own code does not compute on the small widths what the small function does."""


REMEDY = "Use the small function, which runs as it is, or `protect` these channels when tracing."


def check_rebuilt(
    name: str,
    module: Callable[..., Any],
    function: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    suspects: Sequence[str] = (),
    tolerance: float = 1e-5,
) -> None:
    """Runs both on the inputs and compares every output.

    Args:
        name: What to call the module in an error.
        module: `module(*inputs) -> output`.
        function: The small function, likewise.
        inputs: Sample inputs, arrays.
        suspects: Layers that are likely to blame, in words.
        tolerance: Largest difference allowed, relative to the largest output magnitude (1 if that is smaller).

    Raises:
        RebuildError: The module fails on these widths, or its outputs have other shapes or numbers.
        ValueError: There are no inputs.
    """
    if not inputs:
        raise ValueError(f"Give sample inputs: without running it, nothing tells whether {name} fits its new widths.")
    expected = jax.tree.leaves(jax.jit(function)(*inputs))
    try:
        found = jax.tree.leaves(jax.jit(module)(*inputs))
    except Exception as error:  # a module's own code may raise anything
        raise RebuildError(
            f"{name} cannot run on the small widths: its code holds a width that does not follow from the parameters"
            f"{_line(error)}. It says: {_first_line(error)} {REMEDY}"
        ) from error
    worst = _worst(expected, found)
    scale = max([1.0, *(float(np.max(np.abs(leaf), initial=0.0)) for leaf in expected)])
    if not worst <= tolerance * scale:
        blame = f" Look at {', '.join(suspects)}." if suspects else ""
        raise RebuildError(
            f"{name} runs on the small widths, but its outputs differ from the small function's by {worst:.3g}: its "
            f"code counts channels, so that fewer of them mean another result.{blame} {REMEDY}"
        )


def _worst(expected: Sequence[Any], found: Sequence[Any]) -> float:
    if [np.shape(leaf) for leaf in expected] != [np.shape(leaf) for leaf in found]:
        return float("inf")
    numbers = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(expected, found, strict=True)]
    return max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in numbers), default=0.0)


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return text if text.endswith(".") else text + "."


def _line(error: Exception) -> str:
    """The innermost line of the error that belongs to no installed package and not to this library."""
    own = Path(__file__).parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not {"site-packages", "dist-packages"} & set(path.parts) and own not in path.parents:
            return f" ({path.name}:{frame.lineno})"
    return ""
