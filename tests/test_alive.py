"""Sets of masks as text: all of them, and nothing else."""

import itertools

import numpy as np
import pytest

from maskprune import alive


@pytest.mark.parametrize(("sizes", "number"), [((5, 5), 961), ((3, 3), 49), ((1, 1), 1), ((2, 3, 1), 21)])
def test_every_usable_set_is_there_once(sizes, number):
    found = alive.every(sizes)
    assert len(found) == len(set(found)) == number
    assert all(min(alive.shape(each)) > 0 and [len(s) for s in each.split(" ")] == list(sizes) for each in found)
    assert [alive.count(each) for each in found] == sorted(alive.count(each) for each in found)
    assert found[-1] == alive.full(sizes)


def test_shapes_follow_each_other_so_that_each_is_compiled_once():
    found = [alive.shape(each) for each in alive.every((5, 5))]
    assert [shape for shape, _ in itertools.groupby(found)] == alive.shapes((5, 5))
    assert len(alive.shapes((5, 5))) == 25


def test_only_small_ones():
    assert alive.every((5, 5), most=3) == [each for each in alive.every((5, 5)) if alive.count(each) <= 3]
    assert alive.shapes((5, 5), most=3) == [(1, 1), (1, 2), (2, 1)]
    assert alive.every((5, 5), most=1) == []


def test_text_and_flags():
    flags = [np.array([False, True, True]), [True, False]]
    assert alive.spell(flags) == "011 10"
    assert [group.tolist() for group in alive.read("011 10")] == [[False, True, True], [True, False]]
    assert alive.first((3, 2), (2, 1)) == "110 10"


@pytest.mark.parametrize("wrong", ["", "01 2", "01  1", " 01", "0x1"])
def test_what_is_no_set_is_refused(wrong):
    with pytest.raises(ValueError, match="`alive`"):
        alive.read(wrong)


def test_the_last_mask_of_a_group_stays():
    assert alive.removable("011 10") == [1, 2]
    assert [alive.without("011 10", mask) for mask in alive.removable("011 10")] == ["001 10", "010 10"]
    assert alive.removable("111 11", least=2) == [0, 1, 2]
    assert alive.removable("010 10") == []


def test_removals_lead_to_every_set_with_one_mask_less():
    for each in alive.every((3, 3)):
        children = {alive.without(each, mask) for mask in alive.removable(each)}
        inside = lambda small, each=each: all(a <= b for a, b in zip(small, each, strict=True))
        assert children == {c for c in alive.every((3, 3)) if alive.count(c) == alive.count(each) - 1 and inside(c)}
