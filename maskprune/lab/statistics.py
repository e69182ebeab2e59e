"""Statistics of studies: correlations with intervals, averages over networks, p values of many tests, medians.

Observations come in clusters: the masks of one network are no independent draws. Where clusters are given, intervals
come from drawing whole clusters again, or from how much clusters differ, never from the number of masks. Knows
nothing of networks: arrays in, numbers out.

References:
    Fisher, On the probable error of a coefficient of correlation, Metron 1921 (the z scale, variance 1 / (n - 3)).
    Fieller, Hartley, Pearson, Tests for rank correlation coefficients, Biometrika 1957 (Kendall: 0.437 / (n - 4)).
    Bonett, Wright, Sample size requirements for Pearson, Kendall and Spearman correlations, Psychometrika 2000
        (Spearman: (1 + r²/2) / (n - 3)).
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    Efron, Tibshirani, An Introduction to the Bootstrap, 1993 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from scipy import stats


Method = Literal["pearson", "spearman", "kendall"]
METHODS: tuple[Method, ...] = get_args(Method)
Array = Any  # what `np.asarray` takes


class Estimate(NamedTuple):
    """A number, the interval it is known to, and how many observations (or clusters) it rests on."""

    value: float
    low: float
    high: float
    n: int


class Correlation(NamedTuple):
    """A correlation, its interval, the two-sided p value of no correlation, and the observations it rests on.

    All but `n` are NaN where a side is constant or there are too few observations. `p_holm` is the p value as one of
    many, see `adjusted`.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    p_holm: float = math.nan


NOTHING = (math.nan, math.nan, math.nan, math.nan)


def coefficient(x: Array, y: Array, method: Method = "pearson", weights: Array | None = None) -> np.ndarray:
    """A correlation, or one for every row of weights.

    Args:
        x: Finite numbers, float[n].
        y: Finite numbers, float[n].
        method: `"pearson"`, `"spearman"` (of mid-ranks) or `"kendall"` (tau-b, ties counted).
        weights: How often each observation counts, float[R, n]. None: once, and R is 1.

    Returns:
        float[R]; NaN where a side is constant.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if method not in METHODS:
        raise ValueError(f"`method` is {method!r}: use one of {', '.join(METHODS)}.")
    weights = np.ones((1, len(x))) if weights is None else np.asarray(weights, float)
    if method == "pearson":
        return _pearson(x, y, weights)
    above_x, above_y = (np.sign(side[:, None] - side[None, :]) for side in (x, y))
    if method == "spearman":
        return _pearson(weights @ above_x.T, weights @ above_y.T, weights)  # twice the mid-ranks, centred
    pairs = lambda signs: np.sum((weights @ signs) * weights, axis=1)
    return _ratio(pairs(above_x * above_y), pairs(above_x**2) * pairs(above_y**2))


def correlation(
    x: Array,
    y: Array,
    method: Method = "pearson",
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """A correlation with its interval.

    Args:
        x: float[n]. Pairs of which a side is not finite are left out.
        y: float[n].
        method: See `coefficient`.
        clusters: The cluster of each pair, such as its network. Interval (percentiles) and p value (normal on
            Fisher's z scale, with the deviation of the resamples) then come from drawing whole clusters again. None:
            pairs are independent, and both come from the variance of Fisher's z.
        confidence: Of the interval.
        resamples: Drawings of clusters.
        seed: Of the drawings.
    """
    x, y, fine = _finite_pairs(x, y)
    value = float(coefficient(x, y, method)[0]) if len(x) > 1 else math.nan
    if not math.isfinite(value):
        return Correlation(*NOTHING, len(x))
    if clusters is None:
        deviation = math.sqrt(_variance(method, len(x), value))
        low, high = _around(_z(value, len(x)), deviation, float(stats.norm.ppf(0.5 + confidence / 2)))
        return Correlation(value, low, high, _p(_z(value, len(x)), deviation), len(x))
    weights = _draw_clusters(np.asarray(clusters)[fine], resamples, seed)
    drawn = coefficient(x, y, method, weights)
    drawn = drawn[np.isfinite(drawn)]
    if len(np.unique(np.asarray(clusters)[fine])) < 2 or len(drawn) < resamples / 2:
        return Correlation(value, math.nan, math.nan, math.nan, len(x))
    low, high = _percentiles(drawn, confidence)
    return Correlation(value, low, high, _p(_z(value, len(x)), float(np.std(_z(drawn, len(x)), ddof=1))), len(x))


def within(
    x: Array, y: Array, clusters: Sequence[Any], method: Method = "pearson", *, confidence: float = 0.95
) -> Correlation:
    """The correlation inside clusters, averaged over them: on Fisher's z scale, with weights n - 3.

    Interval and p value come from how much the clusters differ (Student's t with one degree of freedom less than
    there are clusters), so they hold if the correlation itself differs between clusters; of a single cluster, they
    are those of `correlation`. Clusters with a constant side or fewer than four pairs are left out. Correlations of
    exactly 1 count as 1 - 1/n².

    Returns:
        The average; `n` counts all pairs of the clusters that were used.
    """
    used = [(value, n) for value, n in by_cluster(x, y, clusters, method) if n > 3 and math.isfinite(value)]
    if not used:
        return Correlation(*NOTHING, 0)
    z, n = np.array([_z(value, n) for value, n in used]), np.array([n for _, n in used])
    share = (n - 3) / np.sum(n - 3)
    mean = float(share @ z)
    if len(used) == 1:
        deviation, free = math.sqrt(_variance(method, int(n[0]), math.tanh(mean))), math.inf
    else:
        free = len(used) - 1
        deviation = math.sqrt(np.sum(share**2 * (z - mean) ** 2) * len(used) / free)
    low, high = _around(mean, deviation, float(stats.t.ppf(0.5 + confidence / 2, free)))
    return Correlation(math.tanh(mean), low, high, _p(mean, deviation, free), int(n.sum()))


def by_cluster(x: Array, y: Array, clusters: Sequence[Any], method: Method = "pearson") -> list[tuple[float, int]]:
    """The correlation inside each cluster, in the order of their names, and its number of pairs."""
    x, y, fine = _finite_pairs(x, y)
    names = np.asarray(clusters)[fine]
    parts = [(x[names == name], y[names == name]) for name in np.unique(names)]
    return [(float(coefficient(*part, method)[0]), len(part[0])) for part in parts]


def holm(p: Array) -> np.ndarray:
    """P values adjusted for their number, by Holm's step-down rule; NaN stays NaN and does not count as a test."""
    p = np.asarray(p, float)
    adjusted, tests = np.full(p.shape, np.nan), np.flatnonzero(np.isfinite(p))
    order = tests[np.argsort(p[tests], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def adjusted(found: Sequence[Correlation]) -> list[Correlation]:
    """Correlations that were tested together, with their `p_holm`."""
    every = holm([each.p for each in found])
    return [each._replace(p_holm=float(p)) for each, p in zip(found, every, strict=True)]


def bootstrap(
    clusters: Sequence[Any],
    statistic: Callable[[Sequence[Any]], float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic with the percentile interval from drawing clusters again.

    Args:
        clusters: What is drawn, with replacement: whatever belongs to one network.
        statistic: `statistic(clusters) -> float`. Drawings where it is not finite are left out.
        confidence: Of the interval.
        resamples: Drawings.
        seed: Of the drawings.
    """
    rng, n = np.random.default_rng(seed), len(clusters)
    if n < 2:
        return Estimate(float(statistic(clusters)) if n else math.nan, math.nan, math.nan, n)
    drawn = np.array([statistic([clusters[i] for i in rng.integers(n, size=n)]) for _ in range(resamples)], float)
    drawn = drawn[np.isfinite(drawn)]
    low, high = _percentiles(drawn, confidence) if len(drawn) else (math.nan, math.nan)
    return Estimate(float(statistic(clusters)), low, high, n)


def mean(values: Array, clusters: Sequence[Any] | None = None, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The mean of the values that are not NaN, with its 95 % interval from drawing clusters again.

    Args:
        values: float[N].
        clusters: What each value belongs to, such as its network, which is what is drawn. Default: every value alone.
        resamples: Drawings.
        seed: Of the drawings.
    """
    groups: dict[Any, list[float]] = {}
    for value, cluster in zip(values, range(len(values)) if clusters is None else clusters, strict=True):
        if not math.isnan(value):
            groups.setdefault(cluster, []).append(float(value))
    return bootstrap(
        list(groups.values()), lambda found: float(np.mean(np.concatenate(found))), resamples=resamples, seed=seed
    )


def median(values: Array, *, confidence: float = 0.95) -> Estimate:
    """The median and its interval between two order statistics, which holds for every distribution.

    Of fewer than six values no such interval is that sure: then it is their whole range, sure to 1 - 2^(1 - n).
    Values that are not finite are left out.
    """
    found = np.sort(np.asarray(values, float).ravel())
    found = found[np.isfinite(found)]
    n = len(found)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    # The largest k for which fewer than k values fall on one side of the median rarely enough.
    k = max(1, int(stats.binom.ppf((1 - confidence) / 2, n, 0.5)))
    k = k if stats.binom.cdf(k - 1, n, 0.5) <= (1 - confidence) / 2 else max(1, k - 1)
    return Estimate(float(np.median(found)), float(found[k - 1]), float(found[n - k]), n)


def spearman_brown(reliability: float, times: float) -> float:
    """The reliability of a mean of `times` measurements, from that of one (Spearman 1910, Brown 1910)."""
    return times * reliability / (1 + (times - 1) * reliability)


def _pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = weights.sum(axis=1, keepdims=True)
    x, y = (np.broadcast_to(side, weights.shape) for side in (x, y))
    dot = lambda one, other: np.sum(weights * one * other, axis=1)
    rounding = [1e-26 * dot(side, side) for side in (x, y)]  # a constant side deviates by the rounding of its mean
    x, y = (side - np.sum(weights * side, axis=1, keepdims=True) / total for side in (x, y))
    spread = [
        np.where(dot(side, side) > least, dot(side, side), 0.0) for side, least in zip((x, y), rounding, strict=True)
    ]
    return _ratio(dot(x, y), spread[0] * spread[1])


def _ratio(top: np.ndarray, squares: np.ndarray) -> np.ndarray:
    bottom = np.sqrt(np.where(squares > 0, squares, np.nan))
    return np.clip(top / bottom, -1.0, 1.0)


def _finite_pairs(x: Array, y: Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"`x` has shape {x.shape} and `y` {y.shape}: give two rows of the same length.")
    fine = np.isfinite(x) & np.isfinite(y)
    return x[fine], y[fine], fine


def _draw_clusters(clusters: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """How often each observation counts when whole clusters are drawn with replacement: float[R, n]."""
    names, index = np.unique(clusters, return_inverse=True)
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)[:, index].astype(float)


def _variance(method: Method, n: int, value: float) -> float:
    """Of Fisher's z of independent pairs; NaN for too few."""
    if n < 5:
        return 1 / (n - 3) if method == "pearson" and n > 3 else math.nan
    return {"pearson": 1.0, "spearman": 1 + value**2 / 2, "kendall": 0.437 * (n - 3) / (n - 4)}[method] / (n - 3)


def _z(value: Any, n: int) -> Any:
    most = 1 - 1 / n**2
    return np.arctanh(np.clip(value, -most, most))


def _around(z: float, deviation: float, factor: float) -> tuple[float, float]:
    return math.tanh(z - factor * deviation), math.tanh(z + factor * deviation)


def _p(z: float, deviation: float, free: float = math.inf) -> float:
    if not deviation > 0:
        return math.nan
    return float(2 * stats.t.sf(abs(z) / deviation, free))


def _percentiles(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
