"""Convolutional networks as flax.linen modules, second part: EfficientNet, ConvNeXt, and many-branched networks."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from .entry import Built, Entry, pictures
from .linen_convnets import Bottleneck, ConvNorm, ResNet, SqueezeExcite, linen


class MBConv(nn.Module):
    """Expand, depthwise, squeeze and excitation (a quarter of the input's width), project; stochastic depth."""

    expand: int
    features: int
    size: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner = x.shape[-1] * self.expand
        y = ConvNorm(inner, (1, 1), act=nn.silu)(x, train) if self.expand > 1 else x
        y = ConvNorm(inner, (self.size, self.size), self.strides, groups=inner, act=nn.silu)(y, train)
        y = SqueezeExcite(max(1, x.shape[-1] // 4), nn.silu, nn.sigmoid)(y)
        y = ConvNorm(self.features, (1, 1), act=None)(y, train)
        if x.shape != y.shape:
            return y
        return x + nn.Dropout(0.1, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


class EfficientNet(nn.Module):
    rows: Sequence[tuple[int, int, int, int, int]]  # (expand, features, repeats, strides, size)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(8, strides=2, act=nn.silu)(x, train)
        for expand, features, repeats, strides, size in self.rows:
            for j in range(repeats):
                x = MBConv(expand, features, size, 1 if j else strides)(x, train)
        x = ConvNorm(22, (1, 1), act=nn.silu)(x, train)
        x = nn.Dropout(0.2, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def efficientnet() -> Built:
    """EfficientNet (Tan and Le 2019): mobile inverted bottlenecks with squeeze and excitation, silu."""
    rows = [(1, 4, 1, 1, 3), (6, 5, 2, 2, 3), (6, 7, 2, 2, 5), (6, 9, 1, 1, 3)]
    return linen(EfficientNet(rows), 221, pictures(321, 2, 32, 32, 3))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, layer norm, dense to four times the width, gelu, back, layer scale, skip."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (7, 7), feature_group_count=width)(x)
        y = nn.LayerNorm(epsilon=1e-6)(y)
        y = nn.Dense(width)(nn.gelu(nn.Dense(4 * width)(y)))
        return x + y * self.param("gamma", nn.initializers.constant(1e-6), (width,))


class ConvNeXt(nn.Module):
    depths: Sequence[int]
    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.LayerNorm(epsilon=1e-6)(nn.Conv(self.widths[0], (4, 4), (4, 4), padding="VALID")(x))
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if i:
                x = nn.Conv(width, (2, 2), (2, 2), padding="VALID")(nn.LayerNorm(epsilon=1e-6)(x))
            for _ in range(depth):
                x = ConvNeXtBlock()(x)
        return nn.Dense(10)(nn.LayerNorm(epsilon=1e-6)(x.mean((1, 2))))


def convnext() -> Built:
    """ConvNeXt (Liu et al. 2022): patchify stem, strided 2x2 between stages, layer norm and layer scale."""
    return linen(ConvNeXt((2, 2, 3, 1), (5, 7, 9, 11)), 223, pictures(323, 2, 32, 32, 3))


class GoogLeNetModule(nn.Module):
    """Four branches: 1x1; 1x1 then 3x3; 1x1 then 5x5; max pooling then 1x1."""

    widths: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        one, reduce3, three, reduce5, five, pool = self.widths
        branches = [
            nn.relu(nn.Conv(one, (1, 1))(x)),
            nn.relu(nn.Conv(three, (3, 3))(nn.relu(nn.Conv(reduce3, (1, 1))(x)))),
            nn.relu(nn.Conv(five, (5, 5))(nn.relu(nn.Conv(reduce5, (1, 1))(x)))),
            nn.relu(nn.Conv(pool, (1, 1))(nn.max_pool(x, (3, 3), (1, 1), padding="SAME"))),
        ]
        return jnp.concatenate(branches, axis=-1)


class GoogLeNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(6, (5, 5), 2)(x)), (3, 3), (2, 2), padding="SAME")
        x = GoogLeNetModule((4, 5, 6, 2, 3, 5))(x)
        x = GoogLeNetModule((6, 7, 8, 3, 4, 5))(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        x = GoogLeNetModule((7, 6, 9, 4, 5, 3))(x)
        return nn.Dense(10)(nn.Dropout(0.4, deterministic=True)(x.mean((1, 2))))


def inception() -> Built:
    """GoogLeNet (Szegedy et al. 2014): concatenated branches, one of them a pooling."""
    return linen(GoogLeNet(), 225, pictures(325, 2, 32, 32, 3))


class InceptionA(nn.Module):
    """Branches 1x1; 5x5; two 3x3; average pooling and 1x1."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        one = ConvNorm(5, (1, 1))(x, train)
        five = ConvNorm(6, (5, 5))(ConvNorm(4, (1, 1))(x, train), train)
        twice = ConvNorm(7)(ConvNorm(8)(ConvNorm(5, (1, 1))(x, train), train), train)
        pooled = ConvNorm(4, (1, 1))(nn.avg_pool(x, (3, 3), (1, 1), padding="SAME"), train)
        return jnp.concatenate([one, five, twice, pooled], axis=-1)


class InceptionReduction(nn.Module):
    """Strided 3x3, strided tower and max pooling of the input itself."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        three = ConvNorm(7, strides=2)(x, train)
        tower = ConvNorm(6, strides=2)(ConvNorm(5)(ConvNorm(4, (1, 1))(x, train), train), train)
        return jnp.concatenate([three, tower, nn.max_pool(x, (3, 3), (2, 2), padding="SAME")], axis=-1)


class InceptionC(nn.Module):
    """Factorised 7x7, and a 3x3 that forks into 1x3 and 3x1 side by side."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        seven = ConvNorm(6, (7, 1))(ConvNorm(5, (1, 7))(ConvNorm(4, (1, 1))(x, train), train), train)
        trunk = ConvNorm(7, (1, 1))(x, train)
        forks = [ConvNorm(3, (1, 3))(trunk, train), ConvNorm(4, (3, 1))(trunk, train)]
        return jnp.concatenate([ConvNorm(5, (1, 1))(x, train), seven, *forks], axis=-1)


class InceptionV3(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(6)(ConvNorm(4, strides=2)(x, train), train)
        for module in (InceptionA, InceptionReduction, InceptionC):
            x = module()(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


def inception_v3() -> Built:
    """Inception-v3 (Szegedy et al. 2015), one module of each kind: average pooling, reduction, factorised kernels."""
    return linen(InceptionV3(), 227, pictures(327, 2, 16, 16, 3))


class Fire(nn.Module):
    squeeze: int
    expand1: int
    expand3: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze")(x))
        one = nn.relu(nn.Conv(self.expand1, (1, 1), name="expand1")(x))
        three = nn.relu(nn.Conv(self.expand3, (3, 3), name="expand3")(x))
        return jnp.concatenate([one, three], axis=-1)


class SqueezeNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(7, (3, 3), 2)(x)), (3, 3), (2, 2), padding="SAME")
        x = Fire(4, 6, 8)(x)
        x = x + Fire(5, 8, 6)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        x = Fire(6, 9, 10)(x)
        x = x + Fire(7, 10, 9)(x)
        x = nn.Dropout(0.5, deterministic=True)(x)
        return nn.relu(nn.Conv(10, (1, 1))(x)).mean((1, 2))


def squeezenet() -> Built:
    """SqueezeNet (Iandola et al. 2016) with simple bypass; the classifier is a convolution."""
    return linen(SqueezeNet(), 229, pictures(329, 2, 32, 32, 3))


def channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    n, h, w, c = x.shape
    return x.reshape(n, h, w, groups, c // groups).transpose(0, 1, 2, 4, 3).reshape(n, h, w, c)


class ShuffleUnit(nn.Module):
    """Half of the channels pass by (or, strided, both branches convolve), concatenation, shuffle."""

    features: int
    strides: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        half = self.features // 2
        if self.strides == 1:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            width = x.shape[-1]
            left = ConvNorm(width, strides=self.strides, groups=width, act=None, name="side")(x, train)
            left, right = ConvNorm(half, (1, 1), name="side_mix")(left, train), x
        y = ConvNorm(half, (1, 1))(right, train)
        y = ConvNorm(half, strides=self.strides, groups=half, act=None)(y, train)
        y = ConvNorm(half, (1, 1))(y, train)
        return channel_shuffle(jnp.concatenate([left, y], axis=-1), 2)


class ShuffleNetV2(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = ConvNorm(7, strides=2)(x, train)
        for features, repeats in ((10, 3), (16, 2)):
            for j in range(repeats):
                x = ShuffleUnit(features, strides=1 if j else 2)(x, train)
        x = ConvNorm(22, (1, 1))(x, train)
        return nn.Dense(10)(x.mean((1, 2)))


def shufflenet_v2() -> Built:
    """ShuffleNetV2 (Ma et al. 2018): channel split, depthwise branch, channel shuffle."""
    return linen(ShuffleNetV2(), 231, pictures(331, 2, 32, 32, 3))


def resize(x: jax.Array, like: jax.Array) -> jax.Array:
    return jax.image.resize(x, (*like.shape[:3], x.shape[-1]), "bilinear")


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, dilated 3x3s, and the resized global mean, concatenated and mixed."""

    rates: Sequence[int]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        branches = [ConvNorm(6, (1, 1))(x, train)]
        branches += [ConvNorm(5 + i, dilation=rate)(x, train) for i, rate in enumerate(self.rates)]
        pooled = ConvNorm(4, (1, 1))(x.mean((1, 2), keepdims=True), train)
        x = ConvNorm(9, (1, 1))(jnp.concatenate([*branches, resize(pooled, x)], axis=-1), train)
        return nn.Dropout(0.1, deterministic=not train)(x)


class DeepLab(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        low = Bottleneck(5, 12, strides=2)(x, train)
        deep = Bottleneck(6, 14, strides=2)(low, train)
        deep = ConvNorm(13, dilation=2)(deep, train)
        deep = ASPP((2, 3, 4))(deep, train)
        both = jnp.concatenate([resize(deep, low), ConvNorm(5, (1, 1))(low, train)], axis=-1)
        return resize(nn.Conv(4, (1, 1))(ConvNorm(8)(both, train)), x)


def deeplab() -> Built:
    """DeepLabV3+ (Chen et al. 2018): dilated pyramid with a global-pooling branch, decoder joining low features."""
    return linen(DeepLab(), 233, pictures(333, 2, 32, 32, 3))


def resnext() -> Built:
    """ResNeXt (Xie et al. 2017): bottlenecks whose 3x3 has groups."""

    def block(inner: int, features: int, strides: int) -> Bottleneck:
        return Bottleneck(inner, features, strides, groups=4)

    return linen(ResNet(block, [(2, 8, 10), (2, 12, 18), (1, 16, 22)]), 235, pictures(335, 2, 32, 32, 3))


NETWORKS = [
    Entry("efficientnet", "linen", efficientnet),
    Entry("convnext", "linen", convnext),
    Entry("inception", "linen", inception, integer=True),
    Entry("inception_v3", "linen", inception_v3),
    Entry("squeezenet", "linen", squeezenet, integer=True),
    Entry("shufflenet_v2", "linen", shufflenet_v2, integer=True),
    Entry("deeplab", "linen", deeplab),
    Entry("resnext", "linen", resnext, integer=True),
]
