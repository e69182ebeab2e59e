"""Convolutional networks as plain functions, first part: classifiers, pyramids, encoders and decoders.

Widths are small and differ from layer to layer (also inside residual blocks, where the papers keep them equal), so
that a mixed-up axis or group shows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import leaky_relu, relu, sigmoid

from .entry import Built, Entry, pictures, randomize
from .plain_layers import (
    batch_norm,
    bn_conv,
    conv,
    conv_bn,
    conv_bn_params,
    conv_params,
    conv_transpose,
    dense,
    dense_params,
    flatten,
    global_mean,
    max_pool,
    norm_params,
    pixel_shuffle,
    plain,
    resize,
    stateful,
    upsample,
)


def lenet() -> Built:
    """LeNet-5 (LeCun et al. 1998), NHWC, with relu and max pooling."""
    shapes = {
        "conv1": conv_params(1, 5, 5),
        "conv2": conv_params(5, 7, 5),
        "dense1": dense_params(2 * 2 * 7, 18),
        "dense2": dense_params(18, 14),
        "dense3": dense_params(14, 10),
    }

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = max_pool(relu(conv(p["conv1"], x)))
        x = max_pool(relu(conv(p["conv2"], x, padding="VALID")))
        x = relu(dense(p["dense1"], flatten(x)))
        return dense(p["dense3"], relu(dense(p["dense2"], x)))

    return plain(forward, 1, shapes, pictures(101, 2, 16, 16, 1))


def conv_nchw(p: dict, x: jax.Array, padding: str) -> jax.Array:
    y = lax.conv_general_dilated(x, p["w"], (1, 1), padding, dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return y + p["b"][:, None, None]


def max_pool_nchw(x: jax.Array) -> jax.Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")


def lenet_nchw() -> Built:
    """LeNet-5 with channels first and OIHW kernels: the flattening puts a channel's pixels next to each other."""
    shapes = {
        "conv1": conv_params(3, 5, 5),
        "conv2": conv_params(5, 7, 5),
        "dense1": dense_params(7 * 2 * 2, 18),
        "dense2": dense_params(18, 10),
    }
    params = randomize(3, shapes)
    for name in ("conv1", "conv2"):
        params[name]["w"] = params[name]["w"].transpose(3, 2, 0, 1)

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = max_pool_nchw(relu(conv_nchw(p["conv1"], x, "SAME")))
        x = max_pool_nchw(relu(conv_nchw(p["conv2"], x, "VALID")))
        return dense(p["dense2"], relu(dense(p["dense1"], flatten(x))))

    return Built(forward, params, (pictures(103, 2, 3, 16, 16),))


def vgg() -> Built:
    """VGG (Simonyan and Zisserman 2014) with batch norm; zero is a pooling."""
    widths = (5, 7, 0, 9, 11, 0, 13, 12, 0)
    convs = [w for w in widths if w]
    units = [conv_bn_params(i, o) for i, o in zip([3, *convs], convs, strict=False)]
    shapes = {"features": units, "dense1": dense_params(2 * 2 * 12, 20), "dense2": dense_params(20, 10)}

    def forward(p: Any, s: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        units, new = iter(zip(p["features"], s["features"], strict=True)), []
        for width in widths:
            if width:
                x, running = conv_bn(*next(units), x, train=train)
                x, new = relu(x), [*new, running]
            else:
                x = max_pool(x)
        return dense(p["dense2"], relu(dense(p["dense1"], flatten(x)))), {"features": new}

    return stateful(forward, 5, shapes, pictures(105, 2, 16, 16, 3))


def shortcut_a(x: jax.Array, channels: int, stride: int) -> jax.Array:
    """Option A: every other pixel, and zero channels on both sides; no parameters."""
    more = channels - x.shape[-1]
    return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)))


def basic_block(p: Any, s: Any, x: jax.Array, *, stride: int, train: bool) -> tuple[jax.Array, Any]:
    y, first = conv_bn(p["conv1"], s["conv1"], x, stride, train=train)
    y, second = conv_bn(p["closing"], s["closing"], relu(y), train=train)
    return relu(y + shortcut_a(x, y.shape[-1], stride)), {"conv1": first, "closing": second}


def resnet56() -> Built:
    """CIFAR ResNet-56 (He et al. 2015), 27 basic blocks in three stages, option-A shortcuts."""
    widths = [4] * 9 + [7] * 9 + [10] * 9
    blocks = [
        {"conv1": conv_bn_params(i, o + 1), "closing": conv_bn_params(o + 1, o)}
        for i, o in zip([4, *widths], widths, strict=False)
    ]
    shapes = {"stem": conv_bn_params(3, 4), "blocks": blocks, "head": dense_params(10, 10)}

    def forward(p: Any, s: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        x, stem = conv_bn(p["stem"], s["stem"], x, train=train)
        x, new = relu(x), []
        for i, (block, running) in enumerate(zip(p["blocks"], s["blocks"], strict=True)):
            x, running = basic_block(block, running, x, stride=2 if i in (9, 18) else 1, train=train)
            new.append(running)
        return dense(p["head"], global_mean(x)), {"stem": stem, "blocks": new}

    return stateful(forward, 7, shapes, pictures(107, 2, 16, 16, 3))


def bn_conv_params(inputs: int, outputs: int, size: int = 3) -> dict:
    return {"norm": norm_params(inputs), "conv": conv_params(inputs, outputs, size, bias=False)}


def preact_block(p: Any, s: Any, x: jax.Array, *, stride: int, train: bool) -> tuple[jax.Array, Any]:
    y, first = bn_conv(p["conv1"], s["conv1"], x, stride, train=train)
    y, second = bn_conv(p["conv2"], s["conv2"], y, train=train)
    short = conv(p["project"], x, stride) if "project" in p else x
    return y + short, {"conv1": first, "conv2": second}


def preact_resnet() -> Built:
    """Pre-activation ResNet (He et al. 2016): identity path without norm or relu, final norm before pooling."""

    def block(i: int, m: int, o: int) -> dict:
        shapes = {"conv1": bn_conv_params(i, m), "conv2": bn_conv_params(m, o)}
        return shapes if i == o else {**shapes, "project": conv_params(i, o, 1, bias=False)}

    blocks = [block(6, 5, 6), block(6, 7, 10), block(10, 9, 10), block(10, 11, 14)]
    shapes = {
        "stem": conv_params(3, 6),
        "blocks": blocks,
        "last": {"norm": norm_params(14)},
        "head": dense_params(14, 10),
    }

    def forward(p: Any, s: Any, x: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        x, new = conv(p["stem"], x), []
        for i, (block, running) in enumerate(zip(p["blocks"], s["blocks"], strict=True)):
            x, running = preact_block(block, running, x, stride=2 if i in (1, 3) else 1, train=train)
            new.append(running)
        x, last = batch_norm(p["last"]["norm"], s["last"], x, train=train)
        return dense(p["head"], global_mean(relu(x))), {"blocks": new, "last": last}

    return stateful(forward, 9, shapes, pictures(109, 2, 16, 16, 3))


def double_conv_params(i: int, m: int, o: int) -> dict:
    return {"a": conv_params(i, m), "b": conv_params(m, o)}


def double_conv(p: Any, x: jax.Array) -> jax.Array:
    return relu(conv(p["b"], relu(conv(p["a"], x))))


def unet() -> Built:
    """U-Net (Ronneberger et al. 2015), three levels: transposed convolutions, skips joined by concatenation."""
    shapes = {
        "down": [double_conv_params(1, 4, 5), double_conv_params(5, 6, 7)],
        "bottom": double_conv_params(7, 9, 10),
        "rise": [conv_params(10, 8, 2), conv_params(11, 6, 2)],
        "up": [double_conv_params(8 + 7, 12, 11), double_conv_params(6 + 5, 7, 6)],
        "head": conv_params(6, 2, 1),
    }

    def forward(p: Any, x: jax.Array) -> jax.Array:
        skips = []
        for level in p["down"]:
            skips.append(double_conv(level, x))
            x = max_pool(skips[-1])
        x = double_conv(p["bottom"], x)
        for rise, level in zip(p["rise"], p["up"], strict=True):
            x = jnp.concatenate([conv_transpose(rise, x), skips.pop()], axis=-1)
            x = double_conv(level, x)
        return conv(p["head"], x)

    return plain(forward, 11, shapes, pictures(111, 2, 16, 16, 1))


def fpn() -> Built:
    """Feature pyramid (Lin et al. 2017) with one head shared by all levels (RetinaNet); nested dictionary outputs."""
    widths = {"c2": 5, "c3": 7, "c4": 9}
    shapes = {
        "trunk": {"stem": conv_params(3, 6), "c2": conv_params(6, 5), "c3": conv_params(5, 7), "c4": conv_params(7, 9)},
        "lateral": {name: conv_params(width, 8, 1) for name, width in widths.items()},
        "smooth": {name: conv_params(8, 10) for name in widths},
        "head": {"shared": conv_params(10, 11), "scores": conv_params(11, 3), "boxes": conv_params(11, 4)},
    }

    def forward(p: Any, x: jax.Array) -> dict:
        x, features, outputs, top = relu(conv(p["trunk"]["stem"], x)), {}, {}, None
        for name in widths:
            features[name] = x = relu(conv(p["trunk"][name], x, 2))
        for name in reversed(widths):
            side = conv(p["lateral"][name], features[name])
            top = side if top is None else side + upsample(top)
            y = relu(conv(p["head"]["shared"], conv(p["smooth"][name], top)))
            outputs[name.replace("c", "p")] = {part: conv(p["head"][part], y) for part in ("scores", "boxes")}
        return outputs

    return plain(forward, 13, shapes, pictures(113, 2, 16, 16, 3))


def hed() -> Built:
    """Holistically-nested edge detection (Xie and Tu 2015): side outputs, resized, and their fusion."""
    widths = [(3, 4, 5), (5, 6, 7), (7, 8, 9)]
    shapes = {
        "stages": [double_conv_params(*w) for w in widths],
        "sides": [conv_params(o, 1, 1) for _, _, o in widths],
        "fuse": conv_params(3, 1, 1),
    }

    def forward(p: Any, x: jax.Array) -> list[jax.Array]:
        size, sides = x.shape[1:3], []
        for i, (stage, side) in enumerate(zip(p["stages"], p["sides"], strict=True)):
            x = double_conv(stage, max_pool(x) if i else x)
            sides.append(resize(conv(side, x), size))
        return [sigmoid(y) for y in [*sides, conv(p["fuse"], jnp.concatenate(sides, axis=-1))]]

    return plain(forward, 15, shapes, pictures(115, 2, 16, 16, 3))


def autoencoder() -> Built:
    """Convolutional autoencoder with a dense code, unflattened again and decoded by transposed convolutions."""
    shapes = {
        "conv1": conv_params(3, 6),
        "conv2": conv_params(6, 9),
        "code": dense_params(4 * 4 * 9, 12),
        "expand": dense_params(12, 4 * 4 * 7),
        "up1": conv_params(7, 8, 4),
        "up2": conv_params(8, 5, 3),
        "head": conv_params(5, 3),
    }

    def act(x: jax.Array) -> jax.Array:
        return leaky_relu(x, 0.25)

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = act(conv(p["conv2"], act(conv(p["conv1"], x, 2)), 2))
        x = act(dense(p["expand"], dense(p["code"], flatten(x))))
        x = act(conv_transpose(p["up1"], x.reshape(-1, 4, 4, 7)))
        return conv(p["head"], act(conv_transpose(p["up2"], x)))

    return plain(forward, 17, shapes, pictures(117, 2, 16, 16, 3))


def espcn() -> Built:
    """ESPCN (Shi et al. 2016): tanh convolutions at low resolution, then sub-pixel shuffling by three."""
    shapes = {"conv1": conv_params(3, 8, 5), "conv2": conv_params(8, 6), "conv3": conv_params(6, 3 * 3**2)}

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(conv(p["conv2"], jnp.tanh(conv(p["conv1"], x))))
        return pixel_shuffle(conv(p["conv3"], x), 3)

    return plain(forward, 19, shapes, pictures(119, 2, 8, 8, 3))


def edsr() -> Built:
    """EDSR (Lim et al. 2017): norm-free scaled residual blocks, a long skip, sub-pixel shuffling in the middle."""
    shapes = {
        "head": conv_params(3, 6),
        "body": [double_conv_params(6, m, 6) for m in (7, 8, 9)],
        "after": conv_params(6, 6),
        "up": conv_params(6, 5 * 2**2),
        "tail": conv_params(5, 3),
    }

    def forward(p: Any, x: jax.Array) -> jax.Array:
        x = first = conv(p["head"], x)
        for block in p["body"]:
            x = x + 0.25 * conv(block["b"], relu(conv(block["a"], x)))
        x = conv(p["after"], x) + first
        return conv(p["tail"], pixel_shuffle(conv(p["up"], x), 2))

    return plain(forward, 21, shapes, pictures(121, 2, 8, 8, 3))


NETWORKS = [
    Entry("lenet", "plain", lenet, integer=True),
    Entry("lenet_nchw", "plain", lenet_nchw, integer=True),
    Entry("vgg", "plain", vgg, integer=True),
    Entry("resnet56", "plain", resnet56, integer=True),
    Entry("preact_resnet", "plain", preact_resnet, integer=True),
    Entry("unet", "plain", unet, integer=True),
    Entry("fpn", "plain", fpn, integer=True),
    Entry("hed", "plain", hed),
    Entry("autoencoder", "plain", autoencoder, integer=True),
    Entry("espcn", "plain", espcn),
    Entry("edsr", "plain", edsr, integer=True),
]
