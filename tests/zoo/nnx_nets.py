"""Networks in flax.nnx: modules that hold their parameters, split into a graph and pure dicts.

`functional` makes the zoo's functions out of a module: parameters and running statistics are nested dicts, everything
else (random number counters) is closed over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .entry import Built, Entry, pictures, randomize


def functional(seed: int, make: Callable[[nnx.Rngs], nnx.Module], *inputs: jax.Array) -> Built:
    """A module as functions of its parameters and, where it has some, of its running statistics.

    Batch norm's epsilon is 1e-5 in training, zero in evaluation, so that it is exact on integers.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    module.train()
    _set_epsilon(module, 1e-5)
    training = nnx.graphdef(module)
    module.eval()
    _set_epsilon(module, 0.0)
    graph, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, stats = randomize(seed, (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)))
    rest = jax.tree.map(_counter, rest)
    if not stats:
        return Built(lambda params, *inputs: nnx.merge(graph, params, rest, copy=True)(*inputs), params, inputs)

    def apply(params: Any, stats: Any, *inputs: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, stats, rest, copy=True)(*inputs)

    def train_apply(params: Any, stats: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
        module = nnx.merge(training, params, stats, rest, copy=True)
        output = module(*inputs)
        return output, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return Built(apply, params, inputs, stats, train_apply)


def _set_epsilon(module: nnx.Module, epsilon: float) -> None:
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.BatchNorm):
            node.epsilon = epsilon


def _counter(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The first value of what random numbers are drawn from: a key or a count."""
    return jax.random.key(0) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else jnp.zeros(leaf.shape, leaf.dtype)


class ConvNorm(nnx.Module):
    """Convolution without bias, then batch norm."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int = 1, groups: int = 1, rngs: nnx.Rngs):
        kernel, strides = (size, size), (stride, stride)
        self.conv = nnx.Conv(inputs, outputs, kernel, strides, feature_group_count=groups, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, outputs, 3, stride=stride, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, rngs=rngs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else ConvNorm(inputs, outputs, 1, stride=stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet18(nnx.Module):
    """7x7 stem, max pooling, four stages of two basic blocks, global average pooling."""

    def __init__(self, widths: tuple[int, ...], rngs: nnx.Rngs):
        self.stem = ConvNorm(3, widths[0], 7, stride=2, rngs=rngs)
        blocks, inputs = [], widths[0]
        for stage, width in enumerate(widths):
            for i in range(2):
                blocks.append(BasicBlock(inputs, width, 2 if stage > 0 and i == 0 else 1, rngs))
                inputs = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(inputs, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), "SAME")
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


def resnet18() -> Built:
    """ResNet-18 (He et al. 2015)."""
    return functional(1, partial(ResNet18, (4, 6, 8, 10)), pictures(1, 2, 32, 32, 3))


class VGG(nnx.Module):
    """Stages of 3x3 convolutions with max pooling between them, then dense layers on the flattened features."""

    def __init__(self, stages: tuple[tuple[int, ...], ...], rngs: nnx.Rngs):
        inputs, built = 3, []
        for stage in stages:
            convs = []
            for width in stage:
                convs.append(nnx.Conv(inputs, width, (3, 3), rngs=rngs))
                inputs = width
            built.append(nnx.List(convs))
        self.stages = nnx.List(built)
        self.hidden = nnx.List([nnx.Linear(2 * 2 * inputs, 16, rngs=rngs), nnx.Linear(16, 12, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for stage in self.stages:
            for conv in stage:
                x = nnx.relu(conv(x))
            x = nnx.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = self.dropout(nnx.relu(layer(x)))
        return self.head(x)


def vgg() -> Built:
    """VGG (Simonyan and Zisserman 2014), three stages, dropout off."""
    return functional(2, partial(VGG, ((4, 5), (6, 7), (9, 8, 10))), pictures(2, 2, 16, 16, 3))


class TwoConvs(nnx.Module):
    """Two 3x3 convolutions with ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(inputs, middle, (3, 3), rngs=rngs)
        self.second = nnx.Conv(middle, outputs, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.second(nnx.relu(self.first(x))))


class UNet(nnx.Module):
    """Two levels down and up again, skips concatenated."""

    def __init__(self, rngs: nnx.Rngs):
        self.down1 = TwoConvs(3, 4, 5, rngs)
        self.down2 = TwoConvs(5, 7, 6, rngs)
        self.bottom = TwoConvs(6, 9, 10, rngs)
        self.rise2 = nnx.ConvTranspose(10, 7, (2, 2), strides=(2, 2), rngs=rngs)
        self.up2 = TwoConvs(6 + 7, 8, 9, rngs)
        self.rise1 = nnx.ConvTranspose(9, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.up1 = TwoConvs(5 + 4, 6, 7, rngs)
        self.head = nnx.Conv(7, 2, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        pool = lambda x: nnx.max_pool(x, (2, 2), (2, 2))
        skip1 = self.down1(x)
        skip2 = self.down2(pool(skip1))
        x = self.bottom(pool(skip2))
        x = self.up2(jnp.concatenate([skip2, self.rise2(x)], axis=-1))
        x = self.up1(jnp.concatenate([skip1, self.rise1(x)], axis=-1))
        return self.head(x)


def unet() -> Built:
    """U-Net (Ronneberger et al. 2015), two levels, transposed convolutions."""
    return functional(3, UNet, pictures(3, 2, 16, 16, 3))


class EncoderBlock(nnx.Module):
    """Self-attention and a GELU MLP, layer norm after each sum."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(3, width, qkv_features=9, decode=False, rngs=rngs)
        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.up, self.down = nnx.Linear(width, hidden, rngs=rngs), nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(nnx.gelu(self.up(x))))


class Encoder(nnx.Module):
    """Word and position embeddings, two blocks, a dense layer on the first token."""

    def __init__(self, rngs: nnx.Rngs):
        self.words = nnx.Embed(20, 12, rngs=rngs)
        self.positions = nnx.Param(jnp.zeros((7, 12)))
        self.norm = nnx.LayerNorm(12, rngs=rngs)
        self.blocks = nnx.List([EncoderBlock(12, hidden, rngs) for hidden in (20, 16)])
        self.pooler, self.head = nnx.Linear(12, 10, rngs=rngs), nnx.Linear(10, 3, rngs=rngs)

    def __call__(self, words: jax.Array) -> jax.Array:
        x = self.norm(self.words(words) + self.positions[None])
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.tanh(self.pooler(x[:, 0])))


def transformer_encoder() -> Built:
    """Transformer encoder in the manner of BERT (Devlin et al. 2018), two blocks of three heads."""
    words = jnp.asarray(np.random.default_rng(4).integers(0, 20, (2, 7)), jnp.int32)
    return functional(4, Encoder, words)


class InvertedResidual(nnx.Module):
    """Expand by a 1x1, filter by a depthwise 3x3, project by a linear 1x1; a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, *, expand: int, stride: int, rngs: nnx.Rngs):
        hidden = inputs * expand
        self.expand = ConvNorm(inputs, hidden, 1, rngs=rngs) if expand > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, rngs=rngs)
        self.project = ConvNorm(hidden, outputs, 1, rngs=rngs)
        self.residual = stride == 1 and inputs == outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.expand is None else nnx.relu6(self.expand(x))
        y = self.project(nnx.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class MobileNetV2(nnx.Module):
    """Stem, inverted residuals, a wide 1x1, global average pooling."""

    def __init__(self, rngs: nnx.Rngs):
        blocks = ((6, 4, 1, 1), (4, 5, 3, 2), (5, 5, 3, 1), (5, 7, 4, 2), (7, 7, 4, 1))
        self.stem = ConvNorm(3, 6, 3, stride=2, rngs=rngs)
        self.blocks = nnx.List(
            [InvertedResidual(i, o, expand=expand, stride=stride, rngs=rngs) for i, o, expand, stride in blocks]
        )
        self.last = ConvNorm(7, 18, 1, rngs=rngs)
        self.head = nnx.Linear(18, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(nnx.relu6(self.last(x)), axis=(1, 2)))


def mobilenet_v2() -> Built:
    """MobileNetV2 (Sandler et al. 2018), five blocks."""
    return functional(5, MobileNetV2, pictures(5, 2, 16, 16, 3))


class Recurrent(nnx.Module):
    """A GRU over time and a dense layer on its last output."""

    def __init__(self, rngs: nnx.Rngs):
        self.gru = nnx.RNN(nnx.GRUCell(5, 8, rngs=rngs), rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.gru(x)[:, -1])


def gru() -> Built:
    """GRU (Cho et al. 2014): nnx.GRUCell in nnx.RNN."""
    return functional(6, Recurrent, pictures(6, 2, 6, 5))


class Autoencoder(nnx.Module):
    """Strided convolutions to a dense code, and transposed convolutions back."""

    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.List(
            [nnx.Conv(1, 5, (3, 3), strides=2, rngs=rngs), nnx.Conv(5, 8, (3, 3), strides=2, rngs=rngs)]
        )
        self.code, self.decode = nnx.Linear(3 * 3 * 8, 6, rngs=rngs), nnx.Linear(6, 3 * 3 * 7, rngs=rngs)
        self.up = nnx.ConvTranspose(7, 4, (3, 3), strides=(2, 2), rngs=rngs)
        self.last = nnx.ConvTranspose(4, 1, (3, 3), strides=(2, 2), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.down:
            x = nnx.leaky_relu(conv(x), 0.25)
        code = self.code(x.reshape(x.shape[0], -1))
        x = nnx.leaky_relu(self.decode(code), 0.25).reshape(-1, 3, 3, 7)
        return nnx.sigmoid(self.last(nnx.leaky_relu(self.up(x), 0.25)))


def autoencoder() -> Built:
    """Convolutional autoencoder (Masci et al. 2011) with a dense code."""
    return functional(7, Autoencoder, pictures(7, 2, 12, 12, 1))


class SqueezeExcite(nnx.Module):
    """Channel gates from the global average."""

    def __init__(self, width: int, squeezed: int, rngs: nnx.Rngs):
        self.squeeze = nnx.Linear(width, squeezed, rngs=rngs)
        self.excite = nnx.Linear(squeezed, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gates = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(jnp.mean(x, axis=(1, 2))))))
        return x * gates[:, None, None, :]


class SqueezeExciteNet(nnx.Module):
    """A residual net whose blocks end in a squeeze-excite gate."""

    def __init__(self, rngs: nnx.Rngs):
        widths = ((6, 6, 1), (6, 9, 2), (9, 12, 2))
        self.stem = ConvNorm(3, 6, 3, rngs=rngs)
        self.first = nnx.List([ConvNorm(i, o, 3, stride=stride, rngs=rngs) for i, o, stride in widths])
        self.second = nnx.List([ConvNorm(o, o, 3, rngs=rngs) for _, o, _ in widths])
        self.gates = nnx.List([SqueezeExcite(o, o // 3, rngs) for _, o, _ in widths])
        self.shortcuts = nnx.List([ConvNorm(i, o, 1, stride=stride, rngs=rngs) for i, o, stride in widths[1:]])
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        for i, (first, second, gate) in enumerate(zip(self.first, self.second, self.gates, strict=True)):
            shortcut = x if i == 0 else self.shortcuts[i - 1](x)
            x = nnx.relu(shortcut + gate(second(nnx.relu(first(x)))))
        return self.head(jnp.mean(x, axis=(1, 2)))


def squeeze_excite() -> Built:
    """SE-ResNet (Hu et al. 2017), three blocks."""
    return functional(8, SqueezeExciteNet, pictures(8, 2, 12, 12, 3))


NETWORKS = [
    Entry("resnet18", "nnx", resnet18, integer=True),
    Entry("vgg", "nnx", vgg, integer=True),
    Entry("unet", "nnx", unet, integer=True),
    Entry("transformer_encoder", "nnx", transformer_encoder),
    Entry("mobilenet_v2", "nnx", mobilenet_v2, integer=True),
    Entry("gru", "nnx", gru),
    Entry("autoencoder", "nnx", autoencoder),
    Entry("squeeze_excite", "nnx", squeeze_excite),
]
