"""Running a function on arrays from which channels were cut, without touching its code.

The function is read for the input sizes at hand; then its equations run on the small arrays, each with its sizes
derived anew. So the result works at any batch and picture size, under `jit`, `grad`, `vmap` and `jax.export`, and can
be traced again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.conv import OWN, finish
from maskprune.masks.groups import leaf_path
from maskprune.masks.jaxpr.internals import Literal, Tracer, bind, called, context, parameters
from maskprune.masks.jaxpr.labels import Axis, Labels, Value
from maskprune.masks.jaxpr.reader import Reading, Rules, Scope, find_rule, read_jaxpr, to_jaxpr, touched
from maskprune.masks.jaxpr.rules import RULES
from maskprune.masks.jaxpr.rules.base import Kept, Site, rebind, take
from maskprune.masks.jaxpr.rules.placement import explicit_misfit
from maskprune.masks.tracing import handed_on, read_network
from maskprune.removal.fitting import Fitting
from maskprune.removal.plan import Dropped, Plan


class ShrinkError(ValueError):
    """A plan does not fit the function it is to shrink."""


@strict
def shrink(
    apply: Callable[..., Any], plan: Plan, *, stateful: bool = False, rules: Rules | None = None
) -> Callable[..., Any]:
    """The function for cut parameters: `apply`, with every size derived anew.

    Args:
        apply: `apply(params, *inputs)`, or with `stateful` `apply(params, model_state, *inputs)`.
        plan: What is cut.
        stateful: Whether the first input is a model state, which is cut as well.
        rules: Rules for primitives that have none.

    Returns:
        A pure function of the cut parameters, the cut state and the same inputs. It raises a `ShrinkError` when the
        plan does not fit the function.
    """
    memory: dict[Any, tuple[Shrunk, Any]] = {}
    table = {**RULES, **(rules or {})}

    def small_apply(params: Any, *inputs: Any) -> Any:
        params = _restored(plan, params)
        trees = (params, inputs[0]) if stateful else (params,)
        rest = inputs[1:] if stateful else inputs
        leaves, structure = jax.tree.flatten((trees, rest))
        here = jax.sharding.get_abstract_mesh()
        key = (structure, here, tuple((np.shape(leaf), _dtype(leaf), _explicit(leaf)) for leaf in leaves))
        if (known := memory.get(key)) is None:
            known = _prepare(apply, plan, [_full(plan, t, bool(i)) for i, t in enumerate(trees)], rest, table)
            if not _leaks(known[0].reading.scope) and all(
                isinstance(n, int) for leaf in leaves for n in np.shape(leaf)
            ):
                memory[key] = known
        shrunk, output = known
        return jax.tree.unflatten(output, shrunk.run(*leaves))

    return small_apply


@dataclasses.dataclass(frozen=True, eq=False)
class _Identity:
    """A kernel that was dropped. A product with it is skipped; whatever else meets it gets the kernel itself."""

    dropped: Dropped

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dropped.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.dropped.dtype)

    def transposed(self, order: Sequence[int]) -> _Identity:
        old = self.dropped
        axes = order.index(old.reads), order.index(old.writes)
        return _Identity(Dropped(old.leaf, tuple(old.shape[i] for i in order), old.dtype, *axes))


def _restored(plan: Plan, params: Any) -> Any:
    """The parameters with something in the place of every dropped leaf."""
    dropped = {each.leaf: each for each in plan.dropped}

    def restore(path: Any, leaf: Any) -> Any:
        each = dropped.get(leaf_path(path)) if leaf is None else None
        if each is None:
            return leaf
        return _Identity(each) if each.reads >= 0 else jnp.asarray(each.values())

    return jax.tree_util.tree_map_with_path(restore, params, is_leaf=lambda leaf: leaf is None)


def _dtype(leaf: Any) -> Any:
    return getattr(leaf, "dtype", None) or jnp.result_type(leaf)


def _explicit(leaf: Any) -> Any:
    """The sharding that is part of an array's type, or None."""
    sharding = getattr(getattr(leaf, "aval", None), "sharding", None)
    divided = isinstance(sharding, jax.sharding.NamedSharding) and any(name is not None for name in sharding.spec)
    return sharding if divided else None


def _handed_on(equation: Any, arrays: Sequence[Any], shape: tuple[Any, ...]) -> Any:
    """What an equation gives that multiplies with a dropped kernel in the way that hands on the other operand.

    None if it does anything else.
    """
    if len(arrays) < 2 or not isinstance(arrays[1], _Identity) or np.shape(arrays[0]) != tuple(shape):
        return None
    name, params = equation.primitive.name, parameters(equation)
    given, kernel = arrays[0], arrays[1].dropped
    if name == "dot_general":
        (left, right), batch = params["dimension_numbers"]
        still = not any(batch) and tuple(left) == (len(shape) - 1,) and tuple(right) == (kernel.reads,)
        return given if still else None
    if name == "conv_general_dilated":
        read = params["dimension_numbers"].rhs_spec[1]
        still = all(n == 1 for n in (*params["window_strides"], *params["lhs_dilation"], params["feature_group_count"]))
        return given if still and read == kernel.reads else None
    if (own := OWN.get(called(equation) or "")) is not None:
        return finish(given, *(arrays[2:] or [None]), relu=own.relu)
    return None


def _full(plan: Plan, tree: Any, state: bool) -> Any:
    def full(path: Any, leaf: Any) -> Any:
        shape = plan.full_shape(leaf_path(path), np.shape(leaf), state=state)
        return jax.ShapeDtypeStruct(shape, _dtype(leaf), sharding=_explicit(leaf))

    return jax.tree_util.tree_map_with_path(full, tree)


def _prepare(apply: Any, plan: Plan, trees: list[Any], inputs: Any, rules: Rules) -> tuple[Shrunk, Any]:
    structs = jax.tree.map(jax.typeof, inputs)
    state = trees[1] if len(trees) > 1 else None

    def read(following: frozenset[tuple[str, int]] = frozenset()) -> tuple[Fitting, Any]:
        reading, leaves, output = read_network(
            apply, trees[0], structs, state, flag_inexact=True, rules=rules, unmasked=following
        )
        return Fitting(reading, leaves, plan, following), output

    fitting, output = read()
    if fitting.misfits:  # axes that the plan leaves whole may follow
        fitting, output = read(fitting.bound())
    if wrong := fitting.complaint():
        raise ShrinkError(wrong)
    shrunk = Shrunk(fitting.reading, fitting.gone, rules, fitting.by_input(trees[0]))
    _check_outputs(shrunk, output, state)
    return shrunk, output


def _check_outputs(shrunk: Shrunk, output: Any, state: Any) -> None:
    """Outputs keep their shapes, all but a new state that is handed on."""
    outputs = shrunk.reading.outputs
    states = handed_on(output, [value.shape for value in outputs], state)
    for number, value in enumerate(outputs):
        if number not in states and any(kept is not None for kept in shrunk.kept(value)):
            raise ShrinkError("The plan removes channels that are the output of the function.")


def _leaks(scope: Scope) -> bool:
    """Whether the function holds values of a transformation around it, which must not be remembered."""
    return any(isinstance(c, Tracer) for c in scope.consts) or any(map(_leaks, scope.inner.values()))


@dataclasses.dataclass
class Shrunk:
    """A read function and what is cut from it.

    Attributes:
        reading: The function.
        gone: Atoms that are cut.
        rules: One rule per primitive.
        following: `(leaf, axis)` that are given whole and cut first.
    """

    reading: Reading
    gone: np.ndarray
    rules: Rules
    following: Mapping[int, Sequence[int]] = dataclasses.field(default_factory=dict)
    _kept: dict[int, np.ndarray | None] = dataclasses.field(default_factory=dict)

    def run(self, *arrays: Any) -> list[Any]:
        """Flat small inputs to flat small outputs."""
        given = list(arrays)
        for number, axes in self.following.items():
            kept = self.kept(self.reading.inputs[number])
            given[number] = take(given[number], tuple(k if n in axes else None for n, k in enumerate(kept)))
        return self._body(self.reading.scope, given)

    def kept(self, value: Value) -> Kept:
        return tuple(self._along(axis) for axis in value.axes)

    def _along(self, axis: Axis | None) -> np.ndarray | None:
        if axis is None or not len(self.gone):
            return None
        if id(axis) not in self._kept:
            where, atoms = self.reading.labels.cells.atoms(axis.cells)
            cut = where[np.isin(atoms, self.gone)]
            self._kept[id(axis)] = np.setdiff1d(np.arange(len(axis.cells)), cut) if len(cut) else None
        return self._kept[id(axis)]

    def _body(self, scope: Scope, arrays: Sequence[Any]) -> list[Any]:
        jaxpr = scope.jaxpr
        known = dict(zip(jaxpr.invars, arrays, strict=True))
        for var, const in zip(jaxpr.constvars, scope.consts, strict=True):
            known[var] = take(const, self.kept(scope.value(var)))

        def get(atom: Any) -> Any:
            return atom.val if isinstance(atom, Literal) else known[atom]

        for position, raw in enumerate(jaxpr.eqns):
            with context(raw):  # the mesh, the kind of device and the like around it
                known.update(zip(raw.outvars, self._equation(scope, position, raw, get), strict=True))
        return [get(var) for var in jaxpr.outvars]

    def _equation(self, scope: Scope, position: int, raw: Any, get: Callable[[Any], Any]) -> list[Any]:
        values = [scope.value(var) for var in raw.outvars]
        outputs = [self.kept(value) for value in values]
        if all(value.const is not None for value in values):
            return [jnp.asarray(take(v.const, k)) for v, k in zip(values, outputs, strict=True)]
        shapes = [_small(value.shape, kept) for value, kept in zip(values, outputs, strict=True)]
        if all(0 in shape for shape in shapes):
            return [jnp.zeros(s, var.aval.dtype) for s, var in zip(shapes, raw.outvars, strict=True)]
        for var, shape, kept in zip(raw.outvars, shapes, outputs, strict=True):
            if (wrong := explicit_misfit(var.aval, shape, kept)) is not None:
                raise ShrinkError(wrong)
        arrays = [get(atom) for atom in raw.invars]
        if len(shapes) == 1:
            found = _handed_on(raw, arrays, shapes[0])
            if found is not None:
                return [found]
        if raw.primitive.name == "transpose" and isinstance(arrays[0], _Identity):
            return [arrays[0].transposed(parameters(raw)["permutation"])]
        arrays = [jnp.asarray(a.dropped.values()) if isinstance(a, _Identity) else a for a in arrays]
        site = self._site(scope, position, raw, outputs, shapes)
        rule = find_rule(self.rules, raw)
        found = (rebind if rule is None else rule.shrink)(site, *arrays)
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def _site(self, scope: Scope, position: int, raw: Any, outputs: list[Kept], shapes: list[Any]) -> Site:
        values = [scope.value(atom) for atom in raw.invars]

        return Site(
            name=raw.primitive.name,
            params=parameters(raw),
            inputs=[self.kept(value) for value in values],
            outputs=outputs,
            full=[value.shape for value in values],
            full_outputs=[tuple(var.aval.shape) for var in raw.outvars],
            shapes=shapes,
            constants=[value.const for value in values],
            run=lambda number, *arrays: self._body(scope.inner[position, number], arrays),
            bind=lambda *arrays, **changed: bind(raw, arrays, changed, scope.jaxpr.debug_info),
            shrink=lambda *args: shrink_flat(*args, rules=self.rules),
        )


def shrink_flat(
    function: Callable[..., Any],
    inputs: Sequence[Kept],
    outputs: Sequence[Kept],
    shapes: Sequence[tuple[Any, ...]],
    *,
    rules: Rules | None = None,
) -> Callable[..., list[Any]]:
    """Shrinks a function of flat full arrays, given what is kept of every input and output."""

    def small(*arrays: Any) -> list[Any]:
        dtypes = [jnp.result_type(array) for array in arrays]
        structs = [
            jax.ShapeDtypeStruct(s, d, sharding=_explicit(x)) for s, d, x in zip(shapes, dtypes, arrays, strict=True)
        ]
        jaxpr, _ = to_jaxpr(function, *structs)
        labels = Labels(flag_inexact=True)
        reading = read_jaxpr(jaxpr, labels, [labels.fresh(shape) for shape in shapes], rules=rules)
        going = [*_going(reading.inputs, inputs), *_going(reading.outputs, outputs)]
        shrunk = Shrunk(reading, touched(going, labels)[0], {**RULES, **(rules or {})})
        return shrunk.run(*arrays)

    return small


def _going(values: Sequence[Value], kept: Sequence[Kept]) -> list[tuple[Axis, np.ndarray]]:
    found = []
    for value, each in zip(values, kept, strict=True):
        for axis, positions in zip(value.axes, each, strict=True):
            if axis is not None:
                gone = np.zeros(len(axis.cells), bool)
                if positions is not None:
                    gone = np.ones(len(axis.cells), bool)
                    gone[positions] = False
                found.append((axis, gone))
    return found


def _small(shape: tuple[Any, ...], kept: Kept) -> tuple[Any, ...]:
    return tuple(size if k is None else len(k) for size, k in zip(shape, kept, strict=True))
