"""What selectors share: the signature, views of the parameters mask by mask, wrappers, and the order of removal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.base.returned import named_arrays, refuse
from maskprune.masks.alterations import disable
from maskprune.masks.groups import Group, Groups, Role, Slice, leaves_by_path
from maskprune.masks.half_precision import wide
from maskprune.masks.network import Flags, Network, Params, effective_params


Scores = dict[str, jax.Array]  # {group: float[C]}
Loss = Callable[[Params, Any], jax.Array]  # loss(params, batch) -> float[], as given to `make_train_step`
Remove = Callable[[Network, Flags, Any], Network]  # remove(network, chosen, batch) -> network without the chosen


class Selector(Protocol):
    """Scores masks; the lowest goes first.

    Called as `selector(key, network, batch)`: a PRNG key, the network, and a sample of training data of whatever form
    the user's loss takes. Returns `{group: float[C]}`, finite at enabled masks; what disabled masks score is ignored.
    """

    def __call__(self, key: jax.Array, network: Network, batch: Any, /) -> Scores: ...


@strict
def mask_sums(
    group: Group, tree: Params, *, roles: Sequence[Role] = ("out",), of: Callable[[jax.Array], jax.Array] = lambda x: x
) -> jax.Array:
    """Sums `of(entry)` over the entries of every mask of a group.

    Args:
        group: The group.
        tree: Pytree like the parameters (the parameters themselves, gradients, products of both ...).
        roles: `("out",)` for a mask's own numbers, `("in",)` for those that read it.
        of: Elementwise function, such as `jnp.abs`.

    Returns:
        float[C].

    Raises:
        KeyError: `tree` lacks a leaf of the group.
    """
    leaves = _own_leaves(group, tree, "tree")
    total = jnp.zeros(group.size)
    for piece in group.slices:
        if piece.role in roles:
            rows = jnp.moveaxis(of(wide(leaves[piece.leaf])), piece.axis, 0).reshape(len(piece.labels), -1)
            total = total + _by_mask(piece, group.size, jnp.sum(rows, axis=1))
    return total


def _own_leaves(group: Group, tree: Params, name: str) -> dict[str, jax.Array]:
    """The leaves of a tree by their paths, which must hold those of the group."""
    leaves = leaves_by_path(tree)
    missing = [piece.leaf for piece in group.slices if piece.leaf not in leaves and piece.role != "state"]
    if missing:
        raise KeyError(f"`{name}` has no leaf `{missing[0]}`, which group `{group.name}` touches: give the parameters.")
    return leaves


@strict
def mask_vectors(group: Group, params: Params) -> jax.Array:
    """The own numbers of every mask (kernel, bias) as one row each: float[C, D].

    A mask that owns fewer positions of a leaf than another is filled up with zeros.

    Raises:
        KeyError: `params` lacks a leaf of the group.
    """
    leaves = _own_leaves(group, params, "params")
    return jnp.concatenate(
        [_rows(piece, group.size, wide(leaves[piece.leaf])) for piece in group.with_role("out")], axis=1
    )


@strict
@partial(jax.jit, inline=True)
def outgoing_norms(network: Network) -> Scores:
    """Euclidean norm of what reads each mask: `{group: float[C]}`."""
    params = effective_params(network)
    return {g.name: jnp.sqrt(mask_sums(g, params, roles=("in",), of=jnp.square)) for g in network.groups}


def by_group(groups: Groups, values: jax.Array) -> Scores:
    """Numbers of all masks in network order, [..., masks], as `{group: [..., C]}`."""
    ends = np.cumsum([group.size for group in groups])
    return dict(zip(groups.names, jnp.split(values, ends[:-1], axis=-1), strict=True))


@strict
def without(network: Network, chosen: Flags, batch: Any) -> Network:
    """The plainest way to remove masks: they are disabled, and nothing makes up for them.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    del batch
    return disable(network, chosen)


@strict
def reverse(selector: Selector) -> Selector:
    """The opposite order: what the selector keeps longest goes first."""

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        return {name: -values for name, values in scores_of(selector, key, network, batch).items()}

    return score


@strict
def standardize(selector: Selector) -> Selector:
    """Scores shifted and scaled, group by group, to mean 0 and deviation 1 over the enabled masks.

    Equal scores all become 0. Scores of layers with 26 and 126 numbers a mask are not comparable as they stand.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        scores = scores_of(selector, key, network, batch)
        return {name: _standardized(wide(values), network.enabled[name]) for name, values in scores.items()}

    return score


@strict
def equal_shares(selector: Selector) -> Selector:
    """The order of another selector within each group, and the same share of every group: uniform width.

    A mask's score is its place in its group over the group's size, in (0, 1]; masks that are gone count as the first.
    """

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        scores = scores_of(selector, key, network, batch)
        return {name: _places(values, network.enabled[name]) / values.size for name, values in scores.items()}

    return score


def _places(values: jax.Array, enabled: jax.Array) -> jax.Array:
    return jnp.argsort(jnp.argsort(jnp.where(enabled, values, -jnp.inf))) + 1


@strict
def rank(scores: Mapping[str, Any], network: Network) -> list[tuple[str, int]]:
    """All masks in the order of removal: lowest score first, ties by smaller outgoing norm, then in network order.

    Args:
        scores: `{group: float[C]}`, one entry for every group of `network`.
        network: Gives the groups and the outgoing norms.

    Returns:
        Pairs `(group name, mask number)`. A NaN counts as infinity, so it goes last; `unscored` tells of it. Reads the
        device.

    Raises:
        ValueError: A group is missing or a score array has the wrong shape.
    """
    norms = outgoing_norms(network)
    rows = []
    for position, group in enumerate(network.groups):
        values, ties = _host_scores(scores, group), np.asarray(norms[group.name], np.float64)
        rows += [(values[i], ties[i], position, i, group.name) for i in range(group.size)]
    rows.sort()
    return [(name, number) for *_, number, name in rows]


@strict
def unscored(scores: Mapping[str, Any], network: Network) -> dict[str, list[int]]:
    """The enabled masks whose score is NaN or infinite, `{group: [numbers]}`; a selector promises that there are none.

    Raises:
        ValueError: See `rank`.
    """
    found = {}
    for group in network.groups:
        bad = ~np.isfinite(_host_scores(scores, group)) & np.asarray(network.enabled[group.name])
        found |= {group.name: np.flatnonzero(bad).tolist()} if bad.any() else {}
    return found


def scores_of(selector: Selector, key: jax.Array, network: Network, batch: Any) -> Scores:
    """What a selector gives, if that is a mapping."""
    return named_arrays(selector(key, network, batch), "selector")


def _host_scores(scores: Mapping[str, Any], group: Group) -> np.ndarray:
    if group.name not in scores:
        raise ValueError(
            f"The selector gave no scores for group `{group.name}`, only for {', '.join(scores) or 'none'}."
        )
    values = np.asarray(scores[group.name])
    if values.dtype.kind not in "biufV":  # V: bfloat16 and its like
        refuse("selector", values, f"real numbers as the scores of `{group.name}`")
    values = values.astype(np.float64)
    if values.shape != (group.size,):
        raise ValueError(f"The selector's scores of `{group.name}` have shape {values.shape}, not ({group.size},).")
    return np.where(np.isnan(values), np.inf, values)


def _by_mask(piece: Slice, size: int, values: jax.Array) -> jax.Array:
    labels = np.asarray(piece.labels)
    # Positions of no mask (-1) are summed into a last bin that is dropped.
    return jax.ops.segment_sum(values, np.where(labels < 0, size, labels), num_segments=size + 1)[:size]


def _rows(piece: Slice, size: int, leaf: jax.Array) -> jax.Array:
    rows = jnp.moveaxis(leaf, piece.axis, 0).reshape(len(piece.labels), -1)
    rows = jnp.concatenate([rows, jnp.zeros((1, rows.shape[1]), rows.dtype)])  # the last row stands for "no position"
    owned = [np.flatnonzero(np.asarray(piece.labels) == mask) for mask in range(size)]
    most = max(len(positions) for positions in owned)
    index = np.array([[*positions, *[-1] * (most - len(positions))] for positions in owned], np.int32).reshape(
        size, most
    )
    return rows[index].reshape(size, -1)


def _standardized(values: jax.Array, enabled: jax.Array) -> jax.Array:
    mean = jnp.mean(values, where=enabled)
    deviation = jnp.std(values, where=enabled)
    # Equal scores deviate by the rounding of their mean, which must not be blown up to 1.
    rounding = 1e-6 * jnp.max(jnp.abs(values), where=enabled, initial=0.0)
    return (values - mean) / jnp.where(deviation > rounding, deviation, jnp.inf)
