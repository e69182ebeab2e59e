"""Populations: many networks trained side by side by one compiled loop.

Members differ in whatever a state holds, in their keys (initial weights, order of the data) and in their rates; masks
make other widths. They share the step and the data, and nothing else: no sum ever runs over two members, so a NaN in
one changes no bit of another. More members than fit into memory are trained group after group, and over the devices of
a mesh every group is divided. Knows no pictures, no framework and no selection.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskprune._strict import Count, strict
from maskprune.session import (
    Compiled,
    Course,
    Draw,
    Member,
    SessionReport,
    TrainMany,
    automatic,
    chunk_loop,
    chunks,
    end_of,
    not_finite,
    one_blas_thread,
    one_step,
    part_of,
)
from maskprune.train import Step, TrainState


CACHE = 2**19  # bytes of batches at once on a CPU: more members leave its caches (`benchmarks/population.py`)
FEW = 4  # where fewer than so many would be within them, one member after another is faster
SHARE = 0.8  # of the free memory, that a group may take
SLACK = 1.5  # a group compiled for up to so many times as many members is used again

Watch = Callable[[TrainState, np.ndarray], str]


class PopulationReport(NamedTuple):
    """What a population's session reports.

    Attributes:
        losses: float32[P, n], the loss of every step; NaN behind a member's last one.
        taken: int32[P], how many steps each member took.
        finite: bool[P], False where a loss or update was not finite.
        stopped: For each member why it ended early, or "".
        seconds: Wall time of all together, compilation included.
        compile_seconds: The part of it that was spent tracing and compiling.
        at_once: How many members were trained at once.
    """

    losses: np.ndarray
    taken: np.ndarray
    finite: np.ndarray
    stopped: tuple[str, ...]
    seconds: float
    compile_seconds: float
    at_once: int

    def member(self, number: int) -> SessionReport:
        """The report of one member as its own session would have given it; times are its share of the whole."""
        losses, finite = self.losses[number, : self.taken[number]], bool(self.finite[number])
        times = [spent / len(self.finite) for spent in (self.seconds, self.compile_seconds)]
        return SessionReport(losses, finite, self.stopped[number], *times)


class Population(NamedTuple):
    """A compiled training loop for many networks, made by `make_population`.

    Attributes:
        run: `run(keys, states, data, steps, *, until=None, rates=None, watch=None) -> (states, PopulationReport)`.
        compilations: `compilations() -> int`, how often the loop was compiled so far: once for a size of groups.
        programs: `programs() -> list[jax.stages.Compiled]`, what was compiled, the latest last.
    """

    run: Callable[..., tuple[TrainState, PopulationReport]]
    compilations: Callable[[], int]
    programs: Callable[[], list[jax.stages.Compiled]]


@strict
def stack(states: Sequence[TrainState]) -> TrainState:
    """One state with a leading axis of members, from states of one structure.

    Raises:
        ValueError: There is no state, or they differ in their groups, their shapes or their optimizer.
    """
    if not states:
        raise ValueError("`states` is empty: a population has at least one member.")
    kinds = {(jax.tree.structure(state), tuple(map(np.shape, jax.tree.leaves(state)))) for state in states}
    if len(kinds) > 1:
        raise ValueError("`states` differ in groups, shapes or optimizer: masks make widths differ, not shapes.")
    return jax.tree.map(lambda *leaves: jnp.asarray(np.stack([np.asarray(leaf) for leaf in leaves])), *states)


@strict
def unstack(states: TrainState) -> list[TrainState]:
    """The members of a stacked state. Reads the device."""
    host = jax.device_get(states)
    return [jax.tree.map(lambda leaf, i=number: jnp.asarray(leaf[i]), host) for number in range(len(host.step))]


@strict
def make_population(
    step: Step, draw: Draw, *, chunk: Count = 100, at_once: Count | None = None, mesh: Mesh | None = None
) -> Population:
    """Compiles many steps of many networks into one loop.

    Args:
        step: From `make_train_step`; it runs under `vmap`.
        draw: `draw(key, data) -> batch`, as in `make_session`; every member draws its own.
        chunk: Steps per dispatch, at least 1.
        at_once: Members trained at once. None: as many as fit into the free memory of the device, and on a CPU no more
            than keep their batches in its cache.
        mesh: Members are divided over all devices of this mesh, which may belong to several processes
            (`jax.distributed`): each process then calls `run` with the same arguments and gets the same results.

    Returns:
        A `Population`. Its `run` is that of a `Session` with a leading axis of P members on keys, states, rates and
        losses: member i computes what `session.run(keys[i], state i, data, steps, rate=rates[i])` would, to rounding.
        `watch(states, losses)` sees all members after every chunk and may end the session for all of them. Memory that
        turns out too small halves the groups, and the chunk is computed again.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"`at_once` is {at_once}: train one member at once, or more.")
    groups = _Groups(_loop(one_step(step, draw), chunk), draw, at_once, None if mesh is None else automatic(mesh))

    def run(
        keys: jax.Array,
        states: TrainState,
        data: Any,
        steps: int,
        *,
        until: int | None = None,
        rates: Any = None,
        watch: Watch | None = None,
    ) -> tuple[TrainState, PopulationReport]:
        began, compiling, count = time.perf_counter(), groups.compiled.seconds, len(keys)
        members, rates, done = _checked(keys, states, rates)
        end = end_of(done, steps, until)
        losses, taken, stopped = [], np.zeros(count, np.int32), ""
        data = groups.everywhere(data)
        with one_blas_thread():
            while done < end:
                lanes, courses = groups.split(members, keys, rates, data)
                advance = lambda lanes, target, courses=courses: groups.advance(lanes, courses, data, target, steps)
                try:
                    for found in chunks(advance, lanes, done, end, chunk):
                        alive = [lane.alive for lane in found[0]]
                        lost, moved, alive = (groups.join(each, count) for each in (*found[1:], alive))  # waits for it
                        lanes, done, taken = found[0], min(done + chunk, end), taken + moved
                        losses.append(_blank(lost[:, : max(moved)], moved))
                        if watch is not None:
                            states = jax.tree.map(jnp.asarray, groups.join(lanes, count).state)
                            stopped = watch(states, np.concatenate(losses, axis=1))
                        if stopped or not alive.any():
                            done = end
                            break
                except jax.errors.JaxRuntimeError as error:
                    groups.halve(count, error)
                members = groups.join(lanes, count)
        every = np.concatenate(losses, axis=1) if losses else np.zeros((count, 0), np.float32)
        finite, at = members.alive, members.state.step
        reasons = tuple(stopped if fine else not_finite(int(where)) for fine, where in zip(finite, at, strict=True))
        spent = (time.perf_counter() - began, groups.compiled.seconds - compiling)
        report = PopulationReport(every, taken, finite, reasons, *spent, groups.size(count))
        return jax.tree.map(jnp.asarray, members.state), report

    return Population(run, lambda: groups.compiled.count, groups.compiled.programs)


@strict
def train_many(population: Population, data: Any, *, watch: Callable[[int, int], Watch] | None = None) -> TrainMany:
    """Sessions side by side, as searches ask for them.

    Args:
        population: From `make_population`.
        data: What it draws from.
        watch: `watch(members, steps)` makes the watch of so many sessions of that length.

    Returns:
        `train(keys, states, *, steps, share=1.0, rate=1.0) -> [(state, report), ...]`: sessions of `steps` steps, up to
        that share of them, from wherever the states stand, every update multiplied by `rate`.
    """

    def train(
        keys: Sequence[jax.Array], states: Sequence[TrainState], *, steps: int, share: float = 1.0, rate: float = 1.0
    ) -> list[tuple[TrainState, SessionReport]]:
        rates = np.full(len(keys), rate, np.float32)
        look = watch(len(keys), steps) if watch else None
        until = part_of(steps, share)
        after, report = population.run(
            jnp.stack(list(keys)), stack(states), data, steps, until=until, rates=rates, watch=look
        )
        return [(state, report.member(number)) for number, state in enumerate(unstack(after))]

    return train


def _loop(advance: Callable[..., Any], chunk: int) -> Callable[..., Any]:
    """The loop of a session, with a leading axis of members. A group of one is faster trained as in a session."""
    alone, together = chunk_loop(advance, chunk), chunk_loop(jax.vmap(advance, (0, 0, None, None, None)), chunk)

    def run(members: Member, courses: Course, *others: Any) -> Any:
        if len(members.alive) > 1:
            return together(members, courses, *others)
        found = alone(*jax.tree.map(lambda leaf: leaf[0], (members, courses)), *others)
        return jax.tree.map(lambda leaf: leaf[None], found)

    return run


class _Groups:
    """How members become groups that are trained one after another, and how these lie on the devices."""

    def __init__(self, loop: Callable[..., Any], draw: Draw, most: int | None, mesh: Mesh | None) -> None:
        self._draw, self._most, self._given, self._mesh = draw, most, most is not None, mesh
        self._devices = 1 if mesh is None else mesh.size
        self._sizes: set[int] = set()  # those with a compiled program
        if mesh is not None:
            each, same = PartitionSpec(mesh.axis_names), PartitionSpec()
            # Members need no word from one another: every device goes its own way to the end of the chunk.
            specs = (each, each, same, same, same)
            loop = jax.shard_map(loop, mesh=mesh, in_specs=specs, out_specs=each, check_vma=False)
        self.compiled = Compiled(loop)

    def size(self, count: int) -> int:
        """How many of `count` members are trained at once."""
        most = min(self._most or count, count)
        known = [size for size in self._sizes if count <= size <= max(SLACK * count, self._devices)]
        if known:
            return min(known)
        size = math.ceil(count / math.ceil(count / most))
        return math.ceil(size / self._devices) * self._devices

    def everywhere(self, data: Any) -> Any:
        return data if self._mesh is None else jax.device_put(data, NamedSharding(self._mesh, PartitionSpec()))

    def split(self, members: Member, keys: jax.Array, rates: np.ndarray, data: Any) -> tuple[list[Any], list[Any]]:
        """Groups on the devices, of a size that fits into memory; the last is filled up with members that stand."""
        count, key_data = len(rates), np.asarray(jax.random.key_data(keys))
        if self._most is None and jax.default_backend() == "cpu":
            batch = jax.tree.leaves(jax.eval_shape(self._draw, jax.random.key(0), data))
            within = CACHE // max(1, sum(leaf.size * leaf.dtype.itemsize for leaf in batch))
            self._most = self._devices * (within if within >= FEW else 1)
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

    def halve(self, count: int, error: Exception) -> None:
        """Meets an error: half as many members at once, if memory was short and there is anything to halve."""
        size = self.size(count)
        if "RESOURCE_EXHAUSTED" not in str(error) or size <= self._devices:
            raise error
        self._sizes, self._most = {known for known in self._sizes if known < size}, size // 2

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


def _checked(keys: jax.Array, states: TrainState, rates: Any) -> tuple[Member, np.ndarray, int]:
    """Members and rates on the host, and the step at which all members stand."""
    count, sizes = len(keys), {np.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if count < 1 or sizes != {(count,)}:
        found = ", ".join(str(size[0]) if size else "no axis" for size in sorted(sizes))
        raise ValueError(f"`keys` has {count} members, and the leaves of `states` have {found}: `stack` the states.")
    rates = np.ones(count, np.float32) if rates is None else np.asarray(rates, np.float32)
    if rates.shape != (count,):
        raise ValueError(f"`rates` has shape {rates.shape}: give one factor for each of {count} members.")
    states = jax.device_get(states)
    at = sorted(set(states.step.tolist()))
    if len(at) > 1:
        raise ValueError(f"`states` stand at the steps {at}: train members of the same step together.")
    return Member(states, np.ones(count, bool)), rates, at[0]


def _blank(losses: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Losses with NaN where a member no longer moved."""
    return np.where(np.arange(losses.shape[1]) < moved[:, None], losses, np.float32(np.nan))


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
