"""How much two functions may differ that are equal but for rounding: one answer for all that compares networks.

The numbers that both give are compared first. Where they are further apart than the tolerance, both are computed once
more in double precision: what was rounding is gone then, whatever the number formats inside, and what is left is a
fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.removal.double_precision import Double, is_inexact


DRAWS = 3  # of nudged parameters


class Run(NamedTuple):
    """A function and what it is run on.

    Attributes:
        function: `function(params, *inputs)`.
        params: Its parameters.
        inputs: All else.
        pick: Called with the outputs, for the list of arrays to compare.
    """

    function: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    pick: Callable[[Any], list[Any]] = jax.tree.leaves

    def numbers(self) -> list[np.ndarray]:
        return self.numbers_of(jax.jit(self.function), self.params)

    def numbers_of(self, function: Callable[..., Any], params: Any) -> list[np.ndarray]:
        outputs = function(params, *self.inputs)
        with jax.enable_x64(True):  # `pick` may put arrays anew
            return list(map(as_numbers, self.pick(outputs)))


class Agreement(NamedTuple):
    """How far apart two lists of arrays are.

    Attributes:
        same: Whether rounding explains it.
        worst: The largest absolute difference.
        scale: The largest number of the array that differs most for its size, and at least 1.
        rounding: How far rounding moves that array; 0 where nobody asked.
    """

    same: bool
    worst: float
    scale: float = 1.0
    rounding: float = 0.0


def agree(one: Run, other: Run, numbers: Sequence[list[np.ndarray]], *, tolerance: float) -> Agreement:
    """Whether two runs give the same but for rounding.

    Args:
        one: The run to believe.
        other: The run to judge.
        numbers: What `one.numbers()` and `other.numbers()` gave, arrays of the same shapes.
        tolerance: Largest difference allowed, relative to the largest magnitude of each array (1 if that is smaller).
            Whole numbers must be equal.

    Returns:
        Whether they are the same: within the tolerance as they are, or in double precision; or there within ten times
        what moving every parameter by one unit in its last place does, as far as anything is coarser than that.
    """
    gaps = [gap(a, b) for a, b in zip(*numbers, strict=True)]
    worst = max(gaps, default=0.0)
    allowed = [allowance(a, tolerance) for a in numbers[0]]
    if all(g <= a for g, a in zip(gaps, allowed, strict=True)):
        return Agreement(True, worst)
    rounding = [0.0] * len(gaps)
    if np.isfinite(worst):  # what overflows in one of them only is no rounding
        gaps, allowed, rounding = _in_double(one, other, tolerance)
    over = [g - max(a, 10 * r) for g, a, r in zip(gaps, allowed, rounding, strict=True)]
    most = int(np.argmax(over))
    return Agreement(over[most] <= 0, worst, _scale(numbers[0][most]), rounding[most])


def _in_double(one: Run, other: Run, tolerance: float) -> tuple[list[float], list[float], list[float]]:
    """For every array the difference, what the tolerance allows, and how far rounding moves it."""
    function = Double(one.function, one.params, *one.inputs)
    try:
        expected = one.numbers_of(function, one.params)
        found = other.numbers_of(Double(other.function, other.params, *other.inputs), other.params)
        nudge = partial(_nudged, epsilon=function.epsilon)
    except Exception:  # neither every primitive nor every device knows double precision, and each says it differently
        expected, found = one.numbers(), other.numbers()
        nudge = partial(_nudged, epsilon=function.coarsest, own=True)
        function = jax.jit(one.function)
    gaps = [gap(a, b) for a, b in zip(expected, found, strict=True)]
    allowed = [allowance(a, tolerance) for a in expected]
    if all(g <= a for g, a in zip(gaps, allowed, strict=True)):
        return gaps, allowed, [0.0] * len(gaps)
    rng = np.random.default_rng(0)
    moved = [one.numbers_of(function, nudge(one.params, rng)) for _ in range(DRAWS)]
    return gaps, allowed, [max(map(gap, [a] * DRAWS, each)) for a, *each in zip(expected, *moved, strict=True)]


def _nudged(params: Any, rng: np.random.Generator, *, epsilon: float, own: bool = False) -> Any:
    """Every parameter moved by one unit in its last place, up or down at random; in its `own` format or in double."""

    def nudge(leaf: Any) -> Any:
        if not is_inexact(leaf):
            return leaf
        with jax.enable_x64(True):
            moved = as_numbers(leaf) * (1 + epsilon * rng.choice([-1.0, 1.0], np.shape(leaf)))
            return jnp.asarray(moved, leaf.dtype if own else None)

    return jax.tree.map(nudge, params)


def as_numbers(leaf: Any) -> np.ndarray:
    """An array of JAX in NumPy: in double precision, or whole numbers as they are. Of keys their bits."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return array.astype(np.complex128)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def gap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference. What is not finite is the same only as itself; whole numbers differ by 1 at least."""
    equal = (one == other) | ((one != one) & (other != other))
    wide = np.result_type(one.dtype, np.float64) if one.dtype.kind in "fc" else np.float64
    with np.errstate(invalid="ignore"):
        apart = np.abs(one.astype(wide) - other.astype(wide))
    apart = np.where(np.isnan(apart), np.inf, apart if one.dtype.kind in "fc" else np.maximum(apart, 1))
    return float(np.max(np.where(equal, 0.0, apart), initial=0.0))


def allowance(array: np.ndarray, tolerance: float) -> float:
    return tolerance * _scale(array) if array.dtype.kind in "fc" else 0.0


def _scale(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)]) if array.dtype.kind in "fc" else np.abs(array.astype(np.float64))
    return max(1.0, float(np.max(finite, initial=0.0)))


def has_numbers(array: np.ndarray) -> bool:
    """Whether there is anything to compare: an array that is not finite anywhere says nothing."""
    return array.dtype.kind not in "fc" or array.size == 0 or bool(np.isfinite(array).any())
