"""Published picture classifiers in true size (224 x 224, 1000 classes), in Flax Linen, for timing the tracer.

Nothing is allocated: `build` gives shapes only. Batch norm uses its running statistics. Parameters are counted without
running statistics, as the papers and torchvision do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


BatchNorm = partial(nn.BatchNorm, use_running_average=True)


class Bottleneck(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(nn.Conv, use_bias=False)
        y = nn.relu(BatchNorm()(conv(self.width, (1, 1))(x)))
        y = nn.relu(BatchNorm()(conv(self.width, (3, 3), strides=self.stride, padding=1)(y)))
        y = BatchNorm()(conv(4 * self.width, (1, 1))(y))
        if x.shape != y.shape:
            x = BatchNorm()(conv(4 * self.width, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet (He 2015), strides in the 3 x 3 convolutions. (3, 4, 6, 3) blocks make ResNet-50."""

    blocks: tuple[int, int, int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(BatchNorm()(nn.Conv(64, (7, 7), strides=2, padding=3, use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(1000)(x.mean(axis=(1, 2)))


class DenseLayer(nn.Module):
    growth: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.Conv(4 * self.growth, (1, 1), use_bias=False)(nn.relu(BatchNorm()(x)))
        y = nn.Conv(self.growth, (3, 3), padding=1, use_bias=False)(nn.relu(BatchNorm()(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet121(nn.Module):
    """DenseNet-121 (Huang 2016), growth 32: 7,978,856 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(BatchNorm()(nn.Conv(64, (7, 7), strides=2, padding=3, use_bias=False)(x)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage, layers in enumerate((6, 12, 24, 16)):
            if stage:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(nn.relu(BatchNorm()(x)))
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            for _ in range(layers):
                x = DenseLayer()(x)
        return nn.Dense(1000)(nn.relu(BatchNorm()(x)).mean(axis=(1, 2)))


class InvertedResidual(nn.Module):
    """Expand, depthwise convolution, optional squeeze and excitation, project without activation."""

    width: int
    expand: int
    kernel: int
    stride: int
    activation: Callable[[jax.Array], jax.Array]
    squeeze: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, inner = partial(nn.Conv, use_bias=False), self.expand * x.shape[-1]
        y = x
        if self.expand > 1:
            y = self.activation(BatchNorm()(conv(inner, (1, 1))(y)))
        sizes, around = (self.kernel, self.kernel), self.kernel // 2
        y = conv(inner, sizes, strides=self.stride, padding=around, feature_group_count=inner)(y)
        y = self.activation(BatchNorm()(y))
        if self.squeeze:
            gate = nn.silu(nn.Conv(x.shape[-1] // 4, (1, 1))(y.mean(axis=(1, 2), keepdims=True)))
            y = y * nn.sigmoid(nn.Conv(inner, (1, 1))(gate))
        y = BatchNorm()(conv(self.width, (1, 1))(y))
        return x + y if x.shape == y.shape else y


class Inverted(nn.Module):
    """Stem, stages of inverted residuals as (expand, width, blocks, stride, kernel), and a 1280 wide head."""

    stages: tuple[tuple[int, int, int, int, int], ...]
    activation: Callable[[jax.Array], jax.Array]
    squeeze: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.activation(BatchNorm()(nn.Conv(32, (3, 3), strides=2, padding=1, use_bias=False)(x)))
        for expand, width, blocks, stride, kernel in self.stages:
            for block in range(blocks):
                stride = 1 if block else stride
                x = InvertedResidual(width, expand, kernel, stride, self.activation, self.squeeze)(x)
        x = self.activation(BatchNorm()(nn.Conv(1280, (1, 1), use_bias=False)(x)))
        return nn.Dense(1000)(nn.Dropout(0.2, deterministic=True)(x.mean(axis=(1, 2))))


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 (Sandler 2018), width 1: 3,504,872 parameters."""
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    return Inverted(tuple((*stage, 3) for stage in stages), nn.relu6, squeeze=False)


def efficientnet_b0() -> nn.Module:
    """EfficientNet-B0 (Tan 2019), squeeze and excitation to a quarter of the block's input: 5,288,548 parameters."""
    stages = (
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    )
    return Inverted(stages, nn.silu, squeeze=True)


class TransformerBlock(nn.Module):
    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-6)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, deterministic=True)(y)
        y = nn.LayerNorm(epsilon=1e-6)(x)
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(y), approximate=False))


class VitB16(nn.Module):
    """ViT-B/16 (Dosovitskiy 2020): 86,567,656 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(768, (16, 16), strides=(16, 16), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = self.param("class", nn.initializers.zeros, (1, 1, x.shape[-1]))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        for _ in range(12):
            x = TransformerBlock(12, 3072)(x)
        return nn.Dense(1000)(nn.LayerNorm(epsilon=1e-6)(x)[:, 0])


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet50": (partial(ResNet, (3, 4, 6, 3)), 25_557_032),
    "densenet121": (DenseNet121, 7_978_856),
    "mobilenet_v2": (mobilenet_v2, 3_504_872),
    "efficientnet_b0": (efficientnet_b0, 5_288_548),
    "vit_b16": (VitB16, 86_567_656),
    "resnet101": (partial(ResNet, (3, 4, 23, 3)), 44_549_160),
    "resnet152": (partial(ResNet, (3, 8, 36, 3)), 60_192_808),
}
"""Name to model and its published number of parameters."""


def build(name: str, batch: int = 1) -> tuple[Callable[..., jax.Array], Any, Any, jax.ShapeDtypeStruct]:
    """The function of a network and the shapes it takes.

    Args:
        name: One of `ARCHITECTURES`.
        batch: Pictures at once.

    Returns:
        `apply(params, model_state, pictures)` giving logits [batch, 1000], then the shapes of its three arguments:
        parameters, running statistics (an empty dict where there are none), pictures [batch, 224, 224, 3].

    Raises:
        KeyError: No such name.
        ValueError: The number of parameters is not the published one.

    Example:
        apply, *shapes = build("resnet50")
        jaxpr = jax.make_jaxpr(apply)(*shapes)
    """
    make, published = ARCHITECTURES[name]
    model = make()
    pictures = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), pictures)
    params, state = variables["params"], variables.get("batch_stats", {})
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    if counted != published:
        raise ValueError(f"{name} has {counted} parameters, published are {published}: the architecture was changed")
    apply = lambda params, state, x: model.apply({"params": params, "batch_stats": state}, x)
    return apply, params, state, pictures
