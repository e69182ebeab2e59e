"""Searches replayed on a table: what `minimize` would have done, in milliseconds.

A table holds every sub-network trained once from the parent, so a replayed removal means "this set, retrained in one
session from the parent": weights do not depend on the order of removal, and training does not add up. A real search
trains on from what it holds; expect it to score a little higher at the same set.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from maskprune.base.checks import Seed, strict
from maskprune.lab.mask_sets import Alive, count, removable
from maskprune.lab.regret import Table
from maskprune.minimizer.rounds import Rules


Policy = Callable[[Alive], Sequence[int]]
"""`policy(alive)` orders the masks of a set; the first one that may go is tried first."""


class Trial(NamedTuple):
    """One round of a replayed search.

    Attributes:
        held: What was held before it.
        mask: The mask that was tried.
        alive: The set that was judged.
        score: Its score by the table.
        required: What it had to reach.
        accepted: Whether it did.
        steps: Gradient steps spent up to its end.
    """

    held: Alive
    mask: int
    alive: Alive
    score: float
    required: float
    accepted: bool
    steps: float


@strict
def replay(policy: Policy, table: Table, rules: Rules, *, reference: float, steps: float = 1.0) -> list[Trial]:
    """Replays a search by the rules of `minimize`.

    Args:
        policy: Orders the masks of the set that is held.
        table: Scores of all that may be met.
        rules: Its `threshold` or `drop`, `reference`, `retry`, `min_enabled` and `candidates` are followed.
        reference: The score that the whole network is judged by.
        steps: Gradient steps of one session.

    Returns:
        All trials, of which the accepted ones lead from the whole network to what was found.

    Raises:
        ValueError: The rules hold what a table cannot tell: several masks at once, a control, racing, whole layers,
            or limits to some groups.
        KeyError: The table lacks a network that is met.
    """
    _check(rules)
    held, refused, trials, spent = table.whole, set[int](), list[Trial](), 0.0
    while eligible := [mask for mask in removable(held, least=rules.min_enabled) if mask not in refused]:
        order = [mask for mask in policy(held) if mask in eligible][: rules.candidates]
        if not order:
            raise ValueError(f"`policy` names none of the masks {eligible} of `{held}` that may go.")
        children = table.children(held)
        mask = max(order, key=lambda each: table[children[each]])
        score, required = table[children[mask]], rules.required(reference)
        spent += steps * len(order)
        accepted = math.isfinite(score) and score >= required
        trials.append(Trial(held, mask, children[mask], score, required, accepted, spent))
        if not accepted:
            refused |= set(order)
            continue
        held = children[mask]
        refused = set() if rules.retry == "accepted" else refused
        if rules.reference == "previous" or (rules.reference == "best" and score >= reference):
            reference = score
    return trials


@strict
def found(trials: Sequence[Trial], whole: Alive) -> Alive:
    """What a replayed search ended with; `whole` if nothing was accepted."""
    return next((trial.alive for trial in reversed(trials) if trial.accepted), whole)


@strict
def course(trials: Sequence[Trial], whole: Alive) -> list[tuple[float, int]]:
    """`(steps, masks)` held over time, for `regret.anytime`."""
    return [(0.0, count(whole)), *((trial.steps, count(trial.alive)) for trial in trials if trial.accepted)]


# Policies


@strict
def sequential(alive: Alive) -> list[int]:
    """Layer by layer, ascending."""
    return removable(alive)


@strict
def shuffled(seed: Seed) -> Policy:
    """Uniform at random, another order for every set. Pure: the same set is always ordered alike."""

    def order(alive: Alive) -> list[int]:
        return np.random.default_rng([seed, zlib.crc32(alive.encode())]).permutation(removable(alive)).tolist()

    return order


@strict
def best_first(table: Table) -> Policy:
    """The removal that leads to the best score of a table first: with the table itself, a greedy search that knows."""
    return lambda alive: sorted(removable(alive), key=lambda mask: -table[table.children(alive)[mask]])


@strict
def by_scores(scores: Sequence[Sequence[float] | np.ndarray]) -> Policy:
    """Scores of the parent's masks, float[C] for each group, that are not taken anew: the lowest goes first.

    Ties go by the order of the masks; NaN goes last.

    Raises:
        ValueError: `scores` is empty.
    """
    if not len(scores):
        raise ValueError("`scores` is empty: give the scores of each group.")
    flat = np.concatenate([np.append(np.asarray(group, float), np.nan) for group in scores])  # a place for each space
    values = np.where(np.isnan(flat), np.inf, flat)
    return lambda alive: sorted(removable(alive), key=lambda mask: values[mask])


def _check(rules: Rules) -> None:
    plain = Rules()
    if rules.min_enabled < 1:
        raise ValueError("`rules.min_enabled` is 0: a table holds no network that lost a whole group.")
    for name in ("control", "count", "only", "protect", "share", "layers", "racing"):
        if getattr(rules, name) != getattr(plain, name):
            raise ValueError(f"`rules.{name}` is {getattr(rules, name)!r}: a table cannot tell what that would do.")
