"""The native way: direct convolutions compiled from `_native.cc`, called inside compiled JAX code on the CPU.

A convolution is linear in its picture and in its kernel. Told so, JAX derives everything from two calls, the
convolution and the gradient of its kernel: forward and backward derivatives of every order stay within the two. Members
of a population (`vmap`) are a leading axis of both. Logical shapes are the usual ones; in memory pictures are planar,
one channel after another, and XLA lays out what stands between two calls in the same way.

Whoever installs without a C++ compiler has no library here (`LEVEL` is then None) and `conv2d` takes another way. The
environment variable MASKPRUNE_NATIVE names the instruction set to use instead of the best one, or says `off`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import partial
from importlib import util
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


PLANAR = (0, 1, 4, 2, 3)  # how [P, N, H, W, C] lies in memory
TARGETS = ("maskprune_convolve", "maskprune_kernel_gradient")


def conv2d_native(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, relu: bool) -> jax.Array:
    """Stride 1, zero padding to the same size, odd kernel, float32. [N, H, W, I] and [k, l, I, O] give [N, H, W, O]."""
    bias = jnp.zeros(kernel.shape[3], kernel.dtype) if bias is None else bias
    return _layer(inputs[None], kernel[None], bias[None], relu)[0]


def takes(dtype: jax.typing.DTypeLike) -> bool:
    """Whether the native way computes in this number format, on this machine."""
    return LEVEL is not None and jnp.dtype(dtype) == jnp.float32


def _load() -> str | None:
    """Registers the library's functions with JAX; gives the instruction set it uses, None where there is none."""
    wanted = os.environ.get("MASKPRUNE_NATIVE", "")
    found = util.find_spec("maskprune.conv._native")
    if wanted == "off" or found is None or found.origin is None:
        return None
    try:
        library = ctypes.CDLL(found.origin)
    except OSError:  # built for another system
        return None
    library.maskprune_level.restype = ctypes.c_char_p
    level = library.maskprune_level(wanted.encode())
    if level is None:
        raise ValueError(
            f"MASKPRUNE_NATIVE is {wanted!r}: use off, baseline, avx2 or avx512, as far as this processor has them."
        )
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    return level.decode()


LEVEL = _load()


# The two calls. Every array has the axis of members in front.


def _call(name: str, shape: Sequence[int], layouts: Sequence[Any], *arrays: jax.Array, **options: Any) -> jax.Array:
    *given, made = layouts
    result = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return jax.ffi.ffi_call(name, result, input_layouts=given, output_layouts=made)(*arrays, **options)


def _run_layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, relu: bool) -> jax.Array:
    shape = (*x.shape[:4], kernel.shape[4])
    return _call(TARGETS[0], shape, (PLANAR, None, None, PLANAR), x, kernel, bias, relu=relu)


def _run_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _run_layer(x, kernel, jnp.zeros((kernel.shape[0], kernel.shape[4]), kernel.dtype), relu=False)


def _run_gradient(x: jax.Array, g: jax.Array, *, sides: tuple[int, int]) -> jax.Array:
    shape = (x.shape[0], *sides, x.shape[4], g.shape[4])
    return _call(TARGETS[1], shape, (PLANAR, PLANAR, None), x, g)


def _primitive(name: str, run: Any) -> Primitive:
    """A primitive computed by `run` for all members at once."""
    primitive = Primitive(name)
    primitive.def_impl(lambda *arrays, **params: jax.jit(partial(run, **params))(*arrays))
    made = lambda *arrays, **params: jax.eval_shape(partial(run, **params), *arrays).shape
    primitive.def_abstract_eval(lambda *arrays, **params: ShapedArray(made(*arrays, **params), jnp.float32))
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))

    def batch(arrays: Sequence[jax.Array], axes: Sequence[int | None], **params: Any) -> tuple[jax.Array, int]:
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        front = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]
        found = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in front), **params)
        return found.reshape(size, -1, *found.shape[1:]), 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_fused = _primitive("conv2d_bias_relu", _run_layer)
_convolve = _primitive("conv2d_planar", _run_convolve)
_gradient = _primitive("conv2d_kernel_gradient", _run_gradient)


def _flipped(kernel: jax.Array) -> jax.Array:
    """The kernel that takes gradients of the outputs back to the inputs."""
    return kernel[:, ::-1, ::-1].swapaxes(3, 4)


ad.defbilinear(
    _convolve,
    lambda g, x, kernel: _convolve.bind(g, _flipped(kernel)),
    lambda g, x, kernel: _gradient.bind(x, g, sides=kernel.aval.shape[1:3]),
)
ad.defbilinear(
    _gradient,
    lambda slope, x, g, *, sides: _convolve.bind(g, _flipped(slope)),
    lambda slope, x, g, *, sides: _convolve.bind(x, slope),
)


def _everywhere(bias: jax.Array, x: jax.Array) -> jax.Array:
    """The bias at every pixel, as a convolution of ones: its gradient is then one of our calls, not XLA's slow sum."""
    return _convolve.bind(jnp.ones((*x.shape[:4], 1), x.dtype), bias[:, None, None, None])


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    return _fused.bind(x, kernel, bias, relu=relu)


@_layer.defjvp
def _(relu: bool, primals: Any, tangents: Any) -> Any:
    (x, kernel, _), (dx, dkernel, dbias) = primals, tangents
    y = _layer(*primals, relu)
    slope = _convolve.bind(dx, kernel) + _convolve.bind(x, dkernel) + _everywhere(dbias, x)
    return y, jnp.where(y > 0, slope, 0) if relu else slope
