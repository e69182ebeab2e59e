"""A trained network's values for another task: all of them but those of a new head.

Works on any pytree of arrays, parameters and model states alike. Knows no masks.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from maskprune.base.checks import check_leaves, strict
from maskprune.masks.groups import leaf_path, leaves_by_path


@strict
def take_over(trained: Any, fresh: Any, *, new: str | Sequence[str]) -> Any:
    """The fresh tree with the trained values in every leaf that is not new.

    Args:
        trained: Pytree of arrays, such as the effective parameters of a trained network, or its model state.
        fresh: The same of the network for the new task, newly initialized.
        new: Patterns (as in `fnmatch`) of the leaves that stay fresh, such as `"head/*"`; `()` for none.

    Returns:
        A pytree like `fresh`.

    Raises:
        TypeError: A leaf is no array.
        ValueError: A pattern matches no leaf of `fresh`; or a leaf that is not new is missing in `trained`, or has
            another shape there.

    Example:
        >>> trained = {"body": np.ones(3), "head": np.ones(10)}
        >>> found = take_over(trained, {"body": np.zeros(3), "head": np.zeros(2)}, new="head")
        >>> found["body"].tolist(), found["head"].tolist()
        ([1.0, 1.0, 1.0], [0.0, 0.0])
    """
    check_leaves("trained", jax.tree.leaves(trained))
    check_leaves("fresh", jax.tree.leaves(fresh))
    known, paths = leaves_by_path(trained), list(leaves_by_path(fresh))
    patterns = [new] if isinstance(new, str) else list(new)
    for pattern in patterns:
        if not fnmatch.filter(paths, pattern):
            raise ValueError(f"`new` holds `{pattern}`, which matches no leaf of `fresh`: {', '.join(paths)}.")

    def take(path: Any, leaf: Any) -> Any:
        name = leaf_path(path)
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
            return leaf
        if name not in known or np.shape(known[name]) != np.shape(leaf):
            there = f"has the shape {np.shape(known[name])} there" if name in known else "is missing there"
            raise ValueError(
                f"The leaf `{name}` of `fresh`, of shape {np.shape(leaf)}, cannot be taken from `trained`: it {there}. "
                "Name it in `new` if it belongs to the new task."
            )
        return known[name]

    return jax.tree_util.tree_map_with_path(take, fresh)
