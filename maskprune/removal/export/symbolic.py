"""Which sizes of the inputs can stay free in an exported function.

A function is tried with a symbol for every size that is usually free. Where it does not allow that, height, width and
length are tried as multiples of 2 to 32 (a network that halves its pictures and joins them again), then with one symbol
for all equal sizes, then axis by axis. What has to be fixed is told with the parameter or the line that needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from maskprune.removal.export.errors import Unfit, first_line
from maskprune.removal.export.reasons import Axis, Misfit, inputs_named, note_of, words_of


MULTIPLES = (2, 4, 8, 16, 32)
Spec = dict[Axis, int]  # what is free: axes of leaves, each with what it must be a multiple of
LETTERS = {2: "nt", 3: "ntc", 4: "nhwc", 5: "ndhwc"}


class Free(NamedTuple):
    """Input shapes with symbols.

    Attributes:
        structs: A pytree like the inputs, of `jax.ShapeDtypeStruct`s whose sizes may be symbols.
        shapes: One for every input leaf, such as `"(n, 8*h, 8*w, 3)"`.
        note: What had to be fixed, and why; "" if nothing.
    """

    structs: Any
    shapes: tuple[str, ...]
    note: str


def find_free(function: Callable[..., Any], inputs: Sequence[Any], given: Sequence[str] | None = None) -> Free:
    """The freest input shapes that a function allows.

    Args:
        function: `function(*inputs) -> output`.
        inputs: Arrays or `jax.ShapeDtypeStruct`s of any rank. The first axis of every leaf is taken for the batch, and
            the last of those with three axes and more for features, which are free only where others are not. Inputs of
            equal sizes share their symbols.
        given: Shapes in the words of `jax.export.symbolic_shape`, one for every leaf, in place of a search.

    Raises:
        ValueError: `given` has another length, or the function does not run on these inputs.
    """
    if given is not None:
        return _given(function, inputs, given)
    search = _Search(function, inputs)
    usual = [axis for axis in search.axes if not search.holds_features(axis)]
    why = search.attempt(dict.fromkeys(usual, 1))
    if isinstance(why, Free):
        return why
    if not isinstance(fixed := search.attempt({}), Free):
        raise ValueError(f"The function does not run on these inputs: {fixed.error}")
    batch, sizes = ([axis for axis in usual if (axis[1] == 0) == first] for first in (True, False))
    if found := search.by_multiples(dict.fromkeys(batch, 1), sizes):
        pictures = {search.letter(axis) for axis in sizes} == {"h", "w"}
        words = "height and width" if pictures else words_of(sizes, inputs_named(search.leaves, search.structure))
        return found[1]._replace(note=f"{words} must be multiples of {found[0][sizes[0]]}: {why.told()}")
    if isinstance(free := search.attempt(dict.fromkeys(usual, 1), tied=True), Free):
        return free._replace(note="sizes that are equal in the inputs stay equal")
    return search.one_by_one(fixed)


def less_free(function: Callable[..., Any], inputs: Sequence[Any], free: Free) -> list[Free]:
    """The shapes that are less free: with the batch alone, and with nothing free."""
    search, found = _Search(function, inputs), []
    batch = {axis: 1 for axis in search.free_axes(free) if axis[1] == 0}
    for spec, note in ((batch, "all sizes but the batch are fixed"), ({}, "all sizes are fixed")):
        fewer = search.attempt(spec)
        if isinstance(fewer, Free) and fewer.shapes != free.shapes:
            found.append(fewer._replace(note=note))
    return found


class _Search:
    """Shapes for the leaves of some inputs, tried on a function."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any]) -> None:
        self.function = function
        self.leaves, self.structure = jax.tree.flatten(tuple(inputs))
        self.axes: list[Axis] = [(i, axis) for i, leaf in enumerate(self.leaves) for axis in range(np.ndim(leaf))]

    def holds_features(self, axis: Axis) -> bool:
        rank = np.ndim(self.leaves[axis[0]])
        return rank > 2 and axis[1] == rank - 1

    def size(self, axis: Axis) -> int:
        return np.shape(self.leaves[axis[0]])[axis[1]]

    def letter(self, axis: Axis) -> str:
        rank = np.ndim(self.leaves[axis[0]])
        return "n" if axis[1] == 0 else LETTERS.get(rank, "nabcdefghijklmopqrstuvwxyz"[:rank])[axis[1]]

    def attempt(self, spec: Spec, *, tied: bool = False) -> Free | Misfit:
        """Tries shapes at the next larger sizes (JAX lets some fixed ones pass beside a symbol), then as symbols."""
        larger = [list(np.shape(leaf)) for leaf in self.leaves]
        for (leaf, axis), multiple in spec.items():
            larger[leaf][axis] += multiple
        kinds = [jax.numpy.result_type(leaf) for leaf in self.leaves]
        misfit = self._run([jax.ShapeDtypeStruct(*each) for each in zip(larger, kinds, strict=True)])
        if misfit is not None:
            return misfit
        shapes = self._shapes(spec, tied)
        structs = _structs(self.leaves, shapes)
        if spec and (misfit := self._run(structs)) is not None:
            return misfit._replace(decides=True)
        return Free(jax.tree.unflatten(self.structure, structs), tuple(f"({shape})" for shape in shapes), "")

    def _run(self, structs: Sequence[jax.ShapeDtypeStruct]) -> Misfit | None:
        try:
            jax.eval_shape(self.function, *jax.tree.unflatten(self.structure, structs))
        except Exception as error:  # whatever a function does with a size that is no number
            leaves, place = (error.leaves, error.place) if isinstance(error, Unfit) else ((), "")
            return Misfit(leaves, place, first_line(error))
        return None

    def _shapes(self, spec: Spec, tied: bool) -> list[str]:
        words = [[str(size) for size in np.shape(leaf)] for leaf in self.leaves]
        names: dict[tuple[str, int], str] = {}
        for axis, multiple in spec.items():
            name = _name(self.letter(axis), self.size(axis), names, tied)
            words[axis[0]][axis[1]] = name if multiple == 1 else f"{multiple}*{name}"
        return [", ".join(each) for each in words]

    def by_multiples(self, spec: Spec, part: Sequence[Axis]) -> tuple[Spec, Free] | None:
        """The spec with some axes besides, at the smallest multiple that works, if the largest does."""
        fitting = [m for m in MULTIPLES if part and all(self.size(axis) % m == 0 for axis in part)]
        wider = [spec | dict.fromkeys(part, m) for m in fitting]
        if not wider or not isinstance(self.attempt(wider[-1]), Free):
            return None
        found = ((each, self.attempt(each)) for each in wider)
        return next((each, free) for each, free in found if isinstance(free, Free))

    def one_by_one(self, free: Free) -> Free:
        """Frees what can be: equal sizes together, or else axis by axis. The note says what cannot and why."""
        spec: Spec = {}
        misfits: dict[Axis, Misfit] = {}
        for part in self._parts():
            if set(part) <= spec.keys():
                continue
            found = self.attempt(wider := spec | dict.fromkeys(part, 1))
            if isinstance(found, Free):
                spec, free = wider, found
                continue
            misfits |= dict.fromkeys(part, found)
            if part[0][1] and (multiple := self.by_multiples(spec, part)):
                spec, free = multiple
        told = {axis: why for axis, why in misfits.items() if spec.get(axis) != 1 and not self.holds_features(axis)}
        return free._replace(note=note_of(told, spec, inputs_named(self.leaves, self.structure)))

    def _parts(self) -> list[list[Axis]]:
        """Axes that share a symbol, then each of them alone; the batch first, features last."""
        groups: dict[tuple[str, int], list[Axis]] = {}
        for axis in self.axes:
            groups.setdefault((self.letter(axis), self.size(axis)), []).append(axis)
        order = sorted(groups.values(), key=lambda part: (self.holds_features(part[0]), part[0][1] != 0))
        return [each for part in order for each in ([part] if len(part) == 1 else [part, *([axis] for axis in part)])]

    def free_axes(self, free: Free) -> list[Axis]:
        structs = jax.tree.leaves(free.structs)
        return [axis for axis in self.axes if not isinstance(structs[axis[0]].shape[axis[1]], int)]


def _structs(leaves: Sequence[Any], shapes: Sequence[str]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=_scope()), jax.numpy.result_type(leaf))
        for shape, leaf in zip(shapes, leaves, strict=True)
    ]


@functools.cache
def _scope() -> Any:
    """One for all exports: JAX keeps shapes, with their scope, for ever."""
    return jax_export.SymbolicScope()


def _name(letter: str, size: int, names: dict[tuple[str, int], str], tied: bool) -> str:
    """One symbol for every size that a letter (where sizes are tied: any letter) stands for: n, n2, n3 and so on."""
    if tied and (alike := [name for (_, known), name in names.items() if known == size]):
        return alike[0]
    number = sum(known == letter for known, _ in names) + 1
    return names.setdefault((letter, size), letter if number == 1 else f"{letter}{number}")


def _given(function: Callable[..., Any], inputs: Sequence[Any], given: Sequence[str]) -> Free:
    leaves, structure = jax.tree.flatten(tuple(inputs))
    if len(given) != len(leaves):
        raise ValueError(f"`shapes` has {len(given)} entries for {len(leaves)} input arrays: give one for each.")
    structs = jax.tree.unflatten(structure, _structs(leaves, given))
    try:
        jax.eval_shape(function, *structs)
    except Exception as error:
        raise ValueError(f"The function does not run on the shapes {', '.join(given)}: {first_line(error)}") from error
    return Free(structs, tuple(f"({shape.strip('()')})" for shape in given), "")
