"""What every network of the zoo is: a function, its parameters, sample inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Built(NamedTuple):
    """A network ready to run, in evaluation mode.

    Attributes:
        apply: `apply(params, *inputs)`, or `apply(params, model_state, *inputs)` where there is a state.
        params: Pytree of float32 arrays.
        inputs: Sample inputs.
        model_state: Pytree of running statistics, or None.
        train_apply: `train_apply(params, model_state, *inputs) -> (output, model_state)`, or None.
    """

    apply: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    model_state: Any = None
    train_apply: Callable[..., Any] | None = None


class Entry(NamedTuple):
    """A network by name. `integer`: exact on small integers, so that a wrong index cannot hide behind rounding."""

    name: str
    style: str
    build: Callable[[], Built]
    integer: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}-{self.style}"


def randomize(seed: int, tree: Any) -> Any:
    """Random numbers in the shapes of `tree`: nothing is zero or one, so that no slice goes unnoticed.

    Goes by the last key of a leaf: variances and norm scales in 0.5 to 1.5, vectors normal with deviation 0.3, the rest
    normal with deviation 1.4 / sqrt(fan-in).
    """
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        name = jax.tree_util.keystr(path[-1:], simple=True, separator="/").lower()
        if "var" in name or "scale" in name or "gamma" in name:
            values = rng.uniform(0.5, 1.5, leaf.shape)
        elif leaf.ndim < 2:
            values = rng.normal(0, 0.3, leaf.shape)
        else:
            fan_in = np.prod(leaf.shape) / max(leaf.shape[-1], leaf.shape[0] if leaf.ndim == 2 else 1)
            values = rng.normal(0, 1.4 / np.sqrt(max(fan_in, 1.0)), leaf.shape)
        return jnp.asarray(values.astype(leaf.dtype))  # cast in NumPy: JAX would compile a cast for every shape

    return jax.tree_util.tree_map_with_path(draw, tree)


def pictures(seed: int, *shape: int) -> jax.Array:
    """Normal random numbers of this shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
