"""Layers as plain functions on dictionaries of arrays, NHWC, the way people write JAX without a library.

A `*_params` function gives the shapes of a layer's parameters (`entry.randomize` fills them in); the function of the
same name applies the layer. Batch norm is functional: it takes its running statistics and returns the next ones. Its
epsilon is zero in evaluation, so that it is exact on integers when the variances are 1, 4 or 16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .entry import Built, randomize


def array(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def conv_params(inputs: int, outputs: int, size: int = 3, *, groups: int = 1, bias: bool = True) -> dict:
    weights = {"w": array(size, size, inputs // groups, outputs)}
    return {**weights, "b": array(outputs)} if bias else weights


def conv(p: dict, x: jax.Array, stride: int = 1, *, padding: str = "SAME", groups: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x, p["w"], (stride, stride), padding, dimension_numbers=layout, feature_group_count=groups
    )
    return y + p["b"] if "b" in p else y


def conv_transpose(p: dict, x: jax.Array, stride: int = 2) -> jax.Array:
    return lax.conv_transpose(x, p["w"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["b"]


def dense_params(inputs: int, outputs: int) -> dict:
    return {"w": array(inputs, outputs), "b": array(outputs)}


def dense(p: dict, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def norm_params(channels: int) -> dict:
    return {"scale": array(channels), "offset": array(channels)}


def batch_norm(p: dict, s: dict, x: jax.Array, *, train: bool) -> tuple[jax.Array, dict]:
    """Ioffe and Szegedy 2015: batch statistics in training, running ones otherwise."""
    epsilon, mean, var = 0.0, s["mean"], s["var"]
    if train:
        epsilon, mean, var = 1e-5, jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        s = {"mean": 0.9 * s["mean"] + 0.1 * mean, "var": 0.9 * s["var"] + 0.1 * var}
    return (x - mean) * (p["scale"] * lax.rsqrt(var + epsilon)) + p["offset"], s


def group_norm(p: dict, x: jax.Array, groups: int) -> jax.Array:
    """Wu and He 2018."""
    split = x.reshape(*x.shape[:-1], groups, -1)
    mean, var = (moment(split, (1, 2, 4), keepdims=True) for moment in (jnp.mean, jnp.var))
    return ((split - mean) * lax.rsqrt(var + 1e-5)).reshape(x.shape) * p["scale"] + p["offset"]


def instance_norm(p: dict, x: jax.Array) -> jax.Array:
    """Ulyanov et al. 2016."""
    mean, var = (moment(x, (1, 2), keepdims=True) for moment in (jnp.mean, jnp.var))
    return (x - mean) / jnp.sqrt(var + 1e-5) * p["scale"] + p["offset"]


def conv_bn_params(inputs: int, outputs: int, size: int = 3, *, groups: int = 1) -> dict:
    return {"conv": conv_params(inputs, outputs, size, groups=groups, bias=False), "norm": norm_params(outputs)}


def conv_bn(p: dict, s: dict, x: jax.Array, stride: int = 1, *, groups: int = 1, train: bool) -> tuple[jax.Array, dict]:
    return batch_norm(p["norm"], s, conv(p["conv"], x, stride, groups=groups), train=train)


def bn_conv(p: dict, s: dict, x: jax.Array, stride: int = 1, *, train: bool) -> tuple[jax.Array, dict]:
    """The pre-activation order: batch norm, relu, convolution."""
    x, s = batch_norm(p["norm"], s, x, train=train)
    return conv(p["conv"], jax.nn.relu(x), stride), s


def max_pool(x: jax.Array, size: int = 2) -> jax.Array:
    window = (1, size, size, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def avg_pool(x: jax.Array, size: int = 2) -> jax.Array:
    window = (1, size, size, 1)
    return lax.reduce_window(x, 0.0, lax.add, window, window, "VALID") / size**2


def global_mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2))


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
    """Nearest neighbour."""
    return jnp.repeat(jnp.repeat(x, factor, axis=1), factor, axis=2)


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


def pixel_shuffle(x: jax.Array, factor: int = 2) -> jax.Array:
    """Shi et al. 2016, channel outermost: channel c * factor**2 + i * factor + j goes to pixel (i, j) of c."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // factor**2, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * factor, w * factor, c // factor**2)


def depth_to_space(x: jax.Array, factor: int = 2) -> jax.Array:
    """The same with the channel innermost, TensorFlow's order."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * factor, w * factor, c // factor**2)


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Zhang et al. 2018: transposes the [groups, channels per group] grid of channels."""
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def statistics(params: Any) -> Any:
    """Shapes of the running statistics: {mean, var} in the place of every unit that holds a "norm"."""
    if isinstance(params, list):
        return [statistics(p) for p in params]
    if not isinstance(params, dict):
        return {}
    if "norm" in params:
        channels = params["norm"]["scale"].shape
        return {"mean": array(*channels), "var": array(*channels)}
    found = {name: statistics(p) for name, p in params.items()}
    return {name: s for name, s in found.items() if s}


def calm(params: Any) -> Any:
    """Quarters the scales of norms under a "closing" key: a deep sum of residual branches stays of order one."""

    def quarter(path: Any, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return jnp.asarray(np.asarray(leaf) / 4) if "closing" in names and names[-1] == "scale" else leaf

    return jax.tree_util.tree_map_with_path(quarter, params)


def plain(forward: Callable[..., Any], seed: int, shapes: Any, *inputs: jax.Array) -> Built:
    """A network without state: `forward(params, *inputs)`."""
    return Built(forward, randomize(seed, shapes), inputs)


def stateful(forward: Callable[..., Any], seed: int, shapes: Any, *inputs: jax.Array) -> Built:
    """A network with batch norm: `forward(params, state, *inputs, train) -> (output, state)`."""

    def apply(params: Any, state: Any, *inputs: jax.Array) -> Any:
        return forward(params, state, *inputs, train=False)[0]

    state = randomize(seed + 1, statistics(shapes))
    return Built(apply, calm(randomize(seed, shapes)), inputs, state, partial(forward, train=True))
