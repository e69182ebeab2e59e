"""Functions that hand their state on: batch norm in training, recurrent carries, caches, wherever the new state stands.

The channels of a state go with its masks, in the new one as in the old: the small network gives, step by step, what is
left of what the masked one gives.
"""

import collections
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import (
    CompactionError,
    check_same,
    choose,
    compact,
    disable,
    effective_params,
    init_network,
    make_plan,
    trace,
)


C, OFF = 8, [0, 3, 4]
KEPT = np.setdiff1d(np.arange(C), OFF)


class Pair(typing.NamedTuple):
    logits: jax.Array
    cache: typing.Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Step:
    logits: jax.Array
    state: typing.Any


def normed(order):
    """Batch norm in training; `order` says where the new averages stand."""

    def apply(params, state, x):
        hidden, old = x @ params["a"], state["averages"]
        mean, var = hidden.mean(0), hidden.var(0)
        averages = {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var}
        logits = jax.nn.relu((hidden - mean[None]) / jnp.sqrt(var + 1e-3)[None]) @ params["c"]
        return order(logits, {"averages": averages, "count": state["count"] + 1, "none": None})

    return apply


AVERAGES = {"averages": {"mean": jnp.zeros(C), "var": jnp.ones(C)}, "count": jnp.int32(0), "none": None}
ORDERS = {
    "second": lambda logits, state: (logits, state),
    "first": lambda logits, state: (state, logits),
    "third": lambda logits, state: [logits, logits.sum(), state],
    "by name": lambda logits, state: {"logits": logits, "state": state},
    "a named tuple": Pair,
    "a dataclass": Step,
    "another kind of mapping": lambda logits, state: (logits, collections.OrderedDict(state)),
}


def cell(params, carry, x):
    hidden = jnp.tanh(x @ params["a"] + carry[0] * params["gate"][None])
    memory = 0.5 * carry[1] + hidden
    return (hidden, memory), memory @ params["c"]


def cache(params, state, x):
    keys = jax.lax.dynamic_update_slice(state["keys"], (x @ params["a"])[:, None], (0, state["end"], 0))
    return jax.nn.relu(keys.sum(1)) @ params["c"], {"keys": keys, "end": state["end"] + 1}


def growing(params, keys, x):
    keys = jnp.concatenate([keys, (x @ params["a"])[:, None]], axis=1)
    return jax.nn.relu(keys.sum(1)) @ params["c"], keys


def with_keys(params, state, x):
    key, mine = jax.random.split(state["key"])
    hidden = x @ params["a"]
    noise = jax.random.normal(mine, (x.shape[0], 3))
    largest = jnp.maximum(state["largest"], hidden.max(0))
    return jax.nn.relu(hidden) @ params["c"] + noise, {**state, "key": key, "largest": largest}


unseen = {"key": jax.random.key(3), "largest": jnp.full(C, -jnp.inf), "unused": jnp.full(2, jnp.nan)}
FUNCTIONS = {
    **{f"averages as {name}": (normed(order), AVERAGES) for name, order in ORDERS.items()},
    "a carry before its output": (cell, (jnp.zeros((4, C)), jnp.zeros((4, C)))),
    "a carry after its output": (lambda *args: cell(*args)[::-1], (jnp.zeros((4, C)), jnp.zeros((4, C)))),
    "one array": (lambda p, s, x: (s * 0.5 + x @ p["a"], jnp.tanh(s) @ p["c"]), jnp.zeros((4, C))),
    "a cache": (cache, {"keys": jnp.zeros((4, 6, C)), "end": jnp.int32(0)}),
    "a cache that grows": (growing, jnp.zeros((4, 2, C))),
    "keys, and nothing finite yet": (with_keys, unseen),
}


def build(apply, state):
    rng = np.random.default_rng(0)
    shapes = {"a": (5, C), "c": (C, 3), "gate": (C,)}
    params = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    x = rng.normal(size=(4, 5)).astype("f")
    network = init_network(params, trace(apply, params, x, model_state=state))
    return disable(network, choose(network, {"a": OFF})), x


def new_state(outputs, state):
    """The only part of the outputs with as many leaves of the same kinds as the state."""
    parts = [getattr(outputs, f.name) for f in dataclasses.fields(outputs)] if isinstance(outputs, Step) else outputs
    parts = list(parts.values() if isinstance(parts, dict) else parts)
    kinds = lambda tree: [(leaf.dtype, leaf.ndim) for leaf in jax.tree.leaves(tree)]
    return next(part for part in parts if kinds(part) == kinds(state) and jax.tree.leaves(part)[0].shape[-1:] != (3,))


@pytest.mark.rotating
@pytest.mark.parametrize(("apply", "state"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_the_small_network_hands_on_what_is_left_of_the_state(apply, state):
    network, x = build(apply, state)
    small_apply, small = compact(apply, network, x, model_state=state)
    plan = make_plan(network.groups, network.enabled)
    left = plan.cut(state, state=True)
    assert small["a"].shape == (5, len(KEPT))
    for _ in range(2):  # what was handed on is a state again
        after, small_after = apply(effective_params(network), state, x), small_apply(small, left, x)
        state, left = new_state(after, state), new_state(small_after, left)
        for whole, part in zip(jax.tree.leaves(state), jax.tree.leaves(left), strict=True):
            if not jnp.issubdtype(whole.dtype, jax.dtypes.prng_key):
                mine = whole[..., KEPT] if whole.shape[-1:] == (C,) else whole
                np.testing.assert_allclose(mine, part, rtol=1e-5, atol=1e-5)


def test_a_wrong_new_state_is_found_out():
    apply, state = normed(lambda logits, state: (logits, state)), AVERAGES
    network, x = build(apply, state)
    small_apply, small = compact(apply, network, x, model_state=state)
    forgetful = lambda params, state, x: (small_apply(params, state, x)[0], state)
    given = {"model_state": state, "plan": make_plan(network.groups, network.enabled)}
    assert check_same(apply, network, small, x, small_apply=small_apply, **given) < 1e-5
    with pytest.raises(CompactionError, match="differs"):
        check_same(apply, network, small, x, small_apply=forgetful, **given)


def test_a_new_state_on_a_grid_of_widths():
    apply, state = normed(lambda logits, state: (logits, state)), AVERAGES
    network, x = build(apply, state)
    _, small = compact(apply, network, x, model_state=state, round_to=3)
    assert small["a"].shape == (5, 6)


def test_a_second_output_that_is_no_state_stays_whole():
    apply = lambda params, state, x: (jax.nn.relu(x @ params["a"] + state[None]) @ params["c"], x @ params["a"])
    params = {"a": np.ones((5, C), "f"), "c": np.ones((C, 3), "f")}
    groups = trace(apply, params, np.ones((4, 5), "f"), model_state=np.zeros(C, "f"))
    assert not groups and "output of the network" in groups.refused["a"]
