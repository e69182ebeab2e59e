"""Batches on the device: random crops taken inside `jit`, from data that stays in integers.

The whole data set lies on the device as uint8 or uint16, a quarter or half of what floats would take, and every step
cuts its own batch from it with a key, so that a chunk of steps can be one `lax.scan` without the host. The only file of
this folder that needs jax; it must know nothing of networks, optimizers or files.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.tasks.data.split import Split
from maskprune.tasks.data.targets import unit


@partial(jax.tree_util.register_dataclass, data_fields=["inputs", "targets"], meta_fields=[])
@dataclass(frozen=True)
class DeviceSplit:
    """One side of a data set on the device.

    Attributes:
        inputs: uint8[N, S, S, 1].
        targets: uint8 or uint16[N, S, S, 1]; a stored value divided by the largest of its type is the value in [0, 1].
    """

    inputs: jax.Array
    targets: jax.Array


def to_device(split: Split) -> DeviceSplit:
    """Puts a side on the default device, in the types in which it is stored."""
    return DeviceSplit(jax.device_put(split.inputs), jax.device_put(split.targets))


class Parts:
    """A side on the device, whole, or part by part from the host where the memory is too small for it.

    Args:
        split: The side, on the host.
    """

    def __init__(self, split: Split) -> None:
        self._split, self._most, self._whole = split, max(1, len(split.inputs)), None

    def on_device(self) -> Iterator[DeviceSplit]:
        """All pictures, in order, each time in as few parts as `halve` has left; a part goes with the next."""
        if self._most >= len(self._split.inputs):
            self._whole = to_device(self._split) if self._whole is None else self._whole
            yield self._whole
            return
        for start in range(0, len(self._split.inputs), self._most):
            inputs, targets = (side[start : start + self._most] for side in self._split[:2])
            yield to_device(Split(inputs, targets, ()))

    def halve(self) -> str:
        """Parts of half as many pictures from now on, in words; "" if parts are single pictures already."""
        if self._most == 1:
            return ""
        self._most, self._whole, before = -(-self._most // 2), None, self._most
        return f"{self._most} pictures are judged at once in place of {before}"


def to_unit(stored: jax.Array | np.ndarray) -> jax.Array:
    """Stored integers as the values they stand for.

    Args:
        stored: uint8 or uint16, any shape.

    Returns:
        float32 in [0, 1], 1 exactly for the largest value of the type.

    Raises:
        TypeError: the type is not an unsigned integer; a float is a value already.
    """
    if not jnp.issubdtype(stored.dtype, jnp.unsignedinteger):
        raise TypeError(
            f"stored is {stored.dtype}; pass uint8 or uint16 as a Split holds it, floats need no conversion"
        )
    if isinstance(stored, np.ndarray):
        return jax.device_put(unit(stored))  # computed on the host, where nothing has to be compiled for it
    return stored.astype(jnp.float32) / jnp.float32(jnp.iinfo(stored.dtype).max)


def draw_batch(
    key: jax.Array, split: DeviceSplit, *, batch: int, crop: int, flips: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Draws pictures with replacement and cuts one square at a random place from each, input and target alike.

    Pure: the key decides everything. `batch` and `crop` are static; the rest may be traced, scanned or vmapped.

    Args:
        key: a typed key.
        split: what to draw from.
        batch: how many crops, at least 1.
        crop: side of a crop in pixels, from 1 to the size stored; the size itself gives whole pictures.
        flips: mirrors half of the crops left to right, and half top to bottom, input and target alike.

    Returns:
        Inputs and targets, float32[batch, crop, crop, 1] in [0, 1] each.

    Raises:
        ValueError: `batch` or `crop` is out of range.
    """
    _check(split, crop)
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    count, height, width, _ = split.inputs.shape
    below = jnp.array([count, height - crop + 1, width - crop + 1])
    # All three at once, and nothing for mirrors that are not wanted: random numbers take long to compile.
    whole = jax.vmap(lambda key, below: jax.random.randint(key, (batch,), 0, below))
    picture, row, column = whole(jax.random.split(key, 3), below)
    mirrored = jax.random.bernoulli(jax.random.fold_in(key, 3), shape=(2, batch, 1, 1, 1)) if flips else ()

    def cut(stored: jax.Array) -> jax.Array:  # [N, S, S, 1] -> [batch, crop, crop, 1]
        one = lambda i, r, c: jax.lax.dynamic_slice(stored, (i, r, c, 0), (1, crop, crop, 1))[0]
        crops = jax.vmap(one)(picture, row, column)
        for axis, some in zip((1, 2), mirrored, strict=False):
            crops = jnp.where(some, jnp.flip(crops, axis), crops)
        return to_unit(crops)

    return cut(split.inputs), cut(split.targets)


def centre(split: DeviceSplit, crop: int) -> DeviceSplit:
    """The centre squares of all pictures, still as integers: [N, crop, crop, 1].

    Args:
        split: one side, on the device.
        crop: side in pixels, from 1 to the size stored.

    Raises:
        ValueError: `crop` is out of range.
    """
    _check(split, crop)
    _, height, width, _ = split.inputs.shape
    row, column = (height - crop) // 2, (width - crop) // 2
    return jax.tree.map(lambda stored: stored[:, row : row + crop, column : column + crop], split)


def _check(split: DeviceSplit, crop: int) -> None:
    size = min(split.inputs.shape[1:3])
    if not 1 <= crop <= size:
        raise ValueError(f"crop={crop} must lie between 1 and {size}, the side of the stored pictures")
