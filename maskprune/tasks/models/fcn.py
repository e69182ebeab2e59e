"""The fully convolutional network: convolutions with ReLU after every one, its initial weights and its masks.

A bundle of pure functions over plain dictionaries of arrays. `apply` reads every width from the parameters, so the
same function runs the full and the compacted network. Flax is met in `models/module.py` only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import Count, show, strict
from maskprune.conv import conv2d
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import Params


Convolution = Callable[..., jax.Array]
Initial = Literal["he", "thesis"]

# A normal cut at two standard deviations has this standard deviation itself.
_CUT_STD = 0.87962566


class FCN(NamedTuple):
    """A fully convolutional network as pure functions.

    Attributes:
        init: `init(key) -> params`, `{"conv1": {"kernel": float32[k, k, I, O], "bias": float32[O]}, ...}`.
        apply: `apply(params, pictures) -> outputs`, float[N, H, W, I] to float[N, H, W, O].
        activations: `activations(params, pictures) -> {layer: float[N, H, W, C]}`, each after its ReLU.
        groups: The prunable masks: every layer but the last.
    """

    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]
    activations: Callable[[Params, jax.Array], dict[str, jax.Array]]
    groups: Groups


@strict
def fcn(
    widths: Sequence[int] = (5, 5),
    *,
    kernel: int | Sequence[int] = 5,
    inputs: Count = 1,
    outputs: Count = 1,
    initial: Initial = "he",
    convolution: Convolution = conv2d,
) -> FCN:
    """Builds a fully convolutional network: stride 1, zero padding, bias, and ReLU after every layer, the last too.

    Args:
        widths: Masks of each prunable layer. The output layer comes on top, with `outputs` masks.
        kernel: Odd kernel size, one for all layers or one for each (the output layer included).
        inputs: Channels of the pictures.
        outputs: Channels of the result.
        initial: Distribution of the initial weights: `"he"` (see `he_initial`) or `"thesis"` (truncated normal with
            standard deviation 0.05, biases 0).
        convolution: `convolution(inputs, kernel, bias, relu=True)`, stride 1, same size.

    Raises:
        ValueError: A width or kernel size is out of range, or their counts do not fit.
    """
    sizes = _kernel_sizes(kernel, len(widths) + 1)
    channels = [inputs, *widths, outputs]
    if min(channels) < 1:
        raise ValueError(f"The layer widths are {channels}: each must be at least 1.")
    shapes = [(k, k, i, o) for k, (i, o) in zip(sizes, itertools.pairwise(channels), strict=True)]
    scaled = _initials(initial)
    largest = max(math.prod(shape) for shape in shapes)

    @jax.jit
    def init(key: jax.Array) -> Params:
        # Cut normals take long to compile: one draw serves all layers, each of which takes as many as it needs.
        keys = jax.random.split(key, len(shapes))
        drawn = jax.vmap(lambda key: jax.random.truncated_normal(key, -2.0, 2.0, (largest,)))(keys)
        normals = [each[: math.prod(shape)].reshape(shape) for each, shape in zip(drawn, shapes, strict=True)]
        names = layer_names(len(shapes))
        return {name: scaled(each, last=name == names[-1]) for name, each in zip(names, normals, strict=True)}

    def activations(params: Params, pictures: jax.Array) -> dict[str, jax.Array]:
        found, flowing = {}, pictures
        for name in _layers(params):
            layer = params[name]
            flowing = found[name] = convolution(flowing, layer["kernel"], layer["bias"], relu=True)
        return found

    def apply(params: Params, pictures: jax.Array) -> jax.Array:
        return activations(params, pictures)[_layers(params)[-1]]

    return FCN(init, apply, activations, _groups(widths))


def layer_names(count: int) -> list[str]:
    """First to last. The order of a dictionary does not say it: JAX sorts its keys as text, conv10 before conv2."""
    return [f"conv{number}" for number in range(1, count + 1)]


def he_initial(normals: jax.Array, *, last: bool) -> dict[str, jax.Array]:
    """Normals cut at two, scaled to standard deviation sqrt(2 / fan-in) (He et al. 2015), and small positive biases."""
    fan_in = math.prod(normals.shape[:3])
    kernel = normals * (np.sqrt(2.0 / fan_in) / _CUT_STD)
    return {"kernel": kernel, "bias": jnp.full(normals.shape[3], 0.1 if last else 0.05, jnp.float32)}


def thesis_initial(normals: jax.Array, *, last: bool) -> dict[str, jax.Array]:
    """Normals cut at two, of standard deviation 0.05 before the cut, and biases 0: the source document."""
    del last
    return {"kernel": normals * 0.05, "bias": jnp.zeros(normals.shape[3], jnp.float32)}


def _layers(params: Params) -> list[str]:
    """The layers there are: fewer than were built once some were bypassed and dropped."""
    return [name for name in layer_names(len(params)) if name in params]


@strict
def drop_identities(params: Params) -> Params:
    """The network without layers that only hand on what they read (see `maskprune.bypass`), the others renumbered.

    Exact where the inputs are not negative: such a layer and its ReLU change nothing then. One layer always stays.

    Raises:
        TypeError: `params` are none of an FCN.
    """
    layers = [params[name] for name in _layers(check_layers(params))]
    useful = [layer for layer in layers if not _is_identity(layer)] or layers[-1:]
    return dict(zip(layer_names(len(useful)), useful, strict=True))


def _is_identity(layer: Mapping[str, Any]) -> bool:
    kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])
    tall, wide, inputs, outputs = kernel.shape
    if inputs != outputs or inputs == 0:
        return False
    identity = np.zeros(kernel.shape)
    identity[tall // 2, wide // 2] = np.eye(inputs)
    return bool((kernel == identity).all() and not bias.any())


@strict
def multiply_adds(params: Params) -> int:
    """Multiply-adds per pixel of the picture: the sum of all kernel sizes, since every layer has stride 1.

    Raises:
        TypeError: `params` are none of an FCN.
    """
    return sum(int(np.prod(layer["kernel"].shape)) for layer in check_layers(params).values())


def check_layers(params: Params) -> Params:
    """Parameters as `FCN.init` gives them: `{layer: {"kernel": array, "bias": array}}`."""
    layers = params.values() if isinstance(params, Mapping) else ()
    right = lambda layer: isinstance(layer, Mapping) and hasattr(layer.get("kernel"), "shape") and "bias" in layer
    if not layers or not all(map(right, layers)):
        raise TypeError(f'`params` is {show(params)}: use {{layer: {{"kernel": ..., "bias": ...}}}} as `FCN.init`.')
    return params


def _initials(initial: str) -> Callable[..., dict[str, jax.Array]]:
    draws: dict[str, Any] = {"he": he_initial, "thesis": thesis_initial}
    if initial not in draws:
        raise ValueError(f"`initial` is {initial!r}: use one of {', '.join(draws)}.")
    return draws[initial]


def _kernel_sizes(kernel: int | Sequence[int], layers: int) -> list[int]:
    sizes = [kernel] * layers if isinstance(kernel, int) else list(kernel)
    if len(sizes) != layers:
        raise ValueError(f"`kernel` has {len(sizes)} sizes for {layers} layers: give one, or one for each layer.")
    if any(size < 1 or size % 2 == 0 for size in sizes):
        raise ValueError(f"`kernel` is {kernel}: kernel sizes must be odd and positive.")
    return sizes


def _groups(widths: Sequence[int]) -> Groups:
    names = layer_names(len(widths) + 1)
    groups = []
    for name, reader, width in zip(names, names[1:], widths, strict=False):
        labels = tuple(range(width))
        own = (Slice(f"{name}/kernel", 3, labels, "out"), Slice(f"{name}/bias", 0, labels, "out"))
        groups.append(Group(name, width, (*own, Slice(f"{reader}/kernel", 2, labels, "in"))))
    return Groups(tuple(groups), protected=((names[-1], "its channels are the output of the network"),))
