"""What a mask puts out on real data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.base.returned import named_arrays
from maskprune.masks.groups import Groups
from maskprune.masks.half_precision import wide, widely
from maskprune.masks.network import Network, Params, wide_params
from maskprune.select.base import Scores, Selector
from maskprune.train.accurate_sums import centred


Activations = Callable[[Params, Any], Mapping[str, jax.Array]]
Statistic = Literal["mean", "std", "zeros"]


@strict
def activation(activations: Activations, statistic: Statistic = "mean") -> Selector:
    """A statistic of each mask's output over the batch, all pictures and pixels alike.

    Args:
        activations: `activations(params, batch) -> {group: float[..., C]}`; may hold more names than there are groups.
        statistic: `"mean"` (Tan & Motani 2020), `"std"` (Molchanov et al. 2017), or `"zeros"`, the share of exact
            zeros, where the mask with the most goes first (Hu et al. 2016).
    """
    functions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "mean": lambda values: jnp.mean(values, axis=0),
        "std": lambda values: jnp.sqrt(jnp.mean(jnp.square(centred(values)), axis=0)),
        "zeros": lambda values: -jnp.mean(values == 0, axis=0, dtype=jnp.float32),
    }
    if statistic not in functions:
        raise ValueError(f"`statistic` is {statistic!r}: use one of {', '.join(functions)}.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        found = widely(activations, network.params)(wide_params(network), batch)
        return {name: functions[statistic](values) for name, values in columns(found, network.groups).items()}

    return score


def columns(found: Mapping[str, jax.Array], groups: Groups) -> Scores:
    """The outputs of every group, all positions in one axis: `{group: float[positions, C]}`.

    Raises:
        TypeError: `found` is no mapping.
        ValueError: A group is missing from `found`.
    """
    named_arrays(found, "activations")
    if absent := [group.name for group in groups if group.name not in found]:
        raise ValueError(f"`activations` gave {', '.join(found)}, but the network has the groups {absent} too.")
    return {group.name: wide(found[group.name]).reshape(-1, group.size) for group in groups}
