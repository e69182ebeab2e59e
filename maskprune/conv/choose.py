"""`conv2d`, the one convolution the models call, and the choice between the ways behind it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from maskprune.base.checks import show, strict
from maskprune.conv import native
from maskprune.conv.blocked import conv2d_blocked
from maskprune.conv.xla import conv2d_xla


Way = Literal["native", "blocked", "xla"]
Padding = Literal["SAME", "VALID"]


class Own(NamedTuple):
    """What is compiled under a name of its own, by which tracing, counting and exporting know what it stands for."""

    way: Way
    relu: bool

    @property
    def name(self) -> str:
        return f"conv2d_{self.way}" + ("_relu" if self.relu else "")


OWN = {own.name: own for own in (Own(way, relu) for way in ("native", "blocked") for relu in (False, True))}


@strict
def conv2d(
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    relu: bool = False,
    padding: Padding = "SAME",
    way: Way | None = None,
    precision: jax.lax.PrecisionLike = "highest",
) -> jax.Array:
    """Two-dimensional convolution (cross-correlation, as in every neural network library), stride 1.

    Derivatives of every order, forward and backward, and `vmap` work in every way. For several devices use `shard_map`:
    the native way is not divided by itself.

    Args:
        inputs: float[N, H, W, I].
        kernel: float[k, l, I, O] with odd k and l.
        bias: float[O], or None.
        relu: Whether negative outputs become 0, in the same pass.
        padding: `"SAME"` pads with zeros, `"VALID"` gives the outputs that need no padding.
        way: Which implementation; None takes `default_way(inputs.dtype)`.
        precision: Of the products. JAX's own default on recent GPUs is TF32; ours is full float32.

    Returns:
        float[N, H, W, O], or float[N, H - k + 1, W - l + 1, O] for `"VALID"`.

    Raises:
        ValueError: Shapes do not fit, a kernel side is even, `padding` or `way` is unknown, or the native way is asked
            for where it was not built or in a number format it does not compute.
    """
    _check(inputs, kernel, bias, padding)
    dtype = jnp.result_type(inputs, kernel)
    inputs, kernel = (each.astype(dtype) for each in (jnp.asarray(inputs), jnp.asarray(kernel)))
    bias = None if bias is None else jnp.asarray(bias).astype(dtype)
    sides = (kernel.shape[0], kernel.shape[1])
    way = default_way(dtype, sides) if way is None else _checked(way, dtype, sides)
    if 0 in (*inputs.shape, *kernel.shape):  # nothing to sum, or nothing to give
        outputs = finish(jnp.zeros((*inputs.shape[:3], kernel.shape[3]), dtype), bias, relu)
    elif way == "xla":
        outputs = finish(conv2d_xla(inputs, kernel, precision=precision), bias, relu)
    else:
        outputs = _own(way, relu, precision)(*((inputs, kernel) if bias is None else (inputs, kernel, bias)))
    if padding == "VALID":
        down, right = kernel.shape[0] // 2, kernel.shape[1] // 2
        outputs = outputs[:, down : inputs.shape[1] - down, right : inputs.shape[2] - right]
    return outputs


@strict
def default_way(dtype: jax.typing.DTypeLike = "float32", sides: tuple[int, int] = (5, 5)) -> Way:
    """Native where there is one for such a kernel, else blocked; XLA's own where that was not measured to be faster.

    Raises:
        TypeError: `dtype` is no number format.
    """
    try:
        dtype = jnp.dtype(dtype)
    except (TypeError, ValueError, DeprecationWarning) as error:
        raise TypeError(f"`dtype` is {show(dtype)}: use a number format, such as float32.") from error
    if native.takes(dtype, sides):
        return "native"
    backend = jax.default_backend()
    measured = backend == "cpu" or (backend == "gpu" and jnp.dtype(dtype) == jnp.float32)
    return "blocked" if measured else "xla"


def describe_way() -> str:
    """The default way in words for reports, as in `"native (avx2)"`."""
    way = default_way()
    kind = native.LEVEL if jax.default_backend() == "cpu" else "cuda"
    return f"native ({kind})" if way == "native" else way


def why_not_native() -> str:
    """Why the default way on this device is not the native one, or ""."""
    return "" if default_way() == "native" else native.refusal(jnp.float32, (5, 5)) or "another way was measured faster"


@strict
def finish(outputs: jax.Array, bias: jax.Array | None, relu: bool) -> jax.Array:
    """What comes after the products."""
    outputs = outputs if bias is None else outputs + bias[None, None, None, :]
    return jax.nn.relu(outputs) if relu else outputs


@cache
def _own(way: Way, relu: bool, precision: jax.lax.PrecisionLike) -> Callable[..., jax.Array]:
    def run(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        if way == "native":
            return native.conv2d_native(inputs, kernel, bias, relu=relu)
        return conv2d_blocked(inputs, kernel, bias, relu=relu, precision=precision)

    run.__name__ = Own(way, relu).name
    return jax.jit(run)


def _checked(way: Way, dtype: jnp.dtype, sides: tuple[int, int]) -> Way:
    if way not in ("native", "blocked", "xla"):
        raise ValueError(f'`way` is {way!r}: use "native", "blocked" or "xla".')
    if way == "native" and (reason := native.refusal(dtype, sides)):
        raise ValueError(f'`way` is "native", but {reason}: use "blocked".')
    return way


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
