"""How the loss would change, to first order, if a mask were switched off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.network import Network, Params, effective_params
from maskprune.select.base import Scores, Selector, mask_sums


def taylor(loss: Callable[[Params, Any], jax.Array]) -> Selector:
    """|sum over the mask's own entries of gradient times weight|, the derivative of the loss to a gate on the mask.

    Behind a ReLU, scaling a mask's kernel and bias scales its output, so this is the first-order estimate of
    the change in loss when its output is gated to zero.

    Args:
        loss: `loss(params, batch) -> float[]`, as given to `make_train_step`.

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        params = effective_params(network)
        # Integer leaves have no gradient: `allow_int` gives them one of a type without values.
        gradients = jax.grad(loss, allow_int=True)(params, batch)
        products = jax.tree.map(_first_order, gradients, params)
        return {group.name: jnp.abs(mask_sums(group, products)) for group in network.groups}

    return score


def _first_order(gradient: Any, leaf: jax.Array) -> jax.Array:
    return gradient * leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else jnp.zeros(leaf.shape)
