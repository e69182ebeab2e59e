"""One equation on known arrays, computed as XLA computes it.

JAX runs the equation on the CPU, in its own dtype, twice in one program: on arrays that arrive, and on the same arrays
written into the program, as a compiler folds constants. A result is only given where it can be relied on: none is given
where the two differ, or where backends are free to differ (a float beyond the range of an integer, integer division by
zero, shifts by more than the width, an overflow of half precision, which compilers may compute in float32).

Floating-point results may still differ in their last bits from one way of computing to another. `slack` bounds that:
where operands have slack, the equation also runs on operands moved by it, and a result that does not follow smoothly
(a rounding, a comparison or a cast at its edge) is not given.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.internals import parameters


LARGEST_SLACK = 0.05
FEW_STEPS = 8  # in the last place: what machines may differ by in a function that is not rounded exactly
REMEMBERED = 1 << 12  # entries of the operands of an answer that is kept

_NEVER_ROUND = """
    abs neg max min clamp select_n floor ceil round sign is_finite copy copy_p nextafter rem reduce_max reduce_min
    cummax cummin sort gather dynamic_slice dynamic_update_slice scatter scatter_max scatter_min reduce_precision
    bitcast_convert_type iota
"""
EXACT = frozenset(_NEVER_ROUND.split())
# Rounded once at most: exact where the result is that of a wider type.
WIDE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "convert_element_type": np.positive,
    "div": np.divide,
    "mul": np.multiply,
    "sqrt": np.sqrt,
    "square": np.square,
    "sub": np.subtract,
}
SUMS = ("reduce_sum", "cumsum", "dot_general", "scatter-add", "scatter_add")


class Computed(NamedTuple):
    """A result, and by how much, relatively, another way of computing it may differ: 0 if by nothing."""

    array: np.ndarray
    slack: float


class _Question:
    """An equation on known arrays, told apart by what decides the answer."""

    def __init__(self, equation: Any, operands: Sequence[np.ndarray], slacks: Sequence[float]) -> None:
        self.primitive, self.operands, self.slacks = equation.primitive, operands, slacks
        params = parameters(equation)
        self.params = {**params, "sharding": None} if "sharding" in params else params
        atoms = [id(atom) for atom in equation.invars]
        self.twins = [atoms.index(atom) for atom in atoms]  # operands that are one value move together
        arrays = tuple((each.dtype.name, each.shape, each.tobytes()) for each in operands)
        items = tuple(sorted(self.params.items(), key=lambda item: item[0]))
        self.key = (self.primitive.name, items, arrays, tuple(slacks), tuple(self.twins))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Question) and self.key == other.key


def is_number(dtype: Any) -> bool:
    """Whether arrays of a dtype can be known: booleans, integers and real floating-point numbers."""
    return any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, np.integer, np.floating))


def evaluate(equation: Any, operands: Sequence[np.ndarray], slacks: Sequence[float]) -> Computed | None:
    """The first result of an equation without inner functions, or None where no value can be relied on.

    Args:
        equation: Of a jaxpr.
        operands: One array of numbers for every input. They may have other sizes than the equation's inputs, where
            its parameters allow that.
        slacks: One number for every input, 0 or more.
    """
    question = _Question(equation, operands, slacks)
    if sum(each.size for each in operands) > REMEMBERED:
        return _answer(question)
    try:
        return _remembered(question)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _answer(question)


def _answer(question: _Question) -> Computed | None:
    name, operands = question.primitive.name, question.operands
    # Some programs take subnormal numbers for zero.
    if any(map(_is_subnormal, operands)) or _left_open(name, question.params, operands):
        return None
    usual, *others = _results(question)
    if not jnp.issubdtype(usual.dtype, np.floating):
        return Computed(usual, 0.0) if all(np.array_equal(usual, other) for other in others) else None
    if _is_subnormal(usual):
        return None
    finite = all(np.isfinite(each).all() for each in operands)
    if usual.dtype.itemsize < 4 and finite and not np.isfinite(usual).all():
        return None
    spread = max(_spread(usual, other) for other in others)
    if spread > LARGEST_SLACK:
        return None
    if not any(question.slacks) and _is_exact(name, operands, usual):
        return Computed(usual, 2 * spread)
    steps = 1 if name in WIDE else FEW_STEPS
    return Computed(usual, 2 * spread + steps * float(jnp.finfo(usual.dtype).eps))


_remembered = functools.lru_cache(maxsize=1 << 10)(_answer)


def _results(question: _Question) -> list[np.ndarray]:
    """As usual, folded, and with every operand moved by its slack, in several directions."""

    def run(*arrays: Any) -> Any:
        found = question.primitive.bind(*arrays, **question.params)
        return found[0] if question.primitive.multiple_results else found

    def every(usual: Sequence[Any], moved: Sequence[Sequence[Any]]) -> list[Any]:
        return [run(*usual), run(*question.operands), *(run(*each) for each in moved)]

    def compute() -> list[np.ndarray]:
        with _undisturbed():
            return [np.asarray(each) for each in jax.jit(every)(list(question.operands), _moved(question))]

    # In a thread of its own: there nothing is being traced, whatever is here.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(compute).result()


def _moved(question: _Question) -> list[list[np.ndarray]]:
    if not any(question.slacks):
        return []
    rng = np.random.default_rng(0)
    count = len(question.operands)
    signs: list[list[Any]] = [[1.0] * count, [-1.0] * count, [(-1.0) ** n for n in range(count)]]
    signs += [[(-1.0) ** (n + 1) for n in range(count)]]
    signs += [[rng.choice([-1.0, 1.0], each.shape) for each in question.operands]]
    return [[_move(question, number, each) for number in range(count)] for each in signs]


def _move(question: _Question, number: int, signs: Sequence[Any]) -> np.ndarray:
    operand, slack = question.operands[number], question.slacks[number]
    if not slack or not jnp.issubdtype(operand.dtype, np.floating):
        return operand
    share = max(slack, float(jnp.finfo(operand.dtype).eps)) * np.asarray(signs[question.twins[number]])
    with np.errstate(all="ignore"):
        return (operand.astype(np.float64) * (1 + share)).astype(operand.dtype)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """On the CPU, whatever the user's settings are."""
    with contextlib.ExitStack() as stack:
        for setting in (jax.debug_nans, jax.debug_infs, jax.disable_jit):
            stack.enter_context(setting(False))
        stack.enter_context(jax.enable_x64(True))
        stack.enter_context(jax.transfer_guard("allow"))
        with contextlib.suppress(RuntimeError):  # a process may be told to do without the CPU
            stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        yield


def _is_subnormal(array: np.ndarray) -> bool:
    if not jnp.issubdtype(array.dtype, np.floating):
        return False
    size = np.abs(array.astype(np.float64))
    return bool(((size > 0) & (size < float(jnp.finfo(array.dtype).smallest_normal))).any())


def _spread(one: np.ndarray, other: np.ndarray) -> float:
    """The largest relative difference; infinite where only one is a number, or signs of zeros differ."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    same = (a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))
    a, b = a[~same], b[~same]
    if not len(a):
        return 0.0
    if not (np.isfinite(a) & np.isfinite(b)).all():
        return np.inf
    largest = np.maximum(np.abs(a), np.abs(b))
    return float(np.max(np.abs(a - b) / np.where(largest > 0, largest, 1.0) + (largest == 0)))


def _is_exact(name: str, operands: Sequence[np.ndarray], result: np.ndarray) -> bool:
    if name in EXACT:
        return True
    with np.errstate(all="ignore"):
        if name in WIDE:
            wide = WIDE[name](*(each.astype(np.longdouble) for each in operands))
            return bool(np.array_equal(result.astype(np.longdouble), wide, equal_nan=True))
        if name in SUMS:  # of whole numbers: no partial sum leaves those that the type can hold
            most = np.prod([np.abs(each.astype(np.float64)).sum() for each in operands])
            whole = all((each.astype(np.float64) % 1 == 0).all() for each in operands)
            return bool(whole and most < 2.0 ** jnp.finfo(result.dtype).nmant)
    return False


def _left_open(name: str, params: Mapping[str, Any], operands: Sequence[np.ndarray]) -> bool:
    """Whether backends are free in what they compute."""
    if name == "convert_element_type":
        return _beyond(operands[0], params["new_dtype"])
    if name in ("div", "rem") and jnp.issubdtype(operands[1].dtype, np.integer):
        top, bottom = operands
        lowest = jnp.iinfo(top.dtype).min
        return bool(((bottom == 0) | ((bottom == -1) & (top == lowest) & (lowest < 0))).any())
    if name.startswith("shift_"):
        bits = operands[1].dtype.itemsize * 8
        return bool(((operands[1] < 0) | (operands[1] >= bits)).any())
    if name in ("max", "min"):  # which of two zeros
        zeros = [np.where(each == 0, np.copysign(1, each.astype(np.float64)), 0) for each in operands]
        return bool((zeros[0] * zeros[1] < 0).any())
    if name == "scatter":
        rows = operands[1].reshape(int(np.prod(operands[1].shape[:-1])), -1) if operands[1].size else operands[1][:0]
        return len(np.unique(rows, axis=0)) < len(rows)
    if name == "gather" and "PROMISE" in str(params["mode"]):
        read, sizes = list(params["dimension_numbers"].start_index_map), np.array(params["slice_sizes"])
        last = (np.array(operands[0].shape) - sizes)[read]
        return bool(((operands[1] < 0) | (operands[1] > last)).any())
    return False


def _beyond(array: np.ndarray, dtype: Any) -> bool:
    if not jnp.issubdtype(array.dtype, np.floating) or not jnp.issubdtype(dtype, np.integer):
        return False
    limits, whole = jnp.iinfo(dtype), np.trunc(array.astype(np.float64))
    return bool((~np.isfinite(whole) | (whole < float(limits.min)) | (whole >= float(limits.max) + 1)).any())
