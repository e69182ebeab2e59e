"""Networks in Haiku: functions that create their parameters by name, transformed into pairs of pure functions.

`functional` makes the zoo's functions out of one; five.py uses it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from .entry import Built, Entry, pictures, randomize


def functional(seed: int, forward: Callable[..., jax.Array], *inputs: jax.Array) -> Built:
    """A function without state, `forward(*inputs)`, transformed."""
    network = hk.without_apply_rng(hk.transform(forward))
    params = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    return Built(network.apply, randomize(seed, params), inputs)


def stateful(seed: int, forward: Callable[..., jax.Array], *inputs: jax.Array) -> Built:
    """A function with batch norm, `forward(training, *inputs)`, transformed."""
    network = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(lambda key: network.init(key, True, *inputs), jax.random.key(0))

    def apply(params: Any, state: Any, *inputs: jax.Array) -> jax.Array:
        return network.apply(params, state, False, *inputs)[0]

    def train_apply(params: Any, state: Any, *inputs: jax.Array) -> tuple[jax.Array, Any]:
        return network.apply(params, state, True, *inputs)

    return Built(apply, randomize(seed, params), inputs, _statistics(seed + 1, state), train_apply)


def _statistics(seed: int, state: Any) -> Any:
    """Random running statistics: Haiku calls the module, not the leaf, mean_ema or var_ema."""
    named = {module: {(leaf, module[-8:]): values[leaf] for leaf in values} for module, values in state.items()}
    drawn = randomize(seed, named)
    return {module: {leaf: value for (leaf, _), value in values.items()} for module, values in drawn.items()}


def batch_norm(x: jax.Array, training: bool) -> jax.Array:
    """Batch norm with a learned scale and offset; exact on integers in evaluation, where no variance is zero."""
    return hk.BatchNorm(True, True, decay_rate=0.9, eps=1e-5 if training else 0.0)(x, training)


def conv_norm(x: jax.Array, outputs: int, size: int, stride: int, training: bool) -> jax.Array:
    """Convolution without bias, then batch norm."""
    return batch_norm(hk.Conv2D(outputs, size, stride, with_bias=False)(x), training)


def resnet() -> Built:
    """ResNet (He et al. 2015) with bottleneck blocks, the first of each stage projected."""

    def block(x: jax.Array, middle: int, outputs: int, stride: int, training: bool) -> jax.Array:
        y = jax.nn.relu(conv_norm(x, middle, 1, 1, training))
        y = jax.nn.relu(conv_norm(y, middle, 3, stride, training))
        y = conv_norm(y, outputs, 1, 1, training)
        same = x.shape == y.shape
        return jax.nn.relu(y + (x if same else conv_norm(x, outputs, 1, stride, training)))

    def forward(training: bool, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv_norm(x, 5, 7, 2, training))
        x = hk.max_pool(x, (3, 3, 1), (2, 2, 1), "SAME")
        for middle, outputs, stride in ((4, 8, 1), (4, 8, 1), (6, 12, 2), (6, 12, 1)):
            x = block(x, middle, outputs, stride, training)
        return hk.Linear(5)(jnp.mean(x, axis=(1, 2)))

    return stateful(1, forward, pictures(1, 2, 16, 16, 3))


def lstm() -> Built:
    """LSTM (Hochreiter and Schmidhuber 1997) by hk.dynamic_unroll, an output at each time."""

    def forward(x: jax.Array) -> jax.Array:  # [time, batch, features]
        core = hk.LSTM(8)
        x, _ = hk.dynamic_unroll(core, jax.nn.relu(hk.Linear(6)(x)), core.initial_state(x.shape[1]))
        return hk.Linear(3)(x)

    return functional(2, forward, pictures(2, 5, 2, 4))


def transformer() -> Built:
    """GPT (Radford et al. 2018): causal attention, layer norm before each part, next-token logits."""

    def norm(x: jax.Array) -> jax.Array:
        return hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)

    def forward(words: jax.Array) -> jax.Array:
        length, width = words.shape[1], 12
        positions = hk.get_parameter("positions", (length, width), init=jnp.zeros)
        x = hk.Embed(20, width)(words) + positions[None]
        past = jnp.tril(jnp.ones((1, 1, length, length)))
        for hidden in (20, 16):
            attention = hk.MultiHeadAttention(3, key_size=4, w_init=hk.initializers.VarianceScaling(), model_size=width)
            y = norm(x)
            x = x + attention(y, y, y, mask=past)
            x = x + hk.Linear(width)(jax.nn.gelu(hk.Linear(hidden)(norm(x))))
        return hk.Linear(20)(norm(x))

    words = jnp.asarray(np.random.default_rng(3).integers(0, 20, (2, 6)), jnp.int32)
    return functional(3, forward, words)


def conv_autoencoder() -> Built:
    """Convolutional autoencoder (Masci et al. 2011) with hk.Conv2DTranspose and a tanh output."""

    def forward(x: jax.Array) -> jax.Array:
        x = jax.nn.relu(hk.Conv2D(5, 3, stride=2)(x))
        x = jax.nn.relu(hk.Conv2D(8, 3, stride=2)(x))
        code = hk.Linear(6)(hk.Flatten()(x))
        x = hk.Reshape((3, 3, 7))(jax.nn.relu(hk.Linear(3 * 3 * 7)(code)))
        x = jax.nn.relu(hk.Conv2DTranspose(4, 3, stride=2)(x))
        return jnp.tanh(hk.Conv2DTranspose(1, 3, stride=2)(x))

    return functional(4, forward, pictures(4, 2, 12, 12, 1))


def mobilenet_v1() -> Built:
    """MobileNet (Howard et al. 2017): depthwise 3x3 and pointwise 1x1, each with batch norm and ReLU."""

    def forward(training: bool, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(conv_norm(x, 5, 3, 2, training))
        for width, stride in ((7, 1), (10, 2), (9, 1), (12, 2)):
            depthwise = hk.DepthwiseConv2D(1, 3, stride, with_bias=False)
            x = jax.nn.relu(batch_norm(depthwise(x), training))
            x = jax.nn.relu(conv_norm(x, width, 1, 1, training))
        return hk.Linear(5)(jnp.mean(x, axis=(1, 2)))

    return stateful(5, forward, pictures(5, 2, 16, 16, 3))


def separable() -> Built:
    """Depthwise convolutions factored into a column and a row (hk.SeparableDepthwiseConv2D), multiplier 2."""

    def forward(x: jax.Array) -> jax.Array:
        x = jax.nn.relu(hk.Conv2D(5, 3)(x))
        for width in (8, 6):
            x = hk.SeparableDepthwiseConv2D(2, 3, stride=1)(x)
            x = hk.avg_pool(jax.nn.relu(hk.Conv2D(width, 1)(x)), (2, 2, 1), (2, 2, 1), "VALID")
        return hk.Linear(4)(hk.Flatten()(x))

    return functional(6, forward, pictures(6, 2, 8, 8, 3))


NETWORKS = [
    Entry("resnet", "haiku", resnet, integer=True),
    Entry("lstm", "haiku", lstm),
    Entry("transformer", "haiku", transformer),
    Entry("conv_autoencoder", "haiku", conv_autoencoder),
    Entry("mobilenet_v1", "haiku", mobilenet_v1, integer=True),
    Entry("separable", "haiku", separable, integer=True),
]
