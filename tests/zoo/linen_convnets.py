"""Convolutional networks as flax.linen modules, first part: ResNets, DenseNets, MobileNets, VGG and U-Net.

Written as linen's users write them: `nn.compact`, automatic names, running statistics in "batch_stats", a `train`
flag. Batch norm's epsilon is zero in evaluation, so that it is exact on integers when the variances are 1, 4 or 16.
Widths are small and differ from layer to layer, so that a mixed-up axis or group shows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .entry import Built, Entry, pictures, randomize
from .plain_layers import calm


def linen(model: nn.Module, seed: int, *inputs: jax.Array) -> Built:
    """A linen module with random parameters; running statistics, where there are any, are its model state."""
    variables = randomize(seed, jax.eval_shape(model.init, jax.random.key(0), *inputs))
    params = calm(variables["params"])
    state = {name: tree for name, tree in variables.items() if name != "params"}
    if not state:
        return Built(lambda params, *inputs: model.apply({"params": params}, *inputs), params, inputs)

    def apply(params: Any, state: Any, *inputs: jax.Array) -> Any:
        return model.apply({"params": params, **state}, *inputs)

    def train_apply(params: Any, state: Any, *inputs: jax.Array) -> Any:
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params, **state}, *inputs, train=True, mutable=list(state), rngs=rngs)

    return Built(apply, params, inputs, state, train_apply)


def batch_norm(train: bool) -> nn.BatchNorm:
    epsilon = 1e-5 if train else 0.0
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=epsilon)


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, activation."""

    features: int
    size: Sequence[int] = (3, 3)
    strides: int = 1
    groups: int = 1
    dilation: int = 1
    act: Callable[[jax.Array], jax.Array] | None = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(
            self.features,
            self.size,
            self.strides,
            kernel_dilation=self.dilation,
            feature_group_count=self.groups,
            use_bias=False,
        )(x)
        x = batch_norm(train)(x)
        return self.act(x) if self.act else x


class BasicBlock(nn.Module):
    inner: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.inner, strides=self.strides)(x, train)
        y = ConvNorm(self.features, act=None, name="closing")(y, train)
        if x.shape != y.shape:
            x = ConvNorm(self.features, (1, 1), self.strides, act=None, name="projection")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride and the groups), 1x1 to `features` channels."""

    inner: int
    features: int
    strides: int
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvNorm(self.inner, (1, 1))(x, train)
        y = ConvNorm(self.inner, strides=self.strides, groups=self.groups)(y, train)
        y = ConvNorm(self.features, (1, 1), act=None, name="closing")(y, train)
        if x.shape != y.shape:
            x = ConvNorm(self.features, (1, 1), self.strides, act=None, name="projection")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ImageNet layout: 7x7 stem, max pooling, stages of (blocks, inner width, width)."""

    block: Callable[..., nn.Module]
    stages: Sequence[tuple[int, int, int]]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(6, (7, 7), 2)(x, train)
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for i, (blocks, inner, features) in enumerate(self.stages):
            for j in range(blocks):
                x = self.block(inner, features, strides=2 if i and not j else 1)(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


def resnet18() -> Built:
    """ResNet-18 (He et al. 2015): basic blocks 2-2-2-2, the first stage without projection."""
    model = ResNet(BasicBlock, [(2, 5, 6), (2, 7, 8), (2, 9, 11), (2, 10, 13)])
    return linen(model, 201, pictures(301, 2, 32, 32, 3))


def resnet50() -> Built:
    """ResNet-50 (He et al. 2015): bottlenecks 3-4-6-3 with expansion four."""
    model = ResNet(Bottleneck, [(n, w, 4 * w) for n, w in zip((3, 4, 6, 3), (4, 5, 6, 7), strict=True)])
    return linen(model, 203, pictures(303, 2, 32, 32, 3))


class DenseLayer(nn.Module):
    growth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.Conv(4 * self.growth, (1, 1), use_bias=False)(nn.relu(batch_norm(train)(x)))
        y = nn.Conv(self.growth, (3, 3), use_bias=False)(nn.relu(batch_norm(train)(y)))
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """Dense blocks; between them a 1x1 convolution to half the channels and an average pooling."""

    blocks: Sequence[int]
    growth: int
    imagenet_stem: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.imagenet_stem:
            x = nn.relu(batch_norm(train)(nn.Conv(2 * self.growth, (7, 7), 2, use_bias=False)(x)))
            x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        else:
            x = nn.Conv(2 * self.growth, (3, 3), use_bias=False)(x)
        for i, layers in enumerate(self.blocks):
            for _ in range(layers):
                x = DenseLayer(self.growth)(x, train)
            x = nn.relu(batch_norm(train)(x))
            if i < len(self.blocks) - 1:
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return nn.Dense(10)(x.mean((1, 2)))


def densenet() -> Built:
    """CIFAR DenseNet-BC (Huang et al. 2017), three blocks of three layers, growth 5."""
    return linen(DenseNet((3, 3, 3), 5, imagenet_stem=False), 205, pictures(305, 2, 16, 16, 3))


def densenet121() -> Built:
    """DenseNet-121 (Huang et al. 2017): blocks 6-12-24-16, growth 4."""
    return linen(DenseNet((6, 12, 24, 16), 4, imagenet_stem=True), 207, pictures(307, 2, 32, 32, 3))


class InvertedResidual(nn.Module):
    expand: int
    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner = x.shape[-1] * self.expand
        y = ConvNorm(inner, (1, 1), act=nn.relu6)(x, train) if self.expand > 1 else x
        y = ConvNorm(inner, strides=self.strides, groups=inner, act=nn.relu6)(y, train)
        y = ConvNorm(self.features, (1, 1), act=None)(y, train)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    rows: Sequence[tuple[int, int, int, int]]  # (expand, features, repeats, strides)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(6, strides=2, act=nn.relu6)(x, train)
        for expand, features, repeats, strides in self.rows:
            for j in range(repeats):
                x = InvertedResidual(expand, features, 1 if j else strides)(x, train)
        x = ConvNorm(20, (1, 1), act=nn.relu6)(x, train)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def mobilenet_v2() -> Built:
    """MobileNetV2 (Sandler et al. 2018): inverted residuals with linear bottlenecks, depthwise 3x3, relu6."""
    rows = [(1, 4, 1, 1), (6, 5, 2, 2), (6, 7, 3, 2), (6, 9, 2, 1)]
    return linen(MobileNetV2(rows), 209, pictures(309, 2, 32, 32, 3))


class SqueezeExcite(nn.Module):
    """Squeeze and excitation by 1x1 convolutions on the 1x1 mean."""

    squeezed: int
    act: Callable[[jax.Array], jax.Array]
    gate: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.mean((1, 2), keepdims=True)
        y = self.act(nn.Conv(self.squeezed, (1, 1), name="reduce")(y))
        return x * self.gate(nn.Conv(x.shape[-1], (1, 1), name="expand")(y))


class MobileNetV3(nn.Module):
    rows: Sequence[tuple[int, int, int, bool, Callable[[jax.Array], jax.Array], int]]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(6, strides=2, act=nn.hard_swish)(x, train)
        for size, inner, features, squeeze, act, strides in self.rows:
            y = ConvNorm(inner, (1, 1), act=act)(x, train)
            y = ConvNorm(inner, (size, size), strides, groups=inner, act=act)(y, train)
            y = SqueezeExcite(inner // 4, nn.relu, nn.hard_sigmoid)(y) if squeeze else y
            y = ConvNorm(features, (1, 1), act=None)(y, train)
            x = x + y if x.shape == y.shape else y
        x = ConvNorm(24, (1, 1), act=nn.hard_swish)(x, train)
        x = nn.hard_swish(nn.Dense(28)(x.mean((1, 2))))
        return nn.Dense(10)(nn.Dropout(0.2, deterministic=not train)(x))


def mobilenet_v3() -> Built:
    """MobileNetV3 (Howard et al. 2019): inverted residuals, squeeze and excitation, hard swish, 3x3 and 5x5."""
    rows = [
        (3, 8, 6, True, nn.relu, 1),
        (3, 16, 7, False, nn.relu, 2),
        (5, 20, 7, True, nn.hard_swish, 1),
        (5, 24, 9, True, nn.hard_swish, 2),
        (5, 28, 9, True, nn.hard_swish, 1),
    ]
    return linen(MobileNetV3(rows), 219, pictures(311, 2, 32, 32, 3))


class VGG(nn.Module):
    stages: Sequence[Sequence[int]]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for widths in self.stages:
            for features in widths:
                x = ConvNorm(features)(x, train)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        for features in (22, 18):
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(nn.Dense(features)(x)))
        return nn.Dense(10)(x)


def vgg() -> Built:
    """VGG (Simonyan and Zisserman 2014) with batch norm and two hidden dense layers."""
    return linen(VGG([(5,), (7,), (9, 10), (12, 11)]), 213, pictures(313, 2, 32, 32, 3))


class UNet(nn.Module):
    widths: Sequence[tuple[int, int]]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        skips = []
        for first, second in self.widths[:-1]:
            x = ConvNorm(second)(ConvNorm(first)(x, train), train)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        first, second = self.widths[-1]
        x = ConvNorm(second)(ConvNorm(first)(x, train), train)
        for skip, (first, second) in zip(reversed(skips), reversed(self.widths[:-1]), strict=True):
            x = nn.ConvTranspose(first, (2, 2), (2, 2))(x)
            x = jnp.concatenate([skip, x], axis=-1)
            x = ConvNorm(second + 1)(ConvNorm(first + 2)(x, train), train)
        return nn.Conv(2, (1, 1))(x)


def unet() -> Built:
    """U-Net (Ronneberger et al. 2015) with batch norm, three levels."""
    return linen(UNet([(4, 5), (6, 7), (9, 10)]), 215, pictures(315, 2, 16, 16, 1))


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for features in (5, 8):
            x = nn.Conv(features, kernel_size=(3, 3))(x)
            x = nn.relu(batch_norm(train)(x))
            x = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(10)(x)


def cnn_flatten() -> Built:
    """The flax tutorial's network: convolution, batch norm, relu, pooling, twice; flatten; two dense layers."""
    return linen(CNN(), 217, pictures(317, 2, 8, 8, 1))


NETWORKS = [
    Entry("resnet18", "linen", resnet18, integer=True),
    Entry("resnet50", "linen", resnet50, integer=True),
    Entry("densenet", "linen", densenet, integer=True),
    Entry("densenet121", "linen", densenet121, integer=True),
    Entry("mobilenet_v2", "linen", mobilenet_v2, integer=True),
    Entry("mobilenet_v3", "linen", mobilenet_v3),
    Entry("vgg", "linen", vgg, integer=True),
    Entry("unet", "linen", unet, integer=True),
    Entry("cnn_flatten", "linen", cnn_flatten, integer=True),
]
