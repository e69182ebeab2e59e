"""Positions that several masks share: which masks are offered, exact removal, and what is counted as left."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import Groups, cost, count_params, effective_params, init_network, make_plan, shrink, trace
from maskprune.removal.costs import MEASURES


TABLE = np.array([[1, 2], [3, -1], [2, 1], [-2, 3], [1, -3]], np.float32)
INDEX = np.array([0, 0, 1, 1])


def halves(x):
    one, other = jnp.split(x, 2, -1)
    return jnp.concatenate([-other, one], -1)


def interleaved(x):
    return jnp.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)


def rotary(turn, spread, *, turned=4, width=6):
    """Two heads; the first `turned` places of each are turned by a table that is looked up by place."""

    def rotate(x, table):
        part = x[..., :turned]
        return jnp.concatenate([part + turn(part) * table, x[..., turned:]], -1)

    def apply(params, x, places):
        table = spread(jnp.take(TABLE, places, axis=0))[:, None]
        q, k = (rotate((x @ params[name]).reshape(5, 2, width), table) for name in "qk")
        return jnp.einsum("qhd,khd->qk", q, k)

    return apply, {"q": (3, 2 * width), "k": (3, 2 * width)}


def shared_keys(params, x, places):
    """Six heads in pairs that share a key."""
    del places
    q, k = (x @ params["q"]).reshape(5, 6, 2), (x @ params["k"]).reshape(5, 3, 2)
    return jnp.einsum("qhd,khd->qk", q, jnp.repeat(k, 2, 1))


def scaled_by(spread):
    apply = lambda params, x, places: (x @ params["w"] * spread(jnp.take(TABLE, places, axis=0))) @ params["o"]
    return apply, {"w": (3, 4), "o": (4, 2)}


def flat(params, x, places):
    """A table for all heads in a row."""
    table = jnp.tile(jnp.take(TABLE, places, axis=0), (1, 3))
    q, k = ((x @ params[name] * table).reshape(5, 3, 2) for name in "qk")
    return jnp.einsum("qhd,khd->qk", q, k)


repeated = lambda table: jnp.repeat(table, 2, -1)
joined = lambda table: jnp.concatenate([table, table], -1)
tiled = lambda table: jnp.tile(table, (1, 2))
gathered = lambda table: table[:, INDEX]

# name: (function, parameter shapes), how many masks each group has.
CASES = {
    "partial rotary, interleaved": (rotary(interleaved, repeated), [2, 4]),  # heads; two pairs and two places
    "partial rotary, halves": (rotary(halves, joined), [2, 4]),
    "rotary, interleaved": (rotary(interleaved, repeated, width=4), [2, 2]),
    "rotary, halves tiled": (rotary(halves, tiled, width=4), [2, 2]),
    "heads that share a key": ((shared_keys, {"q": (3, 12), "k": (3, 6)}), [2, 3, 6]),
    "repeated table": (scaled_by(repeated), [4]),
    "tiled table": (scaled_by(tiled), [4]),
    "joined table": (scaled_by(joined), [4]),
    "gathered table": (scaled_by(gathered), [4]),
    "one table for all heads": ((flat, {"q": (3, 6), "k": (3, 6)}), [2, 3]),
}


def build(case, rng):
    apply, shapes = case
    draw = lambda *shape: jnp.asarray(rng.choice([-2, -1, 1, 2, 3], shape), jnp.float32)
    params = {name: draw(*shape) for name, shape in shapes.items()}
    return apply, params, (draw(5, 3), np.arange(5))


def some(groups, rng):
    """Every mask alone off, and random sets that keep a mask of each group."""
    for group in groups:
        for number in range(group.size):
            enabled = {each.name: np.ones(each.size, bool) for each in groups}
            enabled[group.name][number] = False
            yield enabled
    for _ in range(3):
        yield {g.name: (rng.random(g.size) < 0.6) | (np.arange(g.size) == rng.integers(g.size)) for g in groups}


@pytest.mark.rotating
@pytest.mark.parametrize(("case", "sizes"), CASES.values(), ids=CASES.keys())
def test_independent_places_are_masks_and_what_is_left_is_counted(case, sizes, rng):
    apply, params, inputs = build(case, rng)
    groups = trace(apply, params, *inputs)
    assert sorted(group.size for group in groups) == sizes
    found = cost(apply, params, *inputs, groups=groups)
    network, run = init_network(params, groups), jax.jit(apply)
    for enabled in some(groups, rng):
        plan, masked = make_plan(groups, enabled), dataclasses.replace(network, enabled=enabled)
        small, cut = shrink(apply, plan), plan.cut(effective_params(masked))
        np.testing.assert_array_equal(run(effective_params(masked), *inputs), small(cut, *inputs))
        assert found.sizes.evaluate(enabled, "parameters")[0] == count_params(cut)
        check_savings(found, enabled)
        if all(0 not in leaf.shape for leaf in cut.values()):
            left = cost(small, cut, *inputs, groups=Groups(()))
            for measure in MEASURES:
                assert found.sizes.evaluate(enabled, measure)[0] == getattr(left, measure)


def check_savings(found, enabled):
    """One more mask saves the difference of two costs, in NumPy."""
    for measure in MEASURES:
        size, saves = found.sizes.evaluate(enabled, measure)
        for name, flags in enabled.items():
            for number in range(len(flags)):
                fewer = {**enabled, name: flags & (np.arange(len(flags)) != number)}
                assert size - found.sizes.evaluate(fewer, measure)[0] == saves[name][number]


def test_savings_under_jit_are_those_of_numpy(rng):
    apply, params, inputs = build((shared_keys, {"q": (3, 12), "k": (3, 6)}), rng)
    found = cost(apply, params, *inputs)
    for enabled in some(found.sizes.groups, rng):
        saved = jax.jit(found.saving("parameters"))(jax.tree.map(jnp.asarray, enabled))
        exact = found.sizes.evaluate(enabled, "parameters")[1]
        for name in enabled:
            np.testing.assert_array_equal(saved[name], exact[name])
