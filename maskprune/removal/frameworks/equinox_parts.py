"""Equinox modules and their states as nested dictionaries, and back. For the adapter only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State, StateIndex

from maskprune.masks.model_state import plain
from maskprune.removal.frameworks.equinox_widths import with_fields


Keys = tuple[Any, ...]


class Parts(NamedTuple):
    """What a module is made of.

    Attributes:
        params: Nested dictionaries of its parameters.
        model_state: Likewise of its state, or None.
        indices: `{keys: index}`, where the module holds an index of its state.
        module: `module(params)` puts parameters in.
        state: `state(model_state)` is Equinox's own form, and `read(state)` the way back.
        read: See there.
    """

    params: Any
    model_state: Any
    indices: dict[Keys, StateIndex[Any]]
    module: Callable[[Any], Any]
    state: Callable[[Any], Any]
    read: Callable[[Any], Any]


def take_apart(module: eqx.Module, state: State | None) -> Parts:
    is_index = lambda node: isinstance(node, StateIndex)
    indices = {keys: node for keys, node in by_keys(module, is_index) if is_index(node)}
    state = _state_of(module, state) if indices else None
    bare = eqx.nn.delete_init_state(module)
    leaves, structure = jax.tree.flatten(bare)
    at = [keys for keys, _ in by_keys(bare)]
    params = {keys: leaf for keys, leaf in zip(at, leaves, strict=True) if _is_param(leaf)}

    def put(given: Any) -> Any:
        return structure.unflatten(
            [get(given, keys) if keys in params else leaf for keys, leaf in zip(at, leaves, strict=True)]
        )

    if state is None:
        return Parts(_nested(params), None, {}, put, lambda given: None, lambda state: None)
    arrays, form = jax.tree.flatten(state)
    numbered = form.unflatten(range(len(arrays)))
    places = {  # the first place of an index stands for all: a layer may be used at several
        (*keys, *inner): number
        for keys, index in reversed(indices.items())
        for inner, number in by_keys(numbered.get(index))
    }
    first = {number: keys for keys, number in places.items()}
    counters = {keys for keys, norm in norms(module).items() if norm.batch_counter is not None}

    def write(given: Any) -> Any:
        return form.unflatten([get(given, first[i]) if i in first else array for i, array in enumerate(arrays)])

    def read(state: Any) -> Any:
        return _nested({keys: jax.tree.leaves(state)[number] for number, keys in first.items()})

    every = {keys: arrays[number] for number, keys in first.items()}
    for keys in counters:
        if (counter := (*keys, "batch_counter")) in every:
            every[counter] = _of_channels(every[counter], every[*keys, "batch_state_index", 0])
    return Parts(_nested(params), _nested(every), indices, put, write, read)


def _state_of(module: Any, state: State | None) -> State:
    if state is not None:
        return state
    try:
        return State(module)
    except ValueError as error:
        raise ValueError(
            f"The {type(module).__name__} has a state: give the one that `eqx.nn.make_with_state` made as `state`."
        ) from error


def _is_param(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def by_keys(tree: Any, is_leaf: Any = None) -> list[tuple[Keys, Any]]:
    """The leaves of a tree with the names and numbers that lead to them."""
    name = lambda key: next(getattr(key, part) for part in ("name", "key", "idx") if hasattr(key, part))
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(tuple(map(name, path)), leaf) for path, leaf in found]


def _nested(flat: Mapping[Keys, Any]) -> Any:
    """Nested dictionaries; a tree that is a single leaf is the leaf."""
    if () in flat:
        return flat[()]
    inner: dict[Any, dict[Keys, Any]] = {}
    for keys, leaf in flat.items():
        inner.setdefault(keys[0], {})[keys[1:]] = leaf
    return {key: _nested(below) for key, below in inner.items()}


def get(tree: Any, keys: Iterable[Any]) -> Any:
    for key in keys:
        tree = tree[key] if isinstance(tree, Mapping | list | tuple) else getattr(tree, key)
    return tree


# The counter of a batch norm. Stored statistics are divided by what it says, so a channel that is held must stop
# counting, while the others go on.


def norms(module: Any) -> dict[Keys, Any]:
    """The batch norms of a module."""
    is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)
    return {keys: node for keys, node in by_keys(module, is_norm) if is_norm(node)}


def _of_channels(counter: Any, sums: Any) -> Any:
    shape, dtype = sums.shape, jnp.float32  # whole numbers belong to no channel when tracing
    if isinstance(counter, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape, dtype)
    return jnp.broadcast_to(counter[..., None], shape).astype(dtype)


def counted_once(module: Any, model_state: Any) -> Any:
    """A state whose counters have one number again, for all channels, and sums that fit it."""
    if model_state is None:
        return None
    flat = dict(by_keys(plain(model_state)))
    for keys, norm in norms(module).items():
        at = (*keys, "batch_counter")
        if at not in flat:
            continue
        most = jnp.max(flat[at], axis=-1, keepdims=True)
        share = lambda count, norm=norm: 1 - jnp.power(norm.momentum, jnp.maximum(count, 1))
        for number in (0, 1):
            sums = (*keys, "batch_state_index", number)
            flat[sums] = flat[sums] * (share(most) / share(flat[at])).astype(flat[sums].dtype)
        flat[at] = most[..., 0].astype(jnp.int32)
    return _nested(flat)


def with_sizes(module: Any, model_state: Any) -> Any:
    """The module, whose batch norms have the size of their statistics: without parameters nothing else tells it."""
    for keys, norm in norms(module).items():
        at = (*keys, "batch_state_index" if norm.mode == "batch" else "ema_state_index")
        if (*at, 0) in (flat := dict(by_keys(model_state))):
            sized = with_fields(norm, {"input_size": flat[*at, 0].shape[-1]})
            module = eqx.tree_at(lambda tree, keys=keys: get(tree, keys), module, sized) if keys else sized
    return module
