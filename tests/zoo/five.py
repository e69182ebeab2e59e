"""Three networks, each written in five library styles: the same function five times, so the same masks five times.

mlp: dense 12, ReLU, dense 10, GELU, dense 3.
cnn: twice convolution, batch norm, ReLU (5 and 7 channels); max pooling; convolution 6, ReLU; flatten; dense 4.
residual: stem 6; a block of 5 inside and 6 outside; a strided block of 7 inside and 9 outside with a projected
    shortcut; global average pooling; dense 4.

Convolutions are 3x3 and SAME (the projection 1x1), without bias before a batch norm. Inputs are channels last, except
in Equinox, whose networks take one example, channels first; there the flattened order is that of its own layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import lax

from . import equinox_nets, haiku_nets, nnx_nets
from .entry import Built, Entry, pictures, randomize


ROWS, PICTURES = pictures(1, 2, 6), pictures(2, 2, 8, 8, 3)


# ---------------------------------------------------------------------------------------------------- plain functions


def _conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A SAME convolution, channels last."""
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dims)


def _conv_norm(params: Any, stats: Any, x: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution, then batch norm by running statistics."""
    x = (_conv(x, params["kernel"], stride) - stats["mean"]) / jnp.sqrt(stats["var"])
    return x * params["scale"] + params["bias"]


def _zeros(tree: Any) -> Any:
    """Arrays in the shapes that the tree's tuples tell."""
    return jax.tree.map(jnp.zeros, tree, is_leaf=lambda node: isinstance(node, tuple))


def _dense_shapes(inputs: int, outputs: int) -> Any:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def _norm_shapes(size: int, inputs: int, outputs: int) -> Any:
    return {"kernel": (size, size, inputs, outputs), "scale": (outputs,), "bias": (outputs,)}


def _stats_shapes(**widths: int) -> Any:
    return {name: {"mean": (width,), "var": (width,)} for name, width in widths.items()}


def mlp_plain() -> Built:
    """The MLP in plain functions."""
    shapes = {"first": _dense_shapes(6, 12), "second": _dense_shapes(12, 10), "head": _dense_shapes(10, 3)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
        x = jax.nn.gelu(x @ params["second"]["kernel"] + params["second"]["bias"])
        return x @ params["head"]["kernel"] + params["head"]["bias"]

    return Built(apply, randomize(1, _zeros(shapes)), (ROWS,))


def cnn_plain() -> Built:
    """The CNN in plain functions."""
    shapes = {"first": _norm_shapes(3, 3, 5), "second": _norm_shapes(3, 5, 7), "head": _dense_shapes(4 * 4 * 6, 4)}
    shapes["third"] = {"kernel": (3, 3, 7, 6), "bias": (6,)}
    stats = randomize(3, _zeros(_stats_shapes(first=5, second=7)))

    def apply(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        for name in ("first", "second"):
            x = jax.nn.relu(_conv_norm(params[name], stats[name], x))
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(_conv(x, params["third"]["kernel"]) + params["third"]["bias"])
        return x.reshape(x.shape[0], -1) @ params["head"]["kernel"] + params["head"]["bias"]

    return Built(apply, randomize(2, _zeros(shapes)), (PICTURES,), stats)


def residual_plain() -> Built:
    """The residual network in plain functions."""
    shapes = {
        "stem": _norm_shapes(3, 3, 6),
        "block1a": _norm_shapes(3, 6, 5),
        "block1b": _norm_shapes(3, 5, 6),
        "block2a": _norm_shapes(3, 6, 7),
        "block2b": _norm_shapes(3, 7, 9),
        "shortcut": _norm_shapes(1, 6, 9),
        "head": _dense_shapes(9, 4),
    }
    widths = _stats_shapes(stem=6, block1a=5, block1b=6, block2a=7, block2b=9, shortcut=9)

    def apply(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        layer = lambda name, x, stride=1: _conv_norm(params[name], stats[name], x, stride)
        x = jax.nn.relu(layer("stem", x))
        x = jax.nn.relu(x + layer("block1b", jax.nn.relu(layer("block1a", x))))
        x = jax.nn.relu(layer("shortcut", x, 2) + layer("block2b", jax.nn.relu(layer("block2a", x, 2))))
        return jnp.mean(x, axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]

    return Built(apply, randomize(4, _zeros(shapes)), (PICTURES,), randomize(5, _zeros(widths)))


# --------------------------------------------------------------------------------------------------------- flax.linen


def _linen(seed: int, module: nn.Module, x: jax.Array) -> Built:
    """A module with batch norm, called as `module(x, train)`."""
    variables = randomize(seed, jax.eval_shape(lambda key: module.init(key, x, False), jax.random.key(0)))

    def apply(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params, "batch_stats": stats}, x, False)

    def train_apply(params: Any, stats: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, new = module.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        return y, new["batch_stats"]

    return Built(apply, variables["params"], (x,), variables["batch_stats"], train_apply)


class LinenConvNorm(nn.Module):
    """Convolution without bias, then batch norm."""

    outputs: int
    size: int = 3
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(self.outputs, (self.size, self.size), self.stride, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=not train, epsilon=1e-5 if train else 0.0)(x)


class LinenCNN(nn.Module):
    """The CNN."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for width in (5, 7):
            x = nn.relu(LinenConvNorm(width)(x, train))
        x = nn.relu(nn.Conv(6, (3, 3))(nn.max_pool(x, (2, 2), (2, 2))))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


class LinenResidual(nn.Module):
    """The residual network."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(LinenConvNorm(6)(x, train))
        for middle, outputs, stride in ((5, 6, 1), (7, 9, 2)):
            y = nn.relu(LinenConvNorm(middle, stride=stride)(x, train))
            y = LinenConvNorm(outputs)(y, train)
            shortcut = x if stride == 1 else LinenConvNorm(outputs, 1, stride)(x, train)
            x = nn.relu(shortcut + y)
        return nn.Dense(4)(jnp.mean(x, axis=(1, 2)))


def mlp_linen() -> Built:
    """The MLP in flax.linen."""
    module = nn.Sequential([nn.Dense(12), nn.relu, nn.Dense(10), nn.gelu, nn.Dense(3)])
    params = randomize(1, jax.eval_shape(module.init, jax.random.key(0), ROWS)["params"])
    return Built(lambda params, x: module.apply({"params": params}, x), params, (ROWS,))


def cnn_linen() -> Built:
    """The CNN in flax.linen."""
    return _linen(2, LinenCNN(), PICTURES)


def residual_linen() -> Built:
    """The residual network in flax.linen."""
    return _linen(4, LinenResidual(), PICTURES)


# ----------------------------------------------------------------------------------------------------------- flax.nnx


class NnxCNN(nnx.Module):
    """The CNN."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx_nets.ConvNorm(3, 5, 3, rngs=rngs)
        self.second = nnx_nets.ConvNorm(5, 7, 3, rngs=rngs)
        self.third = nnx.Conv(7, 6, (3, 3), rngs=rngs)
        self.head = nnx.Linear(4 * 4 * 6, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        x = nnx.relu(self.third(nnx.max_pool(x, (2, 2), (2, 2))))
        return self.head(x.reshape(x.shape[0], -1))


class NnxResidual(nnx.Module):
    """The residual network."""

    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx_nets.ConvNorm(3, 6, 3, rngs=rngs)
        self.block1a, self.block1b = nnx_nets.ConvNorm(6, 5, 3, rngs=rngs), nnx_nets.ConvNorm(5, 6, 3, rngs=rngs)
        self.block2a = nnx_nets.ConvNorm(6, 7, 3, stride=2, rngs=rngs)
        self.block2b = nnx_nets.ConvNorm(7, 9, 3, rngs=rngs)
        self.shortcut = nnx_nets.ConvNorm(6, 9, 1, stride=2, rngs=rngs)
        self.head = nnx.Linear(9, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        x = nnx.relu(x + self.block1b(nnx.relu(self.block1a(x))))
        x = nnx.relu(self.shortcut(x) + self.block2b(nnx.relu(self.block2a(x))))
        return self.head(jnp.mean(x, axis=(1, 2)))


def mlp_nnx() -> Built:
    """The MLP in flax.nnx."""

    def make(rngs: nnx.Rngs) -> nnx.Module:
        dense = [nnx.Linear(i, o, rngs=rngs) for i, o in ((6, 12), (12, 10), (10, 3))]
        return nnx.Sequential(dense[0], nnx.relu, dense[1], nnx.gelu, dense[2])

    return nnx_nets.functional(1, make, ROWS)


def cnn_nnx() -> Built:
    """The CNN in flax.nnx."""
    return nnx_nets.functional(2, NnxCNN, PICTURES)


def residual_nnx() -> Built:
    """The residual network in flax.nnx."""
    return nnx_nets.functional(4, NnxResidual, PICTURES)


# ------------------------------------------------------------------------------------------------------------ Equinox


class EqxConvNorm(eqx.Module):
    """Convolution without bias, then batch norm.

    The running statistics are fields: eqx.nn.BatchNorm would keep them in an `eqx.nn.State`, which is threaded by
    markers and needs a named vmap axis.
    """

    conv: eqx.nn.Conv2d
    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array

    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        key = jax.random.key(0)
        self.conv = eqx.nn.Conv2d(inputs, outputs, size, stride, "SAME", use_bias=False, key=key)
        self.scale, self.bias, self.mean, self.var = (jnp.ones(outputs) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        mean, factor = self.mean[:, None, None], (self.scale / jnp.sqrt(self.var))[:, None, None]
        return (self.conv(x) - mean) * factor + self.bias[:, None, None]


class EqxMLP(eqx.Module):
    """The MLP."""

    layers: list[eqx.nn.Linear]

    def __init__(self, key: jax.Array):
        self.layers = [eqx.nn.Linear(i, o, key=key) for i, o in ((6, 12), (12, 10), (10, 3))]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers[2](jax.nn.gelu(self.layers[1](jax.nn.relu(self.layers[0](x)))))


class EqxCNN(eqx.Module):
    """The CNN."""

    first: EqxConvNorm
    second: EqxConvNorm
    pool: eqx.nn.MaxPool2d
    third: eqx.nn.Conv2d
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        self.first, self.second = EqxConvNorm(3, 5), EqxConvNorm(5, 7)
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.third = eqx.nn.Conv2d(7, 6, 3, padding="SAME", key=key)
        self.head = eqx.nn.Linear(4 * 4 * 6, 4, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.pool(jax.nn.relu(self.second(jax.nn.relu(self.first(x)))))
        return self.head(jnp.ravel(jax.nn.relu(self.third(x))))


class EqxResidual(eqx.Module):
    """The residual network."""

    stem: EqxConvNorm
    block1: tuple[EqxConvNorm, EqxConvNorm]
    block2: tuple[EqxConvNorm, EqxConvNorm]
    shortcut: EqxConvNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        self.stem = EqxConvNorm(3, 6)
        self.block1 = EqxConvNorm(6, 5), EqxConvNorm(5, 6)
        self.block2 = EqxConvNorm(6, 7, stride=2), EqxConvNorm(7, 9)
        self.shortcut = EqxConvNorm(6, 9, 1, stride=2)
        self.head = eqx.nn.Linear(9, 4, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.stem(x))
        x = jax.nn.relu(x + self.block1[1](jax.nn.relu(self.block1[0](x))))
        x = jax.nn.relu(self.shortcut(x) + self.block2[1](jax.nn.relu(self.block2[0](x))))
        return self.head(jnp.mean(x, axis=(1, 2)))


def _equinox(seed: int, make: Callable[[jax.Array], eqx.Module], x: jax.Array) -> Built:
    """A module whose fields called mean and var are the state; as parameters, a disabled mask's variance were zero."""
    built = equinox_nets.functional(seed, make, x)
    is_state = lambda path, _: path[-1].name in ("mean", "var")
    stats, params = eqx.partition(built.params, jax.tree_util.tree_map_with_path(is_state, built.params))
    return Built(lambda params, stats, x: built.apply(eqx.combine(params, stats), x), params, (x,), stats)


def mlp_equinox() -> Built:
    """The MLP in Equinox."""
    return equinox_nets.functional(1, EqxMLP, ROWS)


def cnn_equinox() -> Built:
    """The CNN in Equinox."""
    return _equinox(2, EqxCNN, jnp.moveaxis(PICTURES, -1, 1))


def residual_equinox() -> Built:
    """The residual network in Equinox."""
    return _equinox(4, EqxResidual, jnp.moveaxis(PICTURES, -1, 1))


# -------------------------------------------------------------------------------------------------------------- Haiku


def mlp_haiku() -> Built:
    """The MLP in Haiku."""
    forward = lambda x: hk.Sequential([hk.Linear(12), jax.nn.relu, hk.Linear(10), jax.nn.gelu, hk.Linear(3)])(x)
    return haiku_nets.functional(1, forward, ROWS)


def cnn_haiku() -> Built:
    """The CNN in Haiku."""

    def forward(training: bool, x: jax.Array) -> jax.Array:
        for width in (5, 7):
            x = jax.nn.relu(haiku_nets.conv_norm(x, width, 3, 1, training))
        x = jax.nn.relu(hk.Conv2D(6, 3)(hk.max_pool(x, (2, 2, 1), (2, 2, 1), "VALID")))
        return hk.Linear(4)(hk.Flatten()(x))

    return haiku_nets.stateful(2, forward, PICTURES)


def residual_haiku() -> Built:
    """The residual network in Haiku."""

    def forward(training: bool, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(haiku_nets.conv_norm(x, 6, 3, 1, training))
        for middle, outputs, stride in ((5, 6, 1), (7, 9, 2)):
            y = jax.nn.relu(haiku_nets.conv_norm(x, middle, 3, stride, training))
            y = haiku_nets.conv_norm(y, outputs, 3, 1, training)
            shortcut = x if stride == 1 else haiku_nets.conv_norm(x, outputs, 1, stride, training)
            x = jax.nn.relu(shortcut + y)
        return hk.Linear(4)(jnp.mean(x, axis=(1, 2)))

    return haiku_nets.stateful(4, forward, PICTURES)


NETWORKS = [
    Entry("mlp", "plain", mlp_plain),
    Entry("mlp", "linen", mlp_linen),
    Entry("mlp", "nnx", mlp_nnx),
    Entry("mlp", "equinox", mlp_equinox),
    Entry("mlp", "haiku", mlp_haiku),
    Entry("cnn", "plain", cnn_plain, integer=True),
    Entry("cnn", "linen", cnn_linen, integer=True),
    Entry("cnn", "nnx", cnn_nnx, integer=True),
    Entry("cnn", "equinox", cnn_equinox, integer=True),
    Entry("cnn", "haiku", cnn_haiku, integer=True),
    Entry("residual", "plain", residual_plain, integer=True),
    Entry("residual", "linen", residual_linen, integer=True),
    Entry("residual", "nnx", residual_nnx, integer=True),
    Entry("residual", "equinox", residual_equinox, integer=True),
    Entry("residual", "haiku", residual_haiku, integer=True),
]
