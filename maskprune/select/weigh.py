"""Weighing a selector's scores by what the masks would save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.network import Flags, Network
from maskprune.select.base import Scores, Selector, scores_of


LEAST = 1e-6  # of the mean saving: keeps scores finite where a mask saves nothing


@strict
def weigh(selector: Selector, saving: Callable[[Flags], Flags], *, strength: float = 1.0) -> Selector:
    """Ranks masks by benefit per unit saved, as in greedy knapsack packing: little worth that costs much goes first.

    With the relative saving `w` of a mask (its saving over the mean saving of all enabled masks), a score `s` becomes

        s / w ** strength   where s >= 0
        s * w ** strength   where s < 0

    So of two equal scores the mask that saves more goes first, whatever their sign; a negative score still goes before
    0, and 0 before a positive one; and scaling all scores changes nothing. Shifting them does: the zero of the scores
    should mean "worth nothing", as it does for `magnitude`, `taylor` and `activation`. After `standardize` it means
    "average": saving much still moves every mask forward, but none from above average to below it.

    Args:
        selector: Whose scores to weigh.
        saving: `saving(enabled) -> {group: float[C]}`, 0 or more, such as `cost(...).saving("multiply_adds")`. Any
            unit. It must run under `jit`.
        strength: How much savings count: 0 not at all, 1 in proportion.

    Raises:
        ValueError: `strength` is negative.

    Example:
        selector = weigh(select.taylor(loss), cost(apply, params, pictures, groups=groups).saving("parameters"))
    """
    if strength < 0:
        raise ValueError(f"`strength` is {strength}: use 0 or more.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        scores, weights = scores_of(selector, key, network, batch), _relative(saving(network.enabled), network.enabled)
        powers = {name: values**strength for name, values in weights.items()}
        return {name: jnp.where(s >= 0, s / powers[name], s * powers[name]) for name, s in scores.items()}

    return score


def _relative(saved: Flags, enabled: Flags) -> Flags:
    """Savings over their mean at the enabled masks of all groups, at least `LEAST`."""
    total = sum(jnp.sum(jnp.where(enabled[name], values, 0.0)) for name, values in saved.items())
    count = sum(jnp.sum(values) for values in enabled.values())
    mean = total / jnp.maximum(count, 1)
    found = {name: values / jnp.where(mean > 0, mean, 1.0) for name, values in saved.items()}
    return {name: jnp.maximum(values, LEAST).astype(jnp.float32) for name, values in found.items()}
