"""What reads the masks of a group: the kernels, and what arrives at them on real data.

A reader is a kernel with an axis that belongs to the masks: of a convolution of stride 1 that keeps the size, or of a
dense layer. What it makes of the masks before its bias is linear in what they put out, which is why one mask can stand
in for another. This file must not know how networks are trained or judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.groups import Group, Slice, leaves_by_path
from maskprune.masks.half_precision import wide, widely
from maskprune.masks.network import Network, Params, wide_params
from maskprune.train.accurate_sums import centred, product_of_rows


# activations(params, batch) -> {group: float[N, H, W, C] or float[N, C]}, as the readers find them
Activations = Callable[[Params, Any], Mapping[str, jax.Array]]


class Reader(NamedTuple):
    """A kernel that reads the masks of a group.

    Attributes:
        kernel: Path of its leaf, float[k, l, I, O] or float[I, O].
        positions: For each mask, where it stands along I.
        window: The first sides of the kernel, (k, l) or ().
        bias: Path of the bias beside it, or "".
    """

    kernel: str
    positions: tuple[int, ...]
    window: tuple[int, ...]
    bias: str

    @property
    def taps(self) -> int:
        return int(np.prod(self.window))


def readers_of(network: Network, group: Group) -> list[Reader]:
    """Everything that reads a group.

    Raises:
        ValueError: Something reads it in another way than one position a mask of a kernel as above.
    """
    leaves = leaves_by_path(network.params)
    return [_reader(group, piece, leaves) for piece in group.with_role("in")]


def read_values(activations: Activations, network: Network, batch: Any) -> dict[str, jax.Array]:
    """What the masks put out, zero at those that are disabled.

    Raises:
        ValueError: A group is missing or its last axis is not that of its masks.
    """
    found, values = widely(activations, network.params)(wide_params(network), batch), {}
    for group in network.groups:
        if group.name not in found or found[group.name].shape[-1] != group.size:
            shapes = {name: each.shape for name, each in found.items()}
            raise ValueError(f"`activations` gave {shapes}, but group `{group.name}` needs [..., {group.size}].")
        values[group.name] = jnp.where(network.enabled[group.name], wide(found[group.name]), 0)
    return values


def columns(reader: Reader, values: jax.Array, *, border: int) -> jax.Array:
    """What arrives at each tap of a kernel: float[P, C * taps], mask after mask, a row for every position.

    Args:
        reader: The reader.
        values: float[N, H, W, C] for a convolution, float[..., C] for a dense layer.
        border: Pixels left out at each side, for convolutions.

    Raises:
        ValueError: `values` has other axes, or the border leaves nothing.
    """
    if not reader.window:
        return values.reshape(-1, values.shape[-1])
    if values.ndim != 4 or not 0 <= 2 * border < min(values.shape[1:3]):
        raise ValueError(
            f"What `{reader.kernel}` reads has shape {values.shape}: it must be [N, H, W, C], larger than twice the "
            f"border, which is {border}."
        )
    (down, right), (tall, wide) = reader.window, values.shape[1:3]
    padded = jnp.pad(values, ((0, 0), (down // 2,) * 2, (right // 2,) * 2, (0, 0)))
    shifted = [
        padded[:, row + border : row + tall - border, column + border : column + wide - border]
        for row in range(down)
        for column in range(right)
    ]
    return jnp.stack(shifted, axis=-1).reshape(-1, values.shape[3] * reader.taps)


def weights(reader: Reader, params: Params) -> jax.Array:
    """The kernel in the order of `columns`: float[C * taps, O]."""
    kernel = leaves_by_path(params)[reader.kernel]
    rows = jnp.moveaxis(kernel, -2, 0)[np.asarray(reader.positions)]
    return rows.reshape(-1, kernel.shape[-1])


def add_weights(reader: Reader, kernel: jax.Array, step: jax.Array) -> jax.Array:
    """The kernel after a step in the order of `columns`."""
    rows = step.reshape(len(reader.positions), *reader.window, kernel.shape[-1])
    moved = jnp.moveaxis(kernel, -2, 0).at[np.asarray(reader.positions)].add(rows.astype(kernel.dtype))
    return jnp.moveaxis(moved, 0, -2)


def covariance(arrived: jax.Array, *, constant: bool = True) -> tuple[jax.Array, jax.Array]:
    """Means float[D] of columns, and their covariances float[D, D]: what is left of their products after a constant.

    Without a constant the means count as zero.
    """
    mean = jnp.mean(arrived, axis=0) if constant else jnp.zeros(arrived.shape[1])
    apart = centred(arrived) if constant else arrived
    return mean, product_of_rows(apart, apart) / len(arrived)


def ridge_of(gram: jax.Array, ridge: float) -> jax.Array:
    """What is added to the diagonal: `ridge` times the mean of the entries that are not zero."""
    diagonal = jnp.diag(gram)
    mean = jnp.sum(diagonal) / jnp.maximum(jnp.sum(diagonal > 0), 1)
    return jnp.where(mean > 0, ridge * mean, 1.0)


def _reader(group: Group, piece: Slice, leaves: Mapping[str, Any]) -> Reader:
    shape, places = leaves[piece.leaf].shape, np.asarray(piece.labels)
    counts = np.bincount(places[places >= 0], minlength=group.size)
    fits = len(shape) in (2, 4) and piece.axis == len(shape) - 2 and all(side % 2 for side in shape[:-2])
    if not fits or np.any(counts != 1):
        raise ValueError(
            f"Group `{group.name}` is read along axis {piece.axis} of `{piece.leaf}`, whose shape is {shape}, at "
            f"{counts.tolist()} positions a mask: only kernels [k, l, I, O] with odd k and l or [I, O], read along I "
            "at one position a mask, are understood."
        )
    positions = tuple(int(np.flatnonzero(places == mask)[0]) for mask in range(group.size))
    return Reader(piece.leaf, positions, tuple(shape[:-2]), _bias_beside(piece.leaf, leaves))


def _bias_beside(kernel: str, leaves: Mapping[str, Any]) -> str:
    parent = kernel.rpartition("/")[0]
    places = [f"{parent}/{name}" if parent else name for name in ("bias", "b")]
    size = leaves[kernel].shape[-1:]
    return next((place for place in places if place in leaves and leaves[place].shape == size), "")
