"""What is left of the score after a short training without the mask: the most honest answer, and the dearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskprune.base.checks import strict
from maskprune.masks.network import Network, choose
from maskprune.select.base import Remove, Scores, Selector, without
from maskprune.train.halving import Candidate, Evaluate, TrainShare, race
from maskprune.train.step import init_state


@strict
def probe(
    train: TrainShare,
    evaluate: Evaluate,
    optimizer: optax.GradientTransformation,
    *,
    racing: bool = True,
    orders: int = 1,
    remove: Remove = without,
) -> Selector:
    """Trains the network without each mask in turn, all side by side, and puts the masks in the order of the outcome.

    The candidates are the enabled masks that are not frozen. A mask's score is its place, that is, how many candidates
    did better: 0 for the one that can best be spared. Who stayed longer in the race did better; among those that left
    it together, who scored higher. Candidates whose training or score was not finite come last, and after all of them
    the masks that were not tried. It trains and compares on the host, so it does not run under `jit`.

    One session says what one order of the data made of each mask, which is partly luck: with several `orders` the
    score is the mean place over that many sessions of each.

    With n candidates, K orders and sessions of T steps it costs n K T steps; with `racing` about (1 + log2(n) / 2) K T.

    Args:
        train: `train(keys, states, *, share) -> [(state, report), ...]`, sessions up to that share of their length, as
            for `minimize(train_many=...)`. All sessions of one order get the same key and see the same batches; with
            one order it is the selector's key.
        evaluate: `evaluate(state) -> {"score": ...}`, higher is better.
        optimizer: For fresh optimizer states; the one `train` was built with. The model state is None.
        racing: Whether the worse half drops out at every doubling of the session.
        orders: K, how often each is trained, at least 1.
        remove: `remove(network, chosen, batch) -> network`, how a mask is removed, with `chosen` as `{group: bool[C]}`.

    Raises:
        ValueError: Fewer orders than 1.

    Example:
        train = functools.partial(train_many(make_population(step, draw), data), steps=250)
        selector = probe(train, task.evaluate, optimizer)

    References:
        Yang et al., NetAdapt, ECCV 2018, whose proposals are judged after a short training.
        Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016.
    """

    if orders < 1:
        raise ValueError(f"orders must be at least 1, found {orders}: it is how often each candidate is trained")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        masks = _candidates(network)
        alone = [remove(network, choose(network, {name: [number]}), batch) for name, number in masks]
        states = [init_state(each, optimizer) for each in alone]
        keys = [key] if orders == 1 else list(jax.random.split(key, orders))
        races = [race(each, states, train=train, evaluate=evaluate, racing=racing) for each in keys if states]
        places = {group.name: np.full(group.size, len(masks), np.float32) for group in network.groups}
        mean = np.mean([_places(found) for found in races], axis=0) if races else []
        for (name, number), place in zip(masks, mean, strict=True):
            places[name][number] = place
        return {name: jnp.asarray(values) for name, values in places.items()}

    return score


def _candidates(network: Network) -> list[tuple[str, int]]:
    may = {name: np.asarray(flags) & ~np.asarray(network.frozen[name]) for name, flags in network.enabled.items()}
    return [(group.name, int(number)) for group in network.groups for number in np.flatnonzero(may[group.name])]


def _places(found: Sequence[Candidate]) -> list[int]:
    """How many did better than each."""
    reached = [(each.worth > -math.inf, each.share, each.worth) for each in found]
    return [sum(other > mine for other in reached) for mine in reached]
