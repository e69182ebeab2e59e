"""Sub-networks of a network, and many of them trained: what an exhaustive table is made of.

A sub-network is a network of its own, physically small or masked; both compute the same, and train alike up to
rounding. Those of one shape run the same compiled program. Training and evaluation are handed in; knows no pictures
and no framework.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskprune.base.checks import Count, strict
from maskprune.base.returned import measured
from maskprune.lab import mask_sets as text
from maskprune.lab.mask_sets import Alive
from maskprune.masks.alterations import disable
from maskprune.masks.network import Network
from maskprune.removal.carry_over import compact_network
from maskprune.train.halving import all_trained
from maskprune.train.session import TrainMany
from maskprune.train.step import TrainState, init_state


class Tried(NamedTuple):
    """A sub-network after its session.

    Attributes:
        alive: Which masks of the whole network it has.
        state: Its state; at the last finite step where training failed.
        metrics: What `evaluate` said of it, with `"score"`.
        steps: Gradient steps it took.
        finite: False where a loss or update was not finite.
        seconds: Its share of the wall time of training, compilation left out.
    """

    alive: Alive
    state: TrainState
    metrics: dict[str, float]
    steps: int
    finite: bool
    seconds: float


@strict
def alive_of(network: Network) -> Alive:
    """Which masks of a network are enabled, its groups in their order. Reads the device."""
    return text.spell(np.asarray(network.enabled[group.name]) for group in network.groups)


@strict
def cut(network: Network, alive: Alive, *, of: Alive | None = None, masked: bool = False) -> Network:
    """The sub-network with these masks.

    Args:
        network: The network it is a part of.
        alive: The masks it keeps.
        of: The masks that `network` has, where it is a compacted one itself. None: all that `alive` tells of.
        masked: Disable the other masks in place of cutting them out. Slower to train, the same to rounding.

    Raises:
        ValueError: The text does not fit the network's groups, or a group would lose every mask.
    """
    own = text.read(alive if of is None else of)
    lengths = [len(flags) for flags in own]
    kept = [] if [*map(len, text.read(alive))] != lengths else text.read(alive)
    if of is not None:
        kept = [flags[had] for flags, had in zip(kept, own, strict=False)]
    if [*map(len, kept)] != [group.size for group in network.groups] or not all(map(np.any, kept)):
        sizes = [group.size for group in network.groups]
        raise ValueError(f"`alive` is {alive!r} (`of`: {of!r}): the network has groups of {sizes}; each keeps a mask.")
    gone = {group.name: jnp.asarray(~flags) for group, flags in zip(network.groups, kept, strict=True)}
    smaller = disable(network, gone)
    return smaller if masked else compact_network(smaller)


@strict
def train_each(
    key: jax.Array,
    jobs: Iterable[tuple[Alive, Callable[[], Network]]],
    *,
    train: TrainMany,
    evaluate: Callable[[TrainState], Mapping[str, float]],
    optimizer: optax.GradientTransformation,
    steps: Callable[[Alive], int] | int,
    together: Count = 1,
) -> Iterator[list[Tried]]:
    """Trains networks, each for one session with a fresh optimizer, and evaluates them.

    All see the same batches, so what differs between them is not the luck of the data. A result depends on no other:
    pieces are filled up to one size, so that the same program computes it whatever else is to be done.

    Args:
        key: Of the session, the same for all.
        jobs: `(alive, make)`, where `make()` gives the network. Those of one shape should follow each other.
        train: `train(keys, states, *, steps) -> [(state, report), ...]`, from `train_many`.
        evaluate: `evaluate(state) -> {"score": ...}`.
        optimizer: The one that `train` was built with.
        steps: Of a session, for all or by the masks that are left. 0: only evaluate.
        together: Networks trained at once. A CPU gains nothing from more than one.

    Yields:
        Pieces of at most `together` networks, in the order of `jobs`.
    """
    length = steps if callable(steps) else lambda alive: steps
    made = ((alive, init_state(make(), optimizer)) for alive, make in jobs)
    for (count, _), alike in itertools.groupby(made, key=lambda job: (length(job[0]), _shapes(job[1]))):
        while piece := list(itertools.islice(alike, together)):
            after = _train(key, [state for _, state in piece], train=train, steps=count, together=together)
            yield [
                Tried(alive, found[0], measured(evaluate(found[0])), *found[1:])
                for (alive, _), found in zip(piece, after, strict=True)
            ]


def _shapes(state: TrainState) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(state.network.params)]


def _train(key: jax.Array, states: list[TrainState], *, train: TrainMany, steps: int, together: int) -> list[Any]:
    if not steps:
        return [(state, 0, True, 0.0) for state in states]
    filled = states + states[-1:] * (together - len(states))
    found = all_trained(train([key] * together, filled, steps=steps), filled)[: len(states)]
    share = together / len(states)  # of the time; the ones that fill up are nobody's
    return [
        (state, len(report.losses), report.finite, share * (report.seconds - report.compile_seconds))
        for state, report in found
    ]
