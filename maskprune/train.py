"""Training: one step, and a session of many as one compiled loop.

A step is a pure function `(state, batch) -> (state, info)`. A session runs chunks of steps on the device, with the
batches drawn inside the compiled code; masks, session length and learning-rate progress are data, so one compilation
serves a whole run. A loss that is not finite stops the chunk at once, and the state before it is kept. Knows no
pictures, no framework and no selection.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg  # noqa: F401  (jaxlib factorizes with its BLAS: loaded before any limit is set)
import threadpoolctl

from maskprune.hold import held
from maskprune.network import Network, effective_params, strongly_typed, trainable, trained_leaves


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that training changes and that stepping back restores. Build it with `init_state`.

    Attributes:
        network: The network.
        opt_state: The optimizer's memory; fresh after every alteration, because `init_state` makes it.
        model_state: Non-trained variables such as batch statistics, or None.
        step: int32[], steps since `init_state`.
    """

    network: Network
    opt_state: Any
    model_state: Any
    step: jax.Array


class StepInfo(NamedTuple):
    """What one step reports: the loss before the update, and whether it and the new parameters are finite."""

    loss: jax.Array
    finite: jax.Array


class SessionReport(NamedTuple):
    """What a session reports.

    Attributes:
        losses: float32[steps taken], the loss of every step.
        finite: False if the session ended at a step whose loss or update was not finite.
        stopped: Why it ended early, or "" if it ran to its end.
        seconds: Wall time, compilation included.
    """

    losses: np.ndarray
    finite: bool
    stopped: str
    seconds: float


Loss = Callable[[Any, Any], jax.Array]
Step = Callable[..., tuple[TrainState, StepInfo]]
Draw = Callable[[jax.Array, Any], Any]
Watch = Callable[[TrainState, np.ndarray], str]


def init_state(network: Network, optimizer: optax.GradientTransformation, model_state: Any = None) -> TrainState:
    """Starts training: a fresh optimizer for a network. The only way from an altered network back to a `TrainState`."""
    opt_state = held(optimizer, trained_leaves(network)).init(network.params)
    model_state = jax.tree.map(strongly_typed, model_state)
    return TrainState(network=network, opt_state=opt_state, model_state=model_state, step=jnp.zeros((), jnp.int32))


def make_train_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, *, stateful: bool = False
) -> Step:
    """Makes `step(state, batch, *, key=None, progress=0.0) -> (state, info)`, pure and ready for `jit` and `vmap`.

    Frozen and disabled entries come out bit-identical under any optimizer. The learning-rate schedule may read
    `progress` (see `scale_by_progress`).

    Args:
        loss: `loss(params, batch) -> float32[]`; `params` are the effective parameters. With `stateful`,
            `loss(params, batch, model_state, key) -> (float32[], model_state)`.
        optimizer: Any optax optimizer. Freezing is added here, never by the caller.
        stateful: Whether `loss` has the second form.
    """

    def full_loss(network: Network, batch: Any, model_state: Any, key: jax.Array | None) -> tuple[jax.Array, Any]:
        params = effective_params(network)
        return loss(params, batch, model_state, key) if stateful else (loss(params, batch), model_state)

    def step(state: TrainState, batch: Any, *, key: jax.Array | None = None, progress: Any = 0.0) -> Any:
        (value, model_state), grads = _gradients(full_loss, state, batch, key)
        network, moves = state.network, trainable(state.network)
        updates, opt_state = held(optimizer, trained_leaves(network)).update(
            grads, state.opt_state, network.params, trainable=moves, progress=progress
        )
        # Adding zero is not quite nothing (-0.0, subnormals): held entries are selected, not added to.
        params = jax.tree.map(jnp.where, moves, optax.apply_updates(network.params, updates), network.params)
        network = dataclasses.replace(network, params=params)
        after = TrainState(network=network, opt_state=opt_state, model_state=model_state, step=state.step + 1)
        moved = jax.tree.map(lambda moves, leaf: jnp.where(moves, leaf, 0), moves, params)  # held ones may store NaN
        return after, StepInfo(loss=value, finite=jnp.isfinite(value) & _all_finite(moved))

    return step


class Session(NamedTuple):
    """A compiled training loop, made by `make_session`.

    Attributes:
        run: `run(key, state, data, steps, *, watch=None) -> (state, SessionReport)`.
        compilations: `compilations() -> int`, how often the loop was compiled so far.
    """

    run: Callable[..., tuple[TrainState, SessionReport]]
    compilations: Callable[[], int]


def make_session(step: Step, draw: Draw, *, chunk: int = 100) -> Session:
    """Compiles many steps into one loop.

    Args:
        step: From `make_train_step`.
        draw: `draw(key, data) -> batch`, traced inside the loop; step s of a session gets `fold_in(key, s)`, so the
            result does not depend on `chunk`.
        chunk: Steps per dispatch, at least 1.

    Returns:
        A `Session`. Its `run` takes `steps` steps from `state`, whose `step` counter must stand at 0 (as after
        `init_state`) or where an earlier session of the same length stopped. After every chunk `watch(state, losses)`
        may end the session by returning the reason; it sees all losses so far and may also show progress.
    """
    if chunk < 1:
        raise ValueError(f"`chunk` is {chunk}: a dispatch needs at least one step.")
    traces: list[None] = []

    def run_chunk(key: jax.Array, state: TrainState, data: Any, until: jax.Array, steps: jax.Array) -> Any:
        traces.append(None)

        def goes_on(carry: Any) -> jax.Array:
            state, _, _, finite = carry
            return (state.step < until) & finite

        def body(carry: Any) -> Any:
            state, losses, count, _ = carry
            draw_key, step_key = jax.random.split(jax.random.fold_in(key, state.step))
            progress = state.step / steps
            after, info = step(state, draw(draw_key, data), key=step_key, progress=progress)
            after = jax.tree.map(lambda new, old: jnp.where(info.finite, new, old), after, state)
            return after, losses.at[count].set(info.loss), count + 1, info.finite

        start = (state, jnp.zeros(chunk, jnp.float32), jnp.zeros((), jnp.int32), jnp.ones((), bool))
        return jax.lax.while_loop(goes_on, body, start)

    compiled = jax.jit(run_chunk)

    def run(key: jax.Array, state: TrainState, data: Any, steps: int, *, watch: Watch | None = None) -> Any:
        began, losses, finite, stopped = time.perf_counter(), [], True, ""
        done = int(state.step)
        _check_steps(done, steps)
        while done < steps and finite and not stopped:
            until = min(done + chunk, steps)
            with _one_blas_thread():
                state, found, count, good = compiled(key, state, data, np.int32(until), np.int32(steps))
                finite, done = bool(good), int(state.step)  # waits for the chunk
            losses.append(np.asarray(found)[: int(count)])
            if not finite:
                stopped = f"the loss or an update was not finite at step {done}"
            elif watch is not None:
                stopped = watch(state, np.concatenate(losses))
        every = np.concatenate(losses) if losses else np.zeros(0, np.float32)
        return state, SessionReport(every, finite, stopped, time.perf_counter() - began)

    return Session(run, lambda: len(traces))


def stagnation(*, improvement: float, patience: int, error: Callable[[TrainState], float] | None = None) -> Watch:
    """A `watch` that ends a session when the error stagnates.

    Args:
        improvement: Relative improvement, such as 0.01, that counts as progress.
        patience: How many looks in a row may pass without it.
        error: Measures the state; by default the mean training loss since the last look.

    Returns:
        A watch with a memory, for one session after another: fewer losses than before tell it that a new one began.
    """
    if not improvement > 0 or patience < 1:
        raise ValueError(f"`improvement` is {improvement} and `patience` {patience}: both must be positive.")
    fresh = {"best": np.inf, "waited": 0, "seen": 0}
    memory = dict(fresh)

    def watch(state: TrainState, losses: np.ndarray) -> str:
        if len(losses) <= memory["seen"]:  # losses only ever grow within a session
            memory.update(fresh)
        found = float(np.mean(losses[memory["seen"] :])) if error is None else error(state)
        better = found < memory["best"] * (1 - improvement)
        memory.update(
            best=found if better else memory["best"], waited=0 if better else memory["waited"] + 1, seen=len(losses)
        )
        if memory["waited"] < patience:
            return ""
        return f"the error improved by less than {improvement:.2%} over {patience} looks"

    return watch


def _check_steps(done: int, steps: int) -> None:
    if steps < 0:
        raise ValueError(f"`steps` is {steps}: a session takes 0 or more.")
    if done > steps:
        raise ValueError(
            f"`state.step` is {done}, beyond the {steps} `steps` of this session: start it from `init_state`."
        )


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Small matrix factorizations (an optimizer's eigenvectors) lose a hundredfold to threads that wait for each other.

    It holds for this process while a chunk runs; XLA's own threads are not concerned.
    """
    return threadpoolctl.threadpool_limits(limits=1, user_api="blas")


def _gradients(full_loss: Callable[..., Any], state: TrainState, batch: Any, key: jax.Array | None) -> Any:
    """Value and gradients with respect to the leaves that train; zeros for the others, which may be integers."""
    leaves, structure = jax.tree.flatten(state.network.params)
    trains = jax.tree.leaves(trained_leaves(state.network))

    def of_trained(moving: list[jax.Array]) -> Any:
        moved = iter(moving)
        params = structure.unflatten([next(moved) if t else leaf for leaf, t in zip(leaves, trains, strict=True)])
        return full_loss(dataclasses.replace(state.network, params=params), batch, state.model_state, key)

    moving = [leaf for leaf, t in zip(leaves, trains, strict=True) if t]
    value, grads = jax.value_and_grad(of_trained, has_aux=True)(moving)
    given = iter(grads)
    every = [next(given) if t else jnp.zeros_like(leaf) for leaf, t in zip(leaves, trains, strict=True)]
    return value, structure.unflatten(every)


def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))
