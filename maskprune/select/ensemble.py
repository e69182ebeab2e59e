"""Several selectors as one: the mean of the places they give a mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import rankdata

from maskprune.base.checks import strict
from maskprune.masks.network import Network
from maskprune.select.base import Scores, Selector, by_group, scores_of


@strict
def ensemble(selectors: Sequence[Selector], weights: Sequence[float] | None = None) -> Selector:
    """The mean over selectors of a mask's place among the enabled masks of all groups, 1 for the one that goes first.

    Places have no unit, so selectors of any scale, and of any growing function of it, can be mixed; only how a
    selector compares masks of different groups matters (see `standardize`). Masks of equal score share the mean of
    their places. A NaN counts as infinity. Every selector gets a key of its own.

    Args:
        selectors: One or more.
        weights: One number for each, 0 or more, not all 0. By default all count alike.

    Raises:
        ValueError: There are no selectors, or the weights do not fit.

    References:
        de Borda, Mémoire sur les élections au scrutin, 1781, for the mean of places.
    """
    shares = _shares(len(selectors), weights)

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        keys = jax.random.split(key, len(selectors))
        scores = (scores_of(each, k, network, batch) for each, k in zip(selectors, keys, strict=True))
        every = [places(each, network) for each in scores]
        mean = sum(share * each for share, each in zip(shares, every, strict=True))
        return by_group(network.groups, jnp.asarray(mean))

    return score


def places(scores: Scores, network: Network) -> jax.Array:
    """Every mask's place among the enabled ones, from 1, in network order: float[masks]. Disabled masks come after."""
    flat = lambda tree: jnp.concatenate([tree[group.name] for group in network.groups])
    values = flat(scores)
    return rankdata(jnp.where(flat(network.enabled) & ~jnp.isnan(values), values, jnp.inf))


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if not count:
        raise ValueError("`selectors` is empty: give one or more.")
    if given.shape != (count,) or not np.all(np.isfinite(given) & (given >= 0)) or not np.any(given):
        raise ValueError(f"`weights` is {weights}: give {count} numbers, one a selector, 0 or more and not all 0.")
    return (given / np.sum(given)).tolist()
