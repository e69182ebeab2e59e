"""Networks in Equinox: modules for one example, channels first, vmapped over the batch.

The parameters are the module itself with everything but its float arrays taken out (`eqx.partition`), so that a leaf
of the parameter tree is reached by attributes and list positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from .entry import Built, Entry, pictures, randomize


def functional(seed: int, make: Callable[[jax.Array], eqx.Module], *inputs: jax.Array) -> Built:
    """A module, with random parameters, as a function of its arrays, all of which are floating point."""
    module = eqx.filter_eval_shape(make, jax.random.key(0))
    params, static = eqx.partition(module, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    apply = lambda params, *inputs: jax.vmap(eqx.combine(params, static))(*inputs)
    return Built(apply, _sized(randomize(seed, params)), inputs)


def _sized(params: Any) -> Any:
    """Order-one outputs in Equinox's layout: a kernel is (out, in, rows, columns), a norm's scale is called weight."""
    norms = (eqx.nn.LayerNorm, eqx.nn.GroupNorm)

    def resize(node: Any) -> Any:
        if isinstance(node, norms):
            return eqx.tree_at(lambda norm: norm.weight, node, 1 + node.weight)
        return node * (node.shape[0] / node.shape[3]) ** 0.5 if node.ndim == 4 else node

    return jax.tree.map(resize, params, is_leaf=lambda node: isinstance(node, norms))


class ConvNet(eqx.Module):
    """Convolutions with group norm and SiLU, max pooling, global average pooling."""

    convs: list[eqx.nn.Conv2d]
    norms: list[eqx.nn.GroupNorm]
    pool: eqx.nn.MaxPool2d
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys, widths = jax.random.split(key, 4), (3, 6, 8, 12)
        self.convs = [
            eqx.nn.Conv2d(i, o, 3, padding=1, use_bias=False, key=k)
            for i, o, k in zip(widths[:-1], widths[1:], keys[:3], strict=True)
        ]
        self.norms = [eqx.nn.GroupNorm(groups, width) for groups, width in ((2, 6), (4, 8), (3, 12))]
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.head = eqx.nn.Linear(12, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = self.pool(jax.nn.silu(norm(conv(x))))
        return self.head(jnp.mean(x, axis=(1, 2)))


def convnet_groupnorm() -> Built:
    """Small convolutional network with group norm (Wu and He 2018)."""
    return functional(1, ConvNet, pictures(1, 2, 3, 16, 16))


class MixerBlock(eqx.Module):
    """An MLP across the patches, then one across the channels, each on a normalised copy."""

    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    patches: eqx.nn.MLP
    channels: eqx.nn.MLP

    def __init__(self, patches: int, width: int, hidden: tuple[int, int], key: jax.Array):
        key1, key2 = jax.random.split(key)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        self.patches = eqx.nn.MLP(patches, patches, hidden[0], depth=1, activation=jax.nn.gelu, key=key1)
        self.channels = eqx.nn.MLP(width, width, hidden[1], depth=1, activation=jax.nn.gelu, key=key2)

    def __call__(self, x: jax.Array) -> jax.Array:  # [patches, width]
        x = x + jax.vmap(self.patches, in_axes=1, out_axes=1)(jax.vmap(self.norm1)(x))
        return x + jax.vmap(self.channels)(jax.vmap(self.norm2)(x))


class Mixer(eqx.Module):
    """Patches by a strided convolution, mixer blocks, layer norm, mean over the patches."""

    stem: eqx.nn.Conv2d
    blocks: list[MixerBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(3, 10, 4, stride=4, key=keys[0])
        hidden = ((7, 14), (6, 18))
        self.blocks = [MixerBlock(9, 10, sizes, k) for sizes, k in zip(hidden, keys[1:3], strict=True)]
        self.norm = eqx.nn.LayerNorm(10)
        self.head = eqx.nn.Linear(10, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        x = x.reshape(x.shape[0], -1).T
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(jax.vmap(self.norm)(x), axis=0))


def mlp_mixer() -> Built:
    """MLP-Mixer (Tolstikhin et al. 2021), two blocks."""
    return functional(2, Mixer, pictures(2, 2, 3, 12, 12))


class AttentionBlock(eqx.Module):
    """Self-attention and a GELU MLP, each on a normalised copy."""

    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, width: int, hidden: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width)
        biases = dict.fromkeys(("use_query_bias", "use_key_bias", "use_value_bias", "use_output_bias"), True)
        self.attention = eqx.nn.MultiheadAttention(3, width, qk_size=5, vo_size=4, key=keys[0], **biases)
        self.up = eqx.nn.Linear(width, hidden, key=keys[1])
        self.down = eqx.nn.Linear(hidden, width, key=keys[2])

    def __call__(self, x: jax.Array) -> jax.Array:  # [tokens, width]
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        y = jax.vmap(self.up)(jax.vmap(self.norm2)(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(y))


class ViT(eqx.Module):
    """Patches, a class token, positions, attention blocks, a dense layer on the class token."""

    stem: eqx.nn.Conv2d
    token: jax.Array
    positions: jax.Array
    blocks: list[AttentionBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.stem = eqx.nn.Conv2d(3, 12, 4, stride=4, key=keys[0])
        self.token, self.positions = jnp.zeros((1, 12)), jnp.zeros((10, 12))
        self.blocks = [AttentionBlock(12, hidden, k) for hidden, k in zip((20, 16), keys[1:3], strict=True)]
        self.norm = eqx.nn.LayerNorm(12)
        self.head = eqx.nn.Linear(12, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(x)
        x = x.reshape(x.shape[0], -1).T
        x = jnp.concatenate([self.token, x]) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[0]))


def vit() -> Built:
    """Vision transformer (Dosovitskiy et al. 2020), two blocks of three heads; key and value sizes differ."""
    return functional(3, ViT, pictures(3, 2, 3, 12, 12))


class Recurrent(eqx.Module):
    """An LSTM cell scanned over time, a dense layer on the last state."""

    cell: eqx.nn.LSTMCell
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        key1, key2 = jax.random.split(key)
        self.cell = eqx.nn.LSTMCell(5, 8, key=key1)
        self.head = eqx.nn.Linear(8, 3, key=key2)

    def __call__(self, x: jax.Array) -> jax.Array:  # [time, features]
        step = lambda carry, x_t: (self.cell(x_t, carry), None)
        (h, _), _ = lax.scan(step, (jnp.zeros(8), jnp.zeros(8)), x)
        return self.head(h)


def lstm() -> Built:
    """LSTM (Hochreiter and Schmidhuber 1997): eqx.nn.LSTMCell under lax.scan."""
    return functional(4, Recurrent, pictures(4, 2, 6, 5))


class Autoencoder(eqx.Module):
    """Strided convolutions down, transposed convolutions back."""

    down: list[eqx.nn.Conv2d]
    up: list[eqx.nn.ConvTranspose2d]

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 4)
        self.down = [
            eqx.nn.Conv2d(2, 5, 3, stride=2, padding=1, key=keys[0]),
            eqx.nn.Conv2d(5, 8, 3, stride=2, padding=1, key=keys[1]),
        ]
        self.up = [
            eqx.nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, key=keys[2]),
            eqx.nn.ConvTranspose2d(6, 2, 3, stride=2, padding=1, output_padding=1, key=keys[3]),
        ]

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.down:
            x = jax.nn.leaky_relu(conv(x), 0.25)
        return self.up[1](jax.nn.relu(self.up[0](x)))


def conv_autoencoder() -> Built:
    """Convolutional autoencoder (Masci et al. 2011) with eqx.nn.ConvTranspose2d and a linear output."""
    return functional(5, Autoencoder, pictures(5, 2, 2, 12, 12))


NETWORKS = [
    Entry("convnet_groupnorm", "equinox", convnet_groupnorm),
    Entry("mlp_mixer", "equinox", mlp_mixer),
    Entry("vit", "equinox", vit),
    Entry("lstm", "equinox", lstm),
    Entry("conv_autoencoder", "equinox", conv_autoencoder, integer=True),
]
