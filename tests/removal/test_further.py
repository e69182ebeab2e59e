"""Several functions of the same parameters: masks exact in all, and small functions that cut what was left whole."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import (
    ShrinkError,
    choose,
    compact,
    cost,
    disable,
    effective_params,
    init_network,
    linen,
    make_plan,
    shrink,
    trace,
)


@pytest.fixture
def params(rng):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"c1": draw(5, 8), "c2": draw(8, 6), "out": draw(6, 3), "aux": draw(8, 3)}


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)


def evaluation(p, x, act=jax.nn.relu):
    return jax.nn.relu(act(x @ p["c1"]) @ p["c2"]) @ p["out"]


def training(p, x, act=jax.nn.relu):
    return evaluation(p, x, act), act(x @ p["c1"]) @ p["aux"]


def masked(params, groups, chosen):
    network = init_network(params, groups)
    return disable(network, choose(network, chosen))


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


def test_groups_of_both_functions_fit_both(params, x):
    groups = trace(evaluation, params, x, also=[(training, (x,))])
    assert {(piece.leaf, piece.axis) for piece in groups["c1"].slices} == {("c1", 1), ("c2", 0), ("aux", 0)}
    assert groups.refused["aux[1]"] == "its channels are the output of `also[0]`"
    network = masked(params, groups, {"c1": [0, 5], "c2": [1]})
    plan, full = make_plan(groups, network.enabled), effective_params(network)
    assert plan.cut(full)["aux"].shape == (6, 3)
    for function in (evaluation, training):
        small_apply, small = compact(function, network, x)
        close(small_apply(small, x), function(full, x))
        assert cost(function, params, x, groups=groups, enabled=network.enabled).parameters == 30 + 30 + 15 + 18


def test_masks_are_exact_in_every_function(params, x):
    sorted_too = lambda p, x: jnp.sort(x @ p["c1"], axis=-1)
    groups = trace(evaluation, params, x, also=[(training, [x]), (sorted_too, [x[:2]])])
    assert groups.names == ("c2",) and "these channels are sorted" in groups.refused["c1[1]"]
    assert "these channels are sorted" in groups.refused["aux[0]"]


def test_what_one_function_never_uses_another_may(params, x):
    groups = trace(evaluation, params, x)
    assert groups.names == ("c1", "c2") and groups.refused["aux"] == "no given function uses it"
    groups = trace(evaluation, params, x, also=[(lambda p, x: jnp.sin(x[0, 0] * p["aux"]).sum(1) @ p["c2"], (x,))])
    assert {(piece.leaf, piece.axis) for piece in groups["c1"].slices} == {("c1", 1), ("c2", 0), ("aux", 0)}
    assert "output of `also[0]`" in groups.refused["c2[1]"] and groups["aux"].size == 3


def test_a_function_cuts_what_the_plan_leaves_whole(params, x):
    """Masks of evaluation alone: the head of training reads channels that are gone, and arrives whole."""
    network = masked(params, trace(evaluation, params, x), {"c1": [0, 5]})
    small = make_plan(network.groups, network.enabled).cut(effective_params(network))
    assert small["aux"].shape == (8, 3)
    train = shrink(training, make_plan(network.groups, network.enabled))
    close(train(small, x), training(effective_params(network), x))
    close(jax.jit(train)(small, x), train(small, x))
    gradient = jax.grad(lambda p: train(p, x)[1].sum())(small)
    assert gradient["aux"].shape == (8, 3)
    np.testing.assert_array_equal(np.flatnonzero(np.abs(gradient["aux"]).sum(1) == 0), [0, 5])


def test_where_that_would_not_be_exact_it_is_told(params, x):
    """What a disabled channel holds is not zero, and the head that reads it was never masked."""
    act = jax.nn.sigmoid
    network = masked(params, trace(lambda p, x: evaluation(p, x, act), params, x), {"c1": [0, 5]})
    plan = make_plan(network.groups, network.enabled)
    with pytest.raises(ShrinkError, match=r"more than rounding: .*summed.*leaves axis 0 of `aux` whole.*also="):
        shrink(lambda p, x: training(p, x, act), plan)(plan.cut(network.params), x)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(6)(x)))
        return (nn.Dense(2)(x), nn.Dense(3, name="aux")(x)) if train else nn.Dense(2)(x)


def test_a_module_with_a_state_in_training_and_in_evaluation(x):
    module = Normed()
    variables = module.init(jax.random.key(0), x, True)
    apply, params, state = linen.from_module(module, variables, settings={"train": False})
    train_apply = linen.training(module, settings={"train": True})
    alone = lambda p, x: x @ p["Dense_0"]["kernel"]
    groups = trace(apply, params, x, model_state=state, also=[(train_apply, (x,)), (alone, (x,), False)])
    assert groups.names == () and groups.refused["Dense_0/kernel[1]"] == "its channels are the output of `also[1]`"
    groups = trace(apply, params, x, model_state=state, also=[(train_apply, (x,))])
    assert {piece.leaf for piece in groups["Dense_0"].with_role("in")} == {"Dense_1/kernel", "aux/kernel"}
    network = masked(params, groups, {"Dense_0": [0, 4]})
    plan, full = make_plan(groups, network.enabled), effective_params(network)
    small = shrink(train_apply, plan, stateful=True)
    outputs, new = small(plan.cut(full), plan.cut(state, state=True), x)
    expected, expected_state = train_apply(full, state, x)
    close(outputs, expected)
    close(new, plan.cut(expected_state, state=True))


@pytest.mark.parametrize("wrong", [training, (training,), (training, 3), (training, (), True, 1)])
def test_what_is_no_further_function(params, x, wrong):
    with pytest.raises(TypeError, match=r"`also\[0\]` is no pair of a function and its inputs"):
        trace(evaluation, params, x, also=[wrong])


def test_a_further_function_without_its_inputs(params, x):
    with pytest.raises(TypeError, match=r"is called with `params`: missing a required argument: 'x'"):
        trace(evaluation, params, x, also=[(lambda p, x: x @ p["c1"], ())])
