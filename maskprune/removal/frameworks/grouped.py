"""In how many groups the convolutions of a function work: read from what it computes, not guessed from its shapes.

A kernel [..., 2, 4] may stand for two groups of two output channels or for four of one. Knows no framework.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.jaxpr.internals import Literal, every_body, parameters


Sources = frozenset[str]


def convolution_groups(function: Callable[..., Any], params: Any, *inputs: Any) -> dict[str, int]:
    """The `feature_group_count` of every convolution of `function(params, *inputs)`, by the path of its kernel.

    Leaves that are no kernel, or that are read in several ways, have none.
    """
    jaxpr = jax.make_jaxpr(function)(params, *inputs).jaxpr
    paths = [frozenset([path]) for path in leaves_by_path(params)]
    found: dict[str, set[int]] = {}
    _follow(jaxpr, [*paths, *[frozenset[str]()] * (len(jaxpr.invars) - len(paths))], found)
    return {path: next(iter(counts)) for path, counts in found.items() if len(counts) == 1}


def _follow(jaxpr: Any, sources: Sequence[Sources], found: dict[str, set[int]]) -> list[Sources]:
    """Which leaves the outputs come from; notes the groups of every convolution on the way."""
    known = dict(zip(jaxpr.invars, sources, strict=True))
    get = lambda atom: frozenset() if isinstance(atom, Literal) else known.get(atom, frozenset())
    for equation in jaxpr.eqns:
        given = [get(atom) for atom in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            for path in given[1]:
                found.setdefault(path, set()).add(parameters(equation)["feature_group_count"])
        # Loops and branches have conditions before the arguments of what they run.
        inner = [
            _follow(each, given[len(given) - len(each.invars) :], found)
            for each in every_body(equation)
            if len(each.invars) <= len(given)
        ]
        every = [frozenset[str]().union(*given)] * len(equation.outvars)
        known |= zip(equation.outvars, inner[0] if [*map(len, inner)] == [len(every)] else every, strict=True)
    return [get(atom) for atom in jaxpr.outvars]
