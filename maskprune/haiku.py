"""Haiku networks in training: frozen channels are normalized by their stored statistics.

A transformed Haiku function is a function of its parameters already, and its state a dictionary, so `trace`, `compact`
and the rest take it as it is. Only what a training step holds must be told to its batch norms. Knows Haiku and nothing
of masks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from maskprune.masks.model_state import Flags, flags_of, like, plain


Settings = Mapping[str, Any]
NONE: Settings = {}


def training(network: hk.TransformedWithState, *, settings: Settings = NONE) -> Callable[..., Any]:
    """A transformed function in training, with batch statistics at work.

    In a training step, channels whose masks are frozen are normalized by their stored statistics.

    Args:
        network: From `hk.transform_with_state`, with or without `hk.without_apply_rng`.
        settings: Keyword arguments of the call in training, such as `{"is_training": True}`.

    Returns:
        `train_apply(params, model_state, *inputs, key=None) -> (output, new_model_state)`, pure. `model_state` is as
        `network.init` gives it.

    Example:
        >>> forward = lambda x, is_training: hk.BatchNorm(True, True, 0.9)(x, is_training)
        >>> network, x = hk.transform_with_state(forward), jnp.arange(6.0).reshape(3, 2)
        >>> params, state = network.init(None, x, is_training=True)
        >>> output, state = training(network, settings={"is_training": True})(params, state, x)
        >>> state["batch_norm/~/mean_ema"]["average"].round(3).tolist()
        [[2.0, 3.0]]
    """
    draws = "rng" in inspect.signature(network.apply).parameters
    keywords = dict(settings)

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        flags = flags_of(model_state)
        with hk.intercept_methods(functools.partial(_select, flags)):
            output, new = network.apply(params, plain(model_state), *((key,) if draws else ()), *inputs, **keywords)
        return output, like(model_state, hk.data_structures.to_mutable_dict(new))

    return train_apply


def _select(flags: Mapping[tuple[str, str], Flags], call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Runs a batch norm that is in training in both modes, and selects; an average keeps what is held."""
    layer = context.module
    if context.method_name != "__call__" or not flags:
        return call(*args, **kwargs)
    if isinstance(layer, hk.ExponentialMovingAverage):
        return _average(flags, call, args, kwargs, layer)
    if not isinstance(layer, hk.BatchNorm):
        return call(*args, **kwargs)
    names = (layer.mean_ema.module_name, layer.var_ema.module_name)
    mine = {keys: each for keys, each in flags.items() if keys[0] in names}
    bound = inspect.signature(type(layer).__call__).bind(layer, *args, **kwargs)
    for each in mine.values():
        each.use()
    if not mine or not (bound.arguments["is_training"] or bound.arguments.get("test_local_stats")):
        return call(*args, **kwargs)
    again = {name: value for name, value in bound.arguments.items() if name != "self"}
    stored = layer(**{**again, "is_training": False, "test_local_stats": False})
    trained = call(*args, **kwargs)
    held = [each.entries for (_, name), each in mine.items() if name == "average"]
    return jnp.where(functools.reduce(jnp.logical_or, held), stored, trained)


def _average(flags: Mapping[tuple[str, str], Flags], call: Any, args: Any, kwargs: Any, layer: Any) -> Any:
    held = {keys[1]: each.entries for keys, each in flags.items() if keys[0] == layer.module_name}
    before = {name: hk.get_state(name) for name in held}
    found = call(*args, **kwargs)
    for name, entries in held.items():  # the layer may be used again
        hk.set_state(name, jnp.where(entries, before[name], hk.get_state(name)))
    return found
