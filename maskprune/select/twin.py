"""How well another mask of the layer could stand in: the distance to the best scaled twin."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from maskprune.masks.network import Network, effective_params
from maskprune.select.base import Scores, Selector, mask_vectors, outgoing_norms
from maskprune.select.cosine import similarities


def twin() -> Selector:
    """What is lost when a mask is merged into its best twin: the distance to it, times what reads the mask.

        min over other enabled masks j of the layer and scales s >= 0 of |w_i - s w_j|, times |outgoing_i|

    with `w` the vector [kernel, bias]. Behind a ReLU a positive multiple is an exact duplicate: what reads it can be
    added, s-fold, to what reads the twin, and nothing changes. An opposite one is no duplicate but a complement, which
    passes what the other cuts off; it helps nobody here. Without a neighbour in its half space a mask scores
    |w_i| |outgoing_i|, as much as removing it plainly would lose. No data, and no pass through the network.

    References:
        Srinivas and Babu, Data-free Parameter Pruning for Deep Neural Networks, BMVC 2015, for twins without a scale.
        Kim et al., Neuron Merging: Compensating for Pruned Neurons, NeurIPS 2020, for the scale.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key, batch
        params, readers = effective_params(network), outgoing_norms(network)
        return {g.name: _distances(mask_vectors(g, params)) * readers[g.name] for g in network.groups}

    return jax.jit(score)


def _distances(vectors: jax.Array) -> jax.Array:
    """From every row to the best multiple, 0 or more, of another row: float[C, D] to float[C]."""
    size, length = vectors.shape
    # A row of zeros, which is also what a disabled mask has, stands for no twin.
    rows = jnp.concatenate([vectors, jnp.zeros((1, length), vectors.dtype)])
    cosines = jnp.where(jnp.eye(size, size + 1, dtype=bool), -jnp.inf, similarities(rows)[:size])
    nearest = rows[jnp.argmax(cosines, axis=1)]
    product, square = jnp.sum(vectors * nearest, axis=1), jnp.sum(jnp.square(nearest), axis=1)
    scale = product / jnp.where(square > 0, square, 1.0)
    # The distance is |w| sin, but near a duplicate the rounding of the cosine alone would be worth 3e-4 |w|.
    return jnp.linalg.norm(vectors - scale[:, None] * nearest, axis=1)
