"""How the members of a population become groups, trained one after another, and how these lie on the devices.

Knows what a member is, and memory; nothing of how long is trained or who watches.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskprune.train.session import Compiled, Course, Draw, Member


CACHE = 2**19  # bytes of batches at once on a CPU: more members leave its caches (`benchmarks/population.py`)
FEW = 4  # where fewer than so many would be within them, one member after another is faster
SHARE = 0.8  # of the free memory, that a group may take


class Lanes:
    """Groups of members, all of one size.

    Args:
        loop: A loop over members with a leading axis, from `population`.
        draw: See `make_session`; tells how large batches are.
        most: Members trained at once, on every device where they are `fixed`; None for what memory allows.
        fixed: Whether groups have that very size however few members there are, so that one program serves all.
        mesh: Whose devices share a group.

    Attributes:
        compiled: The loop, compiled for every size of groups.
    """

    def __init__(
        self, loop: Callable[..., Any], draw: Draw, most: int | None, *, fixed: bool = False, mesh: Mesh | None = None
    ) -> None:
        self._devices = 1 if mesh is None else mesh.size
        self._fixed = (most or 1) * self._devices if fixed else 0
        self._draw, self._most, self._given, self._mesh = draw, most, most is not None or fixed, mesh
        self._sizes: set[int] = set()  # those with a compiled program
        if mesh is not None:
            each, same = PartitionSpec(mesh.axis_names), PartitionSpec()
            # Members need no word from one another: every device goes its own way to the end of the chunk.
            specs = (each, each, same, same, same)
            loop = jax.shard_map(loop, mesh=mesh, in_specs=specs, out_specs=each, check_vma=False)
        self.compiled = Compiled(loop)

    def size(self, count: int) -> int:
        """How many of `count` members are trained at once."""
        if self._fixed:
            return self._fixed
        most = min(self._most or count, count)
        size = math.ceil(count / math.ceil(count / most))
        size = size if self._given else min(_round(size), max(size, self._most or math.inf))
        return math.ceil(size / self._devices) * self._devices

    def everywhere(self, data: Any) -> Any:
        return data if self._mesh is None else jax.device_put(data, NamedSharding(self._mesh, PartitionSpec()))

    def split(self, members: Member, keys: jax.Array, rates: np.ndarray, data: Any) -> tuple[list[Any], list[Any]]:
        """Groups on the devices, of a size that fits into memory; the last is filled up with members that stand."""
        count, key_data = len(rates), np.asarray(jax.random.key_data(keys))
        if not self._given and self._most is None and jax.default_backend() == "cpu":
            self._most = self._devices * self._within_cache(data)
        while True:
            size = self.size(count)
            rows = np.arange(math.ceil(count / size) * size).reshape(-1, size)
            lanes = [self._lane(members, row) for row in rows]
            courses = [self._course(key_data, jax.random.key_impl(keys), rates, row) for row in rows]
            program = self.compiled.get(lanes[0], courses[0], data, np.int32(0), np.int32(0))
            fits = 1.0 if self._given or size in self._sizes else _share_that_fits(program)
            if fits >= 1 or size == self._devices:
                self._sizes.add(size)
                return lanes, courses
            self._most = max(1, int(size * fits))

    def advance(self, lanes: list[Any], courses: list[Any], data: Any, until: np.int32, steps: int) -> Any:
        pairs = zip(lanes, courses, strict=True)
        found = [self.compiled(lane, course, data, until, np.int32(steps)) for lane, course in pairs]
        return tuple(zip(*found, strict=True))

    def join(self, pieces: Sequence[Any], count: int) -> Any:
        """What groups hold, as one tree of host arrays with `count` members. Waits for the devices."""
        gather = jax.device_get
        if jax.process_count() > 1:
            gather = lambda tree: jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), tree)
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *[gather(piece) for piece in pieces])

    def halve(self, count: int) -> str:
        """Half as many members at once, in words; "" where there is nothing to halve, or the size is fixed."""
        size = self.size(count)
        if self._fixed or size <= self._devices:
            return ""
        self._sizes, self._most = {known for known in self._sizes if known < size}, size // 2
        return f"{self.size(count)} networks are trained at once in place of {size}"

    def _within_cache(self, data: Any) -> int:
        batch = jax.tree.leaves(jax.eval_shape(self._draw, jax.random.key(0), data))
        within = CACHE // max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in batch))
        return within if within >= FEW else 1

    def _lane(self, members: Member, row: np.ndarray) -> Member:
        last = len(members.alive) - 1
        lane = jax.tree.map(lambda leaf: leaf[np.minimum(row, last)], members)
        return self._put(Member(lane.state, lane.alive & (row <= last)))

    def _course(self, key_data: np.ndarray, implementation: Any, rates: np.ndarray, row: np.ndarray) -> Course:
        row = np.minimum(row, len(rates) - 1)
        keys = jax.random.wrap_key_data(self._put(key_data[row]), impl=implementation)
        return Course(keys, self._put(rates[row]))

    def _put(self, tree: Any) -> Any:
        if self._mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        spread = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, spread, leaf.__getitem__), tree)


def _round(size: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24 and so on: few sizes are compiled, whatever was trained before."""
    power = 2 ** math.ceil(math.log2(size))
    return power * 3 // 4 if power > 2 and size <= power * 3 // 4 else power


def _share_that_fits(program: jax.stages.Compiled) -> float:
    """The share of a program's members that would fit into the free memory; 1 or more if all do."""
    needed, free = program.memory_analysis(), _free_memory()
    if needed is None or free is None:
        return 1.0
    return SHARE * free / max(1, needed.temp_size_in_bytes + needed.output_size_in_bytes)


def _free_memory() -> int | None:
    """Free bytes of the first device, or of the machine where the CPU computes; None if nobody says."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
