"""Reading a function: its jaxpr, equation by equation, with a rule for each primitive.

`read_jaxpr` gives a `Reading`: what is known of every value inside the function, nested functions included. The same
reading serves to find the masks (`trace`) and to run the function on shrunk arrays (`shrink`). The only file that
handles jaxprs and their types.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from maskprune.labels import Axis, Labels, Value
from maskprune.lines import source_line
from maskprune.rules import RULES
from maskprune.rules.base import Equation, Rule, unknown
from maskprune.rules.calls import BODIES
from maskprune.rules.folding import KINDS, LARGEST, fold


Rules = Mapping[str, Rule]
Tracer = jax.core.Tracer


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
        return _literal(atom.val) if isinstance(atom, jex.Literal) else self.values[atom]


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
    return isinstance(atom, jex.Literal)


def find_rule(rules: Rules, raw: Any) -> Rule | None:
    """The rule of an equation: that of a jitted function by its name (`"jit:name"`) before that of the primitive."""
    named = rules.get(f"jit:{raw.params.get('name')}") if raw.primitive.name in ("jit", "pjit") else None
    return named or rules.get(raw.primitive.name)


class _Reader:
    """Applies the rules to bodies within bodies."""

    def __init__(self, labels: Labels, rules: Rules) -> None:
        self.labels, self.rules = labels, rules
        self.path: tuple[tuple[Scope, Any], ...] = ()  # the equations whose bodies are being read

    def body(self, jaxpr: Any, inputs: Sequence[Value]) -> tuple[Scope, list[Value]]:
        open_jaxpr, consts = (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())
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
        if all(const is not None for const in constants) and not BODIES.get(equation.name):
            folded = fold(equation, raw.outvars[0].aval.dtype, constants)  # type: ignore[arg-type]
            if folded is not None:
                return [self.constant(folded)]
        rule = find_rule(self.rules, raw)
        found = (unknown if rule is None else rule.label)(self.labels, equation, *inputs)
        return [found] if isinstance(found, Value) else list(found)

    def describe(self, scope: Scope, position: int, raw: Any) -> Equation:
        name = raw.primitive.name
        bodies = BODIES.get(name)

        def read(number: int, values: Sequence[Value]) -> list[Value]:
            assert bodies is not None, f"`{name}` has no inner function"
            before, self.path = self.path, path
            scope.inner[position, number], outputs = self.body(bodies(raw.params)[number], values)
            self.path = before
            return outputs

        path = (*self.path, (scope, raw))
        shapes = [tuple(var.aval.shape) for var in raw.outvars]
        return Equation(name, raw.params, shapes, lambda: source_line(*(each for _, each in path)), read, raw, path)

    def constant(self, const: Any) -> Value:
        known = _known(const)
        shape = tuple(np.shape(const))
        value = Value(shape, (None,) * len(shape), known, weights=True)
        dead = value.uniform()
        axes = tuple(self.labels.axis(size, dead=dead) for size in shape)
        return Value(shape, axes, known, weights=True)


def _literal(number: Any) -> Value:
    return Value((), (), np.asarray(number), weights=True) if np.ndim(number) == 0 else _whole(number)


def _whole(array: Any) -> Value:
    return Value(np.shape(array), (None,) * np.ndim(array), np.asarray(array), weights=True)


def _known(const: Any) -> np.ndarray | None:
    """A constant as a NumPy array, if it is small and made of plain numbers."""
    if isinstance(const, Tracer) or np.size(const) > LARGEST:
        return None
    dtype = const.dtype if hasattr(const, "dtype") else np.asarray(const).dtype
    if jnp.issubdtype(dtype, jax.dtypes.extended) or np.dtype(dtype).kind not in KINDS:
        return None
    return np.asarray(const)


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
