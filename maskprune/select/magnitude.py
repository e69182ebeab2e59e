"""Size of a mask's own weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.network import Network, effective_params
from maskprune.select.base import Scores, Selector, mask_sums


@strict
def magnitude(order: int = 1) -> Selector:
    """The L1 norm (`order=1`, Li et al. 2017) or L2 norm (`order=2`) of a mask's kernel and bias.

    Raises:
        ValueError: `order` is neither 1 nor 2.
    """
    if order not in (1, 2):
        raise ValueError(f"`order` is {order}: use 1 or 2.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key, batch
        params = effective_params(network)
        if order == 1:
            return {group.name: mask_sums(group, params, of=jnp.abs) for group in network.groups}
        return {group.name: jnp.sqrt(mask_sums(group, params, of=jnp.square)) for group in network.groups}

    return score
