"""Alterations: what can be done to a mask, at any time, to any number of masks at once.

Every alteration is a pure function `Network -> Network`. It leaves its argument untouched, so stepping back is using
the earlier value. None of them knows an optimizer: the only way back to training is `init_state`, which starts one
afresh.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.groups import Slice, leaf_path, leaves_by_path
from maskprune.masks.network import Flags, Network, Params, entries, match_leaves, on_device


Chosen = Mapping[str, Any]  # {group: bool[C]}, as made by `choose`


@strict
def disable(network: Network, chosen: Chosen) -> Network:
    """Switches masks off: they contribute exactly nothing, keep their stored weights and never learn.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    return dataclasses.replace(network, enabled=_merge(network, network.enabled, chosen, value=False))


@strict
def enable(network: Network, chosen: Chosen) -> Network:
    """Switches masks on again, with the weights they had when they were disabled.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    return dataclasses.replace(network, enabled=_merge(network, network.enabled, chosen, value=True))


@strict
def freeze(network: Network, chosen: Chosen | None = None, *, leaves: str | Sequence[str] = ()) -> Network:
    """Holds the own numbers of masks (kernel, bias, statistics) bit for bit; they still produce output.

    Args:
        network: The network.
        chosen: `{group: bool[C]}`, which masks. They are data: other masks compile nothing anew.
        leaves: Patterns (as in `fnmatch`) of whole leaves, such as `"encoder/*"`. In the model state, leaves that match
            are held, and those of a layer whose parameters are all held: `"norm/*"` holds the statistics of `norm`.
            Which leaves are held is static: a training step compiles again where they change.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group, a pattern matches no leaf, or neither masks
            nor leaves are given.
    """
    return _held(network, chosen, leaves, hold=True)


@strict
def thaw(network: Network, chosen: Chosen | None = None, *, leaves: str | Sequence[str] = ()) -> Network:
    """Lets frozen masks, or whole leaves, learn again.

    Args:
        network: The network.
        chosen: `{group: bool[C]}`, which masks.
        leaves: Patterns of whole leaves, as for `freeze`; `"*"` lets all of them learn.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group, a pattern matches no leaf, or neither masks
            nor leaves are given.
    """
    return _held(network, chosen, leaves, hold=False)


def _held(network: Network, chosen: Chosen | None, leaves: str | Sequence[str], *, hold: bool) -> Network:
    if chosen is None and not leaves:
        raise ValueError(
            "`chosen` and `leaves` are missing: give masks, made by `choose`, or patterns of whole leaves."
        )
    named = match_leaves("leaves", leaves, network.params, network.groups)
    before, every = set(network.fixed), match_leaves("leaves", "*", network.params, network.groups)
    fixed = before | set(named) if hold else before - set(named)
    frozen = _merge(network, network.frozen, chosen or {}, value=hold)
    return dataclasses.replace(network, frozen=frozen, fixed=tuple(path for path in every if path in fixed))


@strict
def reinitialize(key: jax.Array, network: Network, chosen: Chosen, init: Callable[[jax.Array], Params]) -> Network:
    """Gives masks a fresh draw from the initial distribution; what reads them stays as it is.

    Args:
        key: PRNG key of the draw.
        network: The network.
        chosen: `{group: bool[C]}`, which masks.
        init: `init(key) -> params`, the initial distribution of the whole network (biases at their initial values).

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    return _overwrite(network, _checked(network, chosen), init(key))


@strict
def zero_weights(network: Network, chosen: Chosen, *, part: Literal["kernel", "all"] = "kernel") -> Network:
    """Sets the weights of masks to zero, once; they may relearn afterwards.

    Args:
        network: The network.
        chosen: `{group: bool[C]}`, which masks.
        part: `"kernel"` leaves the biases alone. With `"all"` a mask behind a ReLU can never relearn, because the
            gradient of ReLU at 0 is 0.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """

    def zero(path: Any, leaf: jax.Array) -> Any:
        return leaf if part == "kernel" and _is_bias(leaf_path(path), leaf) else np.zeros((), leaf.dtype)

    values = jax.tree_util.tree_map_with_path(zero, network.params)
    return _overwrite(network, _checked(network, chosen), values)


def _is_bias(path: str, leaf: jax.Array) -> bool:
    return leaf.ndim <= 1 or path.rsplit("/", 1)[-1] in ("bias", "b")


@strict
def bypass(network: Network, name: str) -> Network:
    """Makes a layer hand on what it reads: its masks become the identity and are held there.

    Behind a ReLU, or on inputs that are not negative, a convolution that hands on its input followed by a ReLU is no
    layer at all: `models.drop_identities` then takes it out for good.

    Args:
        network: The network.
        name: The group of the layer, which must have a kernel and at most biases, as many enabled masks as enabled
            inputs, and no frozen mask.

    Raises:
        KeyError: There is no group `name`.
        ValueError: The layer cannot be bypassed; the message says why.
    """
    if why := why_no_bypass(network, name):
        raise ValueError(f"Layer `{name}` cannot be bypassed: {why}.")
    own = own_slices(network, name)
    kernel, reads, writes = kernel_of(network, own)
    leaves = leaves_by_path(network.params)
    masks, inputs = np.flatnonzero(network.enabled[name]), _enabled_inputs(network, kernel, reads)
    shape = leaves[kernel].shape
    identity = np.moveaxis(np.zeros(shape), (reads, writes), (-2, -1))
    outputs = np.flatnonzero(np.isin(own[kernel].labels, masks))
    identity[(*(size // 2 for size in identity.shape[:-2]), inputs, outputs)] = 1
    values = {path: np.zeros(leaves[path].shape) for path in own} | {
        kernel: np.moveaxis(identity, (-2, -1), (reads, writes))
    }
    chosen = {name: network.enabled[name]}
    every = jax.tree_util.tree_map_with_path(lambda path, leaf: values.get(leaf_path(path), leaf), network.params)
    return freeze(_overwrite(network, _checked(network, chosen), every), chosen)


@strict
def why_no_bypass(network: Network, name: str) -> str:
    """Why a layer cannot be bypassed, or "".

    Raises:
        KeyError: There is no group `name`.
    """
    own = own_slices(network, name)
    leaves = leaves_by_path(network.params)
    kernels = [path for path in own if leaves[path].ndim >= 2]
    if len(kernels) != 1 or any("bias" not in path.rpartition("/")[2] for path in own if path not in kernels):
        return f"it has the leaves {', '.join(own)}, and only a kernel with a bias is understood"
    kernel, reads, writes = kernel_of(network, own)
    window = [size for axis, size in enumerate(leaves[kernel].shape) if axis not in (reads, writes)]
    if any(size % 2 == 0 for size in window):
        return f"its window is {window}, which has no middle"
    if np.any(network.frozen[name]):
        return "some of its masks are frozen"
    inputs, masks = len(_enabled_inputs(network, kernel, reads)), int(np.sum(network.enabled[name]))
    if inputs != masks:
        return f"it reads {inputs} channels and gives {masks}"
    return ""


def own_slices(network: Network, name: str) -> dict[str, Slice]:
    return {piece.leaf: piece for piece in network.groups[name].with_role("out")}


def kernel_of(network: Network, own: Mapping[str, Slice]) -> tuple[str, int, int]:
    """The kernel's leaf, the axis it reads (that of other masks' `in` slices, else the one beside), its own axis."""
    leaves = leaves_by_path(network.params)
    kernel = next(path for path in own if leaves[path].ndim >= 2)
    writes = own[kernel].axis
    read = [piece.axis for _, piece in network.groups.of_leaf(kernel) if piece.role == "in"]
    return kernel, read[0] if read else (writes - 1 if writes else 1), writes


def _enabled_inputs(network: Network, kernel: str, reads: int) -> np.ndarray:
    """Positions along the axis a kernel reads that belong to no disabled mask."""
    stays = np.ones(leaves_by_path(network.params)[kernel].shape[reads], bool)
    for group, piece in network.groups.of_leaf(kernel):
        if piece.axis == reads:
            stays &= np.append(np.asarray(network.enabled[group.name]), True)[list(piece.labels)]
    return np.flatnonzero(stays)


def _merge(network: Network, flags: Flags, chosen: Chosen, *, value: bool) -> Flags:
    return _set(flags, _checked(network, chosen), np.bool_(value))


@partial(jax.jit, inline=True)
def _set(flags: Flags, marks: Flags, value: Any) -> Flags:
    return {name: jnp.where(marks[name], value, flags[name]) for name in flags}


@partial(jax.jit, inline=True)
def _overwrite(network: Network, marks: Flags, values: Params) -> Network:
    """The network with the own entries of marked masks taken from `values`, which broadcast against the parameters."""
    own = entries(network.groups, network.params, marks, roles=("out",))
    params = jax.tree.map(
        lambda old, new, mine: jnp.where(mine, jnp.asarray(new, old.dtype), old), network.params, values, own
    )
    return dataclasses.replace(network, params=params)


def _checked(network: Network, chosen: Chosen) -> Flags:
    """`chosen` for every group of the network (absent groups: none), as bool arrays of the right shape."""
    for name in chosen:
        _ = network.groups[name]  # raises the error that lists the groups
    marks = {}
    for group in network.groups:
        marks[group.name] = on_device(chosen.get(group.name, np.zeros(group.size, bool)))
        if marks[group.name].dtype != bool or marks[group.name].shape[-1:] != (group.size,):
            found = f"{marks[group.name].dtype}{list(marks[group.name].shape)}"
            raise ValueError(f"`chosen[{group.name!r}]` is {found}, not bool[{group.size}]: make it with `choose`.")
    return marks
