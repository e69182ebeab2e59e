"""Masks that the others of their layer can stand in for, as far as what reads them can tell."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.network import Network, Params, wide_params
from maskprune.select.base import Scores, Selector
from maskprune.select.consumers import (
    Activations,
    Reader,
    columns,
    covariance,
    read_values,
    readers_of,
    ridge_of,
    weights,
)


@strict
def redundancy(activations: Activations, *, ridge: float = 1e-4, border: int = 0) -> Selector:
    """The share of a layer's effect on its readers that only this mask can supply.

    What a mask adds to the sums of its reader, before the reader's bias, is fitted by the other enabled masks and a
    constant, with whatever kernels do it best: least squares over all positions and outputs. The score is what is left,
    relative to the variance of the reader's sums; in [0, 1] to rounding but for layers in which masks cancel each
    other. It sees twins, multiples and shifted copies, and a mask that is a mixture of several. A mask that nothing
    reads scores 0.

    With `P` the inverse covariance of what arrives at the reader's taps and `v` the kernel that reads a mask, what is
    left is `v @ inv(P[mask, mask]) @ v`: all masks of a layer share one inverse.

    Args:
        activations: `activations(params, batch) -> {group: float[N, H, W, C] or float[N, C]}`, as the reader finds
            them. The reader must be a convolution of stride 1 that keeps the size or a dense layer.
        ridge: Added to the diagonal of the covariance, relative to its mean.
        border: Pixels left out at each side of a picture: zero padding tells masks apart that are alike elsewhere.

    Raises:
        ValueError: `ridge` is not positive; or, when called, a group is missing or is read in another way.

    References:
        Luo et al., ThiNet, ICCV 2017, and He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV
        2017, refit the reader likewise after channels were chosen.
    """
    if not ridge > 0:
        raise ValueError(f"`ridge` is {ridge}: use a positive number.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        params, values, scores = wide_params(network), read_values(activations, network, batch), {}
        for group in network.groups:
            left, total = jnp.zeros(group.size), jnp.zeros(())
            for reader in readers_of(network, group):
                energies = _energies(reader, params, values[group.name], border, ridge)
                left, total = left + energies[0], total + energies[1]
            scores[group.name] = left / jnp.where(total > 0, total, 1.0)
        return scores

    return score


@partial(jax.jit, static_argnames=("reader", "border"), inline=True)
def _energies(
    reader: Reader, params: Params, values: jax.Array, border: int, ridge: float
) -> tuple[jax.Array, jax.Array]:
    """What the others cannot supply of each mask, float[C], and the variance of all sums, float[]."""
    masks, taps, kernel = len(reader.positions), reader.taps, weights(reader, params)
    _, gram = covariance(columns(reader, values, border=border))
    damped = gram + ridge_of(gram, ridge) * jnp.eye(len(gram))
    inverse = jax.scipy.linalg.solve(damped, jnp.eye(len(gram)), assume_a="pos")
    every = jnp.arange(masks)
    blocks = inverse.reshape(masks, taps, masks, taps)[every, :, every]
    reads = kernel.reshape(masks, taps, -1)
    left = jnp.sum(reads * jax.vmap(partial(jax.scipy.linalg.solve, assume_a="pos"))(blocks, reads), axis=(1, 2))
    return left, jnp.sum(kernel * jnp.matmul(gram, kernel, precision="highest"))
