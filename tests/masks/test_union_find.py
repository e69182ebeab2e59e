"""The union-find over cells: equal is equal for good, pinned is pinned for good, pairs go with either part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskprune.masks.jaxpr.union_find import PINNED, Cells


def names(cells, *axes):
    return [tuple(cells.find(axis)) for axis in axes]


def test_fresh_cells_differ():
    cells = Cells()
    assert len(set(cells.find(cells.fresh(2000)))) == 2000  # beyond the first allocation


def test_equality_is_transitive_in_any_order():
    cells = Cells()
    a, b, c = (cells.fresh(4) for _ in range(3))
    cells.unify(a, c, "")
    cells.unify(b, c, "")
    assert len(set(names(cells, a, b, c))) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_one_to_many(order):
    """A broadcast label: four positions that go together, equal to four that did not until now."""
    cells = Cells()
    one, many = np.repeat(cells.fresh(1), 4), cells.fresh(4)
    cells.unify(*[(one, many)[i] for i in order], "")
    assert len(set(cells.find(many))) == 1


def test_what_meets_a_pinned_cell_is_pinned_with_its_reason():
    cells = Cells()
    a, b = cells.fresh(3), cells.fresh(3)
    cells.pin(a[1:2], "the reason")
    cells.unify(a, b, "they meet")
    assert (cells.find(b) == PINNED).tolist() == [False, True, False]
    assert cells.why_pinned(a) == "the reason" and cells.why_pinned(b) == "they meet"
    assert cells.why_pinned(b[:1]) is None


def test_split_of_fresh_cells_gives_rows_and_columns():
    cells = Cells()
    whole = cells.fresh(6)
    rows, columns = cells.split(whole, 2, 3, "")
    where, atoms = cells.atoms(whole)
    for position in range(6):
        parts = {*cells.find(rows[[position // 3]]), *cells.find(columns[[position % 3]])}
        assert set(atoms[where == position]) == parts


def test_merge_and_split_are_inverse():
    cells = Cells()
    a, b = cells.fresh(3), cells.fresh(4)
    found = cells.split(cells.merge([a, b], [3, 4]), 3, 4, "")
    assert names(cells, *found) == names(cells, a, b)


def test_a_whole_axis_takes_no_part():
    cells = Cells()
    a = cells.fresh(3)
    assert cells.merge([None, a, None], [2, 3, 2]).tolist() == [*np.repeat(a, 2), *np.repeat(a, 2)]
    outer, inner = cells.split(cells.merge([None, a], [4, 3]), 4, 3, "")
    assert outer is None and names(cells, inner) == names(cells, a)
    outer, inner = cells.split(cells.merge([a, None], [3, 4]), 3, 4, "")
    assert inner is None and names(cells, outer) == names(cells, a)


def test_pinning_a_pair_pins_both_parts():
    cells = Cells()
    a, b = cells.fresh(2), cells.fresh(3)
    cells.pin(cells.merge([a, b], [2, 3])[:1], "why")
    assert (cells.find(a) == PINNED).tolist() == [True, False]
    assert (cells.find(b) == PINNED).tolist() == [True, False, False]


def test_a_pair_with_a_pinned_part_is_the_other_part():
    cells = Cells()
    a, b = cells.fresh(2), cells.fresh(3)
    pair = cells.merge([a, b], [2, 3])
    cells.pin(a, "why")
    assert cells.find(pair).tolist() == [*cells.find(b), *cells.find(b)]


def test_two_ways_of_cutting_one_axis():
    """(4, 8) and (8, 4) of 32 channels: what goes must suit both, and can still go in finer parts than all at once."""
    cells = Cells()
    whole = cells.fresh(32)
    for outer, inner in ((4, 8), (8, 4)):
        cells.split(whole, outer, inner, "")
    where, atoms = cells.atoms(whole)
    for outer, inner in ((4, 8), (8, 4)):
        for atom in np.unique(atoms):
            gone = np.zeros(32, bool)
            gone[where[atoms == atom]] = True
            table = gone.reshape(outer, inner)
            rows, columns = table.all(axis=1), table.all(axis=0)
            assert (table == (rows[:, None] | columns)).all()
    assert len(np.unique(atoms)) >= 4


def test_a_cell_equal_to_a_pair_with_itself():
    cells = Cells()
    a, b = cells.fresh(1), cells.fresh(1)
    cells.unify(a, cells.pair(a, b), "")
    assert names(cells, a) == names(cells, b)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(st.data())
def test_any_mixture_keeps_every_equation(data):
    """Whatever is done, equations stated once hold at the end: equal cells have equal atoms, pins stay pinned."""
    cells = Cells()
    axes = [cells.fresh(12) for _ in range(4)]
    equations, pinned = [], []
    for _ in range(data.draw(st.integers(1, 8))):
        kind = data.draw(st.sampled_from(["unify", "roll", "split", "pin", "tile"]))
        one, other = (axes[data.draw(st.integers(0, len(axes) - 1))] for _ in range(2))
        if kind == "pin":
            place = data.draw(st.integers(0, 11))
            cells.pin(one[place : place + 1], "why")
            pinned.append(one[place : place + 1])
        elif kind == "split":
            outer = data.draw(st.sampled_from([2, 3, 4, 6]))
            parts = cells.split(one, outer, 12 // outer, "")
            merged = cells.merge(list(parts), [outer, 12 // outer])
            if merged is None:
                pinned.append(one)
            else:
                equations.append((one, merged))
                axes.append(cells.merge([parts[1], parts[0]], [12 // outer, outer]))  # a shuffle
        else:
            other = {"roll": np.roll(other, 3), "tile": np.tile(other[:4], 3)}.get(kind, other)
            cells.unify(one, other, "")
            equations.append((one, other))
    for one, other in equations:
        for a, b in zip(one, other, strict=True):
            assert set(cells.atoms(np.array([a]))[1]) == set(cells.atoms(np.array([b]))[1])
    for one in pinned:
        assert (cells.find(one) == PINNED).all()
