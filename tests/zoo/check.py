"""What must hold of every network of the zoo, as functions: the masked network against the compacted one.

A *case* is a network with its masks, an *index set* says which masks are enabled, a *draw* fills in all numbers.
Networks are compiled without XLA's expensive passes: compiling is nearly all the time these tests take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maskprune import Groups, Plan, cost, count_params, effective_params, init_network, make_plan, shrink, trace
from maskprune.masks.groups import leaf_path, leaves_by_path
from maskprune.removal.costs import MEASURES, Cost

from .entry import Built, Entry
from .networks import BY_ID


FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
Enabled = Mapping[str, np.ndarray]  # {group: bool[C]}


class Draw(NamedTuple):
    """Numbers for everything that a network takes."""

    params: Any
    state: Any
    inputs: tuple[Any, ...]

    @property
    def args(self) -> tuple[Any, ...]:
        return (self.params, *(() if self.state is None else (self.state,)), *self.inputs)

    def cut(self, plan: Plan) -> Draw:
        state = None if self.state is None else plan.cut(self.state, state=True)
        return Draw(plan.cut(self.params), state, self.inputs)


class Case(NamedTuple):
    """A network and its masks."""

    entry: Entry
    built: Built
    groups: Groups

    @property
    def stateful(self) -> bool:
        return self.built.model_state is not None

    @property
    def ordinary(self) -> Draw:
        """The network's own numbers, in float32."""
        return Draw(self.built.params, self.built.model_state, self.built.inputs)

    def shrunk(self, plan: Plan) -> Callable[..., Any]:
        return shrink(self.built.apply, plan, stateful=self.stateful)


@lru_cache(maxsize=4)
def load(name: str) -> Case:
    """Builds and traces the network with this id."""
    entry = BY_ID[name]
    built = entry.build()
    return Case(entry, built, trace(built.apply, built.params, *built.inputs, model_state=built.model_state))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return jax.jit(function, compiler_options=FAST)


def masked(function: Callable[..., Any], groups: Groups) -> Callable[..., Any]:
    """`run(enabled, params, *rest)`: `function` on the parameters of the masked network. Compiles once for all sets."""

    def run(enabled: Enabled, params: Any, *rest: Any) -> Any:
        return function(effective(groups, enabled, params), *rest)

    return run


def effective(groups: Groups, enabled: Enabled, params: Any) -> Any:
    return effective_params(dataclasses.replace(init_network(params, groups), enabled=dict(enabled)))


def zeroed(groups: Groups, enabled: Enabled, params: Any) -> Any:
    """What `effective` gives, in NumPy and in other words: nothing to compile, and a second opinion."""

    def zero(path: Any, leaf: Any) -> np.ndarray:
        leaf = np.array(leaf)
        for group, piece in groups.of_leaf(leaf_path(path)):
            if piece.role != "state":
                gone = np.append(~enabled[group.name], False)[np.asarray(piece.labels)]
                np.moveaxis(leaf, piece.axis, 0)[gone] = 0
        return leaf

    return jax.tree_util.tree_map_with_path(zero, params)


# ----------------------------------------------------------------------------------------------------- index sets


def index_set(seed: int, groups: Groups) -> dict[str, np.ndarray]:
    """Random masks: of every group at least one, of two or more not all. Shares differ from set to set."""
    rng = np.random.default_rng(seed)
    share = (0.5, 0.8, 0.3)[seed % 3]
    return {group.name: _some(rng, group.size, share) for group in groups}


def without_a_group(seed: int, groups: Groups) -> dict[str, np.ndarray]:
    """The same with every mask of one group disabled."""
    enabled = index_set(seed, groups)
    name = np.random.default_rng(seed).choice(sorted(enabled))
    return {**enabled, str(name): np.zeros_like(enabled[name])}


def _some(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    flags = rng.random(size) < share
    on, off = rng.permutation(size)[:2] if size > 1 else (0, None)
    flags[on] = True
    if off is not None:
        flags[off] = False
    return flags


# ---------------------------------------------------------------------------------------------------------- draws


def wide(draw: Draw) -> Draw:
    """The same numbers in float64; to be used with 64 bits enabled."""
    cast = lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return Draw(*jax.tree.map(cast, tuple(draw)))


def integers(seed: int, draw: Draw) -> Draw:
    """Small integers in the place of all floating-point numbers, so that every sum is exact in any order.

    Kernels are sparse, +1 and -1, a few for every output, so that numbers stay below 2**53 in deep networks; no slice
    of one is all zero, so that a wrong cut cannot hide. Scales are -1, 1 or 2, running variances 1 or 4, whose square
    roots are exact.
    """
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        name = jax.tree_util.keystr(path[-2:], simple=True, separator="/").lower()
        return _integers(rng, name, leaf.shape).astype(leaf.dtype)

    params, state = jax.tree_util.tree_map_with_path(fill, (draw.params, draw.state))
    return Draw(params, state, jax.tree.map(lambda x: _integer_input(rng, x), draw.inputs))


def _integer_input(rng: np.random.Generator, x: Any) -> Any:
    return rng.integers(-3, 4, x.shape).astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _integers(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "var" in name:
        return rng.choice([1, 4], shape)
    if len(shape) < 2:
        scales = any(word in name.rpartition("/")[2] for word in ("scale", "gamma", "weight"))
        return rng.choice([-1, 1] if "closing" in name else [-1, 1, 2], shape) if scales else rng.integers(-2, 3, shape)
    fan_in = np.prod(shape) / max(shape[0], shape[-1], 1)
    filled = rng.random(shape) < 4 / max(fan_in, 1)
    for axis in range(len(shape)):
        others = tuple(n for n in range(len(shape)) if n != axis)
        for position in np.flatnonzero(~filled.any(axis=others)):
            where = [int(rng.integers(size)) for size in shape]
            where[axis] = int(position)
            filled[tuple(where)] = True
    return filled * rng.choice([-1, 1], shape)


# --------------------------------------------------------------------------------------------------------- checks


def numbers(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def largest(tree: Any) -> float:
    return max((float(np.max(np.abs(x), initial=0.0)) for x in numbers(tree)), default=0.0)


def difference(one: Any, other: Any) -> float:
    """The largest absolute difference, over the largest number of `one`. Shapes and structures must be the same."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [x.shape for x in numbers(one)] == [x.shape for x in numbers(other)]
    assert all(np.isfinite(x).all() for x in numbers((one, other)))
    worst = largest([a - b for a, b in zip(numbers(one), numbers(other), strict=True)])
    return worst / (largest(one) or 1.0)


def check_close(one: Any, other: Any, tolerance: float) -> None:
    assert difference(one, other) <= tolerance


def check_identical(one: Any, other: Any) -> None:
    """No difference at all (zeros of either sign are the same: no sum tells them apart), and something to differ."""
    assert difference(one, other) == 0
    assert largest(one) > 0, "the output is all zero: nothing was tested"
    assert largest(one) < 2**53, "the numbers outgrew float64's integers"


def check_account(case: Case) -> None:
    """Every position along every axis of every leaf is in a group, or the axis or the leaf has a reason. Never both."""
    refused = case.groups.refused
    assert all(why.strip() and "channels that stay" not in why and "no line" not in why for why in refused.values())
    for path, leaf in leaves_by_path(case.built.params).items():
        for axis, size in enumerate(np.shape(leaf)):
            masked = np.zeros(size, bool)
            for _, piece in case.groups.of_leaf(path):
                if piece.axis == axis and piece.role != "state":
                    masked |= np.asarray(piece.labels) >= 0
            told = path in refused or f"{path}[{axis}]" in refused
            assert told == (size > 1 and not masked.all()), f"{path}[{axis}]"


def check_sizes(case: Case, enabled: Enabled, small: Draw) -> None:
    """The cut arrays have the sizes that the slices of the groups say, counted here by themselves."""
    for tree, cut, state in ((case.built.params, small.params, False), (case.built.model_state, small.state, True)):
        after = leaves_by_path(cut)
        for path, leaf in leaves_by_path(tree).items():
            assert np.shape(after[path]) == _expected(case.groups, enabled, path, np.shape(leaf), state)
    if not all(np.all(flags) for flags in enabled.values()):
        assert count_params(small.params) < count_params(case.built.params)


def check_cost(case: Case, enabled: Enabled) -> None:
    """What `cost` says is what is left, and one more mask saves the difference of two costs. Only shapes are needed."""
    shapes = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), tree)
    full = Draw(*shapes(tuple(case.ordinary)))
    plan, sizes = make_plan(case.groups, enabled), _cost(case.built.apply, full, case.groups).sizes
    small = full.cut(plan)
    left = _cost(case.shrunk(plan), small, Groups(()))
    assert left.parameters == sum(leaf.size for leaf in jax.tree.leaves(small.params))
    emptied = any(0 in leaf.shape for leaf in jax.tree.leaves(small.params))  # masks that overlap may do so together
    for measure in MEASURES:
        size, saves = sizes.evaluate(enabled, measure)
        if measure == "multiply_adds" and emptied:  # the work that led up to such a layer still counts
            assert size >= left.multiply_adds
        else:
            assert size == getattr(left, measure), measure
        for group in case.groups:
            number = int(np.argmax(enabled[group.name]))
            fewer = {**enabled, group.name: enabled[group.name] & (np.arange(group.size) != number)}
            assert size - sizes.evaluate(fewer, measure)[0] == saves[group.name][number], f"{group.name}[{number}]"


def _cost(apply: Callable[..., Any], draw: Draw, groups: Groups) -> Cost:
    return cost(apply, draw.params, *draw.inputs, model_state=draw.state, groups=groups)


def _expected(groups: Groups, enabled: Enabled, path: str, shape: tuple[int, ...], state: bool) -> tuple[int, ...]:
    lost: dict[int, set[int]] = {axis: set() for axis in range(len(shape))}
    for group, piece in groups.of_leaf(path):
        if (piece.role == "state") == state:
            gone = set(np.flatnonzero(~enabled[group.name]).tolist())
            lost[piece.axis] |= {n for n, label in enumerate(piece.labels) if label in gone}
    return tuple(size - len(lost[axis]) for axis, size in enumerate(shape))


class Runs:
    """The masked network, compiled, and its draws: its own numbers, and integers where they are exact."""

    def __init__(self, case: Case, *, double: bool = True) -> None:
        self.groups, self.run = case.groups, compiled(case.built.apply)
        convert = wide if double else lambda draw: draw
        self.ordinary = convert(case.ordinary)
        self.exact = [convert(integers(seed, case.ordinary)) for seed in range(6)] if case.entry.integer else []

    def masked(self, enabled: Enabled, draw: Draw) -> Any:
        return self.run(zeroed(self.groups, enabled, draw.params), *draw.args[1:])

    def alive(self, enabled: Enabled) -> Draw | None:
        """The first draw of integers with which the masked network gives more than zeros: ReLUs may all be off."""
        return next((draw for draw in self.exact if largest(self.masked(enabled, draw)) > 0), None)


def check_equal(case: Case, enabled: Enabled, runs: Runs, tolerance: float) -> None:
    """Masked against compacted: bit for bit on integers where the network allows it, and on its own numbers."""
    plan = make_plan(case.groups, enabled)
    small_apply = compiled(case.shrunk(plan))
    check_sizes(case, enabled, case.ordinary.cut(plan))
    own = runs.ordinary
    check_close(runs.masked(enabled, own), small_apply(*own.cut(plan).args), tolerance)
    if runs.exact:
        draw = runs.alive(enabled)
        assert draw is not None, "the outputs are all zero: nothing was tested"
        check_identical(runs.masked(enabled, draw), small_apply(*draw.cut(plan).args))


def check_gradients(case: Case, enabled: Enabled, draw: Draw, tolerance: float) -> None:
    """Of a random weighting of the outputs: the compact gradients are those of the kept entries, the others zero."""
    plan = make_plan(case.groups, enabled)
    big = compiled(jax.grad(weighted(masked(case.built.apply, case.groups)), argnums=1))(enabled, *draw.args)
    small = compiled(jax.grad(weighted(case.shrunk(plan))))(*draw.cut(plan).args)
    assert largest(small) > 0
    check_close(plan.cut(big), small, tolerance)
    gone = jax.tree.map(jnp.subtract, big, effective(case.groups, enabled, big))
    assert largest(gone) == 0, "a disabled entry has a gradient"


def weighted(function: Callable[..., Any]) -> Callable[..., jax.Array]:
    """The sum of all outputs, each number with a random weight of its own."""

    def loss(*args: Any) -> jax.Array:
        rng = np.random.default_rng(7)
        outputs = jax.tree.leaves(function(*args))
        return jnp.asarray(sum(jnp.sum(out * rng.normal(size=out.shape).astype(out.dtype)) for out in outputs))

    return loss


def check_training(case: Case, enabled: Enabled, draw: Draw, tolerance: float) -> None:
    """Batch norm in training mode: the same masks, outputs and new statistics.

    The masks are found in training mode too: Haiku's `hidden` averages are not read in evaluation.
    """
    assert case.built.train_apply is not None
    groups = trace(case.built.train_apply, draw.params, *draw.inputs, model_state=draw.state)
    assert {group.name: group.size for group in groups} == {group.name: group.size for group in case.groups}
    plan = make_plan(groups, enabled)
    output, state = compiled(masked(case.built.train_apply, groups))(enabled, *draw.args)
    small_apply = compiled(shrink(case.built.train_apply, plan, stateful=True))
    small_output, small_state = small_apply(*draw.cut(plan).args)
    check_close(output, small_output, tolerance)
    check_close(plan.cut(state, state=True), small_state, tolerance)
    assert difference(draw.state, state) > 0


def check_adam(case: Case, enabled: Enabled, draw: Draw, tolerance: float) -> None:
    """A step, everything cut in between, and a step of both: parameters and moments are those of the kept entries."""
    plan, optimizer = make_plan(case.groups, enabled), optax.adam(0.01)

    def stepper(run: Callable[..., Any]) -> Callable[..., Any]:
        def step(params: Any, opt_state: Any, *rest: Any) -> Any:
            grads = jax.grad(weighted(run))(params, *rest)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return compiled(step)

    def cut(params: Any, opt_state: Any) -> Any:
        adam, *rest = opt_state
        return plan.cut(params), (adam._replace(mu=plan.cut(adam.mu), nu=plan.cut(adam.nu)), *rest)

    big = stepper(lambda *args: masked(case.built.apply, case.groups)(enabled, *args))
    rest, small_rest = draw.args[1:], draw.cut(plan).args[1:]
    now = big(draw.params, optimizer.init(draw.params), *rest)
    small = stepper(case.shrunk(plan))(*cut(*now), *small_rest)
    check_close(cut(*big(*now, *rest)), small, tolerance)
    assert difference(cut(*now)[0], small[0]) > 0


def check_second_round(case: Case, seed: int, draw: Draw, tolerance: float) -> None:
    """The compacted function is traced and compacted again: the same masks, less those that are gone."""
    first = make_plan(case.groups, index_set(seed, case.groups))
    once, small = case.shrunk(first), draw.cut(first)
    groups = trace(once, small.params, *small.inputs, model_state=small.state)
    left = {group.name: sum(index_set(seed, case.groups)[group.name]) for group in case.groups}
    assert sum(group.size for group in groups) <= sum(left.values())
    assert sum(group.size for group in groups) >= sum(count for count in left.values() if count > 1)
    enabled = index_set(seed + 1, groups)
    second = make_plan(groups, enabled)
    twice = compiled(shrink(once, second, stateful=case.stateful))
    expected = compiled(masked(once, groups))(enabled, *small.args)
    check_close(expected, twice(*small.cut(second).args), tolerance)
    assert count_params(small.cut(second).params) < count_params(small.params)


def removed_by_each_mask(case: Case) -> list[list[int]]:
    """For every group how many numbers, statistics too, go with each mask alone; all sorted."""
    total = lambda draw: count_params((draw.params, draw.state))
    found = []
    for group in case.groups:
        counts = []
        for mask in range(group.size):
            enabled = {each.name: np.ones(each.size, bool) for each in case.groups}
            enabled[group.name][mask] = False
            counts.append(total(case.ordinary) - total(case.ordinary.cut(make_plan(case.groups, enabled))))
        found.append(sorted(counts))
    return sorted(found)
