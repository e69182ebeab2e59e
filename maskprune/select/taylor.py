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
        products = jax.tree.map(jnp.multiply, jax.grad(loss)(params, batch), params)
        return {group.name: jnp.abs(mask_sums(group, products)) for group in network.groups}

    return score
