"""Comparing a module that was rebuilt on small widths with the small function, for the Flax adapters.

A module's code may hold a width of its own, which nothing but running it shows. Knows no framework.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskprune.masks.jaxpr.lines import OWN
from maskprune.removal.agreement import Run, agree, has_numbers


class RebuildError(ValueError):
    """The module's own code does not compute on the small widths what the small function does."""


REMEDY = "Use the small function, which runs as it is, or `protect` these channels when tracing."


def check_rebuilt(
    name: str,
    module: Run,
    function: Run,
    inputs: Sequence[Any],
    *,
    suspects: Sequence[str] = (),
    tolerance: float = 1e-5,
) -> None:
    """Runs both and compares every output.

    Args:
        name: What to call the module in an error.
        module: The module on its own parameters and state.
        function: The small function, likewise.
        inputs: Sample inputs, arrays, given after these.
        suspects: Layers that are likely to blame, in words.
        tolerance: Largest difference allowed where rounding does not explain more: see `agree`.

    Raises:
        RebuildError: The module fails on these widths, or its outputs have other shapes or numbers.
        ValueError: There are no inputs.
    """
    if not inputs:
        raise ValueError(f"Give sample inputs: without running it, nothing tells whether {name} fits its new widths.")
    module, function = (run._replace(inputs=(*run.inputs, *inputs)) for run in (module, function))
    expected = function.numbers()
    try:
        found = module.numbers()
    except Exception as error:  # a module's own code may raise anything
        raise RebuildError(
            f"{name} cannot run on the small widths: its code holds a width that does not follow from the parameters"
            f"{_line(error)}. It says: {_first_line(error)} {REMEDY}"
        ) from error
    blame = f" Look at {', '.join(suspects)}." if suspects else ""
    shapes = [array.shape for array in expected], [array.shape for array in found]
    if shapes[0] != shapes[1]:
        raise RebuildError(f"{name} gives the shapes {shapes[1]}, the small function {shapes[0]}.{blame} {REMEDY}")
    if not all(map(has_numbers, expected)):
        raise RebuildError("On these inputs an output is not finite anywhere, so nothing can be compared.")
    agreement = agree(function, module, (expected, found), tolerance=tolerance)
    if not agreement.same:
        raise RebuildError(
            f"{name} runs on the small widths, but its outputs differ from the small function's by "
            f"{agreement.worst:.3g}: its code counts channels, so that fewer of them mean another result.{blame} "
            f"{REMEDY}"
        )


def _first_line(error: Exception) -> str:
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    return text if text.endswith(".") else text + "."


def _line(error: Exception) -> str:
    """The innermost line of the error that belongs to no installed package and not to this library."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not {"site-packages", "dist-packages"} & set(path.parts) and OWN not in path.parents:
            return f" ({path.name}:{frame.lineno})"
    return ""
