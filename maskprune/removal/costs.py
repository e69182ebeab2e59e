"""What a network costs, and what each of its masks would save: parameters, multiply-adds, bytes, time.

Everything but the time is counted by reading the function, so abstract arrays will do. Multiply-adds are those of
products and convolutions, as published figures count them: positions in the padding included, zeros that a transposed
convolution puts between its inputs not. Elementwise work is left out.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import Count, strict
from maskprune.conv import OWN
from maskprune.masks.groups import Groups
from maskprune.masks.jaxpr.internals import Literal, bodies, called, opened, parameters
from maskprune.masks.jaxpr.labels import Labels
from maskprune.masks.jaxpr.reader import Reading, Rules, Scope, read_jaxpr
from maskprune.masks.jaxpr.rules import RULES
from maskprune.masks.network import Flags
from maskprune.masks.tracing import read_network, trace
from maskprune.removal.conditions import make_conditions
from maskprune.removal.plan import make_plan
from maskprune.removal.positions import STAYS, Positions
from maskprune.removal.rerun import shrink
from maskprune.removal.sizes import Largest, Lengths, Part, Sizes, Term, gather, times


MEASURES = ("parameters", "multiply_adds", "bytes")


class Latency(NamedTuple):
    """Time of one call: the median in milliseconds, and the ratio of the 90 % to the 10 % quantile."""

    median_ms: float
    spread: float


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs with the masks that are enabled, disabled ones removed. Printing it gives a table.

    Attributes:
        parameters: Numbers in the parameter leaves; a model state is not counted.
        multiply_adds: Of one call on the inputs given, the whole batch.
        bytes: Of the parameters.
        latency: Time of one compiled call, or None.
        saves: `{group: {measure: int[C]}}`, what removing one more mask would save; 0 where it is disabled.
        notes: What could not be counted exactly, in words.
        sizes: The same as formulas, for other enabled masks.
    """

    parameters: int
    multiply_adds: int
    bytes: int
    latency: Latency | None
    saves: Mapping[str, Mapping[str, np.ndarray]]
    notes: tuple[str, ...]
    sizes: Sizes = dataclasses.field(repr=False)

    def saving(self, measure: str = "multiply_adds") -> Callable[[Flags], Flags]:
        """A function of `{group: bool[C]}`, the enabled masks, giving `{group: float[C]}`: what each would save then.

        It runs under `jit` on float32. Made for `maskprune.select.weigh`.

        Raises:
            ValueError: `measure` is not one of "parameters", "multiply_adds", "bytes".
        """
        if measure not in MEASURES:
            raise ValueError(f"`measure` is {measure!r}: use one of {', '.join(MEASURES)}.")
        return lambda enabled: self.sizes.evaluate(enabled, measure)[1]

    def __str__(self) -> str:
        lines = [
            f"parameters     {self.parameters:,} ({self.bytes:,} bytes)",
            f"multiply-adds  {self.multiply_adds:,}",
        ]
        if self.latency is not None:
            lines.append(f"latency        {self.latency.median_ms:.3g} ms (spread {self.latency.spread:.2f})")
        lines += [f"note           {note}" for note in self.notes]
        return "\n".join([*lines, *([""] if self.saves else []), *_table(self)])


@strict
def cost(
    apply: Callable[..., Any],
    params: Any,
    *inputs: Any,
    model_state: Any = None,
    groups: Groups | None = None,
    enabled: Mapping[str, Any] | None = None,
    latency: bool = False,
    rules: Rules | None = None,
) -> Cost:
    """Counts what a function costs, and what each mask would save.

    A loop of unknown length (`while`) counts once, of a choice (`cond`) the largest branch counts; `.notes` says so.
    Where a layer has lost all its channels, the work that led up to it still counts, though a compiler may drop it.
    Masks may overlap: a position goes when any of its masks does.

    Args:
        apply: `apply(params, *inputs)`, or `apply(params, model_state, *inputs)` where there is a state.
        params: Pytree of full arrays, or abstract ones (`jax.ShapeDtypeStruct`).
        *inputs: Arguments after the parameters, arrays or abstract ones, in the sizes to count for.
        model_state: Non-trained variables, such as batch statistics.
        groups: What the masks are; by default they are traced. `Groups(())` asks for no masks.
        enabled: `{group: bool[C]}`, the masks still there; by default all. Read from the device.
        latency: Whether to time the compiled call, disabled masks removed. Abstract arrays are filled with zeros.
        rules: Rules for primitives that have none, as for `trace`.

    Raises:
        TypeError: see `trace`.
        ValueError: `groups` or `enabled` do not fit the function, or a size is symbolic.

    Example:
        >>> params = {"a": np.ones((2, 3)), "b": np.ones((3, 1))}
        >>> found = cost(lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"], params, np.ones((4, 2)))
        >>> found.parameters, found.multiply_adds, found.saves["a"]["multiply_adds"].tolist()
        (9, 36, [12, 12, 12])
    """
    _check_sizes((params, inputs))
    if groups is None:
        groups = trace(apply, params, *inputs, model_state=model_state, rules=rules)
    flags = _checked(groups, enabled)
    reading, leaves, _ = read_network(apply, params, inputs, model_state, flag_inexact=True, rules=rules)
    counter = _Counter(Positions(reading.labels, leaves, groups), groups, {**RULES, **(rules or {})})
    sizes = counter.sizes(reading, jax.tree.leaves(params))
    found = {measure: sizes.evaluate(flags, measure) for measure in MEASURES}
    saves = {g.name: {m: np.rint(found[m][1][g.name]).astype(int) for m in MEASURES} for g in groups}
    totals = {measure: round(float(size)) for measure, (size, _) in found.items()}
    taken = _time(apply, (params, model_state, inputs), groups, flags, rules) if latency else None
    return Cost(**totals, latency=taken, saves=saves, notes=tuple(counter.notes), sizes=sizes)


@strict
def time_calls(calls: Sequence[Callable[[], Any]], *, repeats: Count = 30) -> list[Latency]:
    """Times calls alternately, so that what else the machine does meets all of them, after two warm-up rounds.

    Args:
        calls: Each returns its arrays, which are waited for.
        repeats: Timed calls of each.
    """
    taken: list[list[float]] = [[] for _ in calls]
    for number in range(-2, repeats):
        for times_ms, call in zip(taken, calls, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(call())
            if number >= 0:
                times_ms.append((time.perf_counter() - began) * 1e3)
    quantiles = [np.quantile(times_ms, [0.1, 0.5, 0.9]) for times_ms in taken]
    return [Latency(float(median), float(high / low)) for low, median, high in quantiles]


class _Counter:
    """Writes down the formulas of a function that has been read."""

    def __init__(self, positions: Positions, groups: Groups, rules: Rules) -> None:
        self.positions, self.groups, self.rules = positions, groups, rules
        self.lengths = Lengths()
        self.notes: dict[str, None] = {}

    def sizes(self, reading: Reading, params: Sequence[Any]) -> Sizes:
        leaves = [
            self.product([1], zip(value.shape, value.axes, strict=True))
            for value, _ in zip(reading.inputs, params, strict=False)
        ]
        in_bytes = [times(term, leaf.dtype.itemsize) for term, leaf in zip(leaves, params, strict=True)]
        every = {"parameters": leaves, "bytes": in_bytes, "multiply_adds": self.body(reading.scope)}
        sums = {name: gather(parts) for name, parts in every.items()}
        conditions = make_conditions(self.positions.conditions)
        return Sizes(self.groups, conditions, self.lengths.extents(conditions, self.groups), sums)

    def product(self, constants: Sequence[int], axes: Any) -> Term:
        """Of constants and of `(size, Axis or None)`."""
        factor, extents = math.prod(constants), []
        for size, axis in axes:
            numbers = np.zeros(0, int) if axis is None else self.positions.along(axis)
            going = numbers[numbers != STAYS]
            if len(going):
                extents.append(self.lengths.number(size - len(going), going))
            else:
                factor *= size
        return Term(factor, tuple(sorted(extents)))

    def body(self, scope: Scope) -> tuple[Part, ...]:
        return gather(part for position, raw in _used(scope) for part in self.equation(scope, position, raw))

    def equation(self, scope: Scope, position: int, raw: Any) -> Iterator[Part]:
        name = raw.primitive.name
        if all(scope.value(var).const is not None for var in raw.outvars):
            return  # known in advance
        if name == "dot_general":
            yield self.dot_general(scope, raw)
        elif name == "conv_general_dilated" or called(raw) in OWN:
            yield self.convolution(scope, raw)
        elif bodies(raw):
            yield from self.call(scope, position, raw)
        elif name not in self.rules:
            self.notes[f"`{name}` is not counted"] = None

    def dot_general(self, scope: Scope, raw: Any) -> Term:
        left, out = scope.value(raw.invars[0]), scope.value(raw.outvars[0])
        summed = parameters(raw)["dimension_numbers"][0][0]
        axes = [*zip(out.shape, out.axes, strict=True), *((left.shape[i], left.axes[i]) for i in summed)]
        return self.product([1], axes)

    def convolution(self, scope: Scope, raw: Any) -> Term:
        kernel, out = scope.value(raw.invars[1]), scope.value(raw.outvars[0])
        if called(raw) in OWN:  # [N, H, W, I], [k, l, I, O], [N, H, W, O], stride 1
            taps, read, kept = [n * k for n, k in zip(out.shape[1:3], kernel.shape[:2], strict=True)], 2, (0, 3)
        else:
            numbers = parameters(raw)["dimension_numbers"]
            taps, read, kept = (
                _taps(parameters(raw), kernel.shape, out.shape),
                numbers.rhs_spec[1],
                numbers.out_spec[:2],
            )
        return self.product(
            taps, [(kernel.shape[read], kernel.axes[read]), *((out.shape[i], out.axes[i]) for i in kept)]
        )

    def call(self, scope: Scope, position: int, raw: Any) -> Iterator[Part]:
        name = raw.primitive.name
        inner = [self.inner(scope, position, number, raw) for number in range(len(bodies(raw)))]
        if name == "cond":
            if any(inner):
                self.notes["of a choice (`cond`) the largest branch counts"] = None
                yield Largest(1, tuple(inner))
            return
        if name == "while" and any(inner):
            self.notes["a loop of unknown length (`while`) counts once"] = None
        rounds = parameters(raw)["length"] if name == "scan" else 1
        yield from (times(part, rounds) for body in inner for part in body)

    def inner(self, scope: Scope, position: int, number: int, raw: Any) -> tuple[Part, ...]:
        if (position, number) in scope.inner:
            return self.body(scope.inner[position, number])
        # A rule of the user's own covers the call; its inside was not read: it counts in full.
        jaxpr = bodies(raw)[number]
        variables = opened(jaxpr)[0].invars
        labels = Labels()
        return self.body(read_jaxpr(jaxpr, labels, [labels.whole(var.aval.shape) for var in variables]).scope)


def _used(scope: Scope) -> list[tuple[int, Any]]:
    """The equations whose results matter."""
    needed = {var for var in scope.jaxpr.outvars if not isinstance(var, Literal)}
    found = []
    for position, raw in reversed(list(enumerate(scope.jaxpr.eqns))):
        if needed & set(raw.outvars):
            needed |= {atom for atom in raw.invars if not isinstance(atom, Literal)}
            found.append((position, raw))
    return found[::-1]


def _taps(params: Mapping[str, Any], kernel: Sequence[int], out: Sequence[int]) -> list[int]:
    """Per direction: pairs of an output and a kernel position that do not meet a zero put between the inputs."""
    numbers, found = params["dimension_numbers"], []
    for i, (o, k) in enumerate(zip(numbers.out_spec[2:], numbers.rhs_spec[2:], strict=True)):
        starts = np.arange(out[o]) * params["window_strides"][i] - params["padding"][i][0]
        reached = starts[:, None] + np.arange(kernel[k]) * params["rhs_dilation"][i]
        found.append(int(np.sum(reached % params["lhs_dilation"][i] == 0)))
    return found


def _checked(groups: Groups, enabled: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if enabled is None:
        return {group.name: np.ones(group.size, bool) for group in groups}
    flags = {name: np.asarray(values) for name, values in enabled.items()}
    for group in groups:
        if group.name not in flags or flags[group.name].shape != (group.size,):
            raise ValueError(f"`enabled` must hold bool[{group.size}] for the group `{group.name}`.")
    return {group.name: flags[group.name].astype(bool) for group in groups}


def _check_sizes(args: Any) -> None:
    for leaf in jax.tree.leaves(args):
        if not all(isinstance(size, int) for size in np.shape(leaf)):
            raise ValueError(f"An argument has the symbolic shape {np.shape(leaf)}: give the sizes to count for.")


def _time(apply: Any, args: tuple[Any, Any, Any], groups: Groups, flags: Any, rules: Rules | None) -> Latency:
    params, state, inputs = jax.tree.map(_filled, args)
    plan = make_plan(groups, flags)
    states = () if state is None else (plan.cut(state, state=True),)
    run = shrink(apply, plan, stateful=state is not None, rules=rules) if plan.cuts else apply
    return time_calls([partial(jax.jit(run), plan.cut(params), *states, *inputs)])[0]


def _filled(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def _table(found: Cost) -> list[str]:
    """One row per group: masks, and the range of what one of them saves."""
    if not found.saves:
        return []
    rows: list[tuple[str, ...]] = [("group", "masks", "a mask saves: parameters", "multiply-adds")]
    for group in found.sizes.groups:
        saves = found.saves[group.name]
        alive = saves["bytes"] > 0
        count = str(group.size) if alive.all() else f"{int(alive.sum())} of {group.size}"
        rows.append((group.name, count, *(_range(saves[measure][alive]) for measure in MEASURES[:2])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(text.rjust(w) for text, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _range(values: np.ndarray) -> str:
    if not len(values):
        return "-"
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
