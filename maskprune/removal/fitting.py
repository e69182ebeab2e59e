"""How a plan fits a function that was read: which units go, which leaves follow, and what is wrong where it does not.

A plan names the axes it cuts. Others, which the function binds to them and which the plan leaves whole, may follow:
they are given whole and cut inside the function. There they count as numbers that no mask zeroes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.jaxpr.reader import Reading, touched
from maskprune.masks.jaxpr.reasons import Reasons
from maskprune.masks.jaxpr.union_find import PINNED
from maskprune.masks.naming import LeafAxis
from maskprune.removal.plan import Cut, Plan


Following = frozenset[tuple[str, int]]  # (leaf, axis)


class Fitting:
    """How a plan fits a function that was read.

    Attributes:
        reading: The function.
        following: Axes that the plan leaves whole and that are cut inside the function.
        gone: The atoms that go.
        misfits: Leaf axes, with bool[n]: positions to go, of which some belong to no such atom.
    """

    def __init__(self, reading: Reading, leaves: Sequence[LeafAxis | None], plan: Plan, following: Following) -> None:
        self.reading, self.labels, self.following = reading, reading.labels, following
        self.leaves = [leaf for leaf in leaves if leaf is not None]
        cuts = {(cut.leaf, cut.axis, cut.state): cut for cut in plan.cuts}
        going = [(leaf, _going(cuts.pop((leaf.leaf, leaf.number, leaf.state), None), leaf)) for leaf in self.leaves]
        self.unknown = list(cuts)
        self.going = [(leaf, gone) for leaf, gone in going if leaf.state or (leaf.leaf, leaf.number) not in following]
        flagged = [] if plan.inexact else [self.labels.cells.atoms(cells)[1] for cells, _ in self.labels.inexact]
        never = np.concatenate([np.zeros(0, int), *flagged])
        axes = [(leaf.axis, gone) for leaf, gone in self.going]
        self.gone, unexplained = touched(axes, self.labels, never=never)
        self.misfits = [pair for pair, wrong in zip(self.going, unexplained, strict=True) if wrong]

    def bound(self) -> Following:
        """The axes that the plan leaves whole and that hold what the misfits would take away."""
        cells = self.labels.cells
        wanted = np.concatenate([cells.atoms(leaf.axis.cells[gone])[1] for leaf, gone in self.misfits])
        whole = [leaf for leaf, gone in self.going if not leaf.state and not gone.any()]
        return frozenset(
            (leaf.leaf, leaf.number) for leaf in whole if np.isin(cells.atoms(leaf.axis.cells)[1], wanted).any()
        )

    def by_input(self, params: Any) -> dict[int, list[int]]:
        """The axes that follow, by the number of their leaf."""
        paths, found = list(leaves_by_path(params)), dict[int, list[int]]()
        for leaf, axis in self.following:
            found.setdefault(paths.index(leaf), []).append(axis)
        return found

    def complaint(self) -> str:
        """What is wrong with the first axis of which positions are to go that no removable channel accounts for."""
        if self.unknown:
            names = ", ".join(f"axis {axis} of `{leaf}`" for leaf, axis, _ in self.unknown)
            return f"The plan cuts {names}, which the parameters lack or which never shrinks."
        if not self.misfits:
            return ""
        leaf, gone = self.misfits[0]
        cells = leaf.axis.cells[gone]
        atoms = self.labels.cells.atoms(cells)[1]
        for flagged, why in self.labels.inexact:
            if np.isin(self.labels.cells.atoms(flagged)[1], atoms).any():
                return f"Removing these masks would change more than rounding: {why}.{self._advice()}"
        return (
            f"The plan removes positions {np.flatnonzero(gone).tolist()} along axis {leaf.number} of `{leaf.leaf}`, "
            f"which cannot all go: {self._reason(cells, atoms)}. Trace the function to see its masks."
        )

    def _reason(self, cells: np.ndarray, atoms: np.ndarray) -> str:
        """Why these cells do not go: they stay in this function, or are bound to some that stay in the plan."""
        pinned = cells[self.labels.cells.find(cells) == PINNED]
        if len(pinned):
            names = [(leaf.name, leaf.axis) for leaf in self.leaves]
            return Reasons(self.labels.cells, names, {}).of(int(pinned[0]))
        for leaf, gone in self.going:
            if np.isin(self.labels.cells.atoms(leaf.axis.cells[~gone])[1], atoms).any():
                whose = " of the model state" if leaf.state else ""
                return f"in this function they belong together with positions of `{leaf.name}`{whose} that stay"
        return "in this function they belong together with positions that stay"

    def _advice(self) -> str:
        if not self.following:
            return ""
        whole = ", ".join(f"axis {axis} of `{leaf}`" for leaf, axis in sorted(self.following))
        return (
            f" The plan leaves {whole} whole, which this function binds to them: find masks for both functions with "
            "`trace(..., also=[...])`."
        )


def _going(cut: Cut | None, leaf: LeafAxis) -> np.ndarray:
    """bool[n]: which positions a plan removes."""
    gone = np.zeros(len(leaf.axis.cells), bool)
    if cut is not None:
        gone[:] = True
        gone[list(cut.kept)] = False
    return gone
