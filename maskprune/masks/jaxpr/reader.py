"""Reading a function: its jaxpr, equation by equation, with a rule for each primitive.

`read_jaxpr` gives a `Reading`: what is known of every value inside the function, nested functions included. The same
reading serves to find the masks (`trace`) and to run the function on shrunk arrays (`shrink`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.internals import Literal, Tracer, bodies, called, opened, parameters
from maskprune.masks.jaxpr.labels import Axis, Labels, Value
from maskprune.masks.jaxpr.lines import source_line
from maskprune.masks.jaxpr.rules import RULES
from maskprune.masks.jaxpr.rules.base import Equation, Rule, unknown
from maskprune.masks.jaxpr.rules.evaluation import is_number
from maskprune.masks.jaxpr.rules.folding import LARGEST, fold


Rules = Mapping[str, Rule]


@dataclasses.dataclass
class Scope:
    """One function body and what is known of its values.

    Attributes:
        jaxpr: The body.
        consts: Its constants, in full.
        values: What is known of every variable.
        inner: By position of an equation and number of its inner function: that body.
    """

    jaxpr: Any
    consts: Sequence[Any]
    values: dict[Any, Value]
    inner: dict[tuple[int, int], Scope]

    def value(self, atom: Any) -> Value:
        return _literal(atom) if isinstance(atom, Literal) else self.values[atom]


@dataclasses.dataclass
class Reading:
    """A function that has been read.

    Attributes:
        labels: What is equal and what stays.
        scope: The body.
        inputs: Its inputs, flat.
        outputs: Its outputs, flat.
    """

    labels: Labels
    scope: Scope
    inputs: list[Value]
    outputs: list[Value]


def to_jaxpr(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """The jaxpr of a function on arrays or abstract ones, and its output structure."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return jaxpr, jax.tree.structure(shapes)


def read_jaxpr(jaxpr: Any, labels: Labels, inputs: Sequence[Value], *, rules: Rules | None = None) -> Reading:
    """Reads a closed jaxpr, given what is known of its inputs."""
    reader = _Reader(labels, {**RULES, **(rules or {})})
    scope, outputs = reader.body(jaxpr, inputs)
    return Reading(labels, scope, list(inputs), outputs)


def is_literal(atom: Any) -> bool:
    return isinstance(atom, Literal)


def find_rule(rules: Rules, raw: Any) -> Rule | None:
    """The rule of an equation: that of a jitted function by its name (`"jit:name"`) before that of the primitive."""
    return rules.get(f"jit:{called(raw)}") or rules.get(raw.primitive.name)


class _Reader:
    """Applies the rules to bodies within bodies."""

    def __init__(self, labels: Labels, rules: Rules) -> None:
        self.labels, self.rules = labels, rules
        self.path: tuple[tuple[Scope, Any], ...] = ()  # the equations whose bodies are being read

    def body(self, jaxpr: Any, inputs: Sequence[Value]) -> tuple[Scope, list[Value]]:
        open_jaxpr, consts = opened(jaxpr)
        values = dict(zip(open_jaxpr.invars, inputs, strict=True))
        values |= {var: self.constant(const) for var, const in zip(open_jaxpr.constvars, consts, strict=True)}
        scope = Scope(open_jaxpr, consts, values, {})
        for position, equation in enumerate(open_jaxpr.eqns):
            values.update(zip(equation.outvars, self.equation(scope, position, equation), strict=True))
        return scope, [scope.value(var) for var in open_jaxpr.outvars]

    def equation(self, scope: Scope, position: int, raw: Any) -> list[Value]:
        inputs = [scope.value(atom) for atom in raw.invars]
        equation = self.describe(scope, position, raw)
        constants = [value.const for value in inputs]
        if all(const is not None for const in constants) and not bodies(raw):
            slacks = [value.slack for value in inputs]
            folded = fold(equation, raw.outvars[0].aval.dtype, constants, slacks)  # type: ignore[arg-type]
            if folded is not None:
                return [self.constant(folded.array, folded.slack)]
        rule = find_rule(self.rules, raw)
        found = (unknown if rule is None else rule.label)(self.labels, equation, *inputs)
        return [found] if isinstance(found, Value) else list(found)

    def describe(self, scope: Scope, position: int, raw: Any) -> Equation:
        name = raw.primitive.name

        def read(number: int, values: Sequence[Value]) -> list[Value]:
            before, self.path = self.path, path
            scope.inner[position, number], outputs = self.body(bodies(raw)[number], values)
            self.path = before
            return outputs

        path = (*self.path, (scope, raw))
        shapes = [tuple(var.aval.shape) for var in raw.outvars]
        return Equation(
            name, parameters(raw), shapes, lambda: source_line(*(each for _, each in path)), read, raw, path
        )

    def constant(self, const: Any, slack: float = 0.0) -> Value:
        known = _known(const)
        shape = tuple(np.shape(const))
        value = Value(shape, (None,) * len(shape), known, weights=True)
        dead = value.uniform()
        axes = tuple(self.labels.axis(size, dead=dead) for size in shape)
        return Value(shape, axes, known, True, slack)


def _literal(atom: Any) -> Value:
    number = atom.val
    if not jnp.issubdtype(atom.aval.dtype, jax.dtypes.extended):
        number = np.asarray(number, atom.aval.dtype)
    return Value(np.shape(number), (None,) * np.ndim(number), _known(number), weights=True)


def _known(const: Any) -> np.ndarray | None:
    """A constant as a NumPy array, if it is small and made of plain numbers."""
    if isinstance(const, Tracer) or np.size(const) > LARGEST:
        return None
    dtype = const.dtype if hasattr(const, "dtype") else np.asarray(const).dtype
    return np.asarray(const) if is_number(dtype) else None


def touched(
    axes: Sequence[tuple[Axis, np.ndarray]], labels: Labels, *, never: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which atoms are gone when these positions are.

    Args:
        axes: Axes, each with bool[n], True where a position is to go.
        labels: Where they belong.
        never: Atoms that must not go. Of channels seen as a grid, all rows going looks like all columns going.

    Returns:
        `(atoms, unexplained)`: the atoms all of whose positions go; and for every axis whether a position goes that no
        such atom accounts for.
    """
    found = [labels.cells.atoms(axis.cells) for axis, _ in axes]
    if not found:
        return np.zeros(0, int), np.zeros(0, bool)
    every = np.concatenate([atoms for _, atoms in found])
    going = np.concatenate([gone[where] for (where, _), (_, gone) in zip(found, axes, strict=True)])
    stays = np.unique(every[~going])
    atoms = np.setdiff1d(np.unique(every), stays if never is None else np.concatenate([stays, never]))
    unexplained = []
    for (where, names), (_, gone) in zip(found, axes, strict=True):
        accounted = np.zeros(len(gone), bool)
        accounted[where[np.isin(names, atoms)]] = True
        unexplained.append(bool((gone & ~accounted).any()))
    return atoms, np.array(unexplained)
