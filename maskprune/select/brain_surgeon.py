"""What removing masks costs, and what the rest of a network does best about it, as its curvature tells.

Around a trained network the loss rises by `d @ H @ d / 2`. With some entries bound to go to zero, the best step of all
others, and what is then lost, are the solution of one linear system: the exact Optimal Brain Surgeon, for groups of
entries. This file must not know what a loss or a layer is.

References:
    Hassibi and Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, NIPS 1992.
    Kurtic et al., The Optimal BERT Surgeon, EMNLP 2022, for groups.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskprune.masks.network import Flags, Network, entries
from maskprune.train.curvature import Curvature, flags_of, flatten


class Removal(NamedTuple):
    """The best that can be done when masks go.

    Attributes:
        step: float[D], how every entry moves: the masks' own to zero, the others so that least is lost.
        cost: float[], by how much the loss is expected to rise, 0 or more.
    """

    step: jax.Array
    cost: jax.Array


class Measured(NamedTuple):
    """A curvature that removals can be reckoned with.

    Attributes:
        matrix: float[D, D], no eigenvalue below zero but by rounding.
        damping: float[], above zero: what is added to its diagonal where a step is sought.
    """

    matrix: jax.Array
    damping: jax.Array


def measured(curvature: Curvature, network: Network, batch: Any, *, damping: float) -> Measured:
    """The curvature of a network, made fit for `remove`.

    Frozen masks count as well, since they too may be removed. The curvature is that of the network as if nothing were
    frozen. Directions in which the loss curves down are taken to curve up as much (the absolute eigenvalues). The
    damping is relative to the mean eigenvalue of what may move, and at least what rounding needs.
    """
    thawed = dataclasses.replace(network, frozen=jax.tree.map(jnp.zeros_like, network.frozen))
    return _made_positive(curvature(thawed, batch), flatten(thawed).trains, damping)


@partial(jax.jit, inline=True)
def remove(network: Network, gone: Flags, curvature: Measured) -> Removal:
    """What becomes of a network when masks go.

    What reads them does not move: a step there would make up for the loss in the quadratic only, since what it is
    multiplied with is zero by then.

    Args:
        network: The network, trained: its gradient is taken to be zero.
        gone: `{group: bool[C]}`, the masks. Frozen ones may go too; the others of the frozen stay as they are.
        curvature: From `measured`. Damping shortens the step; the cost is that of the step taken, damping left out.
    """
    mark = lambda role: flags_of(network, entries(network.groups, network.params, gone, roles=(role,)))
    flat, own = flatten(network), mark("out")
    free = flat.trains & ~own & ~mark("in")
    bound = jnp.where(own, -flat.vector, 0.0)
    matrix, damping = curvature
    pull = jnp.where(free, _product(matrix, bound), 0.0)
    system = jnp.where(free[:, None] & free[None], matrix, 0.0) + damping * jnp.eye(len(matrix))
    step = bound - jnp.where(free, jax.scipy.linalg.solve(system, pull, assume_a="pos"), 0.0)
    return Removal(step, jnp.maximum(step @ _product(matrix, step) / 2, 0.0))


@partial(jax.jit, inline=True)
def _made_positive(matrix: jax.Array, trains: jax.Array, damping: float) -> Measured:
    values, vectors = jnp.linalg.eigh(matrix)
    values, moving = jnp.abs(values), jnp.maximum(jnp.sum(trains), 1)
    least = jnp.maximum(damping * jnp.sum(values) / moving, 16 * jnp.finfo(values.dtype).eps * jnp.max(values))
    positive = _product(vectors * values[None], vectors.T)
    return Measured(positive, jnp.maximum(least, jnp.finfo(values.dtype).tiny ** 0.5))


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other, precision="highest")
