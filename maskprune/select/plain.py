"""Selectors that look at nothing: in order, and at random. The baselines."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskprune.masks.network import Network
from maskprune.select.base import Scores, Selector


def sequential() -> Selector:
    """Layer by layer, ascending."""

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key, batch
        scores, start = {}, 0
        for group in network.groups:
            scores[group.name] = jnp.arange(start, start + group.size, dtype=jnp.float32)
            start += group.size
        return scores

    return score


def random() -> Selector:
    """Uniform at random over all masks; another order for another key."""

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del batch
        keys = jax.random.split(key, len(network.groups))
        return {g.name: jax.random.uniform(k, (g.size,)) for g, k in zip(network.groups, keys, strict=True)}

    return score
