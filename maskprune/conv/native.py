"""The native way: direct convolutions of our own, called inside compiled JAX code.

On a CPU they are compiled from `_native.cc` when the package is installed, on a CUDA device from `_kernels.cu` when a
layer is first used (`cuda.py`).

A layer is one call forward and one backward, which gives all gradients at once. JAX is told what the two are: how a
layer moves when what it is given moves is linear (`_slope`), and its transpose is the backward call. Both are also
written with two primitives for which JAX needs no telling, as they are linear in each argument: the convolution and the
gradient of its kernel. So derivatives of every order, forward and backward, stay within the two calls. Members of a
population (`vmap`) are a leading axis of both. Logical shapes are the usual ones; in memory pictures are planar, one
channel after another, and XLA lays out what stands between two calls in the same way.

Whoever installs without a C++ compiler has no library here (`LEVEL` is then None) and `conv2d` takes another way. The
environment variable MASKPRUNE_NATIVE names the processor's instruction set to use instead of the best one, or says
`off`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import util
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from maskprune.conv import cuda
from maskprune.conv.planar import PLANAR, call


TARGETS = ("maskprune_convolve", "maskprune_backward")


def conv2d_native(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, relu: bool) -> jax.Array:
    """Stride 1, zero padding to the same size, odd kernel, float32. [N, H, W, I] and [k, l, I, O] give [N, H, W, O]."""
    bias = jnp.zeros(kernel.shape[3], kernel.dtype) if bias is None else bias
    return _layer(inputs[None], kernel[None], bias[None], relu)[0]


def refusal(dtype: jax.typing.DTypeLike, sides: tuple[int, int]) -> str:
    """Why the native way does not compute in this number format with such sides of a kernel on the default device."""
    if LEVEL is None:
        if os.environ.get("MASKPRUNE_NATIVE") == "off":
            return "MASKPRUNE_NATIVE says off"
        return "this installation has no compiled convolution (there was no C++ compiler: install again with one)"
    if jnp.dtype(dtype) != jnp.float32:
        return f"it computes in float32, and the arrays are {jnp.dtype(dtype)}"
    if jax.default_backend() == "cpu":
        return ""
    if not cuda.usable():
        return "the default device is neither a CPU nor a CUDA device with NVRTC beside it"
    return "" if cuda.fits(sides) else f"a kernel of {sides[0]} x {sides[1]} is too large for it on a CUDA device"


def takes(dtype: jax.typing.DTypeLike, sides: tuple[int, int] = (5, 5)) -> bool:
    """Whether the native way computes in this number format with such sides of a kernel on the default device."""
    return not refusal(dtype, sides)


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
    cuda.register(library)
    return level.decode()


LEVEL = _load()


# The two calls, on a CPU and on CUDA. Every array has the axis of members in front.


class Calls(NamedTuple):
    """What a kind of device does.

    Attributes:
        layer: `layer(x, kernel, bias, *, relu) -> y`.
        backward: `backward(x, kernel, y, g, *, relu, wanted) -> [dkernel, dbias]`, and dx if it is wanted.
    """

    layer: Callable[..., jax.Array]
    backward: Callable[..., list[jax.Array]]


def _cpu_layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, relu: bool) -> jax.Array:
    made = [((*x.shape[:4], kernel.shape[4]), PLANAR)]
    return call(TARGETS[0], made, (x, PLANAR), (kernel, None), (bias, None), relu=relu)[0]


def _cpu_backward(
    x: jax.Array, kernel: jax.Array, y: jax.Array, g: jax.Array, *, relu: bool, wanted: bool
) -> list[jax.Array]:
    made = [(kernel.shape, None), (g.shape[::4], None), (x.shape, PLANAR) if wanted else ((0,), None)]
    found = call(TARGETS[1], made, (x, PLANAR), (kernel, None), (y, PLANAR), (g, PLANAR), relu=relu)
    return found if wanted else found[:2]


CPU = Calls(_cpu_layer, _cpu_backward)
CUDA = Calls(cuda.run_layer, cuda.run_backward)


def _run_convolve(calls: Calls, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return calls.layer(x, kernel, jnp.zeros((kernel.shape[0], kernel.shape[4]), kernel.dtype), relu=False)


def _run_gradient(calls: Calls, x: jax.Array, g: jax.Array, *, sides: tuple[int, int]) -> jax.Array:
    kernel = jnp.zeros((x.shape[0], *sides, x.shape[4], g.shape[4]), x.dtype)  # only its shape is used
    return calls.backward(x, kernel, g, g, relu=False, wanted=False)[0]


# What the slope of a layer and its transpose are, in terms of what JAX can derive further.


def _gate(y: jax.Array, slope: jax.Array, relu: bool) -> jax.Array:
    return jnp.where(y > 0, slope, 0) if relu else slope


def _plain_slope(
    x: jax.Array, kernel: jax.Array, y: jax.Array, dkernel: jax.Array, dbias: jax.Array, *dx: jax.Array, relu: bool
) -> jax.Array:
    """How the layer's output moves with kernel, bias and, where they move, inputs."""
    slope = _convolve.bind(x, dkernel) + dbias[:, None, None, None]
    return _gate(y, slope + _convolve.bind(dx[0], kernel) if dx else slope, relu)


def _plain_backward(
    x: jax.Array, kernel: jax.Array, y: jax.Array, g: jax.Array, *, relu: bool, wanted: bool
) -> list[jax.Array]:
    g = _gate(y, g, relu)
    found = [_gradient.bind(x, g, sides=kernel.shape[1:3]), g.sum((1, 2, 3))]
    return [*found, _convolve.bind(g, _flipped(kernel))] if wanted else found


def _flipped(kernel: jax.Array) -> jax.Array:
    """The kernel that takes gradients of the outputs back to the inputs."""
    return kernel[:, ::-1, ::-1].swapaxes(3, 4)


# The primitives.


def _primitive(name: str, run: Callable[..., Any], several: bool = False) -> Primitive:
    """A primitive computed by `run(calls, ...)` for all members at once."""
    primitive = Primitive(name)
    primitive.multiple_results = several
    primitive.def_impl(lambda *arrays, **params: jax.jit(partial(primitive.bind, **params))(*arrays))

    def made(*arrays: Any, **params: Any) -> Any:
        shapes = jax.eval_shape(partial(run, CPU, **params), *arrays)
        return jax.tree.map(lambda each: ShapedArray(each.shape, jnp.float32), shapes)

    primitive.def_abstract_eval(made)
    for platform, calls in (("cpu", CPU), ("cuda", CUDA)):
        lowering = mlir.lower_fun(partial(run, calls), multiple_results=several)
        mlir.register_lowering(primitive, lowering, platform=platform)

    def batch(arrays: Sequence[jax.Array], axes: Sequence[int | None], **params: Any) -> tuple[Any, Any]:
        size = next(x.shape[axis] for x, axis in zip(arrays, axes, strict=True) if axis is not None)
        front = [
            jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            for x, axis in zip(arrays, axes, strict=True)
        ]
        found = primitive.bind(*(x.reshape(-1, *x.shape[2:]) for x in front), **params)
        found = jax.tree.map(lambda each: each.reshape(size, -1, *each.shape[1:]), found)
        return found, [0] * len(found) if several else 0

    batching.primitive_batchers[primitive] = batch
    return primitive


_fused = _primitive("conv2d_bias_relu", lambda calls, *arrays, **params: calls.layer(*arrays, **params))
_convolve = _primitive("conv2d_planar", _run_convolve)
_gradient = _primitive("conv2d_kernel_gradient", _run_gradient)
_slope = _primitive("conv2d_slope", lambda calls, *arrays, **params: _plain_slope(*arrays, **params))
_backward = _primitive(
    "conv2d_backward", lambda calls, *arrays, **params: calls.backward(*arrays, **params), several=True
)

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


def _jvp(primitive: Primitive, plain: Any, primals: Any, tangents: Any, **params: Any) -> tuple[Any, Any]:
    """The derivative of a primitive is that of a plain function which gives the same."""
    moved = tuple(ad.instantiate_zeros(each) for each in tangents)
    return primitive.bind(*primals, **params), jax.jvp(partial(plain, **params), tuple(primals), moved)[1]


ad.primitive_jvps[_slope] = partial(_jvp, _slope, _plain_slope)
ad.primitive_jvps[_backward] = partial(_jvp, _backward, _plain_backward)


def _slope_transposed(g: Any, x: Any, kernel: Any, y: Any, *moved: Any, relu: bool) -> tuple[Any, ...]:
    """What is known among `moved` is zero, and nobody asks for its gradient."""
    if not any(ad.is_undefined_primal(each) for each in moved[:2]):  # only the pictures' gradient is asked for
        return *[None] * 5, _convolve.bind(_gate(y, ad.instantiate_zeros(g), relu), _flipped(kernel))
    found = _backward.bind(x, kernel, y, ad.instantiate_zeros(g), relu=relu, wanted=len(moved) == 3)
    asked = [one if ad.is_undefined_primal(each) else None for one, each in zip(found, moved, strict=True)]
    return None, None, None, *asked


def _backward_transposed(moved: Any, x: Any, kernel: Any, y: Any, g: Any, **params: Any) -> tuple[Any, ...]:
    slope = _slope.bind(x, kernel, y, *(ad.instantiate_zeros(each) for each in moved), relu=params["relu"])
    return None, None, None, slope


ad.primitive_transposes[_slope] = _slope_transposed
ad.primitive_transposes[_backward] = _backward_transposed


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _layer(x: jax.Array, kernel: jax.Array, bias: jax.Array, relu: bool) -> jax.Array:
    return _fused.bind(x, kernel, bias, relu=relu)


@partial(_layer.defjvp, symbolic_zeros=True)
def _(relu: bool, primals: Any, tangents: Any) -> Any:
    x, kernel, _ = primals
    dx, *weights = tangents
    y = _layer(*primals, relu)
    moved = [jnp.zeros_like(w) if isinstance(d, SymbolicZero) else d for w, d in zip(primals[1:], weights, strict=True)]
    if not isinstance(dx, SymbolicZero):  # pictures that stay, as those of a first layer, need no gradient
        moved.append(dx)
    return y, _slope.bind(x, kernel, y if relu else x, *moved, relu=relu)
