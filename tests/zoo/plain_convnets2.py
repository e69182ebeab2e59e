"""Convolutional networks as plain functions, second part: several inputs, gates, attention, groups and shuffles.

Widths are small and differ from layer to layer, so that a mixed-up axis or group shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import gelu, relu, sigmoid

from .entry import Built, Entry, pictures
from .plain_layers import (
    array,
    avg_pool,
    channel_shuffle,
    conv,
    conv_bn,
    conv_bn_params,
    conv_params,
    dense,
    dense_params,
    depth_to_space,
    flatten,
    global_mean,
    group_norm,
    instance_norm,
    max_pool,
    norm_params,
    plain,
    resize,
    stateful,
    upsample,
)


def siamese() -> Built:
    """Siamese network (Koch et al. 2015): one trunk applied to both pictures, distance |a - b|, one logit."""
    shapes = {
        "trunk": {"conv1": conv_params(1, 5), "conv2": conv_params(5, 7), "dense": dense_params(4 * 4 * 7, 12)},
        "head": dense_params(12, 1),
    }

    def trunk(p: Any, x: jax.Array) -> jax.Array:
        x = max_pool(relu(conv(p["conv2"], max_pool(relu(conv(p["conv1"], x))))))
        return relu(dense(p["dense"], flatten(x)))

    def forward(p: Any, left: jax.Array, right: jax.Array) -> jax.Array:
        return dense(p["head"], jnp.abs(trunk(p["trunk"], left) - trunk(p["trunk"], right)))

    return plain(forward, 31, shapes, pictures(131, 2, 16, 16, 1), pictures(132, 2, 16, 16, 1))


def two_inputs() -> Built:
    """A picture and a vector of measurements, each with its own branch, concatenated before the dense head."""
    shapes = {
        "conv1": conv_params(3, 5),
        "conv2": conv_params(5, 6),
        "measure": dense_params(4, 9),
        "join": dense_params(4 * 4 * 6 + 9, 11),
        "head": dense_params(11, 3),
    }

    def forward(p: Any, picture: jax.Array, vector: jax.Array) -> jax.Array:
        x = relu(conv(p["conv2"], relu(conv(p["conv1"], picture, 2)), 2))
        both = jnp.concatenate([flatten(x), relu(dense(p["measure"], vector))], axis=-1)
        return dense(p["head"], relu(dense(p["join"], both)))

    return plain(forward, 33, shapes, pictures(133, 2, 16, 16, 3), pictures(134, 2, 4))


def gn_block_params(i: int, m: int, o: int) -> dict:
    shapes = {"conv1": conv_params(i, m), "norm1": norm_params(m), "conv2": conv_params(m, o), "norm2": norm_params(o)}
    return shapes if i == o else {**shapes, "project": conv_params(i, o, 1)}


def gn_block(p: Any, x: jax.Array, stride: int, convolve: Callable[..., jax.Array]) -> jax.Array:
    y = relu(group_norm(p["norm1"], convolve(p["conv1"], x, stride), 2))
    y = group_norm(p["norm2"], convolve(p["conv2"], y), 4)
    return relu(y + (convolve(p["project"], x, stride) if "project" in p else x))


def gn_resnet(seed: int, convolve: Callable[..., jax.Array]) -> Built:
    blocks = [gn_block_params(8, 6, 8), gn_block_params(8, 10, 12), gn_block_params(12, 14, 16)]
    shapes = {"stem": conv_params(3, 8), "norm": norm_params(8), "blocks": blocks, "head": dense_params(16, 10)}

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = relu(group_norm(p["norm"], convolve(p["stem"], x), 4))
        for block, stride in zip(p["blocks"], (1, 2, 2), strict=True):
            x = gn_block(block, x, stride, convolve)
        return dense(p["head"], global_mean(x))

    return plain(forward, seed, shapes, pictures(100 + seed, 2, 16, 16, 3))


def groupnorm_resnet() -> Built:
    """ResNet with group norm (Wu and He 2018), two or four groups."""
    return gn_resnet(35, conv)


def standardized_conv(p: dict, x: jax.Array, stride: int = 1) -> jax.Array:
    w = p["w"]
    mean, var = (moment(w, (0, 1, 2), keepdims=True) for moment in (jnp.mean, jnp.var))
    fan_in = w.shape[0] * w.shape[1] * w.shape[2]
    return conv({**p, "w": (w - mean) / jnp.sqrt((var + 1e-5) * fan_in)}, x, stride)


def weight_standardized() -> Built:
    """ResNet with weight standardization (Qiao et al. 2019): every kernel is centred and scaled before use."""
    return gn_resnet(37, standardized_conv)


def reflect_conv(p: dict, x: jax.Array, stride: int = 1) -> jax.Array:
    pad = p["w"].shape[0] // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    return conv(p, x, stride, padding="VALID")


def instance_norm_style() -> Built:
    """Style transfer net (Johnson et al. 2016): instance norm, reflection padding, nearest-neighbour upsampling."""
    widths = {"stem": (3, 4, 5), "down1": (4, 6, 3), "down2": (6, 8, 3), "up1": (8, 7, 3), "up2": (7, 5, 3)}
    shapes = {name: {"conv": conv_params(*w), "norm": norm_params(w[1])} for name, w in widths.items()}
    shapes["body"] = [
        {name: {"conv": conv_params(*w), "norm": norm_params(w[1])} for name, w in (("a", (8, m)), ("b", (m, 8)))}
        for m in (9, 10)
    ]
    shapes["head"] = conv_params(5, 3, 5)

    def unit(p: Any, x: jax.Array, stride: int = 1) -> jax.Array:
        return instance_norm(p["norm"], reflect_conv(p["conv"], x, stride))

    def forward(p: Any, x: jax.Array) -> jax.Array:
        for name, stride in (("stem", 1), ("down1", 2), ("down2", 2)):
            x = relu(unit(p[name], x, stride))
        for block in p["body"]:
            x = x + unit(block["b"], relu(unit(block["a"], x)))
        for name in ("up1", "up2"):
            x = relu(unit(p[name], upsample(x)))
        return jnp.tanh(reflect_conv(p["head"], x))

    return plain(forward, 39, shapes, pictures(139, 2, 16, 16, 3))


def glu_cnn(seed: int, halves: Callable[[jax.Array], tuple[jax.Array, jax.Array]]) -> Built:
    shapes = {
        "stem": conv_params(3, 2 * 5),
        "down": conv_params(5, 2 * 7),
        "same": conv_params(7, 2 * 7),
        "head": dense_params(7, 10),
    }

    def gated(p: dict, x: jax.Array, stride: int = 1) -> jax.Array:
        value, gate = halves(conv(p, x, stride))
        return value * sigmoid(gate)

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = gated(p["down"], gated(p["stem"], x), 2)
        return dense(p["head"], global_mean(x + gated(p["same"], x)))

    return plain(forward, seed, shapes, pictures(100 + seed, 2, 8, 8, 3))


def glu_cnn_split() -> Built:
    """Gated convolutions (Dauphin et al. 2017), halves by `jnp.split`."""
    return glu_cnn(41, lambda x: tuple(jnp.split(x, 2, axis=-1)))


def glu_cnn_slice() -> Built:
    """Gated convolutions (Dauphin et al. 2017), halves by slicing."""
    return glu_cnn(43, lambda x: (x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]))


def channel_gate(p: Any, x: jax.Array) -> jax.Array:
    """Squeeze and excitation: one factor per channel."""
    return sigmoid(dense(p["excite"], relu(dense(p["squeeze"], x))))


def cbam() -> Built:
    """CBAM (Woo et al. 2018): a channel gate, then a one-channel spatial gate from mean and max over channels."""

    def attention(c: int, r: int) -> dict:
        return {"first": dense_params(c, r), "second": dense_params(r, c), "spatial": conv_params(2, 1, 7)}

    shapes = {
        "convs": [conv_params(3, 8), conv_params(8, 12)],
        "gates": [attention(8, 3), attention(12, 4)],
        "head": dense_params(12, 10),
    }

    def attend(p: Any, x: jax.Array) -> jax.Array:
        mlp = lambda v: dense(p["second"], relu(dense(p["first"], v)))
        x = x * sigmoid(mlp(jnp.mean(x, (1, 2))) + mlp(jnp.max(x, (1, 2))))[:, None, None, :]
        maps = [jnp.mean(x, -1, keepdims=True), jnp.max(x, -1, keepdims=True)]
        return x * sigmoid(conv(p["spatial"], jnp.concatenate(maps, axis=-1)))

    def forward(p: Any, x: jax.Array) -> jax.Array:
        for convolution, gate in zip(p["convs"], p["gates"], strict=True):
            x = max_pool(attend(gate, relu(conv(convolution, x))))
        return dense(p["head"], global_mean(x))

    return plain(forward, 45, shapes, pictures(145, 2, 16, 16, 3))


def shuffle_unit_params(i: int, m: int, o: int, groups: int) -> dict:
    return {
        "reduce": conv_bn_params(i, m, 1, groups=groups),
        "depthwise": conv_bn_params(m, m, 3, groups=m),
        "expand": conv_bn_params(m, o, 1, groups=groups),
    }


def shuffle_unit(
    p: Any, s: Any, x: jax.Array, stride: int, *, groups: int, train: bool
) -> tuple[jax.Array, dict[str, Any]]:
    new = {}
    y, new["reduce"] = conv_bn(p["reduce"], s["reduce"], x, groups=groups, train=train)
    y = channel_shuffle(relu(y), groups)
    y, new["depthwise"] = conv_bn(p["depthwise"], s["depthwise"], y, stride, groups=y.shape[-1], train=train)
    y, new["expand"] = conv_bn(p["expand"], s["expand"], y, groups=groups, train=train)
    return relu(x + y if stride == 1 else jnp.concatenate([avg_pool(x), y], axis=-1)), new


def shufflenet_v1() -> Built:
    """ShuffleNet (Zhang et al. 2018): grouped 1x1, channel shuffle, depthwise; strided units concatenate a pooling.

    The pooling is 2x2, for the paper's 3x3, to stay exact on integers.
    """
    units = [(12, 6, 12, 2), (24, 12, 24, 1), (24, 9, 12, 2)]
    shapes = {
        "stem": conv_bn_params(3, 12),
        "units": [shuffle_unit_params(i, m, o, 3) for i, m, o, _ in units],
        "head": dense_params(36, 10),
    }

    def forward(p: Any, s: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        x, stem = conv_bn(p["stem"], s["stem"], x, train=train)
        x, new = relu(x), []
        for unit, running, (*_, stride) in zip(p["units"], s["units"], units, strict=True):
            x, running = shuffle_unit(unit, running, x, stride, groups=3, train=train)
            new.append(running)
        return dense(p["head"], global_mean(x)), {"stem": stem, "units": new}

    return stateful(forward, 47, shapes, pictures(147, 2, 16, 16, 3))


def se_block_params(i: int, m: int, o: int) -> dict:
    shapes = {"conv1": conv_bn_params(i, m), "conv2": conv_bn_params(m, o)}
    shapes |= {"squeeze": dense_params(o, 3), "excite": dense_params(3, o)}
    return shapes if i == o else {**shapes, "project": conv_bn_params(i, o, 1)}


def se_block(p: Any, s: Any, x: jax.Array, *, stride: int, train: bool) -> tuple[jax.Array, Any]:
    new = {}
    y, new["conv1"] = conv_bn(p["conv1"], s["conv1"], x, stride, train=train)
    y, new["conv2"] = conv_bn(p["conv2"], s["conv2"], relu(y), train=train)
    y = y * channel_gate(p, global_mean(y))[:, None, None, :]
    if "project" in p:
        x, new["project"] = conv_bn(p["project"], s["project"], x, stride, train=train)
    return relu(x + y), new


def se_resnet() -> Built:
    """ResNet with squeeze and excitation (Hu et al. 2018), projection shortcuts."""
    blocks = [se_block_params(6, 5, 6), se_block_params(6, 7, 10), se_block_params(10, 9, 13)]
    shapes = {"stem": conv_bn_params(3, 6), "blocks": blocks, "head": dense_params(13, 10)}

    def forward(p: Any, s: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        x, stem = conv_bn(p["stem"], s["stem"], x, train=train)
        x, new = relu(x), []
        for block, running, stride in zip(p["blocks"], s["blocks"], (1, 2, 2), strict=True):
            x, running = se_block(block, running, x, stride=stride, train=train)
            new.append(running)
        return dense(p["head"], global_mean(x)), {"stem": stem, "blocks": new}

    return stateful(forward, 49, shapes, pictures(149, 2, 16, 16, 3))


def vgg_raw_einsum() -> Built:
    """VGG with bare arrays: kernels in a tuple, 1x1 convolutions and the flattening head as einsums."""
    kernels = (array(3, 3, 3, 5), array(3, 3, 7, 9), array(3, 3, 8, 6))
    mixes = (array(5, 7), array(9, 8), array(6, 10))
    shapes = (kernels, mixes, [array(7), array(8), array(10)], array(2, 2, 10, 12), array(12, 4))

    def forward(p: Any, x: jax.Array) -> jax.Array:
        kernels, mixes, biases, pool, head = p
        for kernel, mix, bias in zip(kernels, mixes, biases, strict=True):
            x = relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
            x = max_pool(relu(jnp.einsum("bhwc,cd->bhwd", x, mix) + bias))
        return jnp.einsum("bd,de->be", relu(jnp.einsum("bhwc,hwcd->bd", x, pool)), head)

    return plain(forward, 51, shapes, pictures(151, 2, 16, 16, 3))


def maxout() -> Built:
    """Maxout network (Goodfellow et al. 2013): channels in pairs, the larger of each pair goes on."""
    shapes = {
        "conv1": conv_params(3, 2 * 5),
        "conv2": conv_params(5, 2 * 7),
        "dense": dense_params(4 * 4 * 7, 2 * 9),
        "head": dense_params(9, 10),
    }

    def pairs(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2).max(axis=-1)

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = max_pool(pairs(conv(p["conv2"], max_pool(pairs(conv(p["conv1"], x))))))
        return dense(p["head"], pairs(dense(p["dense"], flatten(x))))

    return plain(forward, 53, shapes, pictures(153, 2, 16, 16, 3))


def resize_autoencoder() -> Built:
    """Autoencoder that comes up once by depth-to-space and once by a bilinear resize."""
    shapes = {
        "conv1": conv_params(3, 5),
        "conv2": conv_params(5, 8),
        "spread": conv_params(8, 6 * 2**2),
        "smooth": conv_params(6, 7),
        "head": conv_params(7, 3),
    }

    def forward(p: Any, x: jax.Array) -> jax.Array:
        size = x.shape[1:3]
        x = gelu(conv(p["conv2"], gelu(conv(p["conv1"], x, 2)), 2))
        x = depth_to_space(gelu(conv(p["spread"], x)))
        return sigmoid(conv(p["head"], gelu(conv(p["smooth"], resize(x, size)))))

    return plain(forward, 55, shapes, pictures(155, 2, 16, 16, 3))


NETWORKS = [
    Entry("siamese", "plain", siamese, integer=True),
    Entry("two_inputs", "plain", two_inputs, integer=True),
    Entry("groupnorm_resnet", "plain", groupnorm_resnet),
    Entry("weight_standardized", "plain", weight_standardized),
    Entry("instance_norm_style", "plain", instance_norm_style),
    Entry("glu_cnn_split", "plain", glu_cnn_split),
    Entry("glu_cnn_slice", "plain", glu_cnn_slice),
    Entry("cbam", "plain", cbam),
    Entry("shufflenet_v1", "plain", shufflenet_v1, integer=True),
    Entry("se_resnet", "plain", se_resnet),
    Entry("vgg_raw_einsum", "plain", vgg_raw_einsum, integer=True),
    Entry("maxout", "plain", maxout, integer=True),
    Entry("resize_autoencoder", "plain", resize_autoencoder),
]
