"""Which sizes of the inputs can stay free in an exported function.

A function is tried with symbols for batch, height and width; where it does not allow that, with multiples of 2 to 32
(a network that halves its pictures and joins them again), then with the batch alone, then with nothing free.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export


MULTIPLES = (2, 4, 8, 16, 32)


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
        inputs: Arrays or `jax.ShapeDtypeStruct`s: of every leaf the first axis is taken for the batch, and of those
            with four axes the second and third for height and width (with three axes the second for the length).
            Inputs of equal sizes share their symbols.
        given: Shapes in the words of `jax.export.symbolic_shape`, one for every leaf, in place of a search.

    Raises:
        ValueError: `given` has another length, or the function does not run on these inputs.
    """
    if given is not None:
        return _given(function, inputs, given)
    free, why = _try(function, inputs, _Spec(batch=True, multiple=1))
    if free is not None:
        return free
    if (multiples := _multiples(inputs)) and _try(function, inputs, _Spec(True, multiples[-1]))[0]:
        for multiple in multiples:
            free, _ = _try(function, inputs, _Spec(True, multiple))
            if free is not None:
                return free._replace(note=f"height and width must be multiples of {multiple}: {why}")
    free, _ = _try(function, inputs, _Spec(batch=True, multiple=0))
    if free is not None:
        return free._replace(note=f"all sizes but the batch are fixed: {why}" if _has_sizes(inputs) else "")
    free, error = _try(function, inputs, _Spec(batch=False, multiple=0))
    if free is None:
        raise ValueError(f"The function does not run on these inputs: {error}")
    return free._replace(note=f"all sizes are fixed: {why}")


def less_free(function: Callable[..., Any], inputs: Sequence[Any], free: Free) -> list[Free]:
    """The shapes that are less free: with the batch alone, and with nothing free."""
    found = []
    for batch, note in ((True, "all sizes but the batch are fixed"), (False, "all sizes are fixed")):
        fewer, _ = _try(function, inputs, _Spec(batch=batch, multiple=0))
        if fewer is not None and fewer.shapes != free.shapes:
            found.append(fewer._replace(note=note))
    return found


class _Spec(NamedTuple):
    batch: bool
    multiple: int  # of height and width; 0 fixes them


def _try(function: Callable[..., Any], inputs: Sequence[Any], spec: _Spec) -> tuple[Free | None, str]:
    names: dict[tuple[str, int], str] = {}
    leaves, structure = jax.tree.flatten(tuple(inputs))
    shapes = [_shape(np.shape(leaf), spec, names) for leaf in leaves]
    structs = _structs(leaves, shapes)
    try:
        jax.eval_shape(function, *jax.tree.unflatten(structure, structs))
        # JAX lets some fixed sizes pass beside a symbol (a reshape to numbers): they show at another size.
        larger = [jax.ShapeDtypeStruct(_larger(np.shape(leaf), spec), jax.numpy.result_type(leaf)) for leaf in leaves]
        jax.eval_shape(function, *jax.tree.unflatten(structure, larger))
    except Exception as error:  # whatever a function does with a size that is no number
        return None, next(iter(str(error).splitlines()), type(error).__name__)[:200]
    return Free(jax.tree.unflatten(structure, structs), tuple(f"({shape})" for shape in shapes), ""), ""


def _structs(leaves: Sequence[Any], shapes: Sequence[str]) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape, scope=_scope()), jax.numpy.result_type(leaf))
        for shape, leaf in zip(shapes, leaves, strict=True)
    ]


@functools.cache
def _scope() -> Any:
    """One for all exports: JAX keeps shapes, with their scope, for ever."""
    return jax_export.SymbolicScope()


def _shape(shape: tuple[int, ...], spec: _Spec, names: dict[tuple[str, int], str]) -> str:
    words = [str(size) for size in shape]
    if shape and spec.batch:
        words[0] = _name("n", shape[0], names)
    for axis, letter in _sizes(shape):
        if spec.multiple:
            name = _name(letter, shape[axis], names)
            words[axis] = name if spec.multiple == 1 else f"{spec.multiple}*{name}"
    return ", ".join(words)


def _larger(shape: tuple[int, ...], spec: _Spec) -> tuple[int, ...]:
    sizes = list(shape)
    if shape and spec.batch:
        sizes[0] += 1
    for axis, _ in _sizes(shape):
        sizes[axis] += spec.multiple
    return tuple(sizes)


def _sizes(shape: tuple[int, ...]) -> list[tuple[int, str]]:
    return {4: [(1, "h"), (2, "w")], 3: [(1, "t")]}.get(len(shape), [])


def _name(letter: str, size: int, names: dict[tuple[str, int], str]) -> str:
    """One symbol for every size that a letter stands for: n, n2, n3 and so on."""
    number = sum(known == letter for known, _ in names) + 1
    return names.setdefault((letter, size), letter if number == 1 else f"{letter}{number}")


def _multiples(inputs: Sequence[Any]) -> list[int]:
    sizes = [np.shape(leaf)[axis] for leaf in jax.tree.leaves(inputs) for axis, _ in _sizes(np.shape(leaf))]
    return [m for m in MULTIPLES if sizes and all(size % m == 0 for size in sizes)]


def _has_sizes(inputs: Sequence[Any]) -> bool:
    return any(_sizes(np.shape(leaf)) for leaf in jax.tree.leaves(inputs))


def _given(function: Callable[..., Any], inputs: Sequence[Any], given: Sequence[str]) -> Free:
    leaves, structure = jax.tree.flatten(tuple(inputs))
    if len(given) != len(leaves):
        raise ValueError(f"`shapes` has {len(given)} entries for {len(leaves)} input arrays: give one for each.")
    structs = jax.tree.unflatten(structure, _structs(leaves, given))
    try:
        jax.eval_shape(function, *structs)
    except Exception as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"The function does not run on the shapes {', '.join(given)}: {line}") from error
    return Free(structs, tuple(f"({shape.strip('()')})" for shape in given), "")
