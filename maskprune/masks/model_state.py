"""Model state in a training step: what of it is held, and how a loss is told.

A frozen or disabled mask keeps its running statistics bit for bit, and its channels are normalized by them. Both are
selected from flags that are data: nothing recompiles. The flags travel to the user's loss inside the model state, whose
dictionaries become `ModelState`, and nowhere else: a global would not survive a user's own `jit`. Adapters read them
there, `select_statistics` does so for code written by hand. Knows networks, no module library and no optimizer.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from maskprune.base.checks import strict
from maskprune.masks.groups import Groups, Slice, leaf_path, leaves_by_path
from maskprune.masks.network import Network, along_axis


class Seen(set[str]):
    """Paths of state leaves whose flags were used; known while tracing, so all such sets count as equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen)

    def __hash__(self) -> int:  # type: ignore[override]
        return 0


class ModelState(dict[Any, Any]):
    """A dictionary of a model state that also says which entries of its leaves a training step holds.

    Attributes:
        held: `{key: bool array of the leaf's shape}` for those leaves that may be held.
        at: Path of this dictionary in the whole state, ending in "/" unless it is the whole.
        seen: What was used so far.
    """

    held: Mapping[Any, jax.Array]
    at: str
    seen: Seen

    def __init__(self, values: Mapping[Any, Any], held: Mapping[Any, jax.Array], at: str, seen: Seen) -> None:
        super().__init__(values)
        self.held, self.at, self.seen = held, at, seen


def _flatten(state: ModelState) -> tuple[list[tuple[Any, Any]], Any]:
    keys, flags = sorted(state), sorted(state.held)
    children = [(jax.tree_util.DictKey(key), state[key]) for key in keys]
    children += [(jax.tree_util.GetAttrKey(f"held {key}"), state.held[key]) for key in flags]
    return children, (tuple(keys), tuple(flags), state.at, state.seen)


def _unflatten(aux: Any, children: Iterable[Any]) -> ModelState:
    keys, flags, at, seen = aux
    every = list(children)
    values = dict(zip(keys, every[: len(keys)], strict=True))
    return ModelState(values, dict(zip(flags, every[len(keys) :], strict=True)), at, seen)


jax.tree_util.register_pytree_with_keys(ModelState, _flatten, _unflatten)


def run_holding(network: Network, model_state: Any, call: Callable[[Any], tuple[Any, Any]]) -> tuple[Any, Any]:
    """`call(model_state) -> (value, model_state)`, told what is held; the state it returns keeps what is held.

    Warns:
        UserWarning: `call` did not use the flags of a leaf that can be held, or the state lacks a leaf of the groups.
    """
    held = held_entries(network, model_state)
    if not held:
        return call(model_state)
    try:
        value, after = call(_told(model_state, held, seen := Seen()))
        used, why = seen.union(*_states(after)), ""
    except Exception as error:  # a user's code, which may take nothing but the dictionaries it knows
        value, after, used, why = None, None, set[str](), f" ({type(error).__name__} where it was told)"
    if why:  # outside of the handler: what fails again fails in its own words
        value, after = call(model_state)
    if unseen := [path for path in held if path not in used]:
        warnings.warn(_unseen(unseen, why), stacklevel=2)
    return value, _keep(model_state, plain(after), held)


def _unseen(paths: Sequence[str], why: str) -> str:
    names = ", ".join(f"`{path}`" for path in paths[:4]) + (", ..." if len(paths) > 4 else "")
    return (
        f"The loss does not say how it uses the statistics {names}{why}: those of frozen masks keep their values, but "
        "their channels may be normalized by the batch. Build the loss on an adapter's `training` and return the state "
        "that it gives, or choose the statistics with `select_statistics`."
    )


def held_entries(network: Network, model_state: Any) -> dict[str, jax.Array]:
    """Flags, of the leaf's shape, for every leaf of a model state that can be held: True where it is.

    Entries of disabled and of frozen masks are, and whole leaves that `network.fixed` names or whose layer it fixes.

    Raises:
        ValueError: A leaf has another size than the groups say.
    """
    leaves = leaves_by_path(model_state)
    slices = _state_slices(network.groups, leaves)
    whole = fixed_state(network, leaves)
    held = {}
    for path, leaf in leaves.items():
        found = jnp.full((1,) * jnp.ndim(leaf), path in whole)
        for name, piece in slices.get(path, []):
            _check_size(path, piece, jnp.shape(leaf))
            off = network.frozen[name] | ~network.enabled[name]
            found = found | along_axis(piece, off, jnp.ndim(leaf), rest=False)
        if path in whole or path in slices:
            held[path] = jnp.broadcast_to(found, jnp.shape(leaf))
    return held


def _state_slices(groups: Groups, leaves: Mapping[str, Any]) -> dict[str, list[tuple[str, Slice]]]:
    """`{path: [(group, slice), ...]}`; where the state is a part of a larger one, leaves are found by their end."""
    found: dict[str, list[tuple[str, Slice]]] = {}
    lost = []
    for group in groups:
        for piece in group.with_role("state"):
            paths = [piece.leaf] if piece.leaf in leaves else [p for p in leaves if p.endswith(f"/{piece.leaf}")]
            for path in paths:
                found.setdefault(path, []).append((group.name, piece))
            lost += [] if paths else [f"`{piece.leaf}`"]
    if lost and leaves:
        warnings.warn(
            f"The model state lacks {', '.join(lost)}, which belong to masks: these statistics cannot be held. Train "
            "with the state that was given to `trace`.",
            stacklevel=4,
        )
    return found


def _check_size(path: str, piece: Slice, shape: tuple[int, ...]) -> None:
    if piece.axis >= len(shape) or shape[piece.axis] != len(piece.labels):
        raise ValueError(
            f"The groups label {len(piece.labels)} positions along axis {piece.axis} of `{path}` in the model state, "
            f"whose shape is {shape}: trace the network that you train."
        )


def fixed_state(network: Network, paths: Iterable[str]) -> set[str]:
    """Which leaves of a model state are held whole: those that `fixed` names, and those of layers that it fixes."""
    if not network.fixed:
        return set()
    paths, params, fixed = set(paths), list(leaves_by_path(network.params)), set(network.fixed)
    named = fixed - {*params}
    ends = tuple(f"/{path}" for path in named - paths)
    return {path for path in paths if path in named or path.endswith(ends) or fixed.issuperset(_layer(path, params))}


def _layer(path: str, params: Sequence[str]) -> list[str]:
    """The parameters of the layer that a state leaf belongs to: the nearest that lie under a part of its path."""
    parts = path.split("/")[:-1]
    for start in range(len(parts)):  # a collection's name may stand before the layer's
        for end in range(len(parts), start, -1):
            inside = "/".join(parts[start:end]) + "/"
            if beneath := [each for each in params if each.startswith(inside)]:
                return beneath
    return list(params)


def _told(tree: Any, held: Mapping[str, jax.Array], seen: Seen, at: str = "") -> Any:
    """The tree with its dictionaries as `ModelState` wherever they hold a flagged leaf."""

    def tell(path: Any, node: Any) -> Any:
        inside = "".join(f"{part}/" for part in (at, leaf_path(path)) if part)
        if type(node) is not dict or not any(each.startswith(inside) for each in held):
            return node
        values = {key: _told(value, held, seen, f"{inside}{key}") for key, value in node.items()}
        flags = {key: held[f"{inside}{key}"] for key in node if f"{inside}{key}" in held}
        return ModelState(values, flags, inside, seen)

    return jax.tree_util.tree_map_with_path(tell, tree, is_leaf=lambda node: type(node) is dict)


def _keep(before: Any, after: Any, held: Mapping[str, jax.Array]) -> Any:
    old, new = leaves_by_path(before), leaves_by_path(after)
    if lost := [path for path in held if path not in new]:
        raise ValueError(
            f"The loss returns a model state without `{lost[0]}`, with the leaves {', '.join(new) or 'none'}: return "
            "the state with the structure it was given in."
        )
    keep = lambda path, leaf: jnp.where(held[path], old[path], leaf) if path in held else leaf
    return jax.tree_util.tree_map_with_path(lambda path, leaf: keep(leaf_path(path), leaf), after)


def plain(tree: Any) -> Any:
    """The tree with ordinary dictionaries in place of `ModelState`."""
    kinds = (dict, ModelState)
    inner = lambda node: {key: plain(value) for key, value in node.items()} if type(node) in kinds else node
    return jax.tree.map(inner, tree, is_leaf=lambda node: type(node) in kinds)


def _states(tree: Any) -> list[Seen]:
    """What every `ModelState` of a tree saw used."""
    if isinstance(tree, dict):
        own = [tree.seen] if isinstance(tree, ModelState) else []
        return own + [seen for value in tree.values() for seen in _states(value)]
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, dict))
    return [seen for leaf in leaves if isinstance(leaf, dict) for seen in _states(leaf)]


# What adapters need.


class Flags(NamedTuple):
    """Which entries of one leaf of a model state are held.

    Attributes:
        entries: bool array of the leaf's shape.
        path: Of the leaf, in the whole state.
        seen: Where `use` writes it down.
    """

    entries: jax.Array
    path: str
    seen: Seen

    def use(self) -> None:
        """Tells the training step that whatever the leaf does follows these flags."""
        self.seen.add(self.path)


def flags_of(state: Any, keys: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Flags]:
    """`{keys: flags}` of the leaves of nested dictionaries that may be held; none outside of a training step."""
    found: dict[tuple[Any, ...], Flags] = {}
    if isinstance(state, ModelState):
        for key, entries in state.held.items():
            found[*keys, key] = Flags(entries != 0, f"{state.at}{key}", state.seen)
    for key, value in state.items() if isinstance(state, Mapping) else ():
        found |= flags_of(value, (*keys, key))
    return found


def like(state: Any, values: Any) -> Any:
    """New values with the flags of the state before, so that a loop can carry it."""
    if not isinstance(state, Mapping) or not isinstance(values, Mapping):
        return values
    new = {key: like(state.get(key), value) for key, value in values.items()}
    return ModelState(new, state.held, state.at, state.seen) if isinstance(state, ModelState) else new


def select_stored(held: Sequence[jax.Array], stored: Any, trained: Any, *, axes: Sequence[int]) -> Any:
    """What a layer gives with its stored statistics where its channels are held, and elsewhere what it trains with.

    Args:
        held: The flags of its statistics.
        stored: Its outputs by the stored statistics.
        trained: Its outputs in training.
        axes: Along which axes of an output the statistics lie. Where they do not fit, all must be held.
    """
    whole = jnp.all(jnp.stack([jnp.all(flags) for flags in held]))
    shapes = {flags.shape for flags in held}

    def lay(output: jax.Array) -> jax.Array:
        at = sorted(axis % output.ndim for axis in axes) if output.ndim else []
        if shapes != {tuple(output.shape[axis] for axis in at)}:
            return whole
        entries = functools.reduce(jnp.logical_or, held)
        return entries.reshape([size if axis in at else 1 for axis, size in enumerate(output.shape)])

    return jax.tree.map(lambda old, new: jnp.where(lay(new), old, new), stored, trained)


@strict
def select_statistics(state: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What a layer of your own normalizes with in training: stored statistics where they are held, else the batch's.

    Outside of a training step, or where nothing can be held, all are the batch's.

    Args:
        state: The layer's part of the model state that the loss was given, a dictionary.
        batch: `{name: array}`, the statistics of the batch, under the names and in the shapes of the state.

    Raises:
        KeyError: `state` lacks a name of `batch`.

    Example:
        >>> found = select_statistics({"mean": jnp.zeros(2)}, {"mean": jnp.ones(2)})
        >>> found["mean"].tolist()
        [1.0, 1.0]
    """
    if missing := [name for name in batch if name not in state]:
        raise KeyError(f"`state` lacks `{missing[0]}`, which `batch` has: its names are {', '.join(map(str, state))}.")
    flags = {keys[0]: each for keys, each in flags_of(state).items() if len(keys) == 1}
    for name in batch:
        if name in flags:
            flags[name].use()
    chosen = lambda name, value: jnp.where(flags[name].entries, state[name], value) if name in flags else value
    return {name: chosen(name, jnp.asarray(value)) for name, value in batch.items()}
