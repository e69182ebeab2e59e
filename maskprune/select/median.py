"""Masks that the others could stand in for: nearest to the geometric median."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskprune.masks.network import Network, effective_params
from maskprune.select.base import Scores, Selector, mask_vectors


def geometric_median() -> Selector:
    """Sum of Euclidean distances to the other enabled masks of the layer; the smallest is nearest to the median.

    References:
        He et al., Filter Pruning via Geometric Median, CVPR 2019.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key, batch
        params = effective_params(network)
        return {g.name: _distances(mask_vectors(g, params), network.enabled[g.name]) for g in network.groups}

    return score


def _distances(vectors: jax.Array, enabled: jax.Array) -> jax.Array:
    apart = jnp.sqrt(jnp.sum(jnp.square(vectors[:, None] - vectors[None]), axis=2))
    return jnp.sum(jnp.where(enabled[None, :], apart, 0.0), axis=1)
