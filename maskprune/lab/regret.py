"""How far from the best possible? Measures on a table that holds the score of every sub-network of one parent.

With the whole table known, "small" has an absolute meaning: n*(tau), the fewest masks of any network that still scores
tau times the reference. What a search found is compared with that. Knows numbers and the text of `alive` only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maskprune.base.checks import check_fields, strict
from maskprune.lab.mask_sets import Alive, count, removable, without


@dataclasses.dataclass(frozen=True)
class Table:
    """What is known of one parent.

    Attributes:
        scores: Score of every sub-network, higher is better; NaN where its training failed, which no requirement meets.
        costs: Its cost, such as multiply-adds; positive.

    Raises:
        ValueError: `scores` is empty, or `costs` lacks one of its networks.
    """

    scores: Mapping[Alive, float]
    costs: Mapping[Alive, float]

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.scores or self.scores.keys() - self.costs.keys():
            raise ValueError("`scores` is empty, or `costs` lacks one of its networks: a table needs both of each.")

    def __getitem__(self, alive: Alive) -> float:
        """The score; minus infinity for NaN. Raises KeyError for a network the table lacks."""
        if alive not in self.scores:
            raise KeyError(
                f"The table has no network `{alive}`; it holds {len(self.scores)}. Was it cut to small ones?"
            )
        score = self.scores[alive]
        return -math.inf if math.isnan(score) else score

    @functools.cached_property
    def whole(self) -> Alive:
        """The largest network of the table."""
        return max(self.scores, key=count)

    def children(self, alive: Alive) -> dict[int, Alive]:
        """What one removal may lead to, by the mask that goes."""
        return {mask: without(alive, mask) for mask in removable(alive)}


# The best there is


@strict
def feasible(table: Table, required: float) -> list[Alive]:
    """The networks that score `required` or more: tau times the reference score."""
    return [alive for alive in table.scores if table[alive] >= required]


@strict
def smallest(table: Table, required: float) -> float:
    """n*: the fewest masks of a feasible network; NaN if none is."""
    return min(map(count, feasible(table, required)), default=math.nan)


@strict
def cheapest(table: Table, required: float) -> float:
    """c*: the least cost of a feasible network; NaN if none is. It may be another one than the smallest."""
    return min((table.costs[alive] for alive in feasible(table, required)), default=math.nan)


@strict
def front(scores: Mapping[Alive, float]) -> dict[int, float]:
    """The best score by number of masks, over those numbers that occur. NaN counts as minus infinity."""
    best: dict[int, float] = {}
    for alive, score in scores.items():
        score = -math.inf if math.isnan(score) else score
        best[count(alive)] = max(score, best.get(count(alive), -math.inf))
    return dict(sorted(best.items()))


@strict
def front_gap(table: Table, found: Mapping[int, float], *, floor: float = 0.0) -> float:
    """The area between the true front and a found one, both as "the best with at most n masks".

    sum over n of max(F*(n), floor) - max(F(n), floor), with n from the fewest masks of the table to the most. It is
    the mean over requirements of the size regret, times the range of the scores: 0 for a perfect front.

    Args:
        table: The truth.
        found: Best score found by number of masks, see `front`.
        floor: What "found nothing so small" counts as, and all scores below it.
    """
    truth = front(table.scores)
    best = lambda known, n: max([floor, *(score for size, score in known.items() if size <= n)])
    return float(sum(best(truth, n) - best(found, n) for n in range(min(truth), max(truth) + 1)))


# How far a found network is from it


class Regret(NamedTuple):
    """What a found network loses against the best of the table.

    Attributes:
        size: |a| - n*, masks too many. Negative only if the network violates the requirement.
        cost: c(a) / c* - 1.
        score: The best score of its number of masks, minus its own.
        violation: Its score is below the requirement.
    """

    size: float
    cost: float
    score: float
    violation: bool


@strict
def regret(table: Table, alive: Alive, required: float) -> Regret:
    """Compares a found network with the best one; size and cost regret are NaN if no network is feasible.

    Raises:
        KeyError: The table lacks the network `alive`.
    """
    score = table[alive]
    return Regret(
        size=count(alive) - smallest(table, required),
        cost=table.costs[alive] / cheapest(table, required) - 1.0,
        score=front(table.scores)[count(alive)] - score,
        violation=score < required,
    )


class Anytime(NamedTuple):
    """How fast a search came down.

    Attributes:
        area: Integral of the size regret over the steps, divided by the horizon: the mean regret while it ran.
        steps_to_zero: Steps after which the size regret was 0 for good; infinity if never.
    """

    area: float
    steps_to_zero: float


@strict
def anytime(held: Sequence[tuple[float, int]], best: float, *, horizon: float) -> Anytime:
    """Size held against steps spent.

    Args:
        held: `(steps, masks)`, ascending: from so many steps on, a network of so many masks was held. The first entry
            stands at 0 steps.
        best: n*.
        horizon: Steps over which the area is taken. A search that ended earlier holds what it found.

    Raises:
        ValueError: `held` does not begin at 0 steps, or does not ascend, or `horizon` is not positive.
    """
    steps, masks = np.array([each for each, _ in held], float), np.array([each for _, each in held], float)
    if not len(held) or steps[0] != 0 or (np.diff(steps) < 0).any() or not horizon > 0:
        raise ValueError("`held` must begin at 0 steps and ascend, and `horizon` be positive.")
    ends = np.minimum(np.append(steps[1:], np.inf), horizon)
    area = float(np.sum((masks - best) * np.maximum(ends - np.minimum(steps, horizon), 0.0)) / horizon)
    late = np.flatnonzero(masks > best)
    after = late[-1] + 1 if len(late) else 0
    return Anytime(area, float(steps[after]) if after < len(steps) else math.inf)


# How good single steps are


class StepQuality(NamedTuple):
    """How good the choice of one mask is, by the table.

    Attributes:
        hit: No other removal leads to a better score.
        regret: The score that the best removal leads to, minus that of the chosen one.
        chance: Share of the possible removals that would have been hits.
        mean_regret: The regret of a random removal.
    """

    hit: bool
    regret: float
    chance: float
    mean_regret: float


@strict
def step_quality(table: Table, alive: Alive, mask: int) -> StepQuality:
    """Judges the removal of a mask from a set. Raises ValueError if the mask may not go.

    Raises:
        KeyError: The table lacks the network `alive`.
        ValueError: `mask` may not go.
    """
    table[alive]  # known at all?
    scores = {each: table[child] for each, child in table.children(alive).items()}
    if mask not in scores:
        raise ValueError(f"`mask` is {mask}: of `{alive}` the masks {sorted(scores)} may go.")
    best, every = max(scores.values()), np.array(list(scores.values()))
    return StepQuality(scores[mask] == best, best - scores[mask], float(np.mean(every == best)), best - every.mean())


class Agreement(NamedTuple):
    """Rank correlations, in [-1, 1]; NaN where one side is constant."""

    spearman: float
    kendall: float


@strict
def agreement(scores: Sequence[float], truth: Sequence[float]) -> Agreement:
    """Do scores order networks (or masks) as the truth does? Spearman's rho and Kendall's tau-b.

    Raises:
        ValueError: `scores` and `truth` differ in length.
    """
    ours, theirs = np.asarray(scores, float), np.asarray(truth, float)
    if ours.shape != theirs.shape:
        raise ValueError(f"`scores` has {len(ours)} numbers and `truth` {len(theirs)}: give one of each for a network.")
    if len(ours) < 2 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        return Agreement(math.nan, math.nan)
    from scipy import stats  # late: it takes long to load, and only studies need it

    rho, tau = stats.spearmanr(ours, theirs), stats.kendalltau(ours, theirs)
    return Agreement(float(np.asarray(rho)[0]), float(np.asarray(tau)[0]))


@strict
def ceiling(measured: np.ndarray) -> float:
    """The rank correlation that a perfect criterion could reach with the mean of repeated, noisy measurements.

    The square root of the reliability of that mean: the mean rank correlation between measurements, raised to their
    number by the formula of Spearman and Brown. 0 where they agree no better than by chance.

    Args:
        measured: float[R, N], R >= 2 measurements of N networks.

    Raises:
        ValueError: `measured` has another shape.
    """
    from maskprune.lab.statistics import spearman_brown  # late, like scipy

    measured = np.asarray(measured, float)
    if measured.ndim != 2 or len(measured) < 2:
        raise ValueError(f"`measured` has shape {measured.shape}: give two measurements or more, float[R, N].")
    pairs = [agreement(a, b).spearman for i, a in enumerate(measured) for b in measured[i + 1 :]]
    return math.sqrt(spearman_brown(max(0.0, float(np.mean(pairs))), len(measured)))


# What one at a time can lose


@strict
def reachable(table: Table, required: float) -> float:
    """The fewest masks to which a path leads that removes one mask at a time and is feasible all the way.

    No search that keeps or restores after every single removal can end lower, whatever its criterion (on the table;
    retraining after every step may differ). `reachable - smallest` is what "one at a time" costs. NaN if no removal
    leads anywhere because the whole network itself is not feasible.
    """
    level, fewest = {table.whole} if table[table.whole] >= required else set(), math.nan
    while level:
        fewest = count(next(iter(level)))
        below = {child for alive in level for child in table.children(alive).values()}
        level = {alive for alive in below if table[alive] >= required}
    return fewest


@strict
def greedy_path(table: Table) -> list[Alive]:
    """From the whole network down, always to the best child; ties go to the first mask."""
    path = [table.whole]
    while children := table.children(path[-1]):
        path.append(max(children.values(), key=lambda alive: table[alive]))
    return path


@strict
def greedy_size(table: Table, required: float) -> float:
    """The fewest masks `greedy_path` reaches before it first falls below the requirement; NaN if it begins there."""
    fewest = math.nan
    for alive in greedy_path(table):
        if table[alive] < required:
            break
        fewest = count(alive)
    return fewest
