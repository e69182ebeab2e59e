"""How the native way hands arrays to compiled calls: pictures lie in memory one channel after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


PLANAR = (0, 1, 4, 2, 3)  # how [P, N, H, W, C] lies in memory

Layout = Sequence[int] | None  # None: as written


def call(
    target: str,
    made: Sequence[tuple[tuple[int, ...], Layout]],
    *given: tuple[jax.Array, Layout],
    **attributes: Any,
) -> Any:
    """A list of float32 arrays from a call that XLA knows as `target`; arrays and shapes come with their layouts."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape, _ in made]
    arrays, layouts = zip(*given, strict=True)
    made_call = jax.ffi.ffi_call(target, results, input_layouts=layouts, output_layouts=[layout for _, layout in made])
    return made_call(*arrays, **attributes)
