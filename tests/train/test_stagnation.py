"""A session ends when the error stagnates, by losses made by hand."""

import math

import numpy as np
import pytest

from maskprune.train.session import stagnation


def looks(watch, means):
    """What a watch says to sessions of two more losses a look, of the given means."""
    losses, said = [], []
    for mean in means:
        losses += [mean - 0.01, mean + 0.01]
        said.append(watch(None, np.array(losses)))
    return [bool(word) for word in said]


def test_stagnation_compares_looks_with_the_best():
    watch = stagnation(improvement=0.1, patience=2, every=2)
    assert looks(watch, [1.0, 0.8, 0.75, 0.71, 0.66, 0.62, 0.6, 0.6]) == [False] * 7 + [True]
    assert looks(watch, [1.0, math.nan, 0.5, 0.46, math.nan, 0.1]) == [False] * 4 + [True] * 2
    assert "improved by less than 10.00% over 2 looks" in watch(None, np.full(20, 9.0))


def test_stagnation_has_no_memory():
    watch = stagnation(improvement=0.1, patience=1, every=2)
    for _ in range(2):
        assert looks(watch, [5.0, 4.0, 3.0, 2.9]) == [False, False, False, True]
    assert not watch(None, np.array([5.0, 4.0, 9.0]))  # half a look is none


@pytest.mark.parametrize(
    ("improvement", "patience", "complaint"),
    [(0.0, 3, "`improvement` is 0.0"), (math.nan, 3, "`improvement` is nan"), (0.1, 0, "`patience` 0 and")],
)
def test_a_wrong_argument_is_named(improvement, patience, complaint):
    with pytest.raises(ValueError, match=complaint):
        stagnation(improvement=improvement, patience=patience)
