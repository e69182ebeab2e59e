"""Exact curvature of small networks: Jacobians, Gauss-Newton matrices and Hessians over every parameter entry.

A network is a vector here: all floating-point entries of its effective parameters, leaf after leaf in pytree order.
Entries that no optimizer may move (see `network.trainable`) keep their place in it, so that shapes never change, and
have zeros as rows and columns. For networks of hundreds to a few thousand entries, where a matrix over all of them is
small. This file must not know what a layer, a picture or an optimizer is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import Count, check_leaves, strict
from maskprune.base.returned import loss_value
from maskprune.masks.half_precision import wide, widely
from maskprune.masks.network import Network, Params, effective_params, trainable, trained_leaves, wide_params
from maskprune.train.accurate_sums import product_of_rows, sum_of_parts


Residuals = Callable[[Params, Any], jax.Array]  # residuals(params, batch) -> float[R]; the loss is their mean square
Curvature = Callable[[Network, Any], jax.Array]  # curvature(network, batch) -> float[D, D]


class Flat(NamedTuple):
    """A network as a vector.

    Attributes:
        vector: float[D], every floating-point entry of the effective parameters; zeros at disabled masks.
        trains: bool[D], which of them may move.
        unflatten: `unflatten(float[D]) -> params`, the way back: what the network computes with at another vector.
            Leaves that are not floating point are the network's.
    """

    vector: jax.Array
    trains: jax.Array
    unflatten: Callable[[jax.Array], Params]


class Quadratic(NamedTuple):
    """A loss around a network, to second order: `loss + gradient @ d + d @ matrix @ d / 2` at a step `d`.

    Attributes:
        matrix: float[D, D], symmetric.
        gradient: float[D].
    """

    matrix: jax.Array
    gradient: jax.Array


@strict
def flatten(network: Network) -> Flat:
    """The network as a vector, which of its entries may move, and the way back."""
    params = effective_params(network)
    leaves, structure = jax.tree.flatten(params)
    kept = [position for position, leaf in enumerate(leaves) if _is_floating(leaf)]
    ends = np.cumsum([leaves[position].size for position in kept])

    def unflatten(vector: jax.Array) -> Params:
        filled = list(leaves)
        for position, piece in zip(kept, jnp.split(vector, ends[:-1]), strict=True):
            filled[position] = piece.reshape(leaves[position].shape).astype(leaves[position].dtype)
        return structure.unflatten(filled)

    return Flat(_ravel(wide(params), params), flags_of(network, trainable(network)), unflatten)


def flags_of(network: Network, marks: Any) -> jax.Array:
    """Marks as `network.entries` makes them (bool arrays that broadcast against the leaves), as a vector: bool[D]."""
    every = jax.tree.map(lambda mark, leaf: jnp.broadcast_to(mark, leaf.shape), marks, network.params)
    return _ravel(every, network.params)


@strict
def shift(network: Network, step: jax.Array) -> Network:
    """The network after a step float[D]. What may not move keeps its stored values bit for bit, NaN or not.

    Raises:
        ValueError: `step` has another shape.
    """
    flat = flatten(network)
    if step.shape != flat.vector.shape:
        raise ValueError(f"`step` has shape {step.shape}: the network has {flat.vector.size} entries, so use float[D].")
    moved, marks = flat.unflatten(flat.vector + step), trainable(network)
    params = jax.tree.map(lambda old, new, moves: jnp.where(moves, new, old), network.params, moved, marks)
    return dataclasses.replace(network, params=params)


@strict
def jacobian(residuals: Residuals, network: Network, batch: Any, *, chunk: Count = 8) -> jax.Array:
    """How every residual moves with every entry, by forward-mode products.

    Args:
        residuals: `residuals(params, batch) -> float[R]`.
        network: Where the derivatives are taken.
        batch: Passed on.
        chunk: How many entries are looked at side by side. Eight or fewer are fastest on a CPU.

    Returns:
        float[R, D], zero in the columns of entries that may not move. Such entries cost next to nothing.
    """
    of = widely(residuals, network.params)
    return _rows(lambda params: wide(of(params, batch)), network, chunk).T


@strict
def gauss_newton(
    residuals: Residuals, network: Network, batch: Any, *, examples: Count | None = None, chunk: Count = 8
) -> Quadratic:
    """The Gauss-Newton matrix `2 J'J / R` of the mean square of the residuals, and its gradient `2 J'r / R`.

    Args:
        residuals: `residuals(params, batch) -> float[R]`, R in proportion to the number of examples.
        network: Where the derivatives are taken.
        batch: A pytree of arrays. With `examples`, their first axis counts the examples.
        examples: How many are held in memory as a Jacobian, R x D numbers; None for all at once. The result is the
            same to rounding.
        chunk: See `jacobian`.

    Raises:
        TypeError: A leaf of `batch` is no array.
        ValueError: `examples` is less than 1, or the arrays of `batch` do not agree on the number of examples: see
            `sum_of_parts`.
    """
    check_leaves("batch", jax.tree.leaves(batch))
    of = widely(residuals, network.params)

    def sums(part: Any) -> tuple[jax.Array, jax.Array]:
        rows = _rows(lambda params: wide(of(params, part)), network, chunk)
        found = wide(of(wide_params(network), part))
        return product_of_rows(rows.T, rows.T), product_of_rows(rows.T, found[:, None])[:, 0]

    count = jax.eval_shape(residuals, network.params, batch).size
    matrix, gradient = sums(batch) if examples is None else sum_of_parts(sums, batch, examples)
    return Quadratic(2.0 / count * matrix, 2.0 / count * gradient)


@strict
def hessian(loss: Callable[[Params, Any], jax.Array], network: Network, batch: Any, *, chunk: Count = 8) -> jax.Array:
    """The exact second derivatives of a loss, by Hessian-vector products (Pearlmutter 1994), forward over reverse.

    Args:
        loss: `loss(params, batch) -> float[]`.
        network: Where the derivatives are taken.
        batch: Passed on.
        chunk: See `jacobian`.

    Returns:
        float[D, D], symmetric, perhaps indefinite; zero in rows and columns of entries that may not move.
    """

    def gradient(params: Params) -> jax.Array:
        of = widely(loss, network.params)
        value = lambda params: loss_value(of(params, batch))
        return _ravel(jax.grad(value, allow_int=True)(params), params)

    rows = jnp.where(flags_of(network, trainable(network))[None], _rows(gradient, network, chunk), 0.0)
    return (rows + rows.T) / 2


def _is_floating(leaf: jax.Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _ravel(tree: Any, params: Params) -> jax.Array:
    """The leaves of a tree like `params` one after another, those left out whose parameters are not floating point."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    return jnp.concatenate([leaf.reshape(-1) for leaf, like in pairs if _is_floating(like)])


def _rows(function: Callable[[Params], jax.Array], network: Network, chunk: int) -> jax.Array:
    """How `function(params) -> float[K]` moves with each entry: float[D, K], zero where entries may not move.

    One leaf moves at a time: what its entries cannot reach is then computed once, and not for each of them. For the
    standard network that was three times as fast as to move the whole vector.
    """
    leaves, structure = jax.tree.flatten(wide_params(network))
    marks, ever = jax.tree.leaves(trainable(network)), jax.tree.leaves(trained_leaves(network))
    rows = []
    for position, leaf in enumerate(leaves):
        if not _is_floating(leaf):
            continue

        def at(moved: jax.Array, position: int = position) -> jax.Array:
            return function(structure.unflatten([*leaves[:position], moved, *leaves[position + 1 :]]))

        moves = jnp.broadcast_to(marks[position], leaf.shape).reshape(-1)
        rows.append(_leaf_rows(at, leaf, moves, chunk) if ever[position] else _no_rows(at, leaf))
    return jnp.concatenate(rows)


def _no_rows(function: Callable[[jax.Array], jax.Array], leaf: jax.Array) -> jax.Array:
    found = jax.eval_shape(function, leaf)
    return jnp.zeros((leaf.size, found.size), found.dtype)


def _leaf_rows(function: Callable[[jax.Array], jax.Array], leaf: jax.Array, moves: jax.Array, chunk: int) -> jax.Array:
    """The rows of one leaf, as many at a time as `chunk` says, those that move first; the others are never computed."""
    _, slope = jax.linearize(function, leaf)
    chunk = min(chunk, leaf.size)
    rounds = -(-leaf.size // chunk)
    order = jnp.pad(jnp.argsort(~moves), (0, rounds * chunk - leaf.size), constant_values=leaf.size)

    def add(number: jax.Array, rows: jax.Array) -> jax.Array:
        picked = jax.lax.dynamic_slice(order, (number * chunk,), (chunk,))
        one_hot = (picked[:, None] == jnp.arange(leaf.size)[None]) & moves[None]
        found = jax.vmap(slope)(one_hot.astype(leaf.dtype).reshape(chunk, *leaf.shape))
        found = jnp.where(jnp.any(one_hot, axis=1)[:, None], found, 0)
        return rows.at[picked].set(found, mode="drop")

    return jax.lax.fori_loop(0, -(-jnp.sum(moves) // chunk), add, _no_rows(function, leaf))
