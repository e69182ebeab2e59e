"""Finding the masks of any function: `trace(apply, params, *inputs) -> Groups`.

Every position along every axis of every parameter leaf starts as a unit of its own; reading the function tells which
must go together, which must stay, and which can go without anything else noticing. Knows no framework: a network is a
function of a pytree.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune._strict import is_array, strict
from maskprune.cells import unique
from maskprune.groups import Group, Groups, Slice, leaf_path, leaves_by_path
from maskprune.labels import UNKNOWN, Axis, Labels, Value
from maskprune.overlaps import distinct
from maskprune.reading import Reading, Rules, read_jaxpr, source_line, to_jaxpr


class LeafAxis(NamedTuple):
    """One axis of one leaf, in the parameters or (with `state`) in the model state."""

    leaf: str
    number: int
    state: bool
    axis: Axis


@strict
def trace(
    apply: Callable[..., Any],
    params: Any,
    *inputs: Any,
    model_state: Any = None,
    protect: Sequence[str] = (),
    inexact: bool = False,
    rules: Rules | None = None,
) -> Groups:
    """Finds the masks of a function.

    Nothing is computed and nothing large is allocated: arrays and `jax.ShapeDtypeStruct`s serve alike.

    Args:
        apply: `apply(params, *inputs) -> output`, in evaluation mode, or `apply(params, model_state, *inputs)` where
            there is a state; that one may also hand on a new state, as `(output, model_state)` in training: see
            `handed_on`. Any pytrees. It must be pure, and its shapes must not depend on data.
        params: Pytree of arrays or of abstract ones. Leaves that are not floating point stay as they are.
        *inputs: Arguments after the parameters, arrays or abstract ones; sizes do not matter for the result.
        model_state: Non-trained variables, such as batch statistics.
        protect: Patterns (as in `fnmatch`) of leaf paths or layers, such as `"head/*"`, whose channels stay.
        inexact: Also offers masks whose removal changes more than rounding (a norm or softmax over the channels that
            counts disabled ones). Their groups say so in `.inexact`; judge them by the compacted network.
        rules: Rules for primitives that have none, by name: see `maskprune.rules`.

    Returns:
        The groups, in network order. `.refused` names what stays, and why.

    Raises:
        TypeError: A leaf of `params` is no array, or `apply` needs the values of its arguments.
        ValueError: `apply` has side effects, or a pattern matches no leaf.

    Example:
        >>> groups = trace(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], {"a": np.ones((2, 3)), "b": np.ones((3, 1))},
        ...                np.ones((4, 2)))
        >>> [(group.name, group.size) for group in groups]
        [('a', 3)]
    """
    reading, leaves, output = read_network(apply, params, inputs, model_state, flag_inexact=inexact, rules=rules)
    labels = reading.labels
    for pattern in protect:
        _protect(labels, leaves, pattern, params)
    states = handed_on(output, [value.shape for value in reading.outputs], model_state)
    given = [value for number, value in enumerate(reading.outputs) if number not in states]
    labels.pin_all(given, "its channels are the output of the network")
    before = dict(zip(leaves_by_path(model_state), reading.inputs[len(jax.tree.leaves(params)) :], strict=False))
    for number, path in states.items():
        _pass_on(labels, before[path], reading.outputs[number])
    return _Namer(reading, leaves).groups()


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
) -> tuple[Reading, list[LeafAxis | None], Any]:
    """Reads `apply` with a unit for every position along every axis of every floating-point leaf."""
    trees = (params,) if model_state is None else (params, model_state)
    jaxpr, output = _checked_jaxpr(apply, (*trees, *inputs))
    labels, leaves, values = Labels(flag_inexact=flag_inexact), [], []
    for state, tree in enumerate(trees):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            dead = UNKNOWN if state else 0.0  # a state is never masked
            axes = tuple(_leaf_axis(labels, leaf, n, len(leaves) + n, dead) for n in range(np.ndim(leaf)))
            values.append(Value(tuple(np.shape(leaf)), axes, None, weights=True))
            found = [LeafAxis(leaf_path(path), number, bool(state), axis) for number, axis in enumerate(axes) if axis]
            # Numbers of leaf axes count every axis, also those that never shrink.
            leaves += [next((f for f in found if f.number == n), None) for n in range(np.ndim(leaf))]
    values += [labels.whole(np.shape(leaf)) for leaf in jax.tree.leaves(inputs)]
    return read_jaxpr(jaxpr, labels, values, rules=rules), leaves, output


def _leaf_axis(labels: Labels, leaf: Any, number: int, name: int, dead: float) -> Axis | None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return labels.axis(np.shape(leaf)[number], dead=dead, leaves=frozenset([name]))


def _checked_jaxpr(apply: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if not is_array(leaf):
            number = leaf_path(path[:1])
            where = "`params`" if number == "0" else f"argument {number}"
            what = f"The leaf `{leaf_path(path[1:])}` of {where}" if len(path) > 1 else f"Argument {number}"
            raise TypeError(
                f"{what} is a {type(leaf).__name__}, not an array: close over what is no array "
                "(`lambda params, x: apply(params, x, train=False)`)."
            )
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
    if jaxpr.effects:
        guilty = next((e for e in jaxpr.eqns if e.effects), None)
        line = "" if guilty is None else f", the first at {source_line(guilty)} (`{guilty.primitive.name}`)"
        raise ValueError(f"`apply` has side effects{line}: take out prints and callbacks before tracing.")
    return jaxpr, output


def _protect(labels: Labels, leaves: list[Any], pattern: str, params: Any) -> None:
    hits = [leaf for leaf in leaves if leaf is not None and matches(leaf.leaf, pattern)]
    paths = [leaf_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not any(matches(path, pattern) for path in paths):
        raise ValueError(f"`protect` holds `{pattern}`, which matches no leaf. The leaves are {', '.join(paths)}.")
    for leaf in hits:
        if leaf.number not in labels.reads:
            labels.pin(leaf.axis, f"protected by `{pattern}`")


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern names a leaf, or the layer it lies in."""
    return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path.rpartition("/")[0], pattern)


class _Namer:
    """Turns what is known of the leaves into named groups and refusals."""

    def __init__(self, reading: Reading, leaves: list[Any]) -> None:
        self.labels, self.leaves = reading.labels, leaves
        self.order = _first_uses(reading, leaves)

    def groups(self) -> Groups:
        cells = self.labels.cells
        where, atoms = [], []  # (leaf axis, position) of every atom, in network order
        for number in self.order:
            positions, found = cells.atoms(self.leaves[number].axis.cells)
            where.append(np.stack([np.full(len(positions), number), positions], axis=1))
            atoms.append(found)
        places = np.concatenate(where) if where else np.zeros((0, 2), int)
        members = np.concatenate(atoms) if atoms else np.zeros(0, int)
        rows = distinct(places, members, self._makes())
        places, members = places[rows], members[rows]
        found = [self._group(places[rows], members[rows]) for rows in _classes(places, members)]
        offered = [group for group in found if group is not None and not self._all_or_nothing(group)]
        tied = [group for group in found if group is not None and self._all_or_nothing(group)]
        named = _unique_names(offered)
        return Groups(tuple(named), tuple(self._refused(offered, tied)))

    def _makes(self) -> np.ndarray:
        """bool[leaf axes], those whose positions are made here, rather than read or kept as a state."""
        return np.array(
            [x is not None and not x.state and n not in self.labels.reads for n, x in enumerate(self.leaves)]
        )

    def _group(self, places: np.ndarray, members: np.ndarray) -> Group | None:
        _, first, member = np.unique(members, return_index=True, return_inverse=True)
        masks = np.argsort(np.argsort(first))[member]  # numbered as they first appear
        slices = []
        starts = np.flatnonzero(np.diff(places[:, 0], prepend=-1))  # rows of one leaf axis stand together
        for mine in map(slice, starts, [*starts[1:], len(places)]):
            number = int(places[mine.start, 0])
            leaf = self.leaves[number]
            role = "state" if leaf.state else "in" if number in self.labels.reads else "out"
            for labels in _label_rows(places[mine, 1], masks[mine], len(leaf.axis.cells)):
                slices.append(Slice(leaf.leaf, leaf.number, tuple(labels.tolist()), role))
        own = [piece for piece in slices if piece.role == "out"]
        if not own:  # nothing makes these channels: constants, padding, copies of others
            return None
        name = own[0].leaf.rpartition("/")[0] or own[0].leaf
        return Group(name, len(first), tuple(slices), self._inexact(members))

    def _inexact(self, members: np.ndarray) -> str:
        for cells, why in self.labels.inexact:
            if np.isin(self.labels.cells.atoms(cells)[1], members).any():
                return str(why)
        return ""

    def _all_or_nothing(self, group: Group) -> bool:
        return group.size == 1 and any(all(label == 0 for label in piece.labels) for piece in group.slices)

    def _refused(self, groups: list[Group], tied: list[Group]) -> list[tuple[str, str]]:
        taken = {group.name for group in groups}
        found: dict[str, str] = {}
        for group in tied:
            found.setdefault(group.name, "its channels can only go all together")
        for number in self.order:
            leaf = self.leaves[number]
            why = None if leaf.state or number in self.labels.reads else self.labels.cells.why_pinned(leaf.axis.cells)
            if why is None or getattr(why, "quiet", False):
                continue
            layer = leaf.leaf.rpartition("/")[0] or leaf.leaf
            name = f"{leaf.leaf}[{leaf.number}]" if layer in taken else layer
            found.setdefault(name, str(why))
        return list(found.items())


def _label_rows(positions: np.ndarray, masks: np.ndarray, size: int) -> list[np.ndarray]:
    """Labels along an axis; more than one row where a position goes with either of several masks of the group."""
    found = []
    while len(positions):
        first = np.unique(positions, return_index=True)[1] if (np.diff(positions) <= 0).any() else slice(None)
        labels = np.full(size, -1)
        labels[positions[first]] = masks[first]
        found.append(labels)
        rest = np.delete(np.arange(len(positions)), first)
        positions, masks = positions[rest], masks[rest]
    return found


def _first_uses(reading: Reading, leaves: list[Any]) -> list[int]:
    """Numbers of the leaf axes that can shrink, in the order in which the function first uses their leaf."""
    uses = [id(var) for equation in reading.scope.jaxpr.eqns for var in equation.invars]
    seen = {var: i for i, var in reversed(list(enumerate(uses)))}
    used: list[tuple[int, int]] = []
    number = 0
    for var, value in zip(reading.scope.jaxpr.invars, reading.inputs, strict=True):
        for _ in value.axes:
            if number < len(leaves) and leaves[number] is not None:
                used.append((seen.get(id(var), len(uses)), number))
            number += 1
    return [number for _, number in sorted(used)]


def _classes(places: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    """Rows of atoms that stand side by side: in the same leaf axes, and never at one position."""
    if not len(members):
        return []
    _, atom = np.unique(members, return_inverse=True)
    leaves = int(places[:, 0].max()) + 1
    pairs = unique(atom * leaves + places[:, 0])
    marks = np.random.default_rng(0).integers(1, 2**63, leaves, dtype=np.uint64)
    sums = np.zeros(atom.max() + 1, np.uint64)  # of random marks: equal sums, equal sets of leaf axes
    np.add.at(sums, pairs // leaves, marks[pairs % leaves])
    signature = np.unique(sums, return_inverse=True)[1]
    depth = _depths(places, signature[atom], atom)
    _, first, kind = np.unique((signature * (depth.max() + 1) + depth)[atom], return_index=True, return_inverse=True)
    rows = np.split(np.argsort(kind, kind="stable"), np.cumsum(np.bincount(kind))[:-1])
    return [rows[number] for number in np.argsort(first)]


def _depths(places: np.ndarray, signature: np.ndarray, atom: np.ndarray) -> np.ndarray:
    """For every atom which one it is among those of its signature that share its first position: 0 the outermost."""
    first = np.unique(atom, return_index=True)[1]
    mine = np.flatnonzero(places[:, 0] == places[first, 0][atom])  # in the leaf axis where the atom is met first
    position = places[mine, 0] * (places[:, 1].max() + 1) + places[mine, 1]
    key = position * (signature.max() + 1) + signature[mine]
    order = np.argsort(key, kind="stable")
    same = np.concatenate([[False], key[order][1:] == key[order][:-1]])
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    depth = np.zeros(atom.max() + 1, int)
    np.maximum.at(depth, atom[mine[order]], rank)
    return depth


def _unique_names(groups: list[Group]) -> list[Group]:
    """Tells groups of one layer apart by the axis of their first own slice, then by a number."""
    names = [group.name for group in groups]
    full = []
    for group, name in zip(groups, names, strict=True):
        axis = group.with_role("out")[0].axis
        full.append(name if names.count(name) == 1 else f"{name}[{axis}]")
    done: list[Group] = []
    for group, name in zip(groups, full, strict=True):
        number = full[: len(done)].count(name) + 1
        label = name if full.count(name) == 1 else f"{name}#{number}"
        done.append(Group(label, group.size, group.slices, group.inexact))
    return done
