"""What the loss says of a gate on every mask: its slope, its curvature, and its slope example by example.

A gate is a factor on a mask's own numbers (kernel, bias). Behind a ReLU, scaling these scales the mask's output, so a
gate at 1 is the network as it is and a gate at 0 is the network without the mask. Where two own leaves of a mask work
one behind the other (a kernel and the scale of a norm that uses stored statistics), its gate counts twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.base.returned import loss_value
from maskprune.masks.groups import leaf_path
from maskprune.masks.half_precision import widely
from maskprune.masks.network import Network, Params, along_axis, wide_params
from maskprune.select.base import Loss, Scores, Selector, by_group


Gates = dict[str, jax.Array]  # {group: float[C]}


@strict
def taylor(loss: Loss, order: int = 1, *, absolute: bool = True) -> Selector:
    """The change of the loss that its derivatives at gate 1 foretell for a mask whose gate is closed.

        order 1:  -dL/dg                   the slope alone
        order 2:  -dL/dg + d²L/dg² / 2     slope and curvature, no other gate moving

    For a squared error and the last masks before a linear output, order 2 is exact. Order 1 costs one forward and one
    backward pass. Order 2 takes the diagonal of the true Hessian: one product with it for every mask, one after
    another, each about two forward and two backward passes.

    Args:
        loss: `loss(params, batch) -> float[]`, as given to `make_train_step`.
        order: 1 or 2.
        absolute: Masks that would change the loss least go first, whether up or down; with False those that would
            lower it most.

    Raises:
        ValueError: `order` is neither 1 nor 2.

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, whose scores are the squares.
        LeCun, Denker and Solla, Optimal Brain Damage, NeurIPS 1989, for the second order.
    """
    if order not in (1, 2):
        raise ValueError(f"`order` is {order}: use 1 or 2.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        of = widely(loss, network.params)
        slope = jax.grad(lambda gates: loss_value(of(gated(network, gates), batch)))
        change = jax.tree.map(jnp.negative, slope(open_gates(network)))
        if order == 2:
            change = jax.tree.map(lambda first, second: first + second / 2, change, _curvatures(slope, network))
        return jax.tree.map(jnp.abs, change) if absolute else change

    return jax.jit(score)


@strict
def fisher(loss: Loss) -> Selector:
    """Half the mean, over the examples of the batch, of the squared slope of the loss to the mask's gate.

        1/2N * sum over examples n of (dL_n/dg)²

    It is the curvature term of the second-order change, for a trained network whose loss is a log-likelihood: there
    slopes vanish on average and their mean square is the Fisher information. Never negative. One forward and one
    backward pass, all examples side by side, with the memory of that.

    Args:
        loss: `loss(params, batch) -> float[]`, as given to `make_train_step`. It is given one example at a time, as a
            batch of 1. The leaves of the batch are arrays with one common leading axis, that of the examples.

    References:
        Theis et al., Faster Gaze Prediction with Dense Networks and Fisher Pruning, 2018.
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        _check_examples(batch)
        of = widely(loss, network.params)

        def value(gates: Any, example: Any) -> jax.Array:
            return loss_value(of(gated(network, gates), jax.tree.map(lambda x: x[None], example)))

        slope = jax.grad(value)
        slopes = jax.vmap(slope, in_axes=(None, 0))(open_gates(network), batch)
        return {name: jnp.mean(jnp.square(values), axis=0) / 2 for name, values in slopes.items()}

    return jax.jit(score)


def gated(network: Network, gates: Gates) -> Params:
    """The effective parameters, made `wide`, with every mask's own numbers multiplied by its gate."""

    def scale(path: Any, leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        for group, piece in network.groups.of_leaf(leaf_path(path)):
            if piece.role == "out":
                leaf = leaf * along_axis(piece, gates[group.name], leaf.ndim, rest=1.0).astype(leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(scale, wide_params(network))


def open_gates(network: Network) -> Gates:
    """Every gate at 1."""
    return {group.name: jnp.ones(group.size) for group in network.groups}


def _curvatures(slope: Callable[[Gates], Gates], network: Network) -> Gates:
    """The diagonal of the Hessian at open gates: a product with it for every mask, one at a time to save memory."""
    groups, size = network.groups, sum(group.size for group in network.groups)
    # The Hessian is its own transpose, and pulling back asks less of a loss than pushing forward: `custom_vjp` will do.
    _, product = jax.vjp(slope, open_gates(network))
    flat = lambda tree: jnp.concatenate([tree[group.name] for group in groups])
    entry = lambda number: flat(product(by_group(groups, jax.nn.one_hot(number, size)))[0])[number]
    return by_group(groups, jax.lax.map(entry, jnp.arange(size)))


def _check_examples(batch: Any) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batch)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0] == ():
        raise ValueError(f"`batch` has leaves of the shapes {shapes}: give them one common leading axis, of examples.")
