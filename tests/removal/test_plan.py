"""Plans are data: they say what the masks say, survive JSON, fit only their own model, and keep to a grid."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import TOYS, away_from_zero, flatten_toy

from maskprune import Plan, choose, compact, disable, effective_params, init_network, make_plan, trace
from maskprune.removal.compaction import compact_params


def some_masks(toy, rng):
    network = init_network(toy.params, toy.groups)
    chosen = {group.name: rng.permutation(group.size)[: group.size // 2].tolist() for group in toy.groups}
    return disable(network, choose(network, chosen))


@pytest.mark.parametrize("make", TOYS)
def test_json_and_back_cuts_the_same(make, rng):
    toy = make()
    network = some_masks(toy, rng)
    plan = make_plan(toy.groups, network.enabled)
    again = Plan.from_json(plan.to_json())
    assert again == plan and json.loads(plan.to_json())["cuts"]
    jax.tree.map(np.testing.assert_array_equal, again.cut(effective_params(network)), compact_params(network))


def test_a_plan_fits_a_fresh_checkpoint_without_tracing(rng):
    toy = flatten_toy()
    plan = make_plan(toy.groups, some_masks(toy, rng).enabled)
    fresh = away_from_zero(99, toy.params)
    small = plan.cut(fresh)
    (cut,) = [cut for cut in plan.cuts if cut.leaf == "dense/kernel"]
    np.testing.assert_array_equal(small["dense"]["kernel"], np.asarray(fresh["dense"]["kernel"])[list(cut.kept)])
    shapes = plan.cut(jax.eval_shape(lambda: fresh))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, small)


def test_a_plan_prints_as_a_table(rng):
    toy = flatten_toy()
    lines = str(make_plan(toy.groups, {"conv": np.array([True, False, True, True])})).splitlines()
    assert lines[0].split() == ["leaf", "axis", "from", "to"]
    assert ["dense/kernel", "0", "24", "18"] in [line.split() for line in lines]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: {"conv": tree["conv"]}, "cuts `dense/kernel`, which this tree lacks. Its leaves are conv/bias"),
        (
            lambda tree: {**tree, "dense": {"kernel": jnp.ones((25, 2))}},
            r"axis 0 of `dense/kernel` from 24 to 18.*\(25, 2\)",
        ),
        (lambda tree: {**tree, "dense": {"kernel": jnp.ones(())}}, r"has the shape \(\)"),
    ],
)
def test_a_tree_that_does_not_fit_is_refused_before_anything_is_cut(change, message):
    toy = flatten_toy()
    plan = make_plan(toy.groups, {"conv": np.array([True, False, True, True])})
    with pytest.raises(ValueError, match=message):
        plan.cut(change(toy.params))


GOOD = {"leaf": "a", "axis": 0, "size": 3, "kept": [0, 2], "state": False}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({"format": "maskprune plan 2", "inexact": False, "cuts": [], "dropped": []}),
        *(
            json.dumps({"format": "maskprune plan 1", "inexact": False, "cuts": [{**GOOD, **wrong}], "dropped": []})
            for wrong in (
                {"kept": [2, 0]},
                {"kept": [0, 3]},
                {"kept": [0, 0]},
                {"kept": ["0"]},
                {"axis": -1},
                {"kept": None},
            )
        ),
        json.dumps({"format": "maskprune plan 1", "inexact": False, "cuts": [{"leaf": "a"}], "dropped": []}),
    ],
)
def test_a_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="This text is no plan"):
        Plan.from_json(text)
    assert Plan.from_json(
        json.dumps({"format": "maskprune plan 1", "inexact": False, "cuts": [GOOD], "dropped": []})
    ).cuts


@pytest.mark.parametrize(("enabled", "to", "left"), [(3, 4, 4), (4, 4, 4), (5, 4, 8), (9, 4, 10), (0, 4, 0), (7, 1, 7)])
def test_widths_on_a_grid(enabled, to, left):
    params = {"a": jnp.ones((3, 10)), "z": jnp.ones((10, 2))}
    groups = trace(lambda p, x: jnp.dot(jnp.tanh(jnp.dot(x, p["a"])), p["z"]), params, jnp.ones((2, 3)))
    plan = make_plan(groups, {"a": np.arange(10) < enabled}, round_to=to)
    assert plan.cut(params)["a"].shape == (3, left)


def test_the_best_removed_masks_come_back_and_change_nothing(rng):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params, x = {"a": draw(3, 10), "z": draw(10, 2)}, draw(4, 3)
    apply = lambda p, x: jnp.dot(jnp.cos(jnp.dot(x, p["a"])), p["z"])
    network = init_network(params, trace(apply, params, x))
    masked = disable(network, choose(network, {"a": [1, 4, 5, 7, 8]}))
    scores = {"a": np.array([9, 1, 9, 9, 3, 2, 9, 5, 4, 9.0])}
    plan = make_plan(network.groups, masked.enabled, round_to=4, scores=scores)
    assert {cut.kept for cut in plan.cuts} == {(0, 2, 3, 4, 6, 7, 8, 9)}
    small_apply, small = compact(apply, masked, x, round_to=4)
    assert small["a"].shape == (3, 8)
    np.testing.assert_allclose(small_apply(small, x), apply(effective_params(masked), x), rtol=1e-5)


def test_a_grid_below_one(rng):
    toy = flatten_toy()
    with pytest.raises(ValueError, match="`round_to` is 0: use 1"):
        make_plan(toy.groups, some_masks(toy, rng).enabled, round_to=0)
