"""What is one mask worth? The three tests of the source document, as alterations, and one way to run any of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from maskprune.base.checks import strict
from maskprune.base.returned import measured
from maskprune.masks.alterations import Chosen, disable, freeze, zero_weights
from maskprune.masks.network import Network
from maskprune.train.halving import network_of, trained
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState, init_state


class Worth(NamedTuple):
    """Scores around an alteration.

    Attributes:
        before: Score of the network as given.
        at_once: Score right after the alteration, untrained.
        after: Score after the session.
        state: The trained state, for a look at what the masks have become.
    """

    before: float
    at_once: float
    after: float
    state: TrainState

    @property
    def drop(self) -> float:
        """1 - score at once / score before: how much the network relied on what was altered; NaN if it was 0."""
        return 1.0 - self.at_once / self.before if self.before else math.nan


@strict
def zeroed(network: Network, chosen: Chosen) -> Network:
    """Test 1, "disabled": the kernels are set to zero once, and everything may learn, the zeroed masks included.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    return zero_weights(network, chosen)


@strict
def disabled_and_frozen(network: Network, chosen: Chosen) -> Network:
    """Test 2, "disabled and frozen": the masks contribute nothing and never learn. The one the minimization uses.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    return disable(network, chosen)


@strict
def zeroed_alone(network: Network, chosen: Chosen) -> Network:
    """Test 3, "disabled, others frozen": the kernels are set to zero, and only these masks and the output may learn.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    zeroed = zero_weights(network, chosen)
    others = {group.name: ~chosen.get(group.name, np.zeros(group.size, bool)) for group in network.groups}
    return freeze(zeroed, others)


@strict
def worth(
    key: jax.Array,
    state: TrainState,
    chosen: Chosen,
    *,
    alteration: Callable[[Network, Chosen], Network],
    train: Callable[[jax.Array, TrainState], tuple[TrainState, SessionReport]],
    evaluate: Callable[[TrainState], Mapping[str, Any]],
    optimizer: optax.GradientTransformation,
) -> Worth:
    """Alters masks, trains with a fresh optimizer, and scores before, at once and after.

    Args:
        key: Key of the session.
        state: A trained network; it is left as it is.
        chosen: Which masks, from `choose`.
        alteration: One of the three tests above, or any function of their form.
        train: `train(key, state) -> (state, report)`, one session.
        evaluate: `evaluate(state) -> {"score": ...}`.
        optimizer: The one `train` was built with.

    Raises:
        KeyError: `chosen` names a group that does not exist.
        ValueError: `chosen` holds something else than bool[C] for a group.
    """
    network = network_of(alteration(state.network, chosen), "alteration")
    altered = init_state(network, optimizer, state.model_state)
    after, _ = trained(train(key, altered), altered)
    before, at_once, trained_on = (float(measured(evaluate(each))["score"]) for each in (state, altered, after))
    return Worth(before, at_once, trained_on, after)
