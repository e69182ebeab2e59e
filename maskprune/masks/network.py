"""A network as a value: parameters, which masks are enabled, which are frozen.

The three arrays say everything there is to say about a network; changing a mask makes a new value and recompiles
nothing. `effective_params` is what the network computes with, `trainable` is what an optimizer may change. This file
knows neither a model nor an optimizer.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import check_leaves, strict
from maskprune.masks.groups import Group, Groups, Role, Slice, check_groups, leaf_path, leaves_by_path
from maskprune.masks.half_precision import wide


Params = Any  # a pytree of arrays
Flags = dict[str, jax.Array]  # {group: bool[C]}, named by what True means


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Everything an alteration may change. Build it with `init_network`.

    Attributes:
        params: Pytree of arrays: the stored values. Disabled masks keep theirs.
        enabled: `{group: bool[C]}`, False where a mask contributes exactly nothing.
        frozen: `{group: bool[C]}`, True where a mask keeps its values bit for bit.
        groups: Static. What the masks are.
        fixed: Static. Paths of whole leaves that never train; leaves of the model state among them are held whole.
    """

    params: Params
    enabled: Flags
    frozen: Flags
    groups: Groups = dataclasses.field(metadata={"static": True})
    fixed: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})


@strict
def init_network(params: Params, groups: Groups, *, fixed: str | Sequence[str] = ()) -> Network:
    """Makes a network with every mask enabled and none frozen.

    Args:
        params: Pytree of arrays (or of anything `jnp.asarray` takes).
        groups: What the masks of `params` are.
        fixed: Patterns (as in `fnmatch`, on leaf paths such as `"conv1/*"`) of leaves that never train; see the
            `leaves` of `freeze`. Leaves that are not floating point never train either.

    Raises:
        TypeError: A leaf of `params` is no array.
        ValueError: A slice of `groups` does not fit `params`, or a pattern of `fixed` matches no leaf.
    """
    check_leaves("params", jax.tree.leaves(params))
    params = jax.tree.map(strongly_typed, params)
    check_groups(groups, params)
    return Network(
        params=params,
        enabled={group.name: on_device(np.ones(group.size, bool)) for group in groups},
        frozen={group.name: on_device(np.zeros(group.size, bool)) for group in groups},
        groups=groups,
        fixed=match_leaves("fixed", fixed, params, groups),
    )


@strict
def choose(network: Network, masks: Mapping[str, Iterable[int]]) -> Flags:
    """Names masks: `choose(network, {"conv1": [3]})` is True at mask 3 of group `conv1` and False elsewhere.

    Args:
        network: Whose masks are meant.
        masks: Group names mapped to mask numbers, each in `[0, size)`.

    Returns:
        `{group: bool[C]}` for every group of the network.

    Raises:
        KeyError: A group does not exist.
        IndexError: A mask number is out of range.
    """
    chosen = {group.name: np.zeros(group.size, bool) for group in network.groups}
    for name, numbers in masks.items():
        group = network.groups[name]
        for number in numbers:
            chosen[name][_check_number(group, number)] = True
    return {name: on_device(flags) for name, flags in chosen.items()}


def entries(groups: Groups, params: Params, flags: Mapping[str, jax.Array], *, roles: Sequence[Role]) -> Any:
    """Marks the parameter entries that belong to flagged masks.

    Args:
        groups: What the masks are.
        params: Pytree of arrays; only shapes are read.
        flags: `{group: bool[C]}`.
        roles: Which slices count: `("out",)`, `("in",)` or both.

    Returns:
        A pytree like `params` of bool arrays that broadcast against its leaves.
    """

    def mark(path: Any, leaf: Any) -> jax.Array:
        found = jnp.zeros((1,) * leaf.ndim, bool)
        for group, piece in groups.of_leaf(leaf_path(path)):
            if piece.role in roles:
                found = found | along_axis(piece, flags[group.name], leaf.ndim, rest=False)
        return found

    return jax.tree_util.tree_map_with_path(mark, params)


def along_axis(piece: Slice, values: jax.Array, ndim: int, *, rest: Any) -> jax.Array:
    """One value a mask, [C], laid along the axis of a slice of a leaf of `ndim` axes; `rest` where there is no mask."""
    shape = [1] * ndim
    shape[piece.axis] = len(piece.labels)
    # Label -1 (no mask) reads what is appended at the end.
    padded = jnp.concatenate([values, jnp.full(1, rest, values.dtype)])
    return padded[np.asarray(piece.labels, np.int32)].reshape(shape)


@strict
@partial(jax.jit, inline=True)
def effective_params(network: Network) -> Params:
    """What the network computes with: zeros in every `out` and `in` entry of a disabled mask.

    Entries are selected, never multiplied, so a stored NaN or infinity in a disabled mask changes nothing.
    """
    off = entries(network.groups, network.params, _negated(network.enabled), roles=("out", "in"))
    return jax.tree.map(lambda leaf, gone: jnp.where(gone, jnp.zeros((), leaf.dtype), leaf), network.params, off)


def wide_params(network: Network) -> Params:
    """The effective parameters, half precision as float32: what scores and repairs are computed on."""
    return wide(effective_params(network))


def effective_arrays(network: Network) -> Params:
    """What `effective_params` gives, computed in NumPy: nothing compiles. Runs outside `jit`."""
    off = {name: np.append(~np.asarray(flags), False) for name, flags in network.enabled.items()}

    def select(path: Any, leaf: Any) -> Any:
        slices = [(off[group.name], piece) for group, piece in network.groups.of_leaf(leaf_path(path))]
        found = [(piece.axis, gone[np.asarray(piece.labels, int)]) for gone, piece in slices if piece.role != "state"]
        if not any(gone.any() for _, gone in found):
            return leaf
        values = np.array(leaf)
        for axis, gone in found:
            values[(slice(None),) * axis + (gone,)] = 0
        place = getattr(leaf, "sharding", None)
        return jax.device_put(values, place) if place and len(place.device_set) > 1 else on_device(values)

    return jax.tree_util.tree_map_with_path(select, network.params)


@strict
def trainable(network: Network) -> Any:
    """Which entries an optimizer may change: those of no disabled mask, and not a frozen mask's own.

    Returns:
        A pytree like `params` of bool arrays that broadcast against its leaves. Whole leaves of `network.fixed` and
        leaves that are not floating point are False throughout.
    """
    off = entries(network.groups, network.params, _negated(network.enabled), roles=("out", "in"))
    kept = entries(network.groups, network.params, network.frozen, roles=("out",))
    return jax.tree.map(lambda a, b, trains: ~(a | b) & trains, off, kept, trained_leaves(network))


def trained_leaves(network: Network) -> Any:
    """A pytree like `params` of Python booleans: does any entry of this leaf ever train?"""

    def trains(path: Any, leaf: Any) -> bool:
        return bool(jnp.issubdtype(leaf.dtype, jnp.floating)) and leaf_path(path) not in network.fixed

    return jax.tree_util.tree_map_with_path(trains, network.params)


@strict
def count_enabled(network: Network) -> dict[str, int]:
    """How many masks of each group are enabled. Reads the device."""
    return {name: int(np.sum(np.asarray(flags))) for name, flags in network.enabled.items()}


@strict
def list_masks(chosen: Mapping[str, jax.Array]) -> dict[str, list[int]]:
    """The inverse of `choose`: mask numbers by group, groups without any left out. Reads the device."""
    numbers = {name: np.flatnonzero(np.asarray(flags)).tolist() for name, flags in chosen.items()}
    return {name: found for name, found in numbers.items() if found}


def strongly_typed(leaf: Any) -> jax.Array:
    """The leaf as an array whose type is its own: a weak one would compile a training step again after an update."""
    leaf = on_device(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):  # a typed key
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def on_device(leaf: Any) -> jax.Array:
    """`jnp.asarray`, which compiles a program for every new shape that comes from the host; to put it needs none."""
    return jax.device_put(leaf) if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(leaf)


def _negated(flags: Mapping[str, jax.Array]) -> Flags:
    return {name: ~values for name, values in flags.items()}


def match_leaves(name: str, patterns: str | Sequence[str], params: Params, groups: Groups) -> tuple[str, ...]:
    """Paths that match a pattern, of parameters and of those state leaves that the groups know.

    The name of a collection, which Linen puts before the path of a layer in the state, need not stand in a pattern.

    Raises:
        ValueError: A pattern matches none; it belongs to the argument `name`.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    own = list(leaves_by_path(params))
    state = dict.fromkeys(piece.leaf for group in groups for piece in group.with_role("state"))
    tops = {path.split("/")[0] for path in own}
    names: dict[str, tuple[str, ...]] = {path: (path,) for path in own}
    for path in state:
        top, _, inner = path.partition("/")
        names[path] = (path,) if top in tops else (path, inner)
    for pattern in patterns:
        if not fnmatch.filter([each for every in names.values() for each in every], pattern):
            raise ValueError(f"`{name}` holds `{pattern}`, which matches no leaf. The leaves are {', '.join(names)}.")
    return tuple(path for path, every in names.items() if any(fnmatch.filter(every, pattern) for pattern in patterns))


def _check_number(group: Group, number: int) -> int:
    if not 0 <= number < group.size:
        raise IndexError(f"Group `{group.name}` has masks 0 to {group.size - 1}, not {number}.")
    return number
