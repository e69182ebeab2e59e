"""How the loss would change, to second order, if a mask went and all the others made the best of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.network import Network
from maskprune.select.base import Scores, Selector
from maskprune.select.brain_surgeon import Measured, measured, remove
from maskprune.train.curvature import Curvature


@strict
def surgeon(curvature: Curvature, *, damping: float = 1e-3) -> Selector:
    """The exact Optimal Brain Surgeon for groups: `w_g @ inv(inv(H)[g, g]) @ w_g / 2`.

    The entries `g` are a mask's own, kernel and bias; those that read it stand still, since behind a mask that is zero
    they can make up for nothing. The gradient is not counted: the network should be trained. A frozen mask has a score
    as well, and is not moved when others go.

    Args:
        curvature: `curvature(network, batch) -> float[D, D]`, such as `partial(maskprune.curvature.hessian, loss)` or
            `lambda network, batch: maskprune.curvature.gauss_newton(residuals, network, batch).matrix`. May be singular
            or indefinite, see `brain_surgeon.measured`.
        damping: What is added to all eigenvalues where the step of the others is sought, relative to their mean. The
            score is the price of that step without the damping, so a mask without effect scores 0 however large it is.

    Raises:
        ValueError: `damping` is negative.

    References:
        Hassibi and Stork, NIPS 1992; Kurtic et al., The Optimal BERT Surgeon, EMNLP 2022.
    """
    if damping < 0:
        raise ValueError(f"`damping` is {damping}: use 0 or more.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        return _costs(network, measured(curvature, network, batch, damping=damping))

    return score


@partial(jax.jit, inline=True)
def _costs(network: Network, curvature: Measured) -> Scores:
    none = {group.name: jnp.zeros(group.size, bool) for group in network.groups}
    cost = lambda name: lambda one: remove(network, none | {name: one}, curvature).cost
    return {g.name: jax.lax.map(cost(g.name), jnp.eye(g.size, dtype=bool)) for g in network.groups}
