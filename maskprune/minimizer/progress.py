"""Where a session stands: the state it has reached and what there is to report, of one network or of many.

How that lies on disk, how two parts of a session become one, and the digest by which questions and answers are known.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base import checkpoints
from maskprune.train import halving
from maskprune.train.population import PopulationReport
from maskprune.train.session import SessionReport, not_finite
from maskprune.train.step import TrainState


MOST_REPORTED = 1 << 30  # bytes of losses: for a million steps of 256 networks


class Place(NamedTuple):
    """A state and the report so far: of a session, or of a population's, where both have a leading axis."""

    state: TrainState
    report: Any


def session_so_far(state: TrainState, losses: np.ndarray) -> SessionReport:
    """What a session that goes on has to report at a look."""
    return SessionReport(losses, True, "", 0.0)


def population_so_far(began: TrainState, states: TrainState, losses: np.ndarray) -> PopulationReport:
    """The same of a population that began with these states: who stands behind met a number that was not finite."""
    at = np.asarray(states.step)
    alive = at == at.max()
    taken = (at - np.asarray(began.step) + ~alive).astype(np.int32)
    return PopulationReport(losses, taken, alive, ("",) * len(at), 0.0, 0.0, len(at))


def joined(first: Any, second: Any) -> Any:
    """The report of a session in two parts."""
    if isinstance(first, SessionReport):
        return halving.joined(first, second)
    return second._replace(
        losses=np.concatenate([first.losses, second.losses], axis=1),
        taken=first.taken + second.taken,
        seconds=first.seconds + second.seconds,
        compile_seconds=first.compile_seconds + second.compile_seconds,
    )


def ended(place: Place, stopped: str) -> Any:
    """The report of a session that a watch ends where it stands."""
    if isinstance(place.report, SessionReport):
        return place.report._replace(stopped=stopped)
    steps = zip(place.report.finite, np.asarray(place.state.step), strict=True)
    return place.report._replace(stopped=tuple(stopped if fine else not_finite(int(at)) for fine, at in steps))


def save(path: Path, place: Place, *, asked: str) -> None:
    """A state, a leaf an array, and what was reported, as the answer to one question."""
    leaves = {str(number): leaf for number, leaf in enumerate(jax.tree.leaves(place.state))}
    fields = place.report._asdict()
    arrays = {name: each for name, each in fields.items() if isinstance(each, np.ndarray)}
    kind = "session" if isinstance(place.report, SessionReport) else "population"
    checkpoints.save(
        path,
        {**leaves, **arrays},
        {"kind": kind, "asked": asked, **{k: v for k, v in fields.items() if k not in arrays}},
    )


def load(path: Path, like: TrainState, *, asked: str) -> Place:
    """What `save` wrote, for a state of the form of `like`.

    Raises:
        CheckpointError: There is none, it is damaged, or it answers another question.
    """
    arrays, about = checkpoints.load(path, most=2 * sum(leaf.nbytes for leaf in jax.tree.leaves(like)) + MOST_REPORTED)
    if about.pop("asked") != asked:
        raise checkpoints.CheckpointError(f"`{path}` holds the state of another session.")
    leaves, structure = jax.tree.flatten(like)
    found = [arrays.pop(str(number), None) for number in range(len(leaves))]
    for leaf, each in zip(leaves, found, strict=True):
        if each is None or (each.shape, each.dtype) != (jnp.shape(leaf), jnp.result_type(leaf)):
            raise checkpoints.CheckpointError(f"`{path}` holds a state of another form.")
    kind = {"session": SessionReport, "population": PopulationReport}[about.pop("kind")]
    report = kind(**arrays, **{name: tuple(each) if isinstance(each, list) else each for name, each in about.items()})
    return Place(structure.unflatten([jnp.asarray(each) for each in found]), report)


def digest(name: str, tree: Any) -> str:
    """A digest of a pytree of arrays, numbers, texts and typed keys: 32 hexadecimal digits, the same on any machine."""
    found = hashlib.blake2b(name.encode(), digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found.update(str(jax.random.key_impl(leaf)).encode())
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        found.update(f"|{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape} ".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
