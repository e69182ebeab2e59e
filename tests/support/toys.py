"""Small networks for the tests, their groups written by hand: a plain FCN, a concatenation, a flattening.

Stored weights stay away from zero, so that "did not move" and "was zeroed" can be told from each other.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from maskprune import Group, Groups, Slice, conv2d, models
from maskprune.conv import native


# Tests of what a C++ compiler makes; where there was none, they are skipped.
BUILT = pytest.mark.skipif(native.LEVEL is None, reason="installed without a compiler")
NATIVE = pytest.param("native", marks=BUILT)


def needs_onnx() -> None:
    """Skips a test where ONNX's packages are missing. Looks for onnxruntime without importing it: see `runtime.py`."""
    pytest.importorskip("onnx")
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")


class Toy(NamedTuple):
    """`apply(params, inputs)` with its parameters, its masks and sample inputs."""

    apply: Callable[[Any, Any], jax.Array]
    params: Any
    groups: Groups
    inputs: Any


def away_from_zero(seed: int, params: Any) -> Any:
    """Random numbers of magnitude 0.2 to 0.8 in the shapes of `params` (arrays or shape structs)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.choice([-1, 1], leaf.shape) * rng.uniform(0.2, 0.8, leaf.shape), jnp.float32),
        params,
    )


def fcn_toy() -> Toy:
    """Two prunable layers of 3 and 2 masks; every second weight is negative, so some outputs are cut by the ReLU."""
    model = models.fcn((3, 2), kernel=3, convolution=partial(conv2d, way="xla"))
    params = away_from_zero(1, jax.eval_shape(model.init, jax.random.key(0)))
    pictures = jnp.asarray(np.random.default_rng(2).uniform(size=(2, 6, 5, 1)), jnp.float32)
    return Toy(model.apply, params, model.groups, pictures)


def concat_toy() -> Toy:
    """Branches `left` (3 masks) and `right` (2) are concatenated with the input: one axis of `head` serves both.

    The activation is softplus, which is not zero at zero: absence must come from the slices that read it.
    """

    def dense(layer: Any, x: jax.Array) -> jax.Array:
        return x @ layer["kernel"] + layer["bias"][None]

    def apply(params: Any, x: jax.Array) -> jax.Array:
        branches = [jax.nn.softplus(dense(params[name], x)) for name in ("left", "right")]
        return dense(params["head"], jnp.concatenate([*branches, x], axis=1))

    shapes = {"left": (4, 3), "right": (4, 2), "head": (9, 2)}
    layers = {name: {"kernel": np.zeros(shape), "bias": np.zeros(shape[1])} for name, shape in shapes.items()}
    groups = []
    for name, size, before, after in [("left", 3, 0, 6), ("right", 2, 3, 4)]:
        labels = tuple(range(size))
        own = (Slice(f"{name}/kernel", 1, labels, "out"), Slice(f"{name}/bias", 0, labels, "out"))
        reads = Slice("head/kernel", 0, (-1,) * before + labels + (-1,) * after, "in")
        groups.append(Group(name, size, (*own, reads)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(7, 4)), jnp.float32)
    return Toy(apply, away_from_zero(4, layers), Groups(tuple(groups)), x)


def flatten_toy() -> Toy:
    """A convolution of 4 masks is flattened before a dense layer: every mask owns 6 scattered rows of its kernel."""

    def apply(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(conv2d(x, params["conv"]["kernel"], params["conv"]["bias"], way="xla") - 0.1)
        return hidden.reshape(x.shape[0], -1) @ params["dense"]["kernel"]

    labels = (0, 1, 2, 3)
    own = (Slice("conv/kernel", 3, labels, "out"), Slice("conv/bias", 0, labels, "out"))
    groups = Groups((Group("conv", 4, (*own, Slice("dense/kernel", 0, labels * 6, "in"))),), (("dense", "the output"),))
    layers = {
        "conv": {"kernel": np.zeros((3, 3, 1, 4)), "bias": np.zeros(4)},
        "dense": {"kernel": np.zeros((24, 2))},
    }
    pictures = jnp.asarray(np.random.default_rng(5).uniform(size=(3, 2, 3, 1)), jnp.float32)
    return Toy(apply, away_from_zero(6, layers), groups, pictures)


TOYS = [fcn_toy, concat_toy, flatten_toy]


def bits(tree: Any) -> list[np.ndarray]:
    """The leaves of a tree of float32 as unsigned integers, so that -0.0, NaN and subnormals compare by their bits."""
    return [np.asarray(leaf).view(np.uint32) for leaf in jax.tree.leaves(tree)]


def same_bits(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(bits(one), bits(other), strict=True))


def linear_loss(params: Any, batch: Any) -> jax.Array:
    """Mean squared error of a dense layer, for tests of training that need no more."""
    inputs, targets = batch
    return jnp.mean(jnp.square(inputs @ params["kernel"] + params["bias"][None] - targets))


def linear_draw(key: jax.Array, data: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Four inputs of three numbers, and what the kernel `data` with a bias of 0.5 makes of them."""
    inputs = jax.random.normal(key, (4, 3))
    return inputs, inputs @ data + 0.5


def smooth_pictures(path: Path, side: int) -> Path:
    """Six smooth random pictures of one size in an `.npz` archive."""
    noise = np.random.default_rng(5).normal(size=(6, side, side))
    smooth = np.stack([ndimage.gaussian_filter(each, 2.0) for each in noise])
    low, high = smooth.min(), smooth.max()
    np.savez(path, pictures=np.round(255 * (smooth - low) / (high - low)).astype(np.uint8))
    return path


def edge_network(path: Path) -> Path:
    """A saved network that answers edges of two directions: whether a random start learns in few steps is luck."""
    params = jax.tree.map(np.zeros_like, models.fcn((2, 2)).init(jax.random.key(0)))
    params["conv1"]["kernel"][2, 1:4, 0, 0] = params["conv1"]["kernel"][1:4, 2, 0, 1] = [-1, 0, 1]
    params["conv2"]["kernel"][2, 2] = np.eye(2)
    params["conv3"]["kernel"][2, 2] = 1
    return models.save(path, params)
