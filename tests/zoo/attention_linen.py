"""Transformers, gated units and recurrent networks in Flax Linen, with its own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from .attention_plain import tokens
from .entry import Built, Entry, pictures, randomize


def network(model: nn.Module, *inputs: Any, seed: int = 0) -> Built:
    """Draws the parameters of a model without running statistics."""
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return Built(lambda p, *x: model.apply({"params": p}, *x), randomize(seed, variables["params"]), inputs)


class Mlp(nn.Module):
    hidden: int
    activation: Callable[[jax.Array], jax.Array] = nn.gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        return nn.Dense(width)(self.activation(nn.Dense(self.hidden)(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; the projections may be narrower than the stream."""

    heads: int
    size: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        y = nn.LayerNorm()(x)
        attend = nn.MultiHeadDotProductAttention(
            self.heads, qkv_features=self.heads * self.size, dropout_rate=0.1, deterministic=True
        )
        x = x + nn.Dropout(0.1, deterministic=True)(attend(y, mask=mask))
        return x + Mlp(self.hidden)(nn.LayerNorm()(x))


class Vit(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (4, 4), strides=(4, 4), padding="VALID", name="embedding")(x)
        x = x.reshape(x.shape[0], -1, 16)
        first = self.param("cls", nn.initializers.zeros, (1, 1, 16))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (1, x.shape[1], 16))
        for hidden in (24, 28):
            x = EncoderBlock(3, 4, hidden)(x)
        return nn.Dense(7)(nn.LayerNorm()(x)[:, 0])


def vit() -> Built:
    """Vision transformer (Dosovitskiy 2020)."""
    return network(Vit(), pictures(1, 2, 16, 16, 3))


class TextEncoder(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        mask = nn.make_attention_mask(ids > 0, ids > 0)
        x = nn.Embed(19, 12)(ids) + nn.Embed(10, 12)(jnp.arange(ids.shape[1]))[None]
        x = nn.LayerNorm(epsilon=1e-12)(x)
        for hidden in (20, 26):
            attend = nn.MultiHeadDotProductAttention(2, qkv_features=10)
            x = nn.LayerNorm(epsilon=1e-12)(x + attend(x, mask=mask))
            x = nn.LayerNorm(epsilon=1e-12)(x + Mlp(hidden)(x))
        return nn.Dense(3)(nn.tanh(nn.Dense(11)(x[:, 0])))


def text_encoder() -> Built:
    """BERT (Devlin 2018): post-norm, learned positions, padding mask from the tokens, pooled first token."""
    return network(TextEncoder(), tokens(2, 8, 19))


class Decoder(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(21, 14)
        x = embed(ids) + self.param("positions", nn.initializers.normal(0.02), (1, ids.shape[1], 14))
        mask = nn.make_causal_mask(ids)
        for heads, hidden in ((2, 18), (4, 22)):
            x = EncoderBlock(heads, 5, hidden)(x, mask)
        return embed.attend(nn.LayerNorm(use_bias=False)(x))


def decoder() -> Built:
    """GPT-2 (Radford 2019): causal mask, embedding tied to the output."""
    return network(Decoder(), tokens(3, 9, 21))


class GatedCnn(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(17, 10)(ids)
        for width in (10, 14):
            y = nn.glu(nn.Conv(2 * width, (3,), padding="CAUSAL")(x))
            x = nn.Dense(width, use_bias=False)(x) + y if width != x.shape[-1] else x + y
        return nn.Dense(17)(nn.Dense(9)(x) * nn.sigmoid(nn.Dense(9)(x)))


def gated_cnn() -> Built:
    """Gated convolutional language model (Dauphin 2016): `nn.glu` halves the channels."""
    return network(GatedCnn(), tokens(4, 10, 17))


class Recurrent(nn.Module):
    cells: tuple[Callable[[], nn.Module], ...]
    outputs: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(8)(x))
        for cell in self.cells:
            x = nn.RNN(cell())(x)
        return nn.Dense(self.outputs)(x)


def lstm() -> Built:
    """Two stacked LSTM layers (Hochreiter 1997)."""
    cells = (lambda: nn.OptimizedLSTMCell(10), lambda: nn.OptimizedLSTMCell(7))
    return network(Recurrent(cells), pictures(5, 2, 6, 5))


def gru() -> Built:
    """Two stacked GRU layers (Cho 2014)."""
    return network(Recurrent((lambda: nn.GRUCell(9), lambda: nn.GRUCell(11))), pictures(6, 2, 6, 5))


class TwoWays(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(15, 8)(ids)
        x = nn.Bidirectional(nn.RNN(nn.LSTMCell(7)), nn.RNN(nn.LSTMCell(9)))(x)
        return nn.Dense(5)(x.max(axis=1))


def bidirectional_lstm() -> Built:
    """LSTM in both directions, concatenated (Graves 2005), the largest over time."""
    return network(TwoWays(), tokens(7, 7, 15))


class ConvLstm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        b, steps, h, w, c = x.shape
        x = nn.relu(nn.Conv(6, (3, 3), strides=(2, 2))(x.reshape(b * steps, h, w, c)))
        x = x.reshape(b, steps, h // 2, w // 2, 6)
        x = nn.RNN(nn.ConvLSTMCell(8, (3, 3)))(x)
        x = nn.RNN(nn.ConvLSTMCell(5, (3, 3)))(x)
        return nn.ConvTranspose(3, (2, 2), strides=(2, 2))(x[:, -1])


def conv_lstm() -> Built:
    """Convolutional LSTM (Shi 2015): films in, one picture out."""
    return network(ConvLstm(), pictures(8, 2, 4, 8, 8, 2))


class Mixer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(14, (4, 4), strides=(4, 4))(x)
        x = x.reshape(x.shape[0], -1, 14)
        for tokens_hidden, channels_hidden in ((10, 20), (12, 18)):
            y = Mlp(tokens_hidden)(jnp.swapaxes(nn.LayerNorm()(x), 1, 2))
            x = x + jnp.swapaxes(y, 1, 2)
            x = x + Mlp(channels_hidden)(nn.LayerNorm()(x))
        return nn.Dense(6)(jnp.mean(nn.LayerNorm()(x), axis=1))


def mlp_mixer() -> Built:
    """MLP-Mixer (Tolstikhin 2021)."""
    return network(Mixer(), pictures(9, 2, 16, 16, 3))


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return EncoderBlock(2, 5, 18)(x), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(18, 12)(ids)
        blocks = nn.scan(ScannedBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = blocks()(x, None)
        return nn.Dense(5)(nn.LayerNorm()(x).mean(axis=1))


def scanned_transformer() -> Built:
    """Three transformer blocks with stacked parameters, run by `nn.scan`."""
    return network(Scanned(), tokens(10, 8, 18))


class ScannedMlpBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        y = Mlp(15, nn.relu)(x)
        return x + y, y.mean(axis=-1)


class ScannedMlp(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(11)(x))
        block = nn.remat(ScannedMlpBlock, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
        x, means = blocks()(x, None)
        return jnp.concatenate([nn.Dense(4)(x), means.T], axis=1)


def scanned_mlp() -> Built:
    """Residual perceptron, rematerialized blocks in `nn.scan` that also report a mean per layer."""
    return network(ScannedMlp(), pictures(11, 2, 6))


class Rematerialized(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(12)(x)
        for hidden in (16, 20):
            x = nn.remat(EncoderBlock)(3, 4, hidden)(x)
        return nn.Dense(5)(x)


def remat_transformer() -> Built:
    """Transformer blocks under `nn.remat`."""
    return network(Rematerialized(), pictures(12, 2, 7, 6))


class GroupNormCnn(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(12, (3, 3), use_bias=False)(x)
        for width, groups, stride in ((12, 4, 1), (16, 2, 2), (18, 3, 2)):
            y = nn.relu(nn.GroupNorm(num_groups=groups)(nn.Conv(width, (3, 3), strides=stride, use_bias=False)(x)))
            y = nn.GroupNorm(num_groups=None, group_size=width // groups)(nn.Conv(width, (3, 3), use_bias=False)(y))
            x = nn.Conv(width, (1, 1), strides=stride)(x) if x.shape != y.shape else x
            x = nn.relu(x + y)
        x = nn.InstanceNorm()(nn.Conv(10, (1, 1))(x))
        return nn.Dense(5)(nn.relu(x).mean(axis=(1, 2)))


def groupnorm_cnn() -> Built:
    """Residual CNN with group norm (Wu 2018) and one instance norm."""
    return network(GroupNormCnn(), pictures(13, 2, 16, 16, 3))


class WeightNormCnn(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width, stride in ((10, 1), (13, 2), (9, 2)):
            x = nn.leaky_relu(nn.WeightNorm(nn.Conv(width, (3, 3), strides=stride))(x), 0.1)
        x = nn.RMSNorm()(x.reshape(x.shape[0], -1))
        return nn.WeightNorm(nn.Dense(5))(nn.elu(nn.Dense(14)(x)))


def weightnorm_cnn() -> Built:
    """CNN with weight norm (Salimans 2016): kernels divided by their length, one scale per channel; flattened."""
    return network(WeightNormCnn(), pictures(14, 2, 12, 12, 3))


NETWORKS = [
    Entry("vit", "linen", vit),
    Entry("text_encoder", "linen", text_encoder),
    Entry("decoder", "linen", decoder),
    Entry("gated_cnn", "linen", gated_cnn),
    Entry("lstm", "linen", lstm),
    Entry("gru", "linen", gru),
    Entry("bidirectional_lstm", "linen", bidirectional_lstm),
    Entry("conv_lstm", "linen", conv_lstm),
    Entry("mlp_mixer", "linen", mlp_mixer),
    Entry("scanned_transformer", "linen", scanned_transformer),
    Entry("scanned_mlp", "linen", scanned_mlp),
    Entry("remat_transformer", "linen", remat_transformer),
    Entry("groupnorm_cnn", "linen", groupnorm_cnn),
    Entry("weightnorm_cnn", "linen", weightnorm_cnn),
]
