"""Alterations: what can be done to a mask, at any time, to any number of masks at once.

Every alteration is a pure function `Network -> Network`. It leaves its argument untouched, so stepping back is using
the earlier value. None of them knows an optimizer: the only way back to training is `init_state`, which starts one
afresh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maskprune.groups import leaf_path
from maskprune.network import Flags, Network, Params, entries


Chosen = Mapping[str, Any]  # {group: bool[C]}, as made by `choose`


def disable(network: Network, chosen: Chosen) -> Network:
    """Switches masks off: they contribute exactly nothing, keep their stored weights and never learn."""
    return dataclasses.replace(network, enabled=_merge(network, network.enabled, chosen, True, value=False))


def enable(network: Network, chosen: Chosen) -> Network:
    """Switches masks on again, with the weights they had when they were disabled."""
    return dataclasses.replace(network, enabled=_merge(network, network.enabled, chosen, True, value=True))


def freeze(network: Network, chosen: Chosen) -> Network:
    """Holds the own numbers (kernel, bias) of masks bit for bit; they still produce output."""
    return dataclasses.replace(network, frozen=_merge(network, network.frozen, chosen, True, value=True))


def thaw(network: Network, chosen: Chosen) -> Network:
    """Lets frozen masks learn again."""
    return dataclasses.replace(network, frozen=_merge(network, network.frozen, chosen, True, value=False))


def reinitialize(key: jax.Array, network: Network, chosen: Chosen, init: Callable[[jax.Array], Params]) -> Network:
    """Gives masks a fresh draw from the initial distribution; what reads them stays as it is.

    Args:
        key: PRNG key of the draw.
        network: The network.
        chosen: `{group: bool[C]}`, which masks.
        init: `init(key) -> params`, the initial distribution of the whole network (biases at their initial values).
    """
    own = entries(network.groups, network.params, _checked(network, chosen), roles=("out",))
    fresh = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), network.params, init(key))
    params = jax.tree.map(lambda old, new, mine: jnp.where(mine, new, old), network.params, fresh, own)
    return dataclasses.replace(network, params=params)


def zero_weights(network: Network, chosen: Chosen, *, part: Literal["kernel", "all"] = "kernel") -> Network:
    """Sets the weights of masks to zero, once; they may relearn afterwards.

    Args:
        network: The network.
        chosen: `{group: bool[C]}`, which masks.
        part: `"kernel"` leaves the biases alone. With `"all"` a mask behind a ReLU can never relearn, because the
            gradient of ReLU at 0 is 0.
    """
    if part not in ("kernel", "all"):
        raise ValueError(f'`part` is {part!r}: use "kernel" or "all".')
    own = entries(network.groups, network.params, _checked(network, chosen), roles=("out",))

    def zero(path: Any, leaf: jax.Array, mine: jax.Array) -> jax.Array:
        keep = part == "kernel" and _is_bias(leaf_path(path), leaf)
        return leaf if keep else jnp.where(mine, jnp.zeros((), leaf.dtype), leaf)

    return dataclasses.replace(network, params=jax.tree_util.tree_map_with_path(zero, network.params, own))


def _is_bias(path: str, leaf: jax.Array) -> bool:
    return leaf.ndim <= 1 or path.rsplit("/", 1)[-1] in ("bias", "b")


def _merge(network: Network, flags: Flags, chosen: Chosen, at: bool, *, value: bool) -> Flags:
    marks = _checked(network, chosen)
    return {name: jnp.where(marks[name] == at, value, flags[name]) for name in flags}


def _checked(network: Network, chosen: Chosen) -> Flags:
    """`chosen` for every group of the network (absent groups: none), as bool arrays of the right shape."""
    for name in chosen:
        _ = network.groups[name]  # raises the error that lists the groups
    marks = {}
    for group in network.groups:
        marks[group.name] = jnp.asarray(chosen.get(group.name, jnp.zeros(group.size, bool)))
        if marks[group.name].dtype != bool or marks[group.name].shape[-1:] != (group.size,):
            found = f"{marks[group.name].dtype}{list(marks[group.name].shape)}"
            raise ValueError(f"`chosen[{group.name!r}]` is {found}, not bool[{group.size}]: make it with `choose`.")
    return marks
