"""Sessions: many steps of training as one compiled loop.

A chunk of steps is one dispatch. Batches are drawn inside the compiled code; masks, session length, learning-rate
progress and the rate are data, so one compilation serves a whole run. The next chunk is dispatched before the losses
of the last one are read: the device does not wait for the host. A loss that is not finite stops the network at once,
and the state before it is kept. Knows no pictures, no framework and no selection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg  # noqa: F401  (jaxlib factorizes with its BLAS: loaded before any limit is set)
import threadpoolctl
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maskprune.base.checks import Count, Natural, strict
from maskprune.base.returned import same_form, words
from maskprune.train.step import Step, TrainState


Draw = Callable[[jax.Array, Any], Any]
Watch = Callable[[TrainState, np.ndarray], str]
TrainMany = Callable[..., list[tuple[TrainState, "SessionReport"]]]

# A training step is some thirty short kernels. XLA starts them one by one, and asks the device before every step
# whether there is another, unless a loop may be a CUDA graph; there, kernels that need not wait run side by side.
GRAPHS: dict[str, str | bool] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE",
    "xla_gpu_command_buffer_scheduling_mode": "CONCURRENT",
}


class SessionReport(NamedTuple):
    """What a session reports.

    Attributes:
        losses: float32[steps taken], the loss of every step.
        finite: False if the session ended at a step whose loss or update was not finite.
        stopped: Why it ended early, or "" if it ran to its end.
        seconds: Wall time, compilation included.
        compile_seconds: The part of it that was spent tracing and compiling.
    """

    losses: np.ndarray
    finite: bool
    stopped: str
    seconds: float
    compile_seconds: float = 0.0


class Session(NamedTuple):
    """A compiled training loop, made by `make_session`.

    Attributes:
        run: `run(key, state, data, steps, *, until=None, rate=1.0, watch=None) -> (state, SessionReport)`.
        compilations: `compilations() -> int`, how often the loop was compiled so far.
        programs: `programs() -> list[jax.stages.Compiled]`, what was compiled, the latest last; it tells the memory
            that it needs.
    """

    run: Callable[..., tuple[TrainState, SessionReport]]
    compilations: Callable[[], int]
    programs: Callable[[], list[jax.stages.Compiled]]


class Member(NamedTuple):
    """What the loop changes of one network, or with a leading axis of many.

    Attributes:
        state: The state so far.
        alive: bool[], False once a step was not finite.
    """

    state: TrainState
    alive: Any


class Course(NamedTuple):
    """What a session keeps: its key, and float32[], the factor on its learning rate."""

    key: jax.Array
    rate: Any


@strict
def make_session(step: Step, draw: Draw, *, chunk: Count = 100, mesh: Mesh | None = None) -> Session:
    """Compiles many steps into one loop.

    Args:
        step: From `make_train_step`.
        draw: `draw(key, data) -> batch`, traced inside the loop; step s of a session gets `fold_in(key, s)`, so the
            result does not depend on `chunk`.
        chunk: Steps per dispatch, at least 1.
        mesh: Divides every batch, along the first axis of its arrays, over the devices of the mesh; see
            `split_batches`.

    Returns:
        A `Session`. Its `run` takes `steps` steps from `state`, whose `step` counter must stand at 0 (as after
        `init_state`) or where an earlier session of the same length stopped; with `until` it stops at that step. Every
        update is multiplied by `rate`. After every chunk `watch(state, losses)` may end the session by returning the
        reason; it sees all losses so far and may also show progress. The chunk after it is under way by then, and is
        dropped.

    Raises:
        ValueError: `chunk` is below 1.
    """
    mesh = None if mesh is None else automatic(mesh)
    everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    draw = draw if mesh is None else split_batches(draw, mesh)
    compiled = Compiled(chunk_loop(one_step(step, draw), chunk), out_shardings=everywhere)

    def run(
        key: jax.Array,
        state: TrainState,
        data: Any,
        steps: int,
        *,
        until: int | None = None,
        rate: float = 1.0,
        watch: Watch | None = None,
    ) -> tuple[TrainState, SessionReport]:
        began, compiling, losses, finite, stopped = time.perf_counter(), compiled.seconds, [], True, ""
        done = int(state.step)
        end = end_of(done, steps, until)
        start, course = Member(state, np.bool_(True)), Course(key, np.float32(rate))
        if everywhere is not None:
            start, course, data = jax.device_put((start, course, data), everywhere)
        advance = lambda member, target: compiled(member, course, data, target, np.int32(steps))
        with one_blas_thread():
            for member, found, count in chunks(advance, start, done, end, chunk):
                state, finite = member.state, bool(member.alive)  # waits for the chunk
                losses.append(np.asarray(found)[: int(count)])
                if not finite:
                    stopped = not_finite(int(state.step))
                elif watch is not None:
                    stopped = words(watch(state, np.concatenate(losses)), "watch")
                if stopped:
                    break
        every = np.concatenate(losses) if losses else np.zeros(0, np.float32)
        seconds = time.perf_counter() - began
        return state, SessionReport(every, finite, stopped, seconds, compiled.seconds - compiling)

    return Session(run, lambda: compiled.count, compiled.programs)


@strict
def train_alone(session: Session, data: Any, *, watch: Callable[[int], Watch] | None = None) -> TrainMany:
    """Sessions one after another, under the signature of `train_many`, which trains them side by side.

    Args:
        session: From `make_session`.
        data: What it draws from.
        watch: `watch(steps)` makes the watch of a session of that length.

    Returns:
        `train(keys, states, *, steps, share=1.0, rate=1.0) -> [(state, report), ...]`: sessions of `steps` steps, up to
        that share of them, from wherever the states stand, every update multiplied by `rate`.
    """

    def train(
        keys: Sequence[jax.Array], states: Sequence[TrainState], *, steps: int, share: float = 1.0, rate: float = 1.0
    ) -> list[tuple[TrainState, SessionReport]]:
        until = part_of(steps, share)
        looks = [watch(steps) if watch else None for _ in states]
        return [
            session.run(key, state, data, steps, until=until, rate=rate, watch=look)
            for key, state, look in zip(keys, states, looks, strict=True)
        ]

    return train


@strict
def of_length(train: TrainMany, steps: Natural) -> TrainMany:
    """Sessions of one length, for `minimize(train_many=...)`: `sessions(keys, states, *, share, times=1, rate=1.0)`.

    Args:
        train: From `train_alone`, `train_many` or `run_together`.
        steps: Of a session; those that are asked for `times` over have as many times more.
    """

    def sessions(keys: Any, states: Any, *, share: float = 1.0, times: int = 1, rate: float = 1.0) -> Any:
        return train(keys, states, steps=times * steps, share=share, **({} if rate == 1.0 else {"rate": rate}))

    return sessions


def part_of(steps: int, share: float) -> int:
    """The step at which a share of a session is done."""
    return math.ceil(share * steps)


@strict
def stagnation(*, improvement: float, patience: int, every: int = 100) -> Watch:
    """A `watch` that ends a session when the training loss stagnates.

    It has no memory: what it says follows from the losses alone, so a session that was stopped and goes on ends where
    it would have.

    Args:
        improvement: Relative improvement, such as 0.01, that counts as progress.
        patience: How many looks in a row may pass without it.
        every: Steps from one look to the next; a look compares the mean loss since the one before with the best so far.

    Raises:
        ValueError: An argument is not positive.
    """
    if not improvement > 0 or patience < 1 or every < 1:
        raise ValueError(
            f"`improvement` is {improvement}, `patience` {patience} and `every` {every}: all must be positive."
        )

    def watch(state: TrainState, losses: np.ndarray) -> str:
        looks = losses[: len(losses) // every * every].reshape(-1, every).mean(axis=1, dtype=float)
        best, waited = math.inf, 0
        for found in looks:
            best, waited = (found, 0) if found < best * (1 - improvement) else (best, waited + 1)
            if waited >= patience:
                return f"the error improved by less than {improvement:.2%} over {patience} looks"
        return ""

    return watch


# The parts that sessions and populations share.


def one_step(step: Step, draw: Draw) -> Callable[..., Any]:
    """Makes `advance(member, course, data, until, steps) -> (member, loss, moved)`: a step, unless it has arrived."""

    def advance(member: Member, course: Course, data: Any, until: jax.Array, steps: jax.Array) -> Any:
        state = member.state
        draw_key, step_key = jax.random.split(jax.random.fold_in(course.key, state.step))
        progress = state.step / steps
        after, info = step(state, draw(draw_key, data), key=step_key, progress=progress, rate=course.rate)
        same_form(after, state, "step")
        moves = member.alive & (state.step < until)
        after = jax.tree.map(lambda new, old: jnp.where(moves & info.finite, new, old), after, state)
        return Member(after, member.alive & (info.finite | ~moves)), info.loss, moves

    return advance


def chunk_loop(advance: Callable[..., Any], chunk: int) -> Callable[..., Any]:
    """Makes `run(members, course, data, until, steps) -> (members, losses, count)`: until all have arrived or died.

    `losses` is float32[..., chunk] and `count` int32[...], how many of them were taken; `...` is the members' axis, if
    any. `until` is at most `chunk` steps away.
    """
    if chunk < 1:
        raise ValueError(f"`chunk` is {chunk}: a dispatch needs at least one step.")

    def run(members: Member, course: Course, data: Any, until: jax.Array, steps: jax.Array) -> Any:
        def goes_on(carry: Any) -> jax.Array:
            members = carry[0]
            return jnp.any(members.alive & (members.state.step < until))

        def body(carry: Any) -> Any:
            members, losses, count, turn = carry
            members, loss, moved = advance(members, course, data, until, steps)
            return members, losses.at[..., turn].set(loss), count + moved, turn + 1

        lead = jnp.shape(members.alive)
        start = (members, jnp.zeros((*lead, chunk), jnp.float32), jnp.zeros(lead, jnp.int32), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(goes_on, body, start)[:3]

    return run


def chunks(
    advance: Callable[[Any, np.int32], tuple[Any, Any, Any]], members: Any, done: int, end: int, chunk: int
) -> Iterator[tuple[Any, Any, Any]]:
    """Chunk after chunk, each dispatched before the one before it is handed out to be read."""
    last = None
    while done < end:
        done = min(done + chunk, end)
        found = advance(members, np.int32(done))
        if last is not None:
            yield last
        members, last = found[0], found
    if last is not None:
        yield last


class Compiled:
    """A function compiled before its first call, once for every kind of arguments, with the time that took.

    Attributes:
        seconds: How long compiling took so far, tracing included.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self._jitted, self._made = jax.jit(function, **options), {}
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        return self.get(*arguments)(*arguments)

    @property
    def count(self) -> int:
        """How often it was compiled."""
        return len(self._made)

    def programs(self) -> list[jax.stages.Compiled]:
        return list(self._made.values())

    def get(self, *arguments: Any) -> jax.stages.Compiled:
        """The compiled function for arguments of this kind: arrays, or `jax.ShapeDtypeStruct`s in their place."""
        leaves, structure = jax.tree.flatten(arguments)
        kind = (structure, tuple((jax.typeof(leaf), _divided(leaf)) for leaf in leaves))
        if kind not in self._made:
            began = time.perf_counter()
            self._made[kind] = _compile(self._jitted.lower(*arguments))
            self.seconds += time.perf_counter() - began
        return self._made[kind]


def _compile(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    if jax.default_backend() != "gpu":
        return lowered.compile()
    try:
        return lowered.compile(compiler_options=GRAPHS)
    except jax.errors.JaxRuntimeError as error:
        if "option" not in str(error):  # XLA's options come and go with its versions
            raise
        return lowered.compile()


def _divided(leaf: Any) -> Any:
    """How an array lies on several devices; None for one that lies on a single device, or on the host."""
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None


def split_batches(draw: Draw, mesh: Mesh) -> Draw:
    """Divides what `draw` gives over a mesh, along the first axis of every array; XLA divides what follows from it.

    The compiled C++ convolution is not divided: on several CPU devices take another way (`conv2d(..., way="xla")`).
    """
    divided = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def divide(key: jax.Array, data: Any) -> Any:
        return jax.lax.with_sharding_constraint(draw(key, data), divided)

    return divide


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with axes along which XLA divides by itself, as those of `jax.make_mesh` no longer are."""
    return Mesh(mesh.devices, mesh.axis_names)


def end_of(done: int, steps: int, until: int | None) -> int:
    """The step at which a session ends that stands at `done`."""
    end = steps if until is None else until
    if steps < 0:
        raise ValueError(f"`steps` is {steps}: a session takes 0 or more.")
    if done > steps:
        raise ValueError(
            f"`state.step` is {done}, beyond the {steps} `steps` of this session: start it from `init_state`."
        )
    if end > steps:
        raise ValueError(f"`until` is {until}, beyond the {steps} `steps` of this session.")
    return end


def not_finite(step: int) -> str:
    return f"the loss or an update was not finite at step {step}"


def one_blas_thread() -> AbstractContextManager[Any]:
    """Small matrix factorizations (an optimizer's eigenvectors) lose a hundredfold to threads that wait for each other.

    It holds for this process while a session runs; XLA's own threads are not concerned.
    """
    return _blas().limit(limits=1, user_api="blas")


@cache
def _blas() -> threadpoolctl.ThreadpoolController:
    """Looking through all loaded libraries takes milliseconds, so it is done once."""
    return threadpoolctl.ThreadpoolController()
