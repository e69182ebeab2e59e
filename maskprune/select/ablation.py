"""What the loss becomes at once, without training, when a mask is removed."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.base.returned import loss_value
from maskprune.masks.half_precision import wide, widely
from maskprune.masks.network import Flags, Network, wide_params
from maskprune.select.base import Loss, Remove, Scores, Selector, by_group, without


@strict
def ablation(loss: Loss, *, remove: Remove = without) -> Selector:
    """The loss without the mask minus the loss with it: what helps least goes first, what does harm before that.

    This is the truth that the Taylor expansions estimate. One forward pass for every mask, disabled ones included, one
    after another and with the memory of one; and whatever `remove` costs.

    Args:
        loss: `loss(params, batch) -> float[]`, as given to `make_train_step`.
        remove: `remove(network, chosen, batch) -> network`, how a mask is removed, with `chosen` as `{group: bool[C]}`.
            By default it is disabled; a repair of what is left may come with that. It must run under `jit`, with
            `chosen` traced.

    References:
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, who call
        the order of these changes the oracle.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        none = {group.name: jnp.zeros(group.size, bool) for group in network.groups}
        every = widely(partial(_loss_without, loss, batch), network)
        before = every(wide(network), none, without)
        change = lambda chosen: every(wide(network), chosen, remove) - before
        size = sum(group.size for group in network.groups)
        each_alone = by_group(network.groups, jnp.eye(size, dtype=bool))  # {group: bool[masks, C]}
        return by_group(network.groups, jax.lax.map(change, each_alone))

    return jax.jit(score)


def _loss_without(loss: Loss, batch: Any, network: Network, chosen: Flags, remove: Remove) -> jax.Array:
    after = wide_params(remove(network, chosen, batch))
    return wide(loss_value(widely(loss, network.params)(after, batch)))
