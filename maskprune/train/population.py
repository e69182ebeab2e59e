"""Populations: many networks trained side by side by one compiled loop.

Members differ in whatever a state holds, in their keys (initial weights, order of the data) and in their rates; masks
make other widths. They share the step and the data, and nothing else: no sum ever runs over two members, so a NaN in
one changes no bit of another. More members than fit into memory are trained group after group, and over the devices of
a mesh every group is divided (`batching`). Knows no pictures, no framework and no selection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from maskprune.base.checks import Count, strict
from maskprune.base.returned import words
from maskprune.train.batching import Lanes
from maskprune.train.memory_retry import with_less_memory
from maskprune.train.session import (
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
from maskprune.train.step import Step, TrainState


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
        run: `run(keys, states, data, steps, *, until=None, rates=None, watch=None, alive=None) -> (states, report)`.
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
    step: Step,
    draw: Draw,
    *,
    chunk: Count = 100,
    at_once: Count | None = None,
    invariant: bool = False,
    mesh: Mesh | None = None,
) -> Population:
    """Compiles many steps of many networks into one loop.

    Args:
        step: From `make_train_step`; it runs under `vmap`.
        draw: `draw(key, data) -> batch`, as in `make_session`; every member draws its own.
        chunk: Steps per dispatch, at least 1.
        at_once: Members trained at once. None: as many as fit into the free memory of the device, and on a CPU no more
            than keep their batches in its cache.
        invariant: A member's bits depend on nothing but its state, key and rate: not on how many members there are, nor
            on its place among them. One program then serves all sizes: members go one after another, on every device
            of a mesh, or with `at_once` in groups of exactly that many, of which the last is filled up. Groups of more
            than one are invariant as far as XLA computes every place of a batch alike: measured so for the small
            networks of the tests on a CPU, not promised anywhere. Without it members agree to rounding.
        mesh: Members are divided over all devices of this mesh, which may belong to several processes
            (`jax.distributed`): each process then calls `run` with the same arguments and gets the same results.

    Returns:
        A `Population`. Its `run` is that of a `Session` with a leading axis of P members on keys, states, rates and
        losses: member i computes what `session.run(keys[i], state i, data, steps, rate=rates[i])` would, to rounding.
        `watch(states, losses)` sees all members after every chunk and may end the session for all of them. Those that
        are not `alive`, bool[P], stand still, as after a step that was not finite. Memory that turns out too small
        halves the groups, up to three times, with a warning, and the chunk is computed again; `invariant` groups are
        never halved, since that would change bits.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"`at_once` is {at_once}: train one member at once, or more.")
    mesh = None if mesh is None else automatic(mesh)
    lanes = Lanes(_loop(one_step(step, draw), chunk), draw, at_once, fixed=invariant, mesh=mesh)

    def run(
        keys: jax.Array,
        states: TrainState,
        data: Any,
        steps: int,
        *,
        until: int | None = None,
        rates: Any = None,
        watch: Watch | None = None,
        alive: Any = None,
    ) -> tuple[TrainState, PopulationReport]:
        began, compiling = time.perf_counter(), lanes.compiled.seconds
        members, rates, done = _checked(keys, states, rates, alive)
        under_way = _Run(lanes, members, done=done, watch=watch)
        end, data = end_of(done, steps, until), lanes.everywhere(data)
        go_on = partial(under_way.go_on, keys, rates, data, steps=steps, end=end, chunk=chunk)
        with one_blas_thread():
            with_less_memory(go_on, partial(lanes.halve, len(rates)))
        spent = (time.perf_counter() - began, lanes.compiled.seconds - compiling)
        return jax.tree.map(jnp.asarray, under_way.members.state), under_way.report(*spent)

    return Population(run, lambda: lanes.compiled.count, lanes.compiled.programs)


class _Run:
    """A run under way: where all members stand, and what is known of them. It can be gone on with in other groups."""

    def __init__(self, lanes: Lanes, members: Member, *, done: int, watch: Watch | None) -> None:
        self.members, self._lanes, self._done, self._watch = members, lanes, done, watch
        self._count, self._stopped = len(members.alive), ""
        self._taken = np.zeros(self._count, np.int32)
        self._losses = np.zeros((self._count, 0), np.float32)

    def go_on(self, keys: jax.Array, rates: np.ndarray, data: Any, *, steps: int, end: int, chunk: int) -> None:
        """To the end, or until all are dead or the watch has seen enough. Where it fails, `members` stand before it."""
        lanes, courses = self._lanes.split(self.members, keys, rates, data)
        advance = lambda lanes, until: self._lanes.advance(lanes, courses, data, until, steps)
        try:
            for found in chunks(advance, lanes, self._done, end, chunk):
                alive = self._note(*found)
                lanes, self._done = found[0], min(self._done + chunk, end)
                self._stopped = self._look(lanes) if self._watch else ""
                if self._stopped or not alive.any():
                    break
        finally:
            self.members = self._lanes.join(lanes, self._count)

    def _note(self, lanes: Sequence[Member], losses: Sequence[Any], moved: Sequence[Any]) -> np.ndarray:
        """Writes down the losses of a chunk, for which it waits, and tells who is alive."""
        pieces = (losses, moved, [lane.alive for lane in lanes])
        lost, steps, alive = (self._lanes.join(each, self._count) for each in pieces)
        self._taken = self._taken + steps
        self._losses = np.concatenate([self._losses, _blank(lost[:, : max(steps)], steps)], axis=1)
        return alive

    def _look(self, lanes: Sequence[Member]) -> str:
        assert self._watch is not None
        states = jax.tree.map(jnp.asarray, self._lanes.join(lanes, self._count).state)
        return words(self._watch(states, self._losses), "watch")

    def report(self, seconds: float, compile_seconds: float) -> PopulationReport:
        finite, at = self.members.alive, self.members.state.step
        reasons = tuple(
            self._stopped if fine else not_finite(int(where)) for fine, where in zip(finite, at, strict=True)
        )
        size = self._lanes.size(self._count)
        return PopulationReport(self._losses, self._taken, finite, reasons, seconds, compile_seconds, size)


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


def _checked(keys: jax.Array, states: TrainState, rates: Any, alive: Any) -> tuple[Member, np.ndarray, int]:
    """Members and rates on the host, and the step at which all members stand that go on."""
    count, sizes = len(keys), {np.shape(leaf)[:1] for leaf in jax.tree.leaves(states)}
    if count < 1 or sizes != {(count,)}:
        found = ", ".join(str(size[0]) if size else "no axis" for size in sorted(sizes))
        raise ValueError(f"`keys` has {count} members, and the leaves of `states` have {found}: `stack` the states.")
    rates = np.ones(count, np.float32) if rates is None else np.asarray(rates, np.float32)
    if rates.shape != (count,):
        raise ValueError(f"`rates` has shape {rates.shape}: give one factor for each of {count} members.")
    states, alive = jax.device_get(states), np.ones(count, bool) if alive is None else np.asarray(alive, bool)
    if alive.shape != (count,) or not alive.any():
        raise ValueError(f"`alive` is {alive}: say for each of {count} members whether it goes on; one must.")
    at = sorted(set(states.step[alive].tolist()))
    if len(at) > 1:
        raise ValueError(f"`states` stand at the steps {at}: train members of the same step together.")
    return Member(states, alive), rates, at[0]


def _blank(losses: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """Losses with NaN where a member no longer moved."""
    return np.where(np.arange(losses.shape[1]) < moved[:, None], losses, np.float32(np.nan))
