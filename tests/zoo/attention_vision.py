"""Attention and gates on pictures, in plain JAX: windows, axes, non-local blocks, context pooling, conditioning."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .attention_plain import (
    attention,
    attention_shapes,
    dense,
    dense_shapes,
    layer_norm,
    mlp,
    mlp_shapes,
    network,
    norm_shapes,
    shape,
)
from .entry import Built, Entry, pictures


def conv(p: Any, x: jax.Array, stride: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, p["kernel"], (stride,) * 2, "SAME", dimension_numbers=layout) + p["bias"]


def max_pool(x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def windows(x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B * windows, size^2, C]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def unwindows(x: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """The inverse of `windows`."""
    x = x.reshape(-1, height // size, width // size, size, size, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


def relative_index(size: int) -> np.ndarray:
    """int[size^2, size^2]: row of the bias table for every pair of places in a window."""
    places = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij")).reshape(2, -1)
    offset = places[:, :, None] - places[:, None, :] + size - 1
    return offset[0] * (2 * size - 1) + offset[1]


def shift_mask(height: int, width: int, size: int) -> np.ndarray:
    """float[windows, size^2, size^2]: -100 between places that only the cyclic shift made neighbours."""
    region = np.zeros((1, height, width, 1))
    cuts = (slice(0, -size), slice(-size, -(size // 2)), slice(-(size // 2), None))
    for number, (rows, columns) in enumerate((a, b) for a in cuts for b in cuts):
        region[:, rows, columns] = number
    region = np.asarray(windows(region, size))[:, :, 0]
    return np.where(region[:, :, None] == region[:, None, :], 0.0, -100.0).astype(np.float32)


def window_attention(p: Any, x: jax.Array, heads: int, size: int, mask: np.ndarray | None) -> jax.Array:
    """Attention within windows [B * windows, N, C], with a relative position bias."""
    many, n, _ = x.shape
    qkv = dense(p["qkv"], x)
    query, key, value = qkv.reshape(many, n, 3, heads, -1).transpose(2, 0, 3, 1, 4)
    scores = (query * query.shape[-1] ** -0.5) @ key.swapaxes(-2, -1)
    scores = scores + p["table"][relative_index(size).reshape(-1)].reshape(n, n, heads).transpose(2, 0, 1)
    if mask is not None:
        grouped = scores.reshape(many // len(mask), len(mask), heads, n, n)
        scores = (grouped + mask[None, :, None]).reshape(many, heads, n, n)
    mixed = (jax.nn.softmax(scores, axis=-1) @ value).swapaxes(1, 2).reshape(many, n, -1)
    return dense(p["out"], mixed)


def swin_block(p: Any, x: jax.Array, heads: int, size: int, shifted: bool) -> jax.Array:
    _, h, w, _ = x.shape
    y = layer_norm(p["norm1"], x)
    if shifted:
        y = jnp.roll(y, (-(size // 2), -(size // 2)), axis=(1, 2))
    y = window_attention(p["attention"], windows(y, size), heads, size, shift_mask(h, w, size) if shifted else None)
    y = unwindows(y, size, h, w)
    if shifted:
        y = jnp.roll(y, (size // 2, size // 2), axis=(1, 2))
    x = x + y
    return x + mlp(p["mlp"], layer_norm(p["norm2"], x))


def swin_merge(p: Any, x: jax.Array) -> jax.Array:
    """Patch merging: [B, H, W, C] to [B, H / 2, W / 2, 2 C]."""
    corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    return layer_norm(p["norm"], jnp.concatenate(corners, axis=-1)) @ p["reduction"]


def swin() -> Built:
    """Swin transformer (Liu 2021): windows, shifted windows, relative position bias, patch merging."""
    size, stages = 4, ((12, 2), (24, 4))

    def block(width: int, heads: int) -> dict[str, Any]:
        inner = {"qkv": dense_shapes(width, 3 * width), "out": dense_shapes(width, width)}
        inner["table"] = shape((2 * size - 1) ** 2, heads)
        ends = {"norm1": norm_shapes(width), "norm2": norm_shapes(width)}
        return {"attention": inner, "mlp": mlp_shapes(width, 2 * width + 2)} | ends

    shapes = {
        "patches": dense_shapes(2, 2, 3, 12),
        "stages": [[block(*stage), block(*stage)] for stage in stages],
        "merge": {"norm": norm_shapes(48), "reduction": shape(48, 24)},
        "norm": norm_shapes(24),
        "head": dense_shapes(24, 5),
    }

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = conv(p["patches"], x, 2)
        for number, (_, heads) in enumerate(stages):
            x = swin_merge(p["merge"], x) if number else x
            for shifted, q in enumerate(p["stages"][number]):
                x = swin_block(q, x, heads, size, bool(shifted))
        return dense(p["head"], layer_norm(p["norm"], x).mean((1, 2)))

    return network(apply, shapes, pictures(1, 2, 32, 32, 3))


def axial_attention() -> Built:
    """Axial attention (Ho 2019): along rows, then along columns, in a residual bottleneck (Wang 2020)."""
    inner = 8
    block = {
        "squeeze": dense_shapes(1, 1, 14, inner),
        "rows": attention_shapes(inner, 2, 3),
        "columns": attention_shapes(inner, 2, 5),
        "expand": dense_shapes(1, 1, inner, 14),
        "norm": norm_shapes(14),
    }
    shapes = {"stem": dense_shapes(3, 3, 3, 14), "blocks": [block, block], "head": dense_shapes(14, 6)}
    shapes["positions"] = {"row": shape(8, 1, 14), "column": shape(6, 14)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = conv(p["stem"], x, 2) + p["positions"]["row"] + p["positions"]["column"]
        for q in p["blocks"]:
            y = jax.nn.relu(conv(q["squeeze"], layer_norm(q["norm"], x)))
            y = y + attention(q["rows"], y)
            y = y + jnp.swapaxes(attention(q["columns"], jnp.swapaxes(y, 1, 2)), 1, 2)
            x = jax.nn.relu(x + conv(q["expand"], y))
        return dense(p["head"], x.max((1, 2)))

    return network(apply, shapes, pictures(2, 2, 16, 12, 3))


def nonlocal_shapes() -> dict[str, Any]:
    block = {name: dense_shapes(1, 1, 12, 6) for name in ("theta", "phi", "g")}
    block["out"] = dense_shapes(1, 1, 6, 12)
    convs = {
        "stem": dense_shapes(3, 3, 3, 10),
        "second": dense_shapes(3, 3, 10, 12),
        "third": dense_shapes(3, 3, 12, 9),
    }
    return convs | {"block": block, "head": dense_shapes(9, 5)}


def nonlocal_cnn(normalize: Any) -> Built:
    def block(p: Any, x: jax.Array) -> jax.Array:
        flat = lambda y: y.reshape(y.shape[0], -1, y.shape[-1])
        theta = flat(conv(p["theta"], x))
        phi, g = flat(max_pool(conv(p["phi"], x))), flat(max_pool(conv(p["g"], x)))
        affinity = normalize(jnp.matmul(theta, phi.transpose(0, 2, 1)))
        return x + conv(p["out"], jnp.matmul(affinity, g).reshape(*x.shape[:3], -1))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(p["stem"], x))
        x = max_pool(jax.nn.relu(conv(p["second"], x)))
        x = jax.nn.relu(conv(p["third"], block(p["block"], x), 2))
        return dense(p["head"], x.mean((1, 2)))

    return network(apply, nonlocal_shapes(), 0.3 * pictures(3, 2, 16, 16, 3))


def nonlocal_gaussian() -> Built:
    """Non-local block, embedded Gaussian version (Wang 2018), with subsampled keys, in a small CNN."""
    return nonlocal_cnn(lambda scores: jax.nn.softmax(scores, axis=-1))


def nonlocal_dot() -> Built:
    """Non-local block, dot product version (Wang 2018): divided by the number of places."""
    return nonlocal_cnn(lambda scores: scores / scores.shape[-1])


def context_cnn() -> Built:
    """Global context blocks (GCNet, Cao 2019): attention pooling to one vector, bottleneck, added everywhere."""
    block = lambda width: {
        "weight": dense_shapes(1, 1, width, 1),
        "down": dense_shapes(width, 5),
        "norm": norm_shapes(5),
        "up": dense_shapes(5, width),
    }
    shapes = {
        "stem": dense_shapes(3, 3, 3, 9),
        "context1": block(9),
        "second": dense_shapes(3, 3, 9, 13),
        "context2": block(13),
        "head": dense_shapes(13, 4),
    }

    def context(p: Any, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        weights = jax.nn.softmax(conv(p["weight"], x).reshape(b, h * w, 1), axis=1)
        pooled = jnp.einsum("bnc,bni->bc", x.reshape(b, h * w, c), weights)
        change = dense(p["up"], jax.nn.relu(layer_norm(p["norm"], dense(p["down"], pooled))))
        return x + change[:, None, None, :]

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = context(p["context1"], jax.nn.leaky_relu(conv(p["stem"], x)))
        x = context(p["context2"], jax.nn.leaky_relu(conv(p["second"], x, 2)))
        return dense(p["head"], x.mean((1, 2)))

    return network(apply, shapes, pictures(4, 2, 12, 12, 3))


def attention_pool() -> Built:
    """CNN with CLIP's attention pooling (Radford 2021): the mean asks, all places answer; heads wider than the CNN."""
    shapes = {
        "stem": dense_shapes(3, 3, 3, 11),
        "second": dense_shapes(3, 3, 11, 14),
        "positions": shape(17, 14),
        "pool": {name: dense_shapes(14, 18) for name in ("query", "key", "value")} | {"out": dense_shapes(18, 6)},
    }

    def pool(p: Any, x: jax.Array, heads: int) -> jax.Array:
        apart = lambda y: y.reshape(*y.shape[:2], heads, -1)
        query, key, value = apart(dense(p["query"], x[:, :1])), apart(dense(p["key"], x)), apart(dense(p["value"], x))
        return dense(p["out"], jax.nn.dot_product_attention(query, key, value).reshape(x.shape[0], -1))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv(p["second"], jax.nn.relu(conv(p["stem"], x, 2)), 2))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1) + p["positions"]
        return pool(p["pool"], x, 3)

    return network(apply, shapes, pictures(5, 2, 16, 16, 3))


def film() -> Built:
    """FiLM (Perez 2018): a condition vector scales and shifts the channels of residual blocks."""
    width, blocks = 10, 2
    block = {"first": dense_shapes(1, 1, width, width), "second": dense_shapes(3, 3, width, width)}
    shapes = {
        "condition": {"hidden": dense_shapes(5, 8), "film": dense_shapes(8, blocks * 2 * width)},
        "stem": dense_shapes(3, 3, 3, width),
        "blocks": [block] * blocks,
        "head": dense_shapes(width, 6),
    }

    def apply(p: Any, x: jax.Array, condition: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(dense(p["condition"]["hidden"], condition))
        changes = dense(p["condition"]["film"], hidden).reshape(-1, blocks, 2 * width)
        x = jax.nn.relu(conv(p["stem"], x, 2))
        for number, q in enumerate(p["blocks"]):
            gamma, beta = jnp.split(changes[:, number, None, None, :], 2, axis=-1)
            y = jax.nn.relu(conv(q["first"], x))
            x = y + jax.nn.relu(gamma * conv(q["second"], y) + beta)
        return dense(p["head"], x.max((1, 2)))

    return network(apply, shapes, pictures(6, 2, 12, 12, 3), pictures(7, 2, 5))


NETWORKS = [
    Entry("swin", "plain", swin),
    Entry("axial_attention", "plain", axial_attention),
    Entry("nonlocal_gaussian", "plain", nonlocal_gaussian),
    Entry("nonlocal_dot", "plain", nonlocal_dot),
    Entry("context_cnn", "plain", context_cnn),
    Entry("attention_pool", "plain", attention_pool),
    Entry("film", "plain", film, integer=True),
]
