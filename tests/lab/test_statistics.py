"""Correlations agree with scipy and with numbers known by hand; intervals hold as often as they say."""

import math

import numpy as np
import pytest
from scipy import stats

from maskprune.lab import statistics
from maskprune.lab.statistics import METHODS


SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


def pairs(rng, n=40, *, ties=False):
    x = rng.normal(size=n)
    y = 0.5 * x + rng.normal(size=n)
    return (np.round(x), np.round(y)) if ties else (x, y)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_are_those_of_scipy(rng, method, ties):
    x, y = pairs(rng, ties=ties)
    assert statistics.coefficient(x, y, method)[0] == pytest.approx(SCIPY[method](x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_repetitions(rng, method):
    x, y = pairs(rng, 20, ties=True)
    counts = rng.integers(0, 4, (5, 20))
    repeated = [SCIPY[method](np.repeat(x, row), np.repeat(y, row)).statistic for row in counts]
    np.testing.assert_allclose(statistics.coefficient(x, y, method, counts), repeated, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_side_has_no_correlation(rng, method, value):
    found = statistics.correlation(rng.normal(size=12), np.full(12, value), method)
    assert np.isnan(found[:4]).all() and found.n == 12


def test_pearsons_interval_is_that_of_scipy(rng):
    x, y = pairs(rng)
    found, known = statistics.correlation(x, y), stats.pearsonr(x, y).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(known), abs=1e-9)


def test_rank_intervals_by_hand():
    n, r = 28, 0.6
    z = math.atanh(r)
    for method, variance in (("spearman", (1 + r * r / 2) / 25), ("kendall", 0.437 / 24)):
        low = math.tanh(z - 1.959964 * math.sqrt(variance))
        assert statistics._around(z, math.sqrt(statistics._variance(method, n, r)), 1.959964)[0] == pytest.approx(low)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_is_left_out(rng, method):
    x, y = pairs(rng)
    broken_x, broken_y = np.append(x, [np.nan, 1.0]), np.append(y, [5.0, np.inf])
    assert statistics.correlation(broken_x, broken_y, method) == statistics.correlation(x, y, method)


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_as_often_as_they_say(method):
    """Pairs of known correlation 0.5: Pearson's, and by the arcsine laws of the normal distribution the ranks'."""
    rng = np.random.default_rng(1)
    truth = {"pearson": 0.5, "spearman": 6 / math.pi * math.asin(0.25), "kendall": 2 / math.pi * math.asin(0.5)}[method]
    held = 0
    for _ in range(400):
        x = rng.normal(size=30)
        y = 0.5 * x + math.sqrt(0.75) * rng.normal(size=30)
        found = statistics.correlation(x, y, method)
        held += found.low <= truth <= found.high
    assert 0.91 < held / 400 < 0.985


def clustered(rng, truth, clusters=12, size=10, shift=0.0, spread=0.0):
    """Clusters with a level of their own on both sides, and correlations around the truth inside."""
    x, y, names = [], [], []
    for name in range(clusters):
        r = np.tanh(np.arctanh(truth) + spread * rng.normal())
        level, inside = shift * rng.normal(size=2), rng.normal(size=size)
        x.append(level[0] + inside)
        y.append(level[1] + r * inside + math.sqrt(1 - r * r) * rng.normal(size=size))
        names += [name] * size
    return np.concatenate(x), np.concatenate(y), names


def test_inside_clusters_their_levels_do_not_matter(rng):
    x, y, names = clustered(rng, 0.6, shift=50.0)
    assert abs(statistics.correlation(x, y).value - 0.6) > 0.2
    found = statistics.within(x, y, names)
    assert abs(found.value - 0.6) < 0.12 and found.n == 120
    singles = [value for value, _ in statistics.by_cluster(x, y, names)]
    assert found.value == pytest.approx(math.tanh(np.mean(np.arctanh(singles))))


def test_a_larger_cluster_counts_for_more(rng):
    x, y = pairs(rng, 60)
    names = [0] * 10 + [1] * 50
    (a, _), (b, _) = statistics.by_cluster(x, y, names)
    assert statistics.within(x, y, names).value == pytest.approx(
        math.tanh((7 * math.atanh(a) + 47 * math.atanh(b)) / 54)
    )


def test_one_cluster_is_itself_and_useless_ones_are_left_out(rng):
    x, y = pairs(rng)
    alone, alike = statistics.within(x, y, [0] * 40), statistics.correlation(x, y)
    assert alone[:4] == pytest.approx(alike[:4])
    more = np.append(x, [1, 2, 3, 7, 7, 7, 7]), np.append(y, [1, 2, 3, 1, 2, 3, 4])
    assert statistics.within(*more, [0] * 40 + [1] * 3 + [2] * 4) == alone
    assert math.isnan(statistics.within([1, 2, 3], [1, 2, 3], [0] * 3).value)


@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_intervals_of_the_average_hold_when_clusters_differ(spread):
    rng, held = np.random.default_rng(2), 0
    for _ in range(300):
        found = statistics.within(*clustered(rng, 0.4, spread=spread))
        held += found.low <= 0.4 <= found.high
    assert 0.91 < held / 300 < 0.985


def test_masks_of_one_network_are_no_independent_evidence():
    """Uncorrelated levels of clusters, hardly any spread inside: pairs are many, clusters are what counts."""
    rng, naive, honest = np.random.default_rng(3), 0, 0
    for _ in range(100):
        x, y, names = clustered(rng, 0.0, clusters=20, size=8, shift=5.0)
        one, other = statistics.correlation(x, y), statistics.correlation(x, y, clusters=names, resamples=300)
        naive += one.low <= 0 <= one.high
        honest += other.low <= 0 <= other.high
    assert naive < 70 and honest > 82


@pytest.mark.parametrize("method", METHODS)
def test_drawing_clusters_of_one_is_the_usual_interval(rng, method):
    x, y = pairs(rng, 200)
    usual, drawn = statistics.correlation(x, y, method), statistics.correlation(x, y, method, clusters=range(200))
    assert (drawn.low, drawn.high) == pytest.approx((usual.low, usual.high), abs=0.05)
    assert drawn == statistics.correlation(x, y, method, clusters=range(200))


def test_holms_rule_on_a_known_example():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.5, np.nan, 0.02]), [0.5, np.nan, 0.04])
    assert statistics.holm([0.9, 0.8]).max() == 1.0 and statistics.holm([]).size == 0


def test_adjusted_correlations_keep_everything_else(rng):
    found = [statistics.correlation(*pairs(rng, 9)) for _ in range(4)]
    after = statistics.adjusted(found)
    assert [each[:5] for each in after] == [each[:5] for each in found]
    assert all(each.p_holm >= each.p for each in after)


def test_the_median_lies_between_two_order_statistics():
    found = statistics.median(np.arange(1, 21))  # n = 20: the 6th and the 15th, sure to 95.9 %
    assert found == (10.5, 6.0, 15.0, 20)
    assert statistics.median([3.0, 1.0, np.nan, 2.0]) == (2.0, 1.0, 3.0, 3)
    assert math.isnan(statistics.median([]).value)


@pytest.mark.parametrize("n", [6, 9, 30])
def test_the_medians_interval_holds_for_skewed_values(n):
    drawn = np.random.default_rng(4).exponential(size=(600, n))
    held = [low <= math.log(2) <= high for _, low, high, _ in map(statistics.median, drawn)]
    assert np.mean(held) > 0.93


def test_the_bootstrap_draws_whole_clusters(rng):
    clusters = [list(level + 0.01 * rng.normal(size=50)) for level in rng.normal(size=25)]
    found = statistics.bootstrap(clusters, lambda drawn: float(np.mean(np.concatenate(drawn))))
    levels = [np.mean(each) for each in clusters]
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.std(levels) / 5, rel=0.2) and found.n == 25
    assert found == statistics.bootstrap(clusters, lambda drawn: float(np.mean(np.concatenate(drawn))))
    assert math.isnan(statistics.bootstrap(clusters[:1], lambda drawn: 1.0).low)


def test_the_mean_of_what_is_there():
    values, networks = [1.0, 3.0, math.nan, 8.0, 4.0], ["a", "a", "a", "b", "c"]
    found = statistics.mean(values, networks)
    assert found.value == 4 and found.n == 3 and found.low <= 2.5 and found.high >= 7  # draws of three networks
    assert statistics.mean([2.0, 2.0, math.nan]) == (2.0, 2.0, 2.0, 2)
    assert statistics.mean([3.0]).value == 3 and math.isnan(statistics.mean([3.0]).low)
    assert math.isnan(statistics.mean([]).value)
    wide = 1.96 * np.arange(20.0).std() / math.sqrt(20)
    assert statistics.mean(np.arange(20.0)).low == pytest.approx(9.5 - wide, abs=0.5)


def test_spearman_browns_formula():
    assert statistics.spearman_brown(0.5, 2) == pytest.approx(2 / 3)
    assert statistics.spearman_brown(0.8, 1) == 0.8


def test_wrong_arguments_are_named(rng):
    with pytest.raises(ValueError, match="`method` is 'cosine'"):
        statistics.coefficient([1, 2], [1, 2], "cosine")
    with pytest.raises(ValueError, match=r"`x` has shape \(3,\)"):
        statistics.correlation([1, 2, 3], [1, 2])
