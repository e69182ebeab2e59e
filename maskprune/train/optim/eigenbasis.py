"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, as an optax transform.

Neighbouring pixels of photographs are so much alike that the loss of a small convolution is badly conditioned: far
steeper along some directions of a kernel than along others, and Adam, which scales one entry at a time, cannot see it.
Kernels of this size are small enough to rotate the gradient into the eigenbasis of its own second moments at hardly any
cost (`benchmarks/train_step.py`). Knows optax and pytrees, no network.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from maskprune.base.checks import Count, Natural, NotNegative, Share, strict
from maskprune.train.optim.averaging import land_on_average
from maskprune.train.optim.schedules import level, plateau, scale_by_progress


@strict
def soap(learning_rate: NotNegative = 1e-2) -> optax.GradientTransformation:
    """The recipe that measured best for small convolutions: SOAP of short memory, a plateau, and straight down to 0.

    Args:
        learning_rate: Step length of every entry on the plateau, in the rotated coordinates.
    """
    return optax.chain(scale_by_soap(b2=0.9), scale_by_progress(plateau), optax.scale(-learning_rate))


@strict
def soap_averaged(learning_rate: NotNegative = 1e-2) -> optax.GradientTransformation:
    """Less squared error than `soap` in the same time, but no better F1: a level rate, and a landing on the average.

    The average over the last quarter of a session takes the place of the way down. A session that ends before its time
    does not land: for those, such as the ones that `stagnation` ends, take `soap`. Measured in
    `benchmarks/convergence.py`.

    Args:
        learning_rate: Step length of every entry after the warm-up, in the rotated coordinates.
    """
    steps = optax.chain(scale_by_soap(b2=0.95), scale_by_progress(level), optax.scale(-learning_rate))
    return optax.chain(steps, land_on_average(0.75))


class SoapState(NamedTuple):
    """Step count and, for every leaf, its `LeafMoments`."""

    steps: jax.Array
    leaves: tuple[LeafMoments, ...]


class LeafMoments(NamedTuple):
    """Moments of one leaf seen as a matrix of m rows and n columns (n: its last axis).

    `mean` is kept in the coordinates of the leaf, `square` in those of the basis. For a leaf of one axis m is 1, and
    it is left unrotated: plain Adam.
    """

    mean: jax.Array  # float[m, n]
    square: jax.Array  # float[m, n]
    rows: jax.Array  # float[m, m], moving average of G G^T
    columns: jax.Array  # float[n, n], moving average of G^T G
    row_basis: jax.Array  # float[m, m], its eigenvectors
    column_basis: jax.Array  # float[n, n]


@strict
def scale_by_soap(
    *,
    b1: Share = 0.9,
    b2: Share = 0.99,
    decay: Share = 0.95,
    every: Count = 10,
    eps: NotNegative = 1e-8,
    largest: Natural = 1024,
) -> optax.GradientTransformation:
    """Adam in the slowly turning eigenbasis of the gradients' second moments.

    A leaf is seen as a matrix whose columns are its last axis (output channels in Flax's kernel layout). A side longer
    than `largest` is left unrotated.

    Args:
        b1: Decay of the first moment.
        b2: Decay of the second moment, kept in the rotated coordinates.
        decay: Decay of the two matrices whose eigenvectors are the basis.
        every: Steps between two eigendecompositions.
        eps: Added to the root of the second moment.
        largest: Longest side of a matrix to decompose.

    References:
        Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam, arXiv 2409.11321, 2024.
    """

    def init(params: Any) -> SoapState:
        return SoapState(jnp.zeros((), jnp.int32), tuple(_moments(p, largest) for p in jax.tree.leaves(params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SoapState]:
        del params
        leaves, structure = jax.tree.flatten(updates)
        turn = state.steps % every == 0
        count = state.steps + 1
        unbias = (1 - b1**count, 1 - b2**count)
        results = [one(g, moments, turn, unbias) for g, moments in zip(leaves, state.leaves, strict=True)]
        return structure.unflatten([u for u, _ in results]), SoapState(count, tuple(m for _, m in results))

    def one(grad: jax.Array, old: LeafMoments, turn: jax.Array, unbias: tuple[jax.Array, jax.Array]) -> Any:
        matrix = grad.reshape(old.mean.shape)
        rows, row_basis = _follow(old.rows, old.row_basis, _dot(matrix, matrix.T), turn, decay)
        columns, column_basis = _follow(old.columns, old.column_basis, _dot(matrix.T, matrix), turn, decay)
        mean = b1 * old.mean + (1 - b1) * matrix
        square = b2 * old.square + (1 - b2) * jnp.square(_rotate(row_basis.T, matrix, column_basis))
        scaled = _rotate(row_basis.T, mean / unbias[0], column_basis) / (jnp.sqrt(square / unbias[1]) + eps)
        new = LeafMoments(mean, square, rows, columns, row_basis, column_basis)
        return _rotate(row_basis, scaled, column_basis.T).reshape(grad.shape), new

    return optax.GradientTransformation(init, update)


def _moments(leaf: jax.Array, largest: int) -> LeafMoments:
    n = leaf.shape[-1] if leaf.ndim else 1
    m = leaf.size // n if n else 0
    # A side of size 0 in the averages stands for "not rotated"; the leaf's own shape decides, so it is static.
    rotated_m, rotated_n = (side if leaf.ndim > 1 and 1 < side <= largest else 0 for side in (m, n))
    zeros = jnp.zeros((m, n), leaf.dtype)
    squares = [jnp.zeros((side, side), leaf.dtype) for side in (rotated_m, rotated_n)]
    bases = [jnp.eye(side, dtype=leaf.dtype) for side in (rotated_m, rotated_n)]
    return LeafMoments(zeros, zeros, *squares, *bases)


def _follow(average: jax.Array, basis: jax.Array, found: jax.Array, turn: jax.Array, decay: float) -> Any:
    if not average.size:
        return average, basis
    average = decay * average + (1 - decay) * found
    return average, _turned(turn, average, basis)


@jax.custom_batching.custom_vmap
def _turned(turn: jax.Array, average: jax.Array, basis: jax.Array) -> jax.Array:
    """The eigenvectors where it is time for them, else the basis as it is. Leading axes are those of members."""
    wanted = lambda: jnp.where(turn[..., None, None], jnp.linalg.eigh(average)[1], basis)
    return jax.lax.cond(jnp.any(turn), wanted, lambda: basis)


@_turned.def_vmap
def _(size: int, batched: Any, *arrays: jax.Array) -> tuple[jax.Array, bool]:
    """Under `vmap` a condition becomes a selection, and every step would pay; "is it time for anybody" stays one."""
    spread = lambda array, has: array if has else jnp.broadcast_to(array, (size, *array.shape))
    return _turned(*jax.tree.map(spread, arrays, tuple(batched))), True


def _rotate(left: jax.Array, matrix: jax.Array, right: jax.Array) -> jax.Array:
    matrix = _dot(left, matrix) if left.size else matrix
    return _dot(matrix, right) if right.size else matrix


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
