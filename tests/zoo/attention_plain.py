"""Transformers in plain JAX, without a layer library: einsum, matmul, reshape and index, as people write them by hand.

Also holds the few layers that `attention_more` shares: dense, layer norm, multi-head attention. Parameters are nested
dicts; their shapes are declared first (`shape(...)`), `network` fills them with random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .entry import Built, Entry, pictures, randomize


def network(apply: Callable[..., Any], shapes: Any, *inputs: Any, seed: int = 0) -> Built:
    """Draws the parameters. `x + bias` broadcasts as it does by default, also under the strict setting of the tests."""

    @wraps(apply)
    def run(*args: Any) -> Any:
        with jax.numpy_rank_promotion("allow"):
            return apply(*args)

    return Built(run, randomize(seed, shapes), inputs)


def tokens(seed: int, length: int, vocabulary: int, batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocabulary, (batch, length)), jnp.int32)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def dense_shapes(*sizes: int) -> dict[str, Any]:
    return {"kernel": shape(*sizes), "bias": shape(sizes[-1])}


def norm_shapes(width: int) -> dict[str, Any]:
    return {"scale": shape(width), "bias": shape(width)}


def dense(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"]


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    """Fast variance: E[x^2] - E[x]^2."""
    mean = x.mean(-1, keepdims=True)
    variance = (x * x).mean(-1, keepdims=True) - mean**2
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * p["scale"] + p["bias"]


def attention_shapes(width: int, heads: int, size: int, *, source: int = 0, values: int = 0) -> dict[str, Any]:
    project = lambda wide, narrow: {"kernel": shape(wide, heads, narrow), "bias": shape(heads, narrow)}
    return {
        "query": project(width, size),
        "key": project(source or width, size),
        "value": project(source or width, values or size),
        "out": {"kernel": shape(heads, values or size, width), "bias": shape(width)},
    }


def attention(p: Any, x: jax.Array, source: jax.Array | None = None, mask: Any = None) -> jax.Array:
    """Multi-head attention over the next to last axis, with kernels [D, H, Dh]; `mask` is true where one may look."""
    source = x if source is None else source
    project = lambda q, y: jnp.einsum("...nd,dhk->...hnk", y, q["kernel"]) + q["bias"][:, None, :]
    query, key, value = project(p["query"], x), project(p["key"], source), project(p["value"], source)
    scores = jnp.einsum("...qk,...sk->...qs", query, key) / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    mixed = jnp.einsum("...hqs,...hsk->...qhk", jax.nn.softmax(scores, axis=-1), value)
    return jnp.einsum("...qhk,hkd->...qd", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def mlp_shapes(width: int, hidden: int) -> dict[str, Any]:
    return {"up": dense_shapes(width, hidden), "down": dense_shapes(hidden, width)}


def mlp(p: Any, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu) -> jax.Array:
    return dense(p["down"], activation(dense(p["up"], x)))


def vit() -> Built:
    """Vision transformer (Dosovitskiy 2020): patches by convolution, class token, learned positions, pre-norm."""
    width = 16
    block = lambda hidden: {
        "norm1": norm_shapes(width),
        "attention": attention_shapes(width, 3, 5, values=6),
        "norm2": norm_shapes(width),
        "mlp": mlp_shapes(width, hidden),
    }
    shapes = {
        "patches": dense_shapes(4, 4, 3, width),
        "class": shape(1, 1, width),
        "positions": shape(1, 17, width),
        "blocks": [block(24), block(28)],
        "norm": norm_shapes(width),
        "head": dense_shapes(width, 7),
    }

    def apply(p: Any, x: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, p["patches"]["kernel"], (4, 4), "VALID", dimension_numbers=layout)
        x = (x + p["patches"]["bias"]).reshape(x.shape[0], -1, width)
        first = jnp.broadcast_to(p["class"], (x.shape[0], 1, width))
        x = jnp.concatenate([first, x], axis=1) + p["positions"]
        for q in p["blocks"]:
            x = x + attention(q["attention"], layer_norm(q["norm1"], x))
            x = x + mlp(q["mlp"], layer_norm(q["norm2"], x))
        return dense(p["head"], layer_norm(p["norm"], x)[:, 0])

    return network(apply, shapes, pictures(1, 2, 16, 16, 3))


def fused_by_index(qkv: jax.Array, heads: int) -> tuple[jax.Array, ...]:
    """[B, N, 3 H Dh] to three of [B, H, N, Dh], as timm does."""
    b, n, width = qkv.shape
    qkv = qkv.reshape(b, n, 3, heads, width // (3 * heads)).transpose(2, 0, 3, 1, 4)
    return qkv[0], qkv[1], qkv[2]


def fused_by_split(qkv: jax.Array, heads: int) -> tuple[jax.Array, ...]:
    """[B, N, 3 H Dh] to three of [B, H, N, Dh], as minGPT does."""
    b, n, width = qkv.shape
    apart = lambda y: y.reshape(b, n, heads, width // (3 * heads)).transpose(0, 2, 1, 3)
    return tuple(apart(y) for y in jnp.split(qkv, 3, axis=-1))


def vit_fused(cut: Callable[[jax.Array, int], tuple[jax.Array, ...]]) -> Built:
    """ViT with one dense layer for queries, keys and values, patches by reshape, mean pooling and layer scale."""
    width, heads, size = 12, 3, 4
    block = {
        "norm1": norm_shapes(width),
        "qkv": dense_shapes(width, 3 * heads * size),
        "out": dense_shapes(heads * size, width),
        "gamma1": shape(width),
        "norm2": norm_shapes(width),
        "mlp": mlp_shapes(width, 20),
        "gamma2": shape(width),
    }
    shapes = {
        "patches": dense_shapes(48, width),
        "positions": shape(9, width),
        "blocks": [block, block],
        "norm": norm_shapes(width),
        "head": dense_shapes(width, 5),
    }

    def mix(p: Any, x: jax.Array) -> jax.Array:
        query, key, value = cut(dense(p["qkv"], x), heads)
        weights = jax.nn.softmax(query @ key.transpose(0, 1, 3, 2) * size**-0.5, axis=-1)
        mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[1], heads * size)
        return dense(p["out"], mixed)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, 16 * c)
        x = dense(p["patches"], x) + p["positions"]
        for q in p["blocks"]:
            x = x + q["gamma1"] * mix(q, layer_norm(q["norm1"], x))
            x = x + q["gamma2"] * mlp(q["mlp"], layer_norm(q["norm2"], x))
        return dense(p["head"], layer_norm(p["norm"], x).mean(axis=1))

    return network(apply, shapes, pictures(2, 2, 12, 12, 3))


def vit_fused_qkv() -> Built:
    """ViT whose fused projection is reshaped to (3, H, Dh) and indexed (timm)."""
    return vit_fused(fused_by_index)


def vit_split_qkv() -> Built:
    """ViT whose fused projection is split in three first (minGPT)."""
    return vit_fused(fused_by_split)


def rms_norm(p: Any, x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * p["scale"]


def angles(length: int, size: int) -> np.ndarray:
    """float[length, size / 2]"""
    return np.outer(np.arange(length), 100.0 ** (-np.arange(0, size, 2) / size)).astype(np.float32)


def rotate_halves(x: jax.Array) -> jax.Array:
    """Rotary positions (Su 2021) as in GPT-NeoX: entry i turns with entry i + Dh / 2. `x` is [B, N, H, Dh]."""
    turn = angles(x.shape[1], x.shape[-1])[:, None, :]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)], axis=-1)


def rotate_pairs(x: jax.Array) -> jax.Array:
    """Rotary positions as in LLaMA: even entries turn with odd ones."""
    turn = angles(x.shape[1], x.shape[-1])[:, None, :]
    a, b = x[..., ::2], x[..., 1::2]
    turned = jnp.stack([a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)], axis=-1)
    return turned.reshape(x.shape)


def swiglu(p: Any, x: jax.Array) -> jax.Array:
    """Gated unit with two kernels (Shazeer 2020)."""
    return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def grouped_attention(p: Any, x: jax.Array, rotate: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Causal attention, kernels [D, H, Dh] without biases; each key and value head serves several query heads."""
    query, key, value = (jnp.einsum("bnd,dhk->bnhk", x, p[name]) for name in ("query", "key", "value"))
    query, key = rotate(query), rotate(key)
    times = query.shape[2] // key.shape[2]
    if times > 1:
        key, value = jnp.repeat(key, times, axis=2), jnp.repeat(value, times, axis=2)
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key) * query.shape[-1] ** -0.5
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, jnp.finfo(scores.dtype).min)
    mixed = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores, axis=-1), value)
    return jnp.einsum("bqhk,hkd->bqd", mixed, p["out"])


def decoder_shapes(width: int, heads: int, kv_heads: int, size: int, hidden: int) -> dict[str, Any]:
    kernels = {"query": shape(width, heads, size), "out": shape(heads, size, width)}
    kernels |= {name: shape(width, kv_heads, size) for name in ("key", "value")}
    gated = {"gate": shape(width, hidden), "up": shape(width, hidden), "down": shape(hidden, width)}
    norm = {"scale": shape(width)}
    return {"norm1": norm, "attention": kernels, "norm2": norm, "mlp": gated}


def decode(p: Any, x: jax.Array, rotate: Callable[[jax.Array], jax.Array]) -> jax.Array:
    for q in p["blocks"]:
        x = x + grouped_attention(q["attention"], rms_norm(q["norm1"], x), rotate)
        x = x + swiglu(q["mlp"], rms_norm(q["norm2"], x))
    return rms_norm(p["norm"], x)


def llama() -> Built:
    """LLaMA (Touvron 2023): RMS norm, SwiGLU, rotary positions, a separate output kernel."""
    width, vocabulary = 14, 23
    blocks = [decoder_shapes(width, 3, 3, 4, hidden) for hidden in (18, 22)]
    shapes = {"embedding": shape(vocabulary, width), "blocks": blocks, "norm": {"scale": shape(width)}}
    shapes["head"] = shape(width, vocabulary)
    apply = lambda p, ids: decode(p, jnp.take(p["embedding"], ids, axis=0), rotate_halves) @ p["head"]
    return network(apply, shapes, tokens(3, 9, vocabulary))


def gqa_decoder() -> Built:
    """Grouped-query attention (Ainslie 2023): 4 query heads on 2 key and value heads, tied embeddings."""
    width, vocabulary = 12, 19
    blocks = [decoder_shapes(width, 4, 2, 6, hidden) for hidden in (20, 16)]
    shapes = {"embedding": shape(vocabulary, width), "blocks": blocks, "norm": {"scale": shape(width)}}

    def apply(p: Any, ids: jax.Array) -> jax.Array:
        return decode(p, p["embedding"][ids] * width**0.5, rotate_pairs) @ p["embedding"].T

    return network(apply, shapes, tokens(4, 8, vocabulary))


def sinusoids(length: int, width: int) -> np.ndarray:
    """float[length, width]"""
    turn = angles(length, width)
    return np.concatenate([np.sin(turn), np.cos(turn)], axis=1)


def encoder_decoder() -> Built:
    """The original transformer (Vaswani 2017): post-norm, relu, cross-attention; the encoder is narrower here."""
    wide, narrow, vocabulary = 16, 10, 21
    encoder = {
        "attention": attention_shapes(narrow, 2, 5),
        "norm1": norm_shapes(narrow),
        "mlp": mlp_shapes(narrow, 18),
        "norm2": norm_shapes(narrow),
    }
    decoder = {
        "own": attention_shapes(wide, 2, 6),
        "norm1": norm_shapes(wide),
        "cross": attention_shapes(wide, 3, 4, source=narrow),
        "norm2": norm_shapes(wide),
        "mlp": mlp_shapes(wide, 22),
        "norm3": norm_shapes(wide),
    }
    shapes = {
        "source": dense_shapes(5, narrow),
        "embedding": shape(vocabulary, wide),
        "encoder": [encoder, encoder],
        "decoder": [decoder, decoder],
        "head": dense_shapes(wide, vocabulary),
    }

    def encode(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["source"], x) + sinusoids(x.shape[1], narrow)
        for q in p["encoder"]:
            x = layer_norm(q["norm1"], x + attention(q["attention"], x))
            x = layer_norm(q["norm2"], x + mlp(q["mlp"], x, jax.nn.relu))
        return x

    def apply(p: Any, source: jax.Array, ids: jax.Array) -> jax.Array:
        memory = encode(p, source)
        x = p["embedding"][ids] * np.sqrt(wide) + sinusoids(ids.shape[1], wide)
        causal = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))
        for q in p["decoder"]:
            x = layer_norm(q["norm1"], x + attention(q["own"], x, mask=causal))
            x = layer_norm(q["norm2"], x + attention(q["cross"], x, memory))
            x = layer_norm(q["norm3"], x + mlp(q["mlp"], x, jax.nn.relu))
        return dense(p["head"], x)

    return network(apply, shapes, pictures(5, 2, 9, 5), tokens(6, 6, vocabulary))


NETWORKS = [
    Entry("vit", "plain", vit),
    Entry("vit_fused_qkv", "plain", vit_fused_qkv),
    Entry("vit_split_qkv", "plain", vit_split_qkv),
    Entry("llama", "plain", llama),
    Entry("gqa_decoder", "plain", gqa_decoder),
    Entry("encoder_decoder", "plain", encoder_decoder),
]
