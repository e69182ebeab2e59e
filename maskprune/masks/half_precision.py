"""Half-precision numbers as float32, wherever something is measured on them.

Squares of float16 leave its range at 256 and below 0.0002, and sums of bfloat16 keep two digits, so what is trained in
such numbers is scored and repaired in float32. Knows arrays only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def wide(tree: Any) -> Any:
    """The tree with floating-point arrays of less than 32 bits as float32, and all others as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if _is_narrow(leaf) else leaf, tree)


def widely(function: Callable[..., Any], params: Any) -> Callable[..., Any]:
    """A function of parameters, for parameters that were made `wide`.

    A function that mixes no types (`jax.lax` does not) gets them in the types of `params`; derivatives pass through.
    """
    if not any(_is_narrow(leaf) for leaf in jax.tree.leaves(params)):
        return function

    def call(given: Any, *others: Any) -> Any:
        try:
            return function(given, *others)
        except TypeError:
            return function(jax.tree.map(lambda new, old: new.astype(old.dtype), given, params), *others)

    return call


def _is_narrow(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating)) and leaf.dtype.itemsize < 4
