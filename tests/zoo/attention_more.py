"""Mixers, attention without softmax, conditioning, mixtures, and networks for tables, sets and graphs, in plain JAX."""

from __future__ import annotations

import itertools
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
    tokens,
)
from .entry import Built, Entry, pictures


def patches(p: Any, x: jax.Array, size: int) -> jax.Array:
    """[B, H, W, C] to [B, N, D]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return dense(p, x.reshape(b, -1, size * size * c))


def mlp_mixer() -> Built:
    """MLP-Mixer (Tolstikhin 2021): a perceptron over patches, then one over channels."""
    width, places = 14, 16
    block = {
        "norm1": norm_shapes(width),
        "places": mlp_shapes(places, 10),
        "norm2": norm_shapes(width),
        "channels": mlp_shapes(width, 22),
    }
    shapes = {"patches": dense_shapes(48, width), "blocks": [block, block], "norm": norm_shapes(width)}
    shapes["head"] = dense_shapes(width, 6)

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = patches(p["patches"], x, 4)
        for q in p["blocks"]:
            y = mlp(q["places"], layer_norm(q["norm1"], x).swapaxes(1, 2))
            x = x + y.swapaxes(1, 2)
            x = x + mlp(q["channels"], layer_norm(q["norm2"], x))
        return dense(p["head"], layer_norm(p["norm"], x).mean(axis=1))

    return network(apply, shapes, pictures(1, 2, 16, 16, 3))


def gmlp() -> Built:
    """gMLP (Liu 2021): spatial gating, one half of the channels times a projection over places of the other half."""
    width, places = 12, 9
    block = lambda hidden: {
        "norm": norm_shapes(width),
        "up": dense_shapes(width, 2 * hidden),
        "gate_norm": norm_shapes(hidden),
        "space": {"kernel": shape(places, places), "bias": shape(places, 1)},
        "down": dense_shapes(hidden, width),
    }
    shapes = {"patches": dense_shapes(48, width), "blocks": [block(10), block(13)], "head": dense_shapes(width, 5)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = patches(p["patches"], x, 4)
        for q in p["blocks"]:
            u, v = jnp.split(jax.nn.gelu(dense(q["up"], layer_norm(q["norm"], x))), 2, axis=-1)
            v = jnp.einsum("mn,bnc->bmc", q["space"]["kernel"], layer_norm(q["gate_norm"], v)) + q["space"]["bias"]
            x = x + dense(q["down"], u * v)
        return dense(p["head"], x.mean(axis=1))

    return network(apply, shapes, pictures(2, 2, 12, 12, 3))


def linear_attention() -> Built:
    """Linear attention (Katharopoulos 2020): feature map elu + 1, keys times values first."""
    width, heads, size = 14, 3, 4
    block = {
        "norm1": norm_shapes(width),
        "attention": attention_shapes(width, heads, size, values=5),
        "norm2": norm_shapes(width),
        "mlp": mlp_shapes(width, 18),
    }
    shapes = {"in": dense_shapes(6, width), "blocks": [block, block], "head": dense_shapes(width, 4)}

    def mix(p: Any, x: jax.Array) -> jax.Array:
        project = lambda q: jnp.einsum("bnd,dhk->bnhk", x, q["kernel"]) + q["bias"]
        query, key = jax.nn.elu(project(p["query"])) + 1, jax.nn.elu(project(p["key"])) + 1
        memory = jnp.einsum("bnhk,bnhv->bhkv", key, project(p["value"]))
        scale = 1 / (jnp.einsum("bnhk,bhk->bnh", query, key.sum(axis=1)) + 1e-6)
        mixed = jnp.einsum("bnhk,bhkv,bnh->bnhv", query, memory, scale)
        return jnp.einsum("bnhv,hvd->bnd", mixed, p["out"]["kernel"]) + p["out"]["bias"]

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["in"], x)
        for q in p["blocks"]:
            x = x + mix(q["attention"], layer_norm(q["norm1"], x))
            x = x + mlp(q["mlp"], layer_norm(q["norm2"], x))
        return dense(p["head"], x)

    return network(apply, shapes, pictures(3, 2, 10, 6))


def depthwise1d(p: Any, x: jax.Array) -> jax.Array:
    """`x` is [B, N, C], the kernel [K, 1, C]."""
    layout = ("NWC", "WIO", "NWC")
    found = jax.lax.conv_general_dilated(
        x, p["kernel"], (1,), "SAME", dimension_numbers=layout, feature_group_count=x.shape[-1]
    )
    return found + p["bias"]


def conformer() -> Built:
    """Conformer (Gulati 2020): half-step feed-forward, attention, gated depthwise convolution; no batch norm."""
    width = 12
    block = {
        "feed1": {"norm": norm_shapes(width)} | mlp_shapes(width, 20),
        "attend": {"norm": norm_shapes(width), "attention": attention_shapes(width, 2, 5)},
        "conv": {
            "norm": norm_shapes(width),
            "expand": dense_shapes(width, 2 * 15),
            "depthwise": dense_shapes(5, 1, 15),
            "inner_norm": norm_shapes(15),
            "project": dense_shapes(15, width),
        },
        "feed2": {"norm": norm_shapes(width)} | mlp_shapes(width, 18),
        "norm": norm_shapes(width),
    }
    shapes = {"in": dense_shapes(7, width), "blocks": [block, block], "head": dense_shapes(width, 5)}
    feed = lambda p, x: mlp(p, layer_norm(p["norm"], x), jax.nn.swish)

    def convolve(p: Any, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(dense(p["expand"], layer_norm(p["norm"], x)), 2, axis=-1)
        x = depthwise1d(p["depthwise"], value * jax.nn.sigmoid(gate))
        return dense(p["project"], jax.nn.swish(layer_norm(p["inner_norm"], x)))

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["in"], x)
        for q in p["blocks"]:
            x = x + 0.5 * feed(q["feed1"], x)
            x = x + attention(q["attend"]["attention"], layer_norm(q["attend"]["norm"], x))
            x = x + convolve(q["conv"], x)
            x = layer_norm(q["norm"], x + 0.5 * feed(q["feed2"], x))
        return dense(p["head"], x)

    return network(apply, shapes, pictures(4, 2, 11, 7))


def perceiver() -> Built:
    """Perceiver IO (Jaegle 2021): learned latents read the pixels, attend to each other, and answer an output query."""
    wide, latent = 7, 14
    read = {"norm": norm_shapes(latent), "source": norm_shapes(wide)}
    inner = {"norm1": norm_shapes(latent), "attention": attention_shapes(latent, 3, 4), "norm2": norm_shapes(latent)}
    shapes = {
        "pixels": dense_shapes(3, wide),
        "positions": shape(64, wide),
        "latents": shape(5, latent),
        "read": read | {"attention": attention_shapes(latent, 1, 6, source=wide), "mlp": mlp_shapes(latent, 12)},
        "blocks": [inner | {"mlp": mlp_shapes(latent, 16)}] * 2,
        "asked": shape(2, 9),
        "answer": attention_shapes(9, 2, 3, source=latent),
        "head": dense_shapes(9, 4),
    }

    def apply(p: Any, x: jax.Array) -> jax.Array:
        x = dense(p["pixels"], x.reshape(x.shape[0], -1, 3)) + p["positions"]
        z = jnp.tile(p["latents"][None], (x.shape[0], 1, 1))
        q = p["read"]
        z = z + attention(q["attention"], layer_norm(q["norm"], z), layer_norm(q["source"], x))
        z = z + mlp(q["mlp"], z)
        for q in p["blocks"]:
            z = z + attention(q["attention"], layer_norm(q["norm1"], z))
            z = z + mlp(q["mlp"], layer_norm(q["norm2"], z))
        asked = jnp.broadcast_to(p["asked"], (x.shape[0], *p["asked"].shape))
        return dense(p["head"], attention(p["answer"], asked, z))

    return network(apply, shapes, pictures(5, 2, 8, 8, 3))


def plain_norm(x: jax.Array) -> jax.Array:
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)


def adaptive_transformer() -> Built:
    """DiT (Peebles 2022): adaptive layer norm with gates, shift, scale and gate of both branches from a condition."""
    width = 12
    block = {
        "modulation": dense_shapes(9, 6 * width),
        "attention": attention_shapes(width, 2, 5),
        "mlp": mlp_shapes(width, 20),
    }
    shapes = {
        "in": dense_shapes(6, width),
        "condition": {"up": dense_shapes(5, 11), "down": dense_shapes(11, 9)},
        "blocks": [block, block],
        "out_modulation": dense_shapes(9, 2 * width),
        "head": dense_shapes(width, 6),
    }
    modulate = lambda x, shift, scale: plain_norm(x) * (1 + scale[:, None]) + shift[:, None]

    def apply(p: Any, x: jax.Array, condition: jax.Array) -> jax.Array:
        x = dense(p["in"], x)
        c = jax.nn.silu(mlp(p["condition"], condition, jax.nn.silu))
        for q in p["blocks"]:
            shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(dense(q["modulation"], c), 6, axis=-1)
            x = x + gate1[:, None] * attention(q["attention"], modulate(x, shift1, scale1))
            x = x + gate2[:, None] * mlp(q["mlp"], modulate(x, shift2, scale2))
        shift, scale = jnp.split(dense(p["out_modulation"], c), 2, axis=1)
        return dense(p["head"], modulate(x, shift, scale))

    return network(apply, shapes, pictures(6, 2, 7, 6), pictures(7, 2, 5))


def mixture_of_experts() -> Built:
    """Transformer with soft mixtures of experts: every expert runs, softmax gates weigh them (Jacobs 1991)."""
    width, experts, vocabulary = 12, 3, 17
    block = lambda hidden: {
        "norm1": norm_shapes(width),
        "attention": attention_shapes(width, 2, 4),
        "norm2": norm_shapes(width),
        "router": shape(width, experts),
        "up": {"kernel": shape(experts, width, hidden), "bias": shape(experts, hidden)},
        "down": {"kernel": shape(experts, hidden, width), "bias": shape(experts, width)},
    }
    shapes = {"embedding": shape(vocabulary, width), "blocks": [block(14), block(10)]}
    shapes["head"] = dense_shapes(width, vocabulary)

    def mix(p: Any, x: jax.Array) -> jax.Array:
        gates = jax.nn.softmax(x @ p["router"], axis=-1)
        hidden = jax.nn.gelu(jnp.einsum("bnd,edf->bnef", x, p["up"]["kernel"]) + p["up"]["bias"])
        found = jnp.einsum("bnef,efd->bned", hidden, p["down"]["kernel"]) + p["down"]["bias"]
        return jnp.einsum("bned,bne->bnd", found, gates)

    def apply(p: Any, ids: jax.Array) -> jax.Array:
        x = p["embedding"][ids]
        for q in p["blocks"]:
            x = x + attention(q["attention"], layer_norm(q["norm1"], x))
            x = x + mix(q, layer_norm(q["norm2"], x))
        return dense(p["head"], x)

    return network(apply, shapes, tokens(8, 8, vocabulary))


def table_shapes() -> dict[str, Any]:
    return {"embedding": [shape(6, 4), shape(9, 3)], "deep": {"up": dense_shapes(12, 16), "down": dense_shapes(16, 11)}}


def table_row(p: Any, numbers: jax.Array, ids: jax.Array) -> jax.Array:
    """Numbers beside embedded categories: [B, 5 + 4 + 3]."""
    embedded = [table[ids[:, column]] for column, table in enumerate(p["embedding"])]
    return jnp.concatenate([numbers, *embedded], axis=1)


def dcn() -> Built:
    """Deep & cross network (Wang 2017): x0 (w x) + b + x, beside a perceptron."""
    shapes = table_shapes() | {"cross": [{"kernel": shape(12, 1), "bias": shape(12)}] * 2, "head": dense_shapes(23, 2)}

    def apply(p: Any, numbers: jax.Array, ids: jax.Array) -> jax.Array:
        first = x = table_row(p, numbers, ids)
        for q in p["cross"]:
            x = first * (x @ q["kernel"]) + q["bias"] + x
        deep = jax.nn.relu(mlp(p["deep"], first, jax.nn.relu))
        return dense(p["head"], jnp.concatenate([x, deep], axis=1))

    return network(apply, shapes, pictures(9, 8, 5), tokens(9, 2, 6, batch=8))


def dcn_v2() -> Built:
    """DCN v2 (Wang 2020), stacked: x0 * (W x + b) + x, then a perceptron."""
    shapes = table_shapes() | {"cross": [dense_shapes(12, 12)] * 2, "head": dense_shapes(11, 2)}

    def apply(p: Any, numbers: jax.Array, ids: jax.Array) -> jax.Array:
        first = x = table_row(p, numbers, ids)
        for q in p["cross"]:
            x = first * dense(q, x) + x
        return dense(p["head"], jax.nn.relu(mlp(p["deep"], x, jax.nn.relu)))

    return network(apply, shapes, pictures(10, 8, 5), tokens(10, 2, 6, batch=8))


def deep_sets(pool: Any) -> Built:
    shapes = {"each": {"up": dense_shapes(3, 13), "down": dense_shapes(13, 10)}}
    shapes["all"] = {"up": dense_shapes(10, 9), "down": dense_shapes(9, 4)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        each = jax.vmap(jax.vmap(lambda point: jax.nn.relu(mlp(p["each"], point, jax.nn.relu))))(x)
        return mlp(p["all"], pool(each), jax.nn.relu)

    return network(apply, shapes, pictures(11, 2, 7, 3))


def deep_sets_sum() -> Built:
    """DeepSets (Zaheer 2017), summed."""
    return deep_sets(lambda x: x.sum(axis=1))


def deep_sets_max() -> Built:
    """PointNet (Qi 2017): the largest over the points."""
    return deep_sets(lambda x: x.max(axis=1))


def ring(nodes: int) -> np.ndarray:
    """float[nodes, nodes]: each node sees itself, its two neighbours and one across."""
    near = np.eye(nodes) + np.roll(np.eye(nodes), 1, axis=0) + np.roll(np.eye(nodes), -1, axis=0)
    return np.minimum(near + np.roll(np.eye(nodes), nodes // 2, axis=1), 1).astype(np.float32)


def graph_network(adjacency: np.ndarray) -> Built:
    widths = (5, 12, 9, 11)
    layers = [dense_shapes(*pair) for pair in itertools.pairwise(widths)]
    shapes = {"layers": layers, "head": dense_shapes(sum(widths[1:]), 3)}

    def apply(p: Any, x: jax.Array) -> jax.Array:
        found = []
        for q in p["layers"]:
            x = jax.nn.relu(jnp.einsum("nm,bmc->bnc", adjacency, x @ q["kernel"]) + q["bias"])
            found.append(x)
        return dense(p["head"], jnp.concatenate(found, axis=-1).mean(axis=1))

    return network(apply, shapes, pictures(12, 2, 8, 5), seed=3)


def gcn() -> Built:
    """Graph convolutional network (Kipf 2016): adjacency normalized by degrees, all layers read at the end."""
    adjacency = ring(8)
    root = np.sqrt(adjacency.sum(axis=1))
    return graph_network(adjacency / root[:, None] / root)


def graph_sum() -> Built:
    """The same with sums over neighbours (as in GIN, Xu 2018)."""
    return graph_network(ring(8))


NETWORKS = [
    Entry("mlp_mixer", "plain", mlp_mixer),
    Entry("gmlp", "plain", gmlp),
    Entry("linear_attention", "plain", linear_attention),
    Entry("conformer", "plain", conformer),
    Entry("perceiver", "plain", perceiver),
    Entry("adaptive_transformer", "plain", adaptive_transformer),
    Entry("mixture_of_experts", "plain", mixture_of_experts),
    Entry("dcn", "plain", dcn, integer=True),
    Entry("dcn_v2", "plain", dcn_v2, integer=True),
    Entry("deep_sets_sum", "plain", deep_sets_sum, integer=True),
    Entry("deep_sets_max", "plain", deep_sets_max, integer=True),
    Entry("gcn", "plain", gcn),
    Entry("graph_sum", "plain", graph_sum, integer=True),
]
