"""Whether arguments are of the kind their annotations say, checked where a caller from outside enters.

`@strict` compares what a public function is given with its annotations, so that a mistake is told by the argument's
name, and not from deep inside. Ranges are annotations too: `border: Natural`. It costs microseconds a call, in compiled
code nothing: there it runs while tracing. This file knows neither jax nor any class of the library.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import itertools
import math
import numbers
import operator
import os
import types
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

import numpy as np


P = ParamSpec("P")
T = TypeVar("T")


class Range(NamedTuple):
    """Bounds of a number: from `least` to `most`, without the end that is `open`."""

    least: float = -math.inf
    most: float = math.inf
    open: str = ""

    def holds(self, value: Any) -> bool:
        low = self.least < value if "least" in self.open else self.least <= value
        return bool(low and (value < self.most if "most" in self.open else value <= self.most))

    def words(self) -> str:
        left, right = ("(" if "least" in self.open else "["), (")" if "most" in self.open else "]")
        if self.most == math.inf:
            return f"more than {self.least:g}" if self.open else f"at least {self.least:g}"
        return f"in {left}{self.least:.12g}, {self.most:.12g}{right}"


MOST_LOOKED_AT = 64  # items of a collection, so that a large one costs no time
MOST = 2**31 - 1  # steps, masks and positions are counted in 32 bits
Natural = Annotated[int, Range(0, MOST)]
Count = Annotated[int, Range(1, MOST)]
Few = Annotated[int, Range(1, 1000)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, open="least")]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, open="most")]
Fraction = Annotated[float, Range(0, 1, open="least")]


def strict(function: Callable[P, T]) -> Callable[P, T]:
    """The function, which first checks its arguments.

    Raises:
        TypeError: When called: an argument is of another kind than its annotation.
        ValueError: When called: a number is out of the range of its annotation, or is none (nan), or a word is not
            one of those it may be.
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> list[tuple[str, Any, bool]]:
        every = resolved(function)
        kinds = ((name, every.get(name, Any), each.kind) for name, each in signature.parameters.items())
        return [(name, hint, kind == inspect.Parameter.VAR_POSITIONAL) for name, hint, kind in kinds if hint is not Any]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments
        for name, hint, many in hints():
            if name in given:
                for value in given[name] if many else (given[name],):
                    check(name, value, hint)
        return function(*args, **kwargs)

    return checked


def check_fields(record: Any) -> None:
    """The same for the fields of a dataclass, from its `__post_init__`."""
    for name, hint in resolved(type(record)).items():
        if typing.get_origin(hint) is not typing.ClassVar:
            check(name, getattr(record, name), hint)


def check(name: str, value: Any, hint: Any) -> None:
    """Compares one value with an annotation.

    Raises:
        TypeError, ValueError: See `strict`.
    """
    if name == "key" and names_array(hint) and not is_key(value):
        raise TypeError(f"`key` is {show(value)}: use a key, such as `jax.random.key(0)`.")
    wrong = mismatch(value, hint)
    if wrong is None and isinstance(value, float) and math.isnan(value):  # inside of a collection it may mean "failed"
        wrong = "", value, ValueError
    if wrong is not None:
        where, found, error = wrong
        raise error(f"`{name}`{where} is {show(found)}: use {words(hint)}.")


@functools.cache
def resolved(function: Any) -> dict[str, Any]:
    """Annotations as objects; names that are known to type checkers only stand for anything."""
    unknown: dict[str, Any] = {}
    while True:
        try:
            return typing.get_type_hints(function, localns=unknown, include_extras=True)
        except NameError as error:
            if error.name is None or error.name in unknown:
                raise
            unknown[error.name] = Any


Wrong = tuple[str, Any, type[Exception]] | None


def mismatch(value: Any, hint: Any) -> Wrong:
    """Where a value is not what the annotation says, what was found there, and which error that is; None if it fits."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    unless = lambda fits, error: None if fits else ("", value, error)
    if origin is Annotated:
        wrong = mismatch(value, inner[0])
        bounds = [each for each in inner[1:] if isinstance(each, Range)]
        return wrong or unless(is_traced(value) or all(each.holds(value) for each in bounds), ValueError)
    if origin is Literal:
        return unless(isinstance(value, str | int | None) and value in inner, ValueError)
    if origin in (typing.Union, types.UnionType):
        every = [mismatch(value, each) for each in inner]
        errors = [wrong for wrong in every if wrong]
        return None if None in every else max(errors, key=lambda wrong: (wrong[2] is ValueError, bool(wrong[0])))
    if origin is collections.abc.Callable:
        return unless(callable(value), TypeError)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return contents(value, origin, inner)
    if isinstance(hint, type) and hint is not Any:
        return unless(*kind_fits(value, hint))
    return None


def contents(value: Any, origin: type, inner: tuple[Any, ...]) -> Wrong:
    """Compares a collection and what it holds. An iterator is left as it is, and of an array the numbers."""
    if issubclass(origin, collections.abc.Mapping):
        if not isinstance(value, collections.abc.Mapping):
            return "", value, TypeError
        items = list(itertools.islice(value.items(), MOST_LOOKED_AT))
        keys = first_wrong((f"[{key!r}]", key, inner[0]) for key, _ in items)
        return keys or first_wrong((f"[{key!r}]", each, inner[1]) for key, each in items)
    if is_array(value):
        return None if holds_numbers(value, inner[0]) else ("", value, TypeError)
    if isinstance(value, str | bytes | collections.abc.Mapping) or not hasattr(value, "__iter__"):
        return "", value, TypeError
    if not hasattr(value, "__len__"):
        return None if origin is collections.abc.Iterable else ("", value, TypeError)
    if origin is tuple and (len(inner) != 2 or inner[1] is not Ellipsis):
        if not isinstance(value, tuple) or len(value) != len(inner):
            return "", value, TypeError
        return first_wrong((f"[{at}]", each, hint) for at, (each, hint) in enumerate(zip(value, inner, strict=True)))
    items = enumerate(itertools.islice(value, MOST_LOOKED_AT))
    return first_wrong((f"[{at}]", each, inner[0]) for at, each in items)


def first_wrong(items: Any) -> Wrong:
    for where, each, hint in items:
        wrong = mismatch(each, hint)
        if wrong:
            return where + wrong[0], wrong[1], wrong[2]
    return None


def kind_fits(value: Any, kind: type) -> tuple[bool, type[Exception]]:
    """Whether a value can serve as a plain type, and the error if it cannot."""
    flat = is_array(value) and value.shape == ()
    if kind is int:
        return not isinstance(value, bool) and (has_index(value) or (flat and is_traced(value))), TypeError
    if kind is float:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if isinstance(value, int) and abs(value) > MOST:  # jax counts whole numbers in 32 bits
            return False, ValueError
        return real or flat, TypeError
    if kind is bool:
        return isinstance(value, bool | np.bool_) or flat, TypeError
    if names_array(kind):
        return is_array(value), TypeError
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in promised(kind)), TypeError
    if isinstance(value, os.PathLike) and "\0" in str(value):
        return False, ValueError
    return isinstance(value, kind), TypeError


def promised(protocol: type) -> list[str]:
    """What a protocol wants a value to have."""
    own = {**vars(protocol), **inspect.get_annotations(protocol)}
    return [name for name in own if not name.startswith("_") or name == "__call__"]


def names_array(hint: Any) -> bool:
    """Whether an annotation stands for an array of jax or numpy."""
    return getattr(hint, "__name__", "").rpartition(".")[2] in ("Array", "ndarray")


def is_array(value: Any) -> bool:
    """Of numbers, flags or keys; a shape that stands for one, too."""
    return hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value.dtype, "kind", "V") not in "OSUmM"


def check_leaves(name: str, leaves: Iterable[Any]) -> None:
    """Whether all leaves of a tree are what compiled code takes.

    Raises:
        TypeError: One is not.
    """
    for leaf in leaves:
        if not is_number(leaf):
            raise TypeError(f"`{name}` holds {show(leaf)}: every leaf must be an array.")


def is_number(value: Any) -> bool:
    """Whether compiled code takes it: an array, or a number of Python that fits."""
    fits = not isinstance(value, int) or abs(value) <= MOST
    return is_array(value) or (isinstance(value, bool | int | float | complex) and fits)


def holds_numbers(value: Any, hint: Any) -> bool:
    """Whether an array can stand for a sequence of such numbers, or of sequences of them."""
    hint = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    kinds = {int: "iu", float: "iufb", bool: "b"}
    if hint in kinds:
        return np.ndim(value) == 1 and value.dtype.kind in kinds[hint]
    return np.ndim(value) > 1 and any(words in str(hint) for words in ("Sequence[float]", "Sequence[bool]"))


def is_key(value: Any) -> bool:
    """Whether it is one random key, new style or old."""
    if not is_array(value):
        return False
    return (str(value.dtype).startswith("key<") and value.shape == ()) or (value.dtype, value.ndim) == (np.uint32, 1)


def is_traced(value: Any) -> bool:
    """Whether its numbers are not known."""
    return is_array(value) and not isinstance(value, np.ndarray | np.generic) and not has_numbers(value)


def has_numbers(value: Any) -> bool:
    try:
        return bool(np.asarray(value) is not None)
    except Exception:  # each kind of tracer has its own
        return False


def has_index(value: Any) -> bool:
    try:
        operator.index(value)
    except Exception:  # no number, or a traced one
        return False
    return True


def show(value: Any) -> str:
    """A value in a few words."""
    if is_array(value) and (value.shape or is_traced(value)):
        return f"an array {value.dtype}[{', '.join(map(str, value.shape))}]"
    plain = isinstance(value, str | bytes | os.PathLike | numbers.Number | np.generic | None)
    short = isinstance(value, list | tuple | dict | set) and len(value) < 8
    text = repr(value) if plain or short else f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}


def words(hint: Any) -> str:
    """An annotation in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return ", ".join([words(inner[0]), *(each.words() for each in inner[1:] if isinstance(each, Range))])
    if origin is Literal:
        every = [f'"{each}"' if isinstance(each, str) else repr(each) for each in inner]
        return " or ".join([*filter(None, [", ".join(every[:-1])]), every[-1]])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(words(each) for each in inner))
    if origin is collections.abc.Callable or (getattr(hint, "_is_protocol", False) and "__call__" in vars(hint)):
        return "a function"
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return f"a mapping of {words(inner[0])} to {words(inner[1])}"
    if origin is not None and inner:
        return f"a {origin.__name__.lower()} of {words(inner[0])}"
    if names_array(hint):
        return "an array"
    return NAMES.get(hint, "anything" if hint is Any else f"a {getattr(hint, '__name__', hint)}")
