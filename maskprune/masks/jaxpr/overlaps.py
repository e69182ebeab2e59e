"""Which of several atoms that share positions say something of their own.

An atom whose positions are exactly those of others (one that has the same, or several that lie within it) would be a
mask that those give as well. Knows numbers only.
"""

from __future__ import annotations

import numpy as np

from maskprune.masks.jaxpr.union_find import unique


def distinct(places: np.ndarray, members: np.ndarray, makes: np.ndarray) -> np.ndarray:
    """bool[n], the rows of atoms that no other atoms make up.

    Args:
        places: int[n, 2], leaf axis and position.
        members: int[n], the atom that stands there.
        makes: bool[axes], which leaf axes make channels; an atom that is only read or normalized makes up no other.
    """
    place = places[:, 0] * (places[:, 1].max(initial=0) + 1) + places[:, 1]
    if len(unique(place)) == len(place):  # nearly always
        return np.ones(len(place), bool)
    atoms, atom = np.unique(members, return_inverse=True)
    able = np.zeros(len(atoms), bool)
    able[atom[makes[places[:, 0]]]] = True
    rows = unique(np.unique(place, return_inverse=True)[1] * len(atoms) + atom)
    sizes = np.bincount(rows % len(atoms), minlength=len(atoms))
    row, other = _meetings(rows // len(atoms))
    one, two = rows[row] % len(atoms), rows[other] % len(atoms)
    _, pair, shared = np.unique(one * len(atoms) + two, return_inverse=True, return_counts=True)
    inside = able[two] & (shared[pair] == sizes[two])
    inside &= (sizes[two] < sizes[one]) | (two < one)  # of equals the first stays
    covered = np.zeros(len(rows), bool)
    covered[row[inside]] = True
    alone = np.bincount(rows % len(atoms), ~covered, minlength=len(atoms)) > 0
    return alone[atom]


def _meetings(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All ordered pairs of two rows at the same place, given in ascending order."""
    first, second = [np.zeros(0, int)], [np.zeros(0, int)]
    for step in range(1, int(np.bincount(place).max(initial=0))):
        near = np.flatnonzero(place[step:] == place[:-step])
        first += [near, near + step]
        second += [near + step, near]
    return np.concatenate(first), np.concatenate(second)
