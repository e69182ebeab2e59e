"""Repairs: masks are switched off, and the rest of the network makes up for them at once, without training.

Each factory gives `remove(network, chosen, batch) -> Network`: the chosen masks disabled, other parameters adjusted.
All run under `jit` and `vmap` with `chosen` as data. They move what an optimizer could move afterwards and nothing
else: frozen masks keep their numbers bit for bit, and so do the chosen ones, which may be enabled again. Nothing chosen
changes nothing. A repair of which a number is not finite is left out: the masks are then disabled and that is all. This
file knows no picture and no optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.alterations import Chosen, disable
from maskprune.masks.groups import Group, Slice, leaf_path, leaves_by_path
from maskprune.masks.network import Network, Params, trainable, trained_leaves, wide_params
from maskprune.select.base import mask_vectors
from maskprune.select.brain_surgeon import measured
from maskprune.select.brain_surgeon import remove as best_removal
from maskprune.select.consumers import (
    Activations,
    Reader,
    add_weights,
    columns,
    covariance,
    read_values,
    readers_of,
    ridge_of,
    weights,
)
from maskprune.select.cosine import similarities
from maskprune.train.curvature import Curvature, shift


Remove = Callable[[Network, Chosen, Any], Network]
Changes = Mapping[str, jax.Array]  # leaf path: the leaf with its new values


def plain() -> Remove:
    """No repair: the masks are disabled and that is all."""
    return lambda network, chosen, batch: disable(network, chosen)


@strict
def bias(activations: Activations, *, border: int = 0) -> Remove:
    """What the masks added to the sums of their reader on average goes into the reader's bias.

    Exact for masks whose output is constant, but for the frame that zero padding reaches.

    Args:
        activations: See `select.redundancy`.
        border: Pixels left out of the average at each side of a picture.

    Raises:
        ValueError: When called: a reader has no bias beside it, or see `select.redundancy`.
    """

    def adjust(network: Network, reader: Reader, arrived: jax.Array, gone: jax.Array, stays: jax.Array) -> Changes:
        del stays
        if not reader.bias:
            raise ValueError(f"`{reader.kernel}` has no bias beside it that could take up what removed masks added.")
        params = wide_params(network)
        lost = jnp.where(gone[:, None], weights(reader, params), 0.0)
        return _more(params, reader.bias, _product(jnp.mean(arrived, axis=0), lost))

    return _of_readers(activations, adjust, border)


@strict
def least_squares(activations: Activations, *, ridge: float = 1e-4, border: int = 0) -> Remove:
    """The masks that stay take over, with the kernels and the bias of the reader that do it best on the batch.

    Least squares over all positions, for all chosen masks of a layer at once; layers in turn, each on what the repairs
    before have left. What `select.redundancy` calls left over remains as the error of the reader's sums.

    Args:
        activations: See `select.redundancy`.
        ridge: Keeps the steps short: added to the diagonal of the covariance, relative to its mean.
        border: Pixels left out at each side of a picture.

    Raises:
        ValueError: `ridge` is not positive; or, when called, see `select.redundancy`.
    """
    if not ridge > 0:
        raise ValueError(f"`ridge` is {ridge}: use a positive number.")

    def adjust(network: Network, reader: Reader, arrived: jax.Array, gone: jax.Array, stays: jax.Array) -> Changes:
        params, free = wide_params(network), trained_leaves(network)
        constant = bool(reader.bias) and leaves_by_path(free)[reader.bias]
        mean, gram = covariance(arrived, constant=constant)
        lost = jnp.where(gone[:, None], weights(reader, params), 0.0)
        system = jnp.where(stays[:, None] & stays[None], gram, 0.0) + ridge_of(gram, ridge) * jnp.eye(len(gram))
        pull = jnp.where(stays[:, None], _product(gram, lost), 0.0)
        found = jax.scipy.linalg.solve(system, pull, assume_a="pos")
        step = jnp.where(weights(reader, _broadcast(trainable(network), params)), found, 0.0)
        kernel = add_weights(reader, leaves_by_path(params)[reader.kernel], step)
        moved = _more(params, reader.bias, _product(mean, lost - step)) if constant else {}
        return {reader.kernel: kernel, **moved}

    return _of_readers(activations, adjust, border)


@strict
def merge(*, least: float = 0.0) -> Remove:
    """A mask's twin takes over: what read the mask is added to what reads the twin, times `|w_mask| / |w_twin|`.

    The twin is the mask that stays whose kernel and bias point most nearly the same way. Behind a ReLU, or anything
    else with `f(a x) = a f(x)` for positive `a`, this is exact for positive multiples. A mask with no twin whose cosine
    is above `least` is disabled without repair: an opposite mask is a complement there, no twin.

    Args:
        least: The smallest cosine that makes a twin, itself left out; 0 or more, below 1.

    Raises:
        ValueError: `least` is out of range; or, when called, the masks of a group are read at different numbers of
            positions.

    References:
        Srinivas and Babu, Data-free Parameter Pruning for Deep Neural Networks, BMVC 2015; Kim et al., Neuron Merging,
        NeurIPS 2020.
    """
    if not 0 <= least < 1:
        raise ValueError(f"`least` is {least}: use 0 or more, below 1.")

    def adjust(network: Network, group: Group, gone: jax.Array) -> Changes:
        params, changes = wide_params(network), {}
        shares = _shares(mask_vectors(group, params), gone, network.enabled[group.name] & ~gone, least)
        for piece in group.with_role("in"):
            changes[piece.leaf] = _hand_over(group, piece, leaves_by_path(params)[piece.leaf], shares)
        return changes

    return lambda network, chosen, batch: _in_turn(network, chosen, adjust)


@strict
def second_order(curvature: Curvature, *, damping: float = 1.0) -> Remove:
    """The Optimal Brain Surgeon's step: every entry that may move does, so that the loss rises least.

    For all chosen masks at once, `-inv(H)[:, g] @ inv(inv(H)[g, g]) @ w_g`, whose price `select.surgeon` states. Exact
    where the loss is quadratic. The network should be trained: its gradient is taken to be zero.

    Args:
        curvature: See `select.surgeon`.
        damping: What is added to all eigenvalues, relative to their mean. To lose a mask is a long way
            to go, and the quadratic holds near by: on a network trained on pictures 1 left the least loss, and 0.01
            more than no repair.

    Raises:
        ValueError: `damping` is negative.
    """
    if damping < 0:
        raise ValueError(f"`damping` is {damping}: use 0 or more.")

    def remove(network: Network, chosen: Chosen, batch: Any) -> Network:
        after = disable(network, chosen)
        gone = {name: network.enabled[name] & ~flags for name, flags in after.enabled.items()}
        found = measured(curvature, network, batch, damping=damping)
        moved = shift(network, best_removal(network, gone, found).step)
        return _moved(after, after, leaves_by_path(moved.params), jnp.any(jnp.concatenate(list(gone.values()))))

    return remove


def _moved(network: Network, last: Network, changes: Changes, some: jax.Array) -> Network:
    """The network with these leaves where they may still move in `last`, if there are `some` masks to repair for."""
    marks, stored = leaves_by_path(trainable(last)), leaves_by_path(network.params)
    changes = {place: leaf.astype(stored[place].dtype) for place, leaf in changes.items()}  # may be too much for it
    fine = [jnp.all(jnp.isfinite(leaf) | ~marks[place]) for place, leaf in changes.items()]
    some = some & jnp.all(jnp.array(fine, bool))

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        place = leaf_path(path)
        return jnp.where(marks[place] & some, changes[place], leaf) if place in changes else leaf

    return dataclasses.replace(network, params=jax.tree_util.tree_map_with_path(put, network.params))


def _in_turn(network: Network, chosen: Chosen, adjust: Callable[[Network, Group, jax.Array], Changes]) -> Network:
    """Group by group, so that each is repaired on what the network is by then."""
    last = disable(network, chosen)
    for group in network.groups:
        gone = network.enabled[group.name] & ~last.enabled[group.name]
        network = _moved(network, last, adjust(network, group, gone), jnp.any(gone))
        network = disable(network, {group.name: gone})
    return network


def _of_readers(activations: Activations, adjust: Callable[..., Changes], border: int) -> Remove:
    """Repairs what reads the masks: `adjust` gets what arrives at a reader, which of it goes and which of it stays."""

    def remove(network: Network, chosen: Chosen, batch: Any) -> Network:
        def every(network: Network, group: Group, gone: jax.Array) -> Changes:
            changes, values = {}, read_values(activations, network, batch)[group.name]
            stays = network.enabled[group.name] & ~gone
            for reader in readers_of(network, group):
                arrived = columns(reader, values, border=border)
                wide = [jnp.repeat(flags, reader.taps) for flags in (gone, stays)]
                changes |= adjust(network, reader, arrived, *wide)
            return changes

        return _in_turn(network, chosen, every)

    return remove


def _more(params: Params, place: str, step: jax.Array) -> Changes:
    return {place: leaves_by_path(params)[place] + step}


def _broadcast(marks: Any, params: Params) -> Any:
    return jax.tree.map(lambda mark, leaf: jnp.broadcast_to(mark, leaf.shape), marks, params)


def _shares(vectors: jax.Array, gone: jax.Array, stays: jax.Array, least: float) -> jax.Array:
    """How many times the mask of a column is added to that of a row: float[C, C], in each column one twin or none."""
    cosines = jnp.where(stays[:, None] & gone[None], similarities(vectors), -1.0)
    twin, lengths = jnp.argmax(cosines, axis=0), jnp.sqrt(jnp.sum(jnp.square(vectors), axis=1))
    found = jnp.max(cosines, axis=0) > least  # so the twin is no zero vector
    times = jnp.where(found, lengths / jnp.where(found, lengths[twin], 1.0), 0.0)
    return jax.nn.one_hot(twin, len(vectors), axis=0) * times[None]


def _hand_over(group: Group, piece: Slice, leaf: jax.Array, shares: jax.Array) -> jax.Array:
    places = [np.flatnonzero(np.asarray(piece.labels) == mask) for mask in range(group.size)]
    if len({len(each) for each in places}) > 1:
        raise ValueError(
            f"The masks of group `{group.name}` are read at {[len(each) for each in places]} positions of "
            f"`{piece.leaf}`: masks can only be merged where all are read at as many."
        )
    rows = jnp.moveaxis(leaf, piece.axis, 0)
    added = jnp.tensordot(shares, rows[np.stack(places)], 1, precision="highest")
    return jnp.moveaxis(rows.at[np.stack(places)].add(added), 0, piece.axis)


def _product(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.matmul(one, other, precision="highest")
