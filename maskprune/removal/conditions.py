"""When something goes, as conditions on masks: it goes when any of its causes is complete.

A cause is complete when all its clauses are met, and a clause is met when any of its masks is disabled. So a channel
that two masks share goes with either, and a head of an attention layer goes with its own mask or when every place
inside it is gone. All conditions are evaluated at once, in NumPy or, under `jit`, in JAX. Knows numbers of masks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


Condition = tuple[tuple[tuple[int, ...], ...], ...]  # causes of clauses of masks, none of them empty


class Stretches(NamedTuple):
    """Rows that are summed in stretches: row `order[i]` lies in stretch j where `starts[j] <= i < starts[j + 1]`."""

    order: np.ndarray
    starts: np.ndarray

    def sums(self, values: Any) -> Any:
        xp: Any = jnp if isinstance(values, jax.Array) else np
        total = xp.concatenate([np.zeros(1, int), xp.cumsum(values[self.order], dtype=int)])
        return total[self.starts[1:]] - total[self.starts[:-1]]


def by_number(numbers: np.ndarray, count: int) -> Stretches:
    """One stretch for each number below `count`: the rows that have it."""
    order = np.argsort(numbers, kind="stable")
    return Stretches(order, np.searchsorted(numbers[order], np.arange(count + 1)))


class Conditions(NamedTuple):
    """Conditions in one table. Make it with `make_conditions`.

    Attributes:
        masks: int[R], the masks of all clauses in a row.
        clause_of: int[R], the clause of each.
        clauses: The rows of every clause.
        causes: The clauses of every cause.
        conditions: The causes of every condition.
        in_cause: The rows of every pair of a cause and a mask in it.
        cause_of: int, the cause of every such pair.
        in_condition: The pairs of a cause and a mask, by pair of a condition and a mask.
        pairs: int[P, 2], the pairs of a condition and a mask on which it hangs, ascending.
    """

    masks: np.ndarray
    clause_of: np.ndarray
    clauses: Stretches
    causes: Stretches
    conditions: Stretches
    in_cause: Stretches
    cause_of: np.ndarray
    in_condition: Stretches
    pairs: np.ndarray

    def evaluate(self, enabled: Any) -> tuple[Any, Any]:
        """Which conditions hold, and bool[P]: which pairs name a mask that would make its condition hold.

        `enabled` is bool[M].
        """
        unmet = self.clauses.sums(~enabled[self.masks]) == 0
        missing = self.causes.sums(unmet)
        holds = self.conditions.sums(missing == 0) > 0
        left = missing[self.cause_of]
        completes = (left > 0) & (self.in_cause.sums(unmet[self.clause_of]) == left)
        return holds, (self.in_condition.sums(completes) > 0) & ~holds[self.pairs[:, 0]]


def make_conditions(conditions: Sequence[Condition]) -> Conditions:
    """Puts conditions into one table, numbered as they come."""
    causes = list(chain.from_iterable(conditions))
    clauses = list(chain.from_iterable(causes))
    masks = np.fromiter(chain.from_iterable(clauses), int)
    clause_of, in_clauses = _nested(clauses)
    of_cause, in_causes = _nested(causes)
    of_condition, in_conditions = _nested(conditions)
    many = int(masks.max(initial=0)) + 1
    in_cause, row_pair = np.unique(of_cause[clause_of] * many + masks, return_inverse=True)
    cause_of, mask_of = np.divmod(in_cause, many)
    pairs, cause_pair = np.unique(of_condition[cause_of] * many + mask_of, return_inverse=True)
    return Conditions(
        masks,
        clause_of,
        in_clauses,
        in_causes,
        in_conditions,
        by_number(row_pair, len(in_cause)),
        cause_of,
        by_number(cause_pair, len(pairs)),
        np.stack(np.divmod(pairs, many), axis=1),
    )


def _nested(lists: Sequence[Sequence[Any]]) -> tuple[np.ndarray, Stretches]:
    """Lists laid out in a row: the list of every entry, and the entries of every list."""
    sizes = np.fromiter(map(len, lists), int, len(lists))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return np.repeat(np.arange(len(sizes)), sizes), Stretches(np.arange(starts[-1]), starts)
