"""Equinox modules as functions, and small functions as modules again.

A module becomes `(apply, params, model_state)`, plain dictionaries of arrays keyed as its attributes; a small network
becomes an ordinary module with narrower layers. Knows Equinox and nothing of masks.

Equinox's modules are written for one example. The functions here take batches: they run the module under `jax.vmap`
over the first axis of every input, under the axis name of its batch norms. With `batched=False` they call the module as
it is, for modules that do this themselves.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox.nn import State, StateIndex

from maskprune.masks.model_state import Flags, flags_of, like, plain, select_stored
from maskprune.removal.agreement import Run
from maskprune.removal.frameworks.equinox_parts import Keys, by_keys, counted_once, get, norms, take_apart, with_sizes
from maskprune.removal.frameworks.equinox_widths import fit
from maskprune.removal.rebuilt import RebuildError as RebuildError
from maskprune.removal.rebuilt import check_rebuilt


Apply = Callable[..., Any]


def from_module(
    module: eqx.Module, state: State | None = None, *, batched: bool = True, axis_name: Any = None
) -> tuple[Apply, Any, Any]:
    """A module as a function of its parameters, in inference mode.

    The three go straight into `trace(apply, params, *inputs, model_state=model_state)`, `init_network(params, groups)`
    and `compact(apply, network, *inputs, model_state=model_state)`. The module itself is not changed.

    Args:
        module: Any Equinox module, called as `module(*inputs)`, or `module(*inputs, state)` where it has a state. Its
            arrays may be abstract.
        state: As from `eqx.nn.make_with_state`. A module that still holds its initial state needs none.
        batched: Whether inputs have a batch axis in front, which the module does not know.
        axis_name: Name of that axis; by default the one that the module's batch norms give.

    Returns:
        `(apply, params, model_state)`. Parameters are the module's floating-point arrays. Where it has no state,
        `model_state` is None and the function is `apply(params, *inputs)`; else it is
        `apply(params, model_state, *inputs)`. The step counter of a batch norm has an entry for every channel, since
        frozen channels stop counting.

    Raises:
        ValueError: The module has a state that is neither given nor held in it.

    Example:
        >>> apply, params, model_state = from_module(eqx.nn.Linear(2, 3, key=jax.random.key(0)))
        >>> params["weight"].shape, model_state
        ((3, 2), None)
    """
    parts = take_apart(eqx.nn.inference_mode(module), state)
    call = _caller(module, batched=batched, axis_name=axis_name)

    def apply(params: Any, model_state: Any, *inputs: Any) -> Any:
        found = call(parts.module(params), parts.state(model_state), inputs, None)
        return found if model_state is None else found[0]

    if not parts.indices:
        return lambda params, *inputs: apply(params, None, *inputs), parts.params, None
    return apply, parts.params, parts.model_state


def training(module: eqx.Module, state: State | None = None, *, batched: bool = True, axis_name: Any = None) -> Apply:
    """The same function in training, with dropout and batch statistics at work.

    Every layer runs in the mode in which it stands in the module: one whose `inference` you set stays there. In a
    training step, channels whose masks are frozen are normalized by their stored statistics.

    Args:
        module: As for `from_module`, like the others.
        state: As for `from_module`.
        batched: As for `from_module`.
        axis_name: As for `from_module`.

    Returns:
        `train_apply(params, model_state, *inputs, key=None) -> (output, new_model_state)`, pure. `model_state` is as
        `from_module` gives it, None included. A module whose call has an argument `key` gets one, for every example
        its own.

    Warns:
        UserWarning: All layers stand in inference mode, as after `eqx.nn.inference_mode(module)`.
    """
    _warn_if_evaluated(module)
    parts = take_apart(module, state)
    call = _caller(module, batched=batched, axis_name=axis_name)

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        running = _hold(parts.module(params), parts.indices, flags_of(model_state))
        found = call(running, parts.state(plain(model_state)), inputs, key)
        if model_state is None:
            return found, None
        return found[0], like(model_state, parts.read(found[1]))

    return train_apply


def to_module(
    module: eqx.Module,
    small_apply: Apply,
    small_params: Any,
    *inputs: Any,
    model_state: Any = None,
    state: State | None = None,
    batched: bool = True,
    axis_name: Any = None,
) -> Any:
    """An ordinary module with the small weights.

    A copy of `module` gets the small arrays, and Equinox's own layers in it get the widths to match (`in_features`,
    `out_channels`, ...). Then both run on the inputs and are compared, because a module's own code can hold widths too.

    Args:
        module: The module that `from_module` was given. It is not changed.
        small_apply: The small function, from `compact` or `shrink`.
        small_params: Its parameters.
        *inputs: Sample inputs; at least one array.
        model_state: The small state, `plan.cut(model_state, state=True)`, where there is one.
        state: As for `from_module`, like the others.
        batched: As for `from_module`.
        axis_name: As for `from_module`.

    Returns:
        The new module, in the mode of the old one; where there is a state `(module, state)`.

    Raises:
        RebuildError: The module's code does not do on the small widths what the small function does. It names the
            line, or the layers that count their channels.
    """
    parts = take_apart(module, state)
    suspects: list[str] = []
    small = fit(parts.module(small_params), eqx.nn.delete_init_state(module), suspects)
    small = with_sizes(small, model_state)
    small_state = parts.state(counted_once(module, model_state))
    rebuilt, params, own = from_module(small, small_state, batched=batched, axis_name=axis_name)
    check_rebuilt(
        f"The {type(module).__name__}",
        Run(rebuilt, params, () if own is None else (own,)),
        Run(small_apply, small_params, () if model_state is None else (model_state,)),
        inputs,
        suspects=suspects,
    )
    return small if small_state is None else (small, small_state)


def _warn_if_evaluated(module: Any) -> None:
    has_mode = lambda node: isinstance(node, eqx.Module) and hasattr(node, "inference")
    modes = [node.inference for node in jax.tree.leaves(module, is_leaf=has_mode) if has_mode(node)]
    if len(modes) > 1 and all(mode is True for mode in modes):
        warnings.warn(
            f"All layers of the {type(module).__name__} stand in inference mode, and so they will train: without "
            "dropout, by stored statistics. Use `eqx.nn.inference_mode(module, False)`; to hold some layers, `freeze`.",
            stacklevel=3,
        )


def _caller(module: Any, *, batched: bool, axis_name: Any) -> Callable[..., Any]:
    """`call(module, state, inputs, key)`, over a batch or not, as the module's signature wants it."""
    takes = inspect.signature(type(module).__call__).parameters
    name = axis_name if axis_name is not None else _axis_name(module)

    def one(module: Any, state: Any, inputs: Any, key: Any) -> Any:
        keyword = {"key": key} if "key" in takes else {}
        if state is None:
            return module(*inputs, **keyword)
        return module(*inputs, state=state, **keyword) if "state" in takes else module(*inputs, state, **keyword)

    if not batched:
        return one

    def every(module: Any, state: Any, inputs: Any, key: Any) -> Any:
        count = jnp.shape(jax.tree.leaves(inputs)[0])[0]
        keys = None if key is None else jax.random.split(key, count)
        out = 0 if state is None else (0, None)
        run = lambda inputs, key: one(module, state if state is None else _copy(state), inputs, key)
        return jax.vmap(run, out_axes=out, axis_name=name)(inputs, keys)

    return every


def _axis_name(module: Any) -> Any:
    names = [norm.axis_name for norm in norms(module).values()]
    name = names[0] if names else None
    return name[0] if isinstance(name, tuple | list) and len(name) == 1 else name


def _copy(state: Any) -> Any:
    """A state may be used once only; a copy may be used again."""
    return jax.tree.map(lambda leaf: leaf, state)


# Held statistics.


def _hold(module: Any, indices: Mapping[Keys, StateIndex[Any]], flags: Mapping[Keys, Flags]) -> Any:
    """The module with layers that select by the flags, wherever they have statistics that may be held."""
    by_marker: dict[Any, Any] = {}
    for keys, index in indices.items():
        mine = {path[len(keys) :]: found for path, found in flags.items() if path[: len(keys)] == keys}
        if mine:
            by_marker[index.marker] = mine
    layers: dict[Keys, dict[str, Any]] = {}
    for keys, index in indices.items():
        if index.marker in by_marker and hasattr(get(module, keys[:-1]), "inference"):
            layers.setdefault(keys[:-1], {})[keys[-1]] = by_marker[index.marker]
    for keys, held in layers.items():
        for found in (each for inner in held.values() for each in inner.values()):
            found.use()
        entries = {name: {at: found.entries for at, found in inner.items()} for name, inner in held.items()}
        new = _selecting_layer(get(module, keys), entries)
        module = eqx.tree_at(lambda tree, keys=keys: get(tree, keys), module, new) if keys else new
    return module


def _selecting_layer(layer: Any, held: Mapping[str, Mapping[Keys, jax.Array]]) -> Any:
    new = object.__new__(_selecting(type(layer)))
    for name, value in vars(layer).items():
        object.__setattr__(new, name, value)
    object.__setattr__(new, "held", held)
    return new


@functools.cache
def _selecting(kind: Any) -> Any:
    """The kind of layer, which selects by its flags."""
    signature = inspect.signature(kind.__call__)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        told = given.get("inference")
        if self.inference if told is None else told:
            return kind.__call__(self, *args, **kwargs)
        state = given["state"]
        again = {name: value for name, value in given.items() if name not in ("self", "inference", "state")}
        stored, _ = kind.__call__(**again, self=self, state=_copy(state), inference=True)
        trained, new = kind.__call__(**again, self=self, state=_copy(state), inference=False)
        for name, held in self.held.items():  # the layer may be used again
            index = getattr(self, name)
            new = new.set(index, _kept(state.get(index), new.get(index), held))
        flags = [entries for held in self.held.values() for entries in held.values()]
        return select_stored(flags, stored, trained, axes=(0,)), new

    fields = {"__call__": __call__, "__annotations__": {"held": Any}, "__module__": kind.__module__}
    metaclass: Any = type(eqx.Module)
    return metaclass(kind.__name__, (kind,), fields)


def _kept(before: Any, after: Any, held: Mapping[Keys, jax.Array]) -> Any:
    places = [keys for keys, _ in by_keys(before)]
    pairs = zip(places, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    kept = [jnp.where(held[keys], old, new) if keys in held else new for keys, old, new in pairs]
    return jax.tree.unflatten(jax.tree.structure(after), kept)
