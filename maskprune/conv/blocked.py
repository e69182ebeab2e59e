"""The blocked way: a convolution with few channels as one matrix product, in pure JAX.

Pictures are planar: one channel after another, so that all copies and sums run along whole rows. Every `BLOCK` output
rows share one window of input rows (8 for a 5 x 5 kernel), put together without a gather; the kernel is expanded to the
banded matrix that maps a column of a window to a column of a block. Along the row nothing is expanded: either the data
are shifted by every tap before the product, or what each tap gives after it, whichever side has fewer channels. So a
5 x 5 kernel costs 8 / 5 of its multiplications, and the product is wide and short, which CPUs share well. Derivatives
are those of its parts, and as cheap; all are plain matrix products, which batch under `vmap` and stay fast inside
loops, where XLA's own convolution on CPU does not.
"""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np


BLOCK = 4


def conv2d_blocked(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    *,
    relu: bool,
    precision: jax.lax.PrecisionLike,
) -> jax.Array:
    """Stride 1, zero padding to the same size, odd kernel. [N, H, W, I] and [k, l, I, O] give [N, H, W, O]."""
    (wide, before, after), (height, width) = kernel.shape[1:], inputs.shape[1:3]
    windows = _windows(inputs, kernel.shape[0], wide)  # [I, window, N, rows, W + l - 1]
    if before < after:
        windows = jnp.stack([windows[..., c : c + width] for c in range(wide)])  # [l, I, window, N, rows, W]
        blocks = _product(_expand(kernel, "ojciu"), windows, 3, precision)
    else:
        blocks = _product(_expand(kernel, "cojiu"), windows, 2, precision)  # [l, O, BLOCK, N, rows, W + l - 1]
        taps = jax.lax.split(blocks, (1,) * wide)
        blocks = reduce(jnp.add, [tap[0, ..., c : c + width] for c, tap in enumerate(taps)])
    # Still planar, [O, BLOCK, N, rows, W]: what a layer does next then needs no other order in memory.
    blocks = blocks if bias is None else blocks + bias[:, None, None, None, None]
    return _join(jax.nn.relu(blocks) if relu else blocks)[:, :height]


def _windows(inputs: jax.Array, tall: int, wide: int) -> jax.Array:
    n, height, width, channels = inputs.shape
    rows, window = -(-height // BLOCK), BLOCK + tall - 1
    reach = -(-window // BLOCK)  # blocks that a window touches
    below = (rows + reach - 1) * BLOCK - height - tall // 2
    padding = (0, 0), (0, 0), (tall // 2, below), (wide // 2, wide // 2)
    planes = jnp.pad(inputs.transpose(3, 0, 1, 2), padding)
    blocks = planes.reshape(channels, n, rows + reach - 1, BLOCK, width + wide - 1).transpose(0, 3, 1, 2, 4)
    return jnp.concatenate([blocks[:, : window - i * BLOCK, :, i : i + rows] for i in range(reach)], axis=1)


def _expand(kernel: jax.Array, order: str) -> jax.Array:
    """The kernel as a matrix, its axes in this order: window row u gives block row j, by tap c, from i to o."""
    # A one-hot sum copies numbers; at full precision it copies them exactly.
    return jnp.einsum(f"jua,acio->{order}", _shifts(kernel.shape[0], kernel.dtype), kernel, precision="highest")


def _shifts(size: int, dtype: jnp.dtype) -> np.ndarray:
    """One-hot [BLOCK, window, size]: row j of a block reads window row j + a through kernel entry a."""
    one_hot = np.zeros((BLOCK, BLOCK + size - 1, size), dtype)
    for j in range(BLOCK):
        one_hot[j, j + np.arange(size), np.arange(size)] = 1
    return one_hot


def _product(matrix: jax.Array, data: jax.Array, summed: int, precision: jax.lax.PrecisionLike) -> jax.Array:
    """`tensordot` as a product of two plain matrices: derivatives of one over several axes begin with transposes."""
    made, size = (*matrix.shape[:-summed], *data.shape[summed:]), np.prod(data.shape[:summed])
    return jnp.matmul(matrix.reshape(-1, size), data.reshape(size, -1), precision=precision).reshape(made)


def _join(blocks: jax.Array) -> jax.Array:
    """[O, BLOCK, N, rows, W] to [N, rows * BLOCK, W, O]."""
    channels, _, n, _, width = blocks.shape
    return blocks.transpose(2, 3, 1, 4, 0).reshape(n, -1, width, channels)
