"""The XLA way: JAX's own convolution. The reference in the tests, and what can be traced and exported."""

from __future__ import annotations

import jax


def conv2d_xla(inputs: jax.Array, kernel: jax.Array, *, precision: jax.lax.PrecisionLike) -> jax.Array:
    """Stride 1, zero padding to the same size, odd kernel. [N, H, W, I] and [k, l, I, O] give [N, H, W, O]."""
    return jax.lax.conv_general_dilated(
        inputs,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )
