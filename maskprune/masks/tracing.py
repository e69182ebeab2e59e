"""Finding the masks of any function: `trace(apply, params, *inputs) -> Groups`.

Every position along every axis of every parameter leaf starts as a unit of its own; reading the function tells which
must go together, which must stay, and which can go without anything else noticing. Knows no framework: a network is a
function of a pytree.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.arguments import check_arguments, check_function, explain_failure
from maskprune.masks.groups import Groups, leaf_path, leaves_by_path
from maskprune.masks.jaxpr.labels import UNKNOWN, Axis, Labels, Value
from maskprune.masks.jaxpr.lines import source_line
from maskprune.masks.jaxpr.origins import used_inputs
from maskprune.masks.jaxpr.reader import Reading, Rules, read_jaxpr, to_jaxpr
from maskprune.masks.jaxpr.reasons import Reasons
from maskprune.masks.naming import Leaf, LeafAxis, Namer


class Further(NamedTuple):
    """Another function of the same parameters, for `trace(..., also=[...])`. A plain tuple will do.

    Attributes:
        apply: `apply(params, *inputs)`, or `apply(params, model_state, *inputs)`.
        inputs: Its arguments after the parameters and the state.
        stateful: Whether it takes the model state; by default if there is one.
    """

    apply: Callable[..., Any]
    inputs: Sequence[Any] = ()
    stateful: bool | None = None


class Units(NamedTuple):
    """The units of all leaves: their labels, the leaf axes, and the leaves as values."""

    labels: Labels
    leaves: list[LeafAxis | None]
    values: list[Value]


class Read(NamedTuple):
    """A function that was read, the structure of its output, and its inputs in words."""

    reading: Reading
    output: Any
    inputs: list[str]


@strict
def trace(
    apply: Any,
    params: Any,
    *inputs: Any,
    also: Sequence[Any] = (),  # of `Further` or tuples like it
    model_state: Any = None,
    protect: Sequence[str] = (),
    inexact: bool = False,
    rules: Rules | None = None,
) -> Groups:
    """Finds the masks of a function, or of several that use the same parameters.

    Nothing is computed and nothing large is allocated: arrays and `jax.ShapeDtypeStruct`s serve alike.

    Args:
        apply: `apply(params, *inputs) -> output`, in evaluation mode, or `apply(params, model_state, *inputs)` where
            there is a state; that one may also hand on a new state, as `(output, model_state)` in training: see
            `handed_on`. Any pytrees. It must be pure, and its shapes must not depend on data.
        params: Pytree of arrays or of abstract ones. Leaves that are not floating point stay as they are.
        *inputs: Arguments after the parameters, arrays or abstract ones; sizes do not matter for the result.
        also: Further functions of the same parameters, such as that of training with its auxiliary head:
            `(function, inputs)`, or `(function, inputs, False)` for one that does not take the model state although
            there is one. Masks are exact in every function, and all their outputs stay.
        model_state: Non-trained variables, such as batch statistics.
        protect: Patterns (as in `fnmatch`) of leaf paths or layers, such as `"head/*"`, whose channels stay.
        inexact: Also offers masks whose removal changes more than rounding (a norm or softmax over the channels that
            counts disabled ones). Their groups say so in `.inexact`; judge them by the compacted network.
        rules: Rules for primitives that have none, by name: see `maskprune.rules`.

    Returns:
        The groups, in network order. `.refused` accounts for every axis of every leaf that is in no group: what it is
        bound to that stays, and why, or that no function uses the leaf.

    Raises:
        TypeError: `apply` is a module and no function, takes other arguments or needs their values, or a leaf of
            `params` is no array.
        ValueError: `apply` has side effects, a pattern matches no leaf, or `params` and an input are swapped.

    Example:
        >>> groups = trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], {"a": np.ones((2, 3)), "b": np.ones((3, 1))},
        ...                np.ones((4, 2)))
        >>> [(group.name, group.size) for group in groups]
        [('a', 3)]
        >>> groups.refused["b[1]"]
        'its channels are the output of the network'
    """
    functions = [Further(apply, inputs), *(_further(number, each) for number, each in enumerate(also))]
    units = make_units(params, model_state, flag_inexact=inexact)
    read = [read_function(f, params, model_state, units, rules=rules) for f in functions]
    for pattern in protect:
        _protect(units, pattern, params)
    for number, found in enumerate(read):
        what = "the network" if number == 0 else f"`also[{number - 1}]`"
        _pin_outputs(units.labels, found, model_state, what)
    return _named(units, read, params)


def _further(number: int, given: Any) -> Further:
    if not (isinstance(given, tuple) and 2 <= len(given) <= 3 and isinstance(given[1], list | tuple)):
        raise TypeError(f"`also[{number}]` is no pair of a function and its inputs: use `(function, (x, ...))`.")
    check_function(f"also[{number}]", given[0])
    return Further(*given)


def _pin_outputs(labels: Labels, read: Read, model_state: Any, what: str) -> None:
    """Outputs stay; a new state is bound to the old one."""
    states = [value for value, name in zip(read.reading.inputs, read.inputs, strict=True) if name.endswith(STATE)]
    outputs = read.reading.outputs
    passed_on = handed_on(read.output, [value.shape for value in outputs], model_state if states else None)
    given = [value for number, value in enumerate(outputs) if number not in passed_on]
    labels.pin_all(given, f"its channels are the output of {what}")
    before = dict(zip(leaves_by_path(model_state), states, strict=False))
    for number, path in passed_on.items():
        _pass_on(labels, before[path], outputs[number])


def _named(units: Units, read: Sequence[Read], params: Any) -> Groups:
    leaves = [(leaf.name, leaf.axis) for leaf in units.leaves if leaf is not None and not leaf.state]
    leaves += [
        (f"{leaf.name} of the model state", leaf.axis) for leaf in units.leaves if leaf is not None and leaf.state
    ]
    inputs = {id(each.reading.scope): each.inputs for each in read}
    reasons = Reasons(units.labels.cells, leaves, inputs)
    flags = zip(*(used_inputs(each.reading.scope)[: len(jax.tree.leaves(params))] for each in read), strict=True)
    whole = [
        Leaf(leaf_path(path), tuple(np.shape(leaf)), any(used), _why_whole(leaf))
        for (path, leaf), used in zip(jax.tree_util.tree_leaves_with_path(params), flags, strict=True)
    ]
    return Namer(units.labels, units.leaves, _first_uses(read, units), whole, reasons.of).groups()


def handed_on(structure: Any, shapes: Sequence[tuple[Any, ...]], model_state: Any) -> dict[int, str]:
    """Which outputs of a function are the new model state.

    One part of the outputs (an entry of the tuple, list, dict or dataclass that the function returns) is the new state
    if it has the paths and the shapes of the old one. Where several have, it is the last. The second of two may also
    have other sizes, as a cache that grows.

    Args:
        structure: Of the outputs, a tree definition.
        shapes: Of the outputs, flat.
        model_state: The old state, or None.

    Returns:
        For every output that belongs to the new state its number and its path in the state; empty if there is none.
    """
    parts, old = structure.children(), {} if model_state is None else leaves_by_path(model_state)
    fitting, start = {}, 0
    for place, part in enumerate(parts if len(parts) > 1 else []):
        paths = leaves_by_path(jax.tree.unflatten(part, range(start, start + part.num_leaves)))
        start += part.num_leaves
        if old and paths.keys() == old.keys():
            pairs = [(tuple(shapes[number]), tuple(np.shape(old[path]))) for path, number in paths.items()]
            found = {number: path for path, number in paths.items()}
            if all(new == before for new, before in pairs):
                fitting[1, place] = found
            elif (place, len(parts)) == (1, 2) and all(len(new) == len(before) for new, before in pairs):
                fitting[0, place] = found
    return fitting[max(fitting)] if fitting else {}


def _pass_on(labels: Labels, before: Value, after: Value) -> None:
    """A state takes the place of the one before, so its channels go together with those of that one."""
    why = "it becomes a state that stays"
    for old, new, *axes in zip(before.shape, after.shape, before.axes, after.axes, strict=True):
        if old == new:
            labels.same(axes, why)
        for axis in axes if old != new else []:
            labels.pin(axis, why)


def read_network(
    apply: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    model_state: Any = None,
    *,
    flag_inexact: bool = False,
    rules: Rules | None = None,
    unmasked: Collection[tuple[str, int]] = (),
) -> tuple[Reading, list[LeafAxis | None], Any]:
    """Reads `apply` with a unit for every position along every axis of every floating-point leaf.

    Axes of the parameters in `unmasked`, as `(leaf, axis)`, hold their numbers while a mask is disabled.
    """
    units = make_units(params, model_state, flag_inexact=flag_inexact, unmasked=unmasked)
    read = read_function(Further(apply, inputs), params, model_state, units, rules=rules)
    return read.reading, units.leaves, read.output


def make_units(
    params: Any, model_state: Any, *, flag_inexact: bool = False, unmasked: Collection[tuple[str, int]] = ()
) -> Units:
    """A unit for every position along every axis of every floating-point leaf. A state is never masked."""
    units = Units(Labels(flag_inexact=flag_inexact), [], [])
    for state, tree in enumerate((params,) if model_state is None else (params, model_state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name, start = leaf_path(path), len(units.leaves)
            axes = [
                _leaf_axis(units.labels, leaf, n, start + n, UNKNOWN if state or (name, n) in unmasked else 0.0)
                for n in range(np.ndim(leaf))
            ]
            units.values.append(Value(tuple(np.shape(leaf)), tuple(axes), None, weights=True))
            # Numbers of leaf axes count every axis, also those that never shrink.
            units.leaves.extend(axis and LeafAxis(name, n, bool(state), axis) for n, axis in enumerate(axes))
    return units


def read_function(
    function: Further, params: Any, model_state: Any, units: Units, *, rules: Rules | None = None
) -> Read:
    """Reads a function of leaves that have their units."""
    stateful = model_state is not None if function.stateful is None else function.stateful
    trees = (params, model_state) if stateful else (params,)
    jaxpr, output = _checked_jaxpr(function.apply, (*trees, *function.inputs), len(trees) - 1)
    values = units.values[: sum(len(jax.tree.leaves(tree)) for tree in trees)]
    whole = [units.labels.whole(np.shape(leaf)) for leaf in jax.tree.leaves(tuple(function.inputs))]
    names = list(_input_names(trees, tuple(function.inputs)))
    return Read(read_jaxpr(jaxpr, units.labels, values + whole, rules=rules), output, names)


STATE = " of the model state"


def _input_names(trees: tuple[Any, ...], inputs: tuple[Any, ...]) -> Iterator[str]:
    """Every flat input in words, with a place for an axis."""
    for tree, what in zip(trees, ("", STATE), strict=False):
        for path, _ in jax.tree_util.tree_leaves_with_path(tree):
            yield f"`{_plain(path)}[{{axis}}]`{what}"
    for path, _ in jax.tree_util.tree_leaves_with_path(inputs):
        inside = f"`{_plain(path[1:])}` in " if len(path) > 1 else ""
        yield f"axis {{axis}} of {inside}argument {len(trees) + int(leaf_path(path[:1]))}"


def _plain(path: Any) -> str:
    return leaf_path(path).replace("{", "{{").replace("}", "}}")


def _why_whole(leaf: Any) -> str:
    return "" if jnp.issubdtype(leaf.dtype, jnp.floating) else f"it holds {leaf.dtype}, which is not floating point"


def _leaf_axis(labels: Labels, leaf: Any, number: int, name: int, dead: float) -> Axis | None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return labels.axis(np.shape(leaf)[number], dead=dead, leaves=frozenset([name]))


def _checked_jaxpr(apply: Callable[..., Any], args: tuple[Any, ...], states: int) -> Any:
    check_function("apply", apply, args[0])
    check_arguments(apply, args, states)
    try:
        jaxpr, output = to_jaxpr(apply, *args)
    except (
        jax.errors.JAXTypeError,
        jax.errors.JAXIndexError,
    ) as error:  # concretization, non-static shapes, leaked tracers
        raise TypeError(
            "`apply` needs the value of an argument to decide what to do, so it cannot be traced. Close over settings "
            f"instead of passing them, and keep shapes independent of data. JAX says: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # a user's function may raise anything
        if explained := explain_failure(apply, states, error):
            raise explained from error
        raise
    if jaxpr.effects:
        guilty = next((e for e in jaxpr.eqns if e.effects), None)
        line = "" if guilty is None else f", the first at {source_line(guilty)} (`{guilty.primitive.name}`)"
        raise ValueError(f"`apply` has side effects{line}: take out prints and callbacks before tracing.")
    return jaxpr, output


def _protect(units: Units, pattern: str, params: Any) -> None:
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(matches(path, pattern) for path in paths):
        raise ValueError(f"`protect` holds `{pattern}`, which matches no leaf. The leaves are {', '.join(paths)}.")
    for number, leaf in enumerate(units.leaves):
        if leaf is not None and matches(leaf.leaf, pattern) and number not in units.labels.reads - units.labels.makes:
            units.labels.pin(leaf.axis, f"protected by `{pattern}`")


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern names a leaf, or the layer it lies in."""
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path.rpartition("/")[0], pattern)


def _first_uses(read: Sequence[Read], units: Units) -> list[int]:
    """Numbers of the leaf axes that can shrink, in the order in which the functions first use their leaf."""
    found: list[tuple[Any, ...]] = []
    seen = [_uses(each.reading.scope.jaxpr) for each in read]
    number = 0
    for place, value in enumerate(units.values):
        first = ((i, uses[place]) for i, uses in enumerate(seen) if place < len(uses) and uses[place] is not None)
        when = next(first, (len(read), 0))
        numbers = range(number, number + len(value.axes))
        found += [(*when, n) for n in numbers if units.leaves[n] is not None]
        number += len(value.axes)
    return [number for *_, number in sorted(found)]


def _uses(jaxpr: Any) -> list[int | None]:
    """Of every input the number of its first use, or None."""
    uses = [id(atom) for equation in jaxpr.eqns for atom in equation.invars]
    first = {atom: number for number, atom in reversed(list(enumerate(uses)))}
    return [first.get(id(var)) for var in jaxpr.invars]
