"""Similarity of a mask to its neighbours: the ten columns of the source document."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.network import Network, effective_params
from maskprune.select.base import Scores, Selector, mask_vectors


Aggregate = Literal["min", "max", "mean", "median", "std"]
AGGREGATES: tuple[Aggregate, ...] = ("min", "max", "mean", "median", "std")


@strict
def cosine(aggregate: Aggregate = "max", *, absolute: bool = False, similar_first: bool = True) -> Selector:
    """Cosine similarity of a mask's vector [kernel, bias] to the other enabled masks of its layer.

    A zero vector has similarity 0 to everything; a mask alone in its layer aggregates to 0.

    Args:
        aggregate: How the similarities of one mask become one number (`std`: ddof 0).
        absolute: Takes |cos|. Unsound behind a ReLU, where an opposite mask is a complement and no duplicate; kept
            because the source document compares it.
        similar_first: The most similar mask goes first, as in the source document; False for the least similar.
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"`aggregate` is {aggregate!r}: use one of {', '.join(AGGREGATES)}.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key, batch
        params, sign = effective_params(network), -1.0 if similar_first else 1.0
        scores = {}
        for group in network.groups:
            matrix = similarities(mask_vectors(group, params))
            matrix = jnp.abs(matrix) if absolute else matrix
            scores[group.name] = sign * _aggregated(matrix, network.enabled[group.name], aggregate)
        return scores

    return score


def similarities(vectors: jax.Array) -> jax.Array:
    """Pairwise cosines of rows: float[C, D] to float[C, C]; 0 where a row is zero."""
    norms = jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1, keepdims=True))
    units = jnp.where(norms > 0, vectors / jnp.where(norms > 0, norms, 1.0), 0.0)
    return jnp.matmul(units, units.T, precision="highest")


def _aggregated(matrix: jax.Array, enabled: jax.Array, aggregate: Aggregate) -> jax.Array:
    """Aggregates every row over the other enabled masks: float[C, C] to float[C]."""
    others = enabled[None, :] & ~jnp.eye(len(enabled), dtype=bool)
    functions = {"min": jnp.nanmin, "max": jnp.nanmax, "mean": jnp.nanmean, "median": jnp.nanmedian, "std": jnp.nanstd}
    found = functions[aggregate](jnp.where(others, matrix, jnp.nan), axis=1)
    return jnp.where(jnp.any(others, axis=1), found, 0.0)
