"""The blocked way: a convolution with few channels as one matrix product, in pure JAX.

The picture is cut into blocks of `BLOCK` x `BLOCK` output pixels. Each block reads a window of whole neighbouring
blocks (8 x 8 pixels for a 5 x 5 kernel), put together by reshapes and concatenations, without a gather; the data grow
4-fold, not 25-fold. The kernel is expanded once to the matrix that maps a window to its block. Forward, input gradient
and kernel gradient are then plain matrix products, which batch under `vmap` and stay fast inside loops, where XLA's own
convolution on CPU does not.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


BLOCK = 4


def conv2d_blocked(inputs: jax.Array, kernel: jax.Array, *, precision: jax.lax.PrecisionLike) -> jax.Array:
    """Stride 1, zero padding to the same size, odd kernel. [N, H, W, I] and [k, l, I, O] give [N, H, W, O]."""
    height, width = inputs.shape[1:3]
    windows = _windows(inputs, kernel.shape[0], kernel.shape[1])  # [N, h, w, y * x * I]
    blocks = jnp.matmul(windows, _expand(kernel), precision=precision)  # [N, h, w, BLOCK * BLOCK * O]
    return _join(blocks, kernel.shape[3])[:, :height, :width]


def _reach(size: int) -> int:
    """How many blocks in a row a window covers, for a kernel of this size."""
    return -(-(BLOCK + size - 1) // BLOCK)


def _windows(inputs: jax.Array, tall: int, wide: int) -> jax.Array:
    n, height, width, channels = inputs.shape
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    down, right = _reach(tall), _reach(wide)
    inputs = jnp.pad(
        inputs, ((0, 0), _padding(height, tall, rows + down), _padding(width, wide, columns + right), (0, 0))
    )
    blocks = inputs.reshape(n, rows + down - 1, BLOCK, columns + right - 1, BLOCK, channels)
    blocks = jnp.concatenate([blocks[:, i : i + rows] for i in range(down)], axis=2)
    blocks = jnp.concatenate([blocks[:, :, :, j : j + columns] for j in range(right)], axis=4)
    return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, -1)


def _padding(length: int, size: int, blocks: int) -> tuple[int, int]:
    before = size // 2
    return before, (blocks - 1) * BLOCK - length - before


def _expand(kernel: jax.Array) -> jax.Array:
    """The kernel as a matrix from windows to blocks: [window * window * I, BLOCK * BLOCK * O]."""
    down, across = _shifts(kernel.shape[0], kernel.dtype), _shifts(kernel.shape[1], kernel.dtype)
    # A one-hot sum copies numbers; at full precision it copies them exactly.
    matrix = jnp.einsum("iua,jvc,acxo->uvxijo", down, across, kernel, precision="highest", optimize="optimal")
    return matrix.reshape(matrix.shape[0] * matrix.shape[1] * matrix.shape[2], -1)


def _shifts(size: int, dtype: jnp.dtype) -> np.ndarray:
    """One-hot [BLOCK, window, size]: pixel i of a block reads window pixel i + a through kernel entry a."""
    one_hot = np.zeros((BLOCK, _reach(size) * BLOCK, size), dtype)
    for i in range(BLOCK):
        one_hot[i, i + np.arange(size), np.arange(size)] = 1
    return one_hot


def _join(blocks: jax.Array, channels: int) -> jax.Array:
    n, rows, columns, _ = blocks.shape
    blocks = blocks.reshape(n, rows, columns, BLOCK, BLOCK, channels).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(n, rows * BLOCK, columns * BLOCK, channels)
