"""Sets of masks as text: all of them, and nothing else."""

import itertools

import numpy as np
import pytest

from maskprune.lab import mask_sets


@pytest.mark.parametrize(("sizes", "number"), [((5, 5), 961), ((3, 3), 49), ((1, 1), 1), ((2, 3, 1), 21)])
def test_every_usable_set_is_there_once(sizes, number):
    found = mask_sets.every(sizes)
    assert len(found) == len(set(found)) == number
    assert all(min(mask_sets.shape(each)) > 0 and [len(s) for s in each.split(" ")] == list(sizes) for each in found)
    assert [mask_sets.count(each) for each in found] == sorted(mask_sets.count(each) for each in found)
    assert found[-1] == mask_sets.full(sizes)


def test_shapes_follow_each_other_so_that_each_is_compiled_once():
    found = [mask_sets.shape(each) for each in mask_sets.every((5, 5))]
    assert [shape for shape, _ in itertools.groupby(found)] == mask_sets.shapes((5, 5))
    assert len(mask_sets.shapes((5, 5))) == 25


def test_only_small_ones():
    assert mask_sets.every((5, 5), most=3) == [each for each in mask_sets.every((5, 5)) if mask_sets.count(each) <= 3]
    assert mask_sets.shapes((5, 5), most=3) == [(1, 1), (1, 2), (2, 1)]
    assert mask_sets.every((5, 5), most=1) == []


def test_text_and_flags():
    flags = [np.array([False, True, True]), [True, False]]
    assert mask_sets.spell(flags) == "011 10"
    assert [group.tolist() for group in mask_sets.read("011 10")] == [[False, True, True], [True, False]]
    assert mask_sets.first((3, 2), (2, 1)) == "110 10"


@pytest.mark.parametrize("wrong", ["", "01 2", "01  1", " 01", "0x1"])
def test_what_is_no_set_is_refused(wrong):
    with pytest.raises(ValueError, match="`alive`"):
        mask_sets.read(wrong)


def test_the_last_mask_of_a_group_stays():
    assert mask_sets.removable("011 10") == [1, 2]
    assert [mask_sets.without("011 10", mask) for mask in mask_sets.removable("011 10")] == ["001 10", "010 10"]
    assert mask_sets.removable("111 11", least=2) == [0, 1, 2]
    assert mask_sets.removable("010 10") == []


def test_removals_lead_to_every_set_with_one_mask_less():
    for each in mask_sets.every((3, 3)):
        children = {mask_sets.without(each, mask) for mask in mask_sets.removable(each)}
        inside = lambda small, each=each: all(a <= b for a, b in zip(small, each, strict=True))
        assert children == {
            c for c in mask_sets.every((3, 3)) if mask_sets.count(c) == mask_sets.count(each) - 1 and inside(c)
        }
