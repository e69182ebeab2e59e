"""Where an equation was written: the innermost line of a file that belongs to nobody's machinery.

Lines of JAX, of module libraries and of the standard library say nothing about a network, those of other packages do: a
packaged network is named by its own file. Knows no labels.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# Packages that networks are built with. `maskprune.tasks.models` holds networks, the rest of maskprune does not.
LIBRARIES = ("jax", "jaxlib", "flax", "haiku", "equinox", "keras", "maskprune", "numpy", "optax", "orbax")
LIBRARIES += ("beartype", "chex", "distrax", "einops", "jaxtyping", "objax", "penzai", "treescope", "typeguard")
CACHED = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call")
OWN = Path(__file__).parents[2]
NETWORKS = OWN / "tasks" / "models"


def source_line(*equations: Any) -> str:
    """The line that made an equation: `model.py:31` of the user's own, `package/model.py:31` of an installed one.

    Args:
        *equations: The equation, after those it lies in, outermost first.
    """
    for number, equation in reversed(list(enumerate(equations))):
        around = next((each for each in reversed(equations[:number]) if each.primitive.name in CACHED), None)
        for frame in _frames(equation, around):
            if place := _place(frame.file_name):
                return f"{place}:{frame.line_num}"
    return "no line of yours"


def _frames(equation: Any, around: Any) -> Iterator[Any]:
    """The frames of an equation, innermost first.

    A jitted function remembers where it was first called. So of an equation inside of one only the frames up to that of
    the function itself count: beyond, the call knows better.
    """
    traceback = equation.source_info.traceback
    name = None if around is None else _function_name(around)
    frames = [] if traceback is None else traceback.frames
    if around is None or any(frame.function_name.rpartition(".")[2] == name for frame in frames):
        for frame in frames:
            yield frame
            if frame.function_name.rpartition(".")[2] == name:
                return


def _function_name(call: Any) -> str:
    """Of the function that a call runs."""
    body = call.params.get("jaxpr") or call.params.get("call_jaxpr")
    info = getattr(getattr(body, "jaxpr", body), "debug_info", None)
    source = getattr(info, "func_src_info", None) or str(call.params.get("name", ""))
    return source.partition(" at ")[0].rpartition(".")[2]


@functools.lru_cache(maxsize=4096)
def _place(file_name: str) -> str:
    """How a file is named, or "" where it is machinery."""
    path = Path(file_name)
    machinery = any(path.is_relative_to(root) for root in _roots()) and NETWORKS not in path.parents
    if file_name.startswith("<") or machinery:
        return ""
    installed = next((i for i, part in enumerate(path.parts) if part in ("site-packages", "dist-packages")), None)
    if installed is not None:
        inside = path.parts[installed + 1 :]
        return "" if inside[0] in LIBRARIES and NETWORKS not in path.parents else "/".join(inside)
    return "" if path.is_relative_to(sysconfig.get_path("stdlib")) else path.name


def _roots() -> Iterator[Path]:
    """The folders of the libraries in use, wherever they were installed."""
    for name in LIBRARIES:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file:
            yield Path(file).parent
