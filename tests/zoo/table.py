"""Writes docs/zoo.md, the table of the zoo: `python -m tests.zoo.table`, from the root of the repository.

Takes a few minutes: every network is masked, compacted and run.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from maskprune import count_params, make_plan

from . import check
from .networks import BY_ID


PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
HEADER = """# The zoo

Networks of small width and true structure on which the tests compare the masked with the compacted network. Every row
is one of them, with about half of the masks of each group disabled. Written by `python -m tests.zoo.table`.

* *style*: the library it is written in; *plain* is JAX alone.
* *difference*: the largest between the outputs of the masked and the compacted network, over the largest output, both
  in float32 with ordinary random weights.
* *bit for bit*: the tests find no difference at all on small integers, whose sums are exact in any order.
* *kept*: axes of leaves whose channels must stay, the output aside, and the most frequent reason.

"""
COLUMNS = ("network", "style", "groups", "masks", "parameters", "after", "difference", "bit for bit", "kept")
PLACE = re.compile(r" \(\S+:\d+\)")


class Row(NamedTuple):
    """One line of the table; what the columns of `COLUMNS` say."""

    network: str
    style: str
    groups: int
    masks: int
    before: int
    after: int
    difference: float
    exact: str
    kept: str

    def __str__(self) -> str:
        cells = [str(cell) for cell in self]
        cells[4:7] = f"{self.before:,}", f"{self.after:,}", f"{self.difference:.0e}" if self.difference else "0"
        return f"| {' | '.join(cells)} |"


def row(name: str) -> Row:
    """Masks, compacts and runs the network with this id."""
    case = check.load(name)
    enabled = check.index_set(0, case.groups)
    plan = make_plan(case.groups, enabled)
    draw, small = case.ordinary, case.ordinary.cut(plan)
    difference = check.difference(
        check.Runs(case, double=False).masked(enabled, draw),
        check.compiled(case.shrunk(plan))(*small.args),
    )
    sizes = [group.size for group in case.groups]
    exact = "yes" if case.entry.integer else ""
    counts = count_params(draw.params), count_params(small.params)
    kept = main_reason(case.groups.protected)
    return Row(case.entry.name, case.entry.style, len(sizes), sum(sizes), *counts, difference, exact, kept)


def main_reason(protected: Sequence[tuple[str, str]]) -> str:
    """How many axes stay, and the reason at the root of most, its place in the source left out."""
    roots = [PLACE.sub("", why).rpartition("which stays: ")[2] for _, why in protected]
    reasons = collections.Counter(why for why in roots if "output of the network" not in why)
    return f"{reasons.total()}: {max(reasons, key=reasons.__getitem__)}" if reasons else ""


def page(rows: list[Row]) -> str:
    names = {found.network for found in rows}
    counted = f"{len(rows)} networks, {len(names)} of them different; {sum(found.masks for found in rows):,} masks.\n\n"
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"]
    return HEADER + counted + "\n".join([*lines, *map(str, sorted(rows))]) + "\n"


def main() -> None:
    with jax.numpy_rank_promotion("allow"):
        rows = [row(name) for name in BY_ID]
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
