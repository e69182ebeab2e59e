"""`conv2d`, the one convolution the models call, and the choice between the ways behind it."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from maskprune.conv.blocked import conv2d_blocked
from maskprune.conv.xla import conv2d_xla


Way = Literal["blocked", "xla"]


def conv2d(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    padding: Literal["SAME", "VALID"] = "SAME",
    way: Way | None = None,
    precision: jax.lax.PrecisionLike = "highest",
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in every neural network library), stride 1.

    Args:
        inputs: float[N, H, W, I].
        kernel: float[k, l, I, O] with odd k and l.
        bias: float[O], or None.
        padding: `"SAME"` pads with zeros, `"VALID"` gives the outputs that need no padding.
        way: Which implementation; None takes `default_way()`.
        precision: Of the products. JAX's own default on recent GPUs is TF32; ours is full float32.

    Returns:
        float[N, H, W, O], or float[N, H - k + 1, W - l + 1, O] for `"VALID"`.

    Raises:
        ValueError: Shapes do not fit, a kernel side is even, or `padding` or `way` is unknown.
    """
    _check(inputs, kernel, bias, padding)
    implementation = _implementation(default_way() if way is None else way)
    if kernel.shape[2] == 0 or kernel.shape[3] == 0:  # a layer without channels: nothing to sum, or nothing to give
        outputs = jnp.zeros((*inputs.shape[:3], kernel.shape[3]), inputs.dtype)
    else:
        outputs = implementation(inputs, kernel, precision=precision)
    if padding == "VALID":
        down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
        outputs = outputs[:, down : inputs.shape[1] - down, right : inputs.shape[2] - right]
    return outputs if bias is None else outputs + bias[None, None, None, :]


def default_way() -> Way:
    """Blocked on CPU, where training is 5 times as fast (`benchmarks/train_step.py`); XLA's own where not measured."""
    return "blocked" if jax.default_backend() == "cpu" else "xla"


def _implementation(way: Way):
    if way == "blocked":
        return conv2d_blocked
    if way == "xla":
        return conv2d_xla
    raise ValueError(f'`way` is {way!r}: use "blocked" or "xla".')


def _check(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, padding: str) -> None:
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'`padding` is {padding!r}: use "SAME" or "VALID".')
    if inputs.ndim != 4 or kernel.ndim != 4 or inputs.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"`inputs` has shape {inputs.shape} and `kernel` {kernel.shape}: use [N, H, W, I] and [k, l, I, O]."
        )
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"`kernel` has shape {kernel.shape}: its first two sides must be odd.")
    if bias is not None and bias.shape != kernel.shape[3:]:  # it would broadcast without a word
        raise ValueError(f"`bias` has shape {bias.shape}, but `kernel` gives [{kernel.shape[3]}] output channels.")
