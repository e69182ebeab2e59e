"""Networks in plain functions that use JAX's control flow and transformations.

Also parameters that are combined before they meet the data: low rank, weight normalisation, tying.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .entry import Built, Entry, pictures, randomize


def weights(seed: int, **shapes: Any) -> Any:
    """Random parameters; a shape is a tuple, a group of shapes a dict."""
    return randomize(seed, jax.tree.map(jnp.zeros, shapes, is_leaf=lambda shape: isinstance(shape, tuple)))


def stacked(seed: int, count: int, **shapes: Any) -> Any:
    """`count` draws of `weights`, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(weights(seed + i, **shapes) for i in range(count)))


def linear(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a dense layer."""
    return {"w": (inputs, outputs), "b": (outputs,)}


def dense(layer: Any, x: jax.Array) -> jax.Array:
    """A dense layer on the last axis."""
    return x @ layer["w"] + layer["b"]


def conv(layer: Any, x: jax.Array) -> jax.Array:
    """A 2-D convolution, SAME, channels last."""
    kernel, dims = layer["w"], ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims) + layer["b"]


def tokens(seed: int, vocabulary: int, *shape: int) -> jax.Array:
    """Random token numbers."""
    return jnp.asarray(np.random.default_rng(seed).integers(0, vocabulary, shape), jnp.int32)


def gru_scan() -> Built:
    """GRU (Cho et al. 2014) over time by lax.scan; the last state is classified."""
    params = weights(1, x=linear(5, 3 * 7), h=linear(7, 3 * 7), head=linear(7, 3))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, x_t: jax.Array) -> tuple[jax.Array, None]:
            reset_x, update_x, new_x = jnp.split(dense(params["x"], x_t), 3, axis=-1)
            reset_h, update_h, new_h = jnp.split(dense(params["h"], h), 3, axis=-1)
            update = jax.nn.sigmoid(update_x + update_h)
            new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
            return (1 - update) * new + update * h, None

        h, _ = lax.scan(step, jnp.zeros((x.shape[0], 7)), jnp.swapaxes(x, 0, 1))
        return dense(params["head"], h)

    return Built(apply, params, (pictures(1, 2, 6, 5),))


def lstm_scan() -> Built:
    """Two stacked LSTMs (Hochreiter and Schmidhuber 1997) by lax.scan, with an output at each time."""
    params = weights(2, first=linear(4 + 6, 4 * 6), second=linear(6 + 9, 4 * 9), head=linear(9, 3))

    def cell(layer: Any, carry: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[Any, jax.Array]:
        h, c = carry
        i, f, g, o = jnp.split(dense(layer, jnp.concatenate([x, h], axis=-1)), 4, axis=-1)
        c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.swapaxes(x, 0, 1)
        for name, width in (("first", 6), ("second", 9)):
            zero = jnp.zeros((x.shape[1], width))
            _, x = lax.scan(partial(cell, params[name]), (zero, zero), x)
        return jnp.swapaxes(dense(params["head"], x), 0, 1)

    return Built(apply, params, (pictures(2, 2, 5, 4),))


def conv_lstm_scan() -> Built:
    """Convolutional LSTM (Shi et al. 2015) over a film, then a 1x1 convolution."""
    gates = {"w": (3, 3, 3 + 6, 4 * 6), "b": (4 * 6,)}
    params = weights(3, gates=gates, head={"w": (1, 1, 6, 2), "b": (2,)})

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def step(carry: tuple[jax.Array, jax.Array], x_t: jax.Array) -> tuple[Any, None]:
            h, c = carry
            i, f, o, g = jnp.split(conv(params["gates"], jnp.concatenate([x_t, h], axis=-1)), 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

        zero = jnp.zeros((*x.shape[:1], *x.shape[2:4], 6))
        (h, _), _ = lax.scan(step, (zero, zero), jnp.moveaxis(x, 1, 0))
        return conv(params["head"], h)

    return Built(apply, params, (pictures(3, 2, 4, 8, 8, 3),))


def stacked_residual_scan() -> Built:
    """Deep residual MLP: the layers are stacked along a leading axis and scanned over."""
    blocks = stacked(4, 3, up=linear(8, 12), down=linear(12, 8))
    params = {**weights(8, stem=linear(5, 8), head=linear(8, 3)), "blocks": blocks}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def block(h: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            return h + dense(layer["down"], jax.nn.relu(dense(layer["up"], h))), None

        return dense(params["head"], lax.scan(block, dense(params["stem"], x), params["blocks"])[0])

    return Built(apply, params, (pictures(4, 2, 5),))


def tied_fori() -> Built:
    """Weight-tied recursion: the same residual layer five times by lax.fori_loop."""
    params = weights(9, stem=linear(5, 8), up=linear(8, 11), down=linear(11, 8), head=linear(8, 3))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        def again(_: Any, h: jax.Array) -> jax.Array:
            return jnp.tanh(h + dense(params["down"], jax.nn.relu(dense(params["up"], h))))

        return dense(params["head"], lax.fori_loop(0, 5, again, dense(params["stem"], x)))

    return Built(apply, params, (pictures(5, 2, 5),))


def tied_while() -> Built:
    """Recurrent relaxation by lax.while_loop: the number of steps is an input."""
    params = weights(10, stem=linear(4, 7), loop=linear(7, 7), head=linear(7, 3))

    def apply(params: Any, x: jax.Array, steps: jax.Array) -> jax.Array:
        drive = dense(params["stem"], x)

        def again(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            step, h = carry
            return step + 1, jax.nn.relu(drive + dense(params["loop"], h))

        _, h = lax.while_loop(lambda carry: carry[0] < steps, again, (jnp.zeros_like(steps), jnp.zeros_like(drive)))
        return dense(params["head"], h)

    return Built(apply, params, (pictures(6, 2, 4), jnp.int32(4)))


def cond_branches() -> Built:
    """Dynamic depth: for each example (lax.map) a lax.cond between a shallow and a deep branch of the same widths."""
    params = weights(11, stem=linear(5, 8), near=linear(8, 6), far=linear(8, 10), back=linear(10, 6), head=linear(6, 3))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        shallow = lambda h: dense(params["near"], h)
        deep = lambda h: dense(params["back"], jax.nn.relu(dense(params["far"], h)))

        def single(x: jax.Array) -> jax.Array:
            h = jax.nn.relu(dense(params["stem"], x))
            return dense(params["head"], jax.nn.relu(lax.cond(x[0] > 0, deep, shallow, h)))

        return lax.map(single, x)

    return Built(apply, params, (pictures(7, 2, 5).at[:, 0].set(jnp.array([1.0, -1.0])),))


def switch_branches() -> Built:
    """Routed residual network: lax.switch, three times, among experts of different widths; the route is an input."""
    experts = {f"expert{i}": {"up": linear(7, width), "down": linear(width, 7)} for i, width in enumerate((4, 6, 9))}
    params = weights(12, stem=linear(5, 7), head=linear(7, 3), **experts)
    activations = (jax.nn.relu, partial(jax.nn.leaky_relu, negative_slope=0.25), jnp.abs)

    def apply(params: Any, x: jax.Array, route: jax.Array) -> jax.Array:
        def branch(i: int) -> Any:
            layer = params[f"expert{i}"]
            return lambda h: h + dense(layer["down"], activations[i](dense(layer["up"], h)))

        h = jax.nn.relu(dense(params["stem"], x))
        for i in range(3):
            h = lax.switch(route[i], [branch(expert) for expert in range(3)], h)
        return dense(params["head"], h)

    return Built(apply, params, (pictures(8, 2, 5), jnp.array([2, 0, 1])))


def checkpoint_blocks() -> Built:
    """Residual convolutional blocks under jax.checkpoint."""
    kernel = lambda inputs, outputs: {"w": (3, 3, inputs, outputs), "b": (outputs,)}
    block = lambda width: {"first": kernel(6, width), "second": kernel(width, 6)}
    params = weights(13, stem=kernel(3, 6), block0=block(5), block1=block(8), head=linear(6, 4))

    @jax.checkpoint
    def residual(layer: Any, h: jax.Array) -> jax.Array:
        return jax.nn.relu(h + conv(layer["second"], jax.nn.relu(conv(layer["first"], h))))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = residual(params["block1"], residual(params["block0"], jax.nn.relu(conv(params["stem"], x))))
        return dense(params["head"], jnp.mean(h, axis=(1, 2)))

    return Built(apply, params, (pictures(9, 2, 8, 8, 3),))


def ensemble_vmap() -> Built:
    """Ensemble of four MLPs: stacked parameters, vmap over the members, mean of their outputs."""
    params = stacked(14, 4, first=linear(5, 9), second=linear(9, 6), head=linear(6, 3))

    def member(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(dense(params["first"], x))
        return dense(params["head"], jax.nn.relu(dense(params["second"], h)))

    apply = lambda params, x: jnp.mean(jax.vmap(member, in_axes=(0, None))(params, x), axis=0)
    return Built(apply, params, (pictures(10, 2, 5),))


def examples_vmap() -> Built:
    """A network written for one picture, vmapped over the examples: convolutions, pooling, dense."""
    first, second = {"w": (3, 3, 3, 5), "b": (5,)}, {"w": (3, 3, 5, 7), "b": (7,)}
    params = weights(18, first=first, second=second, hidden=linear(4 * 4 * 7, 10), head=linear(10, 3))

    def single(params: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(conv(params["first"], x[None])[0])
        h = lax.reduce_window(h, -jnp.inf, lax.max, (2, 2, 1), (2, 2, 1), "VALID")
        h = jax.nn.relu(conv(params["second"], h[None])[0])
        return dense(params["head"], jax.nn.relu(dense(params["hidden"], h.ravel())))

    return Built(jax.vmap(single, in_axes=(None, 0)), params, (pictures(11, 2, 8, 8, 3),))


def inner_jit() -> Built:
    """MLP whose layers are jitted functions, one of which is called twice and one of which calls another."""
    params = weights(19, stem=linear(5, 8), first=linear(8, 8), second=linear(8, 8), head=linear(8, 3))

    @jax.jit
    def layer(layer: Any, h: jax.Array) -> jax.Array:
        return jax.nn.relu(dense(layer, h))

    @jax.jit
    def pair(params: Any, h: jax.Array) -> jax.Array:
        return layer(params["second"], layer(params["first"], h))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.jit(dense)(params["head"], pair(params, jax.jit(dense)(params["stem"], x)))

    return Built(apply, params, (pictures(12, 2, 5),))


def custom_jvp_activation() -> Built:
    """MLP with an activation that brings its own forward derivative (jax.custom_jvp)."""
    params = weights(20, first=linear(5, 9), second=linear(9, 7), head=linear(7, 3))

    @jax.custom_jvp
    def swish(x: jax.Array) -> jax.Array:
        return x / (1 + jnp.exp(-x))

    @swish.defjvp
    def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
        (x,), (dx,) = primals, tangents
        gate = jax.nn.sigmoid(x)
        return swish(x), (gate + x * gate * (1 - gate)) * dx

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["head"], swish(dense(params["second"], swish(dense(params["first"], x)))))

    return Built(apply, params, (pictures(13, 2, 5),))


def custom_vjp_activation() -> Built:
    """MLP with a squared ReLU (So et al. 2021) that brings its own reverse derivative (jax.custom_vjp)."""
    params = weights(21, first=linear(5, 9), second=linear(9, 7), head=linear(7, 3))

    @jax.custom_vjp
    def squared_relu(x: jax.Array) -> jax.Array:
        return jnp.square(jax.nn.relu(x))

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return squared_relu(x), jax.nn.relu(x)

    def backward(positive: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        return (jnp.clip(2 * positive * dy, -1, 1),)

    squared_relu.defvjp(forward, backward)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["head"], jax.nn.relu(dense(params["second"], squared_relu(dense(params["first"], x)))))

    return Built(apply, params, (pictures(14, 2, 5),))


def cumsum_time() -> Built:
    """Running sum over time between dense layers, in the manner of linear attention without queries."""
    params = weights(22, value=linear(4, 8), gate=linear(4, 8), out=linear(8, 6), head=linear(6, 3))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        h = jnp.cumsum(dense(params["value"], x), axis=1) * jax.nn.relu(dense(params["gate"], x))
        return dense(params["head"], jax.nn.relu(dense(params["out"], h)))

    return Built(apply, params, (pictures(15, 2, 6, 4),))


def low_rank() -> Built:
    """Dense layers factored into two thin matrices, which are multiplied before they meet the data."""
    factored = lambda inputs, rank, outputs: {"left": (inputs, rank), "right": (rank, outputs), "b": (outputs,)}
    params = weights(23, first=factored(6, 4, 10), second=factored(10, 3, 9), head=linear(9, 3))

    def apply(params: Any, x: jax.Array) -> jax.Array:
        for name in ("first", "second"):
            layer = params[name]
            x = jax.nn.relu(x @ (layer["left"] @ layer["right"]) + layer["b"])
        return dense(params["head"], x)

    return Built(apply, params, (pictures(16, 2, 6),))


def weight_norm() -> Built:
    """Weight-normalised MLP (Salimans and Kingma 2016): w = scale v / |v|, one norm for each output."""
    normed = lambda inputs, outputs: {"v": (inputs, outputs), "scale": (outputs,), "b": (outputs,)}
    params = weights(24, first=normed(5, 9), second=normed(9, 7), head=normed(7, 3))

    def layer(layer: Any, x: jax.Array) -> jax.Array:
        direction = layer["v"] / jnp.linalg.norm(layer["v"], axis=0, keepdims=True)
        return x @ (direction * layer["scale"]) + layer["b"]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x = jnp.tanh(layer(params["first"], x))
        return layer(params["head"], jax.nn.relu(layer(params["second"], x)))

    return Built(apply, params, (pictures(17, 2, 5),))


def causal_conv() -> Built:
    """WaveNet (van den Oord et al. 2016): dilated causal convolutions, gates, skips; the last residual is unused."""
    block = {"filter": (2, 6, 8), "gate": (2, 6, 8), "residual": linear(8, 6), "skip": linear(8, 10)}
    params = weights(25, stem=(2, 1, 6), block0=block, block1=block, block2=block, head=linear(10, 5))

    def causal(kernel: jax.Array, x: jax.Array, dilation: int) -> jax.Array:
        past, dims = ((dilation, 0),), ("NWC", "WIO", "NWC")
        return lax.conv_general_dilated(x, kernel, (1,), past, rhs_dilation=(dilation,), dimension_numbers=dims)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        x, skips = causal(params["stem"], x, 1), 0.0
        for i in range(3):
            layer = params[f"block{i}"]
            h = jnp.tanh(causal(layer["filter"], x, 2**i)) * jax.nn.sigmoid(causal(layer["gate"], x, 2**i))
            x, skips = x + dense(layer["residual"], h), skips + dense(layer["skip"], h)
        return dense(params["head"], jax.nn.relu(skips))

    return Built(apply, params, (pictures(18, 2, 12, 1),))


def text_classifier() -> Built:
    """Bag of embeddings (fastText, Joulin et al. 2016): mean over the tokens that are not padding, then dense."""
    params = weights(26, embedding=(20, 8), hidden=linear(8, 10), head=linear(10, 3))

    def apply(params: Any, words: jax.Array) -> jax.Array:
        real = (words != 0).astype(jnp.float32)[..., None]
        h = jnp.sum(params["embedding"][words] * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
        return dense(params["head"], jax.nn.relu(dense(params["hidden"], h)))

    return Built(apply, params, (tokens(19, 20, 2, 7).at[:, 5:].set(0),))


def tied_language_model() -> Built:
    """Language model whose output layer is its embedding, transposed (Press and Wolf 2017), on a causal mean."""
    params = weights(27, embedding=(16, 8), mix=linear(8, 8), up=linear(8, 12), down=linear(12, 8), bias=(16,))

    def apply(params: Any, words: jax.Array) -> jax.Array:
        h = jnp.take(params["embedding"], words, axis=0)
        length = words.shape[1]
        past = jnp.tril(jnp.ones((length, length))) / jnp.arange(1, length + 1)[:, None]
        h = h + dense(params["mix"], jnp.einsum("ts,bsd->btd", past, h))
        h = h + dense(params["down"], jax.nn.gelu(dense(params["up"], h)))
        return h @ params["embedding"].T + params["bias"]

    return Built(apply, params, (tokens(20, 16, 2, 6),))


NETWORKS = [
    Entry("gru_scan", "plain", gru_scan),
    Entry("lstm_scan", "plain", lstm_scan),
    Entry("conv_lstm_scan", "plain", conv_lstm_scan),
    Entry("stacked_residual_scan", "plain", stacked_residual_scan, integer=True),
    Entry("tied_fori", "plain", tied_fori),
    Entry("tied_while", "plain", tied_while, integer=True),
    Entry("cond_branches", "plain", cond_branches, integer=True),
    Entry("switch_branches", "plain", switch_branches, integer=True),
    Entry("checkpoint_blocks", "plain", checkpoint_blocks, integer=True),
    Entry("ensemble_vmap", "plain", ensemble_vmap, integer=True),
    Entry("examples_vmap", "plain", examples_vmap, integer=True),
    Entry("inner_jit", "plain", inner_jit, integer=True),
    Entry("custom_jvp_activation", "plain", custom_jvp_activation),
    Entry("custom_vjp_activation", "plain", custom_vjp_activation, integer=True),
    Entry("cumsum_time", "plain", cumsum_time, integer=True),
    Entry("low_rank", "plain", low_rank, integer=True),
    Entry("weight_norm", "plain", weight_norm),
    Entry("causal_conv", "plain", causal_conv),
    Entry("text_classifier", "plain", text_classifier),
    Entry("tied_language_model", "plain", tied_language_model),
]
