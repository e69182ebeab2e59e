"""Tracing as a user meets it: names, tables, protection, abstract inputs, states, errors that help."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NATIVE, TOYS

import maskprune
from maskprune import (
    CompactionError,
    choose,
    compact,
    conv2d,
    disable,
    effective_params,
    init_network,
    judged,
    make_plan,
    models,
    shrink,
    trace,
)
from maskprune.masks.jaxpr.rules import ELEMENTWISE, Rule


def mlp(params, x):
    hidden = jnp.tanh(jnp.dot(x, params["first"]["kernel"]) + params["first"]["bias"][None])
    hidden = jax.nn.relu(jnp.dot(hidden, params["second"]["kernel"]) + params["second"]["bias"][None])
    return jnp.dot(hidden, params["head"]["kernel"])


def mlp_params(rng):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {
        "first": {"kernel": draw(3, 5), "bias": draw(5)},
        "second": {"kernel": draw(5, 4), "bias": draw(4)},
        "head": {"kernel": draw(4, 2)},
    }


@pytest.fixture
def params(rng):
    return mlp_params(rng)


X = jax.ShapeDtypeStruct((7, 3), jnp.float32)


@pytest.mark.parametrize("make", TOYS)
def test_hand_made_groups_are_found(make):
    toy = make()
    found = trace(toy.apply, toy.params, toy.inputs)
    assert {group.name: set(group.slices) for group in found} == {g.name: set(g.slices) for g in toy.groups}


@pytest.mark.parametrize("way", ["xla", "blocked", NATIVE])
def test_the_groups_of_the_fcn_are_found_whatever_its_convolution(way):
    model = models.fcn((3, 4, 2), convolution=partial(conv2d, way=way))
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert trace(model.apply, params, jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)).groups == model.groups.groups


def test_names_sizes_and_network_order(params):
    groups = trace(mlp, params, X)
    assert [(group.name, group.size) for group in groups] == [("first", 5), ("second", 4)]
    assert set(groups.refused) == {"head/kernel[1]", "first/kernel[0]"}
    assert groups.refused["head/kernel[1]"] == "its channels are the output of the network"
    text = str(groups).splitlines()
    assert text[1].split()[:2] == ["first", "5"] and "second/kernel[axis 0, in]" in text[1]
    assert text[-1].split()[:2] == ["head", "kept"]


def test_abstract_and_concrete_arguments_give_the_same(params, rng):
    shapes = jax.eval_shape(lambda: params)
    concrete = trace(mlp, params, jnp.asarray(rng.normal(size=(2, 3)), jnp.float32))
    assert trace(mlp, shapes, X) == concrete
    assert hash(trace(mlp, shapes, X)) == hash(concrete)


def test_nothing_large_is_allocated():
    """A layer of 4 TiB: whoever allocated it would not come back."""
    size = 2**20
    shapes = {"a": jax.ShapeDtypeStruct((size, size), jnp.float32), "b": jax.ShapeDtypeStruct((size, 1), jnp.float32)}
    x = jax.ShapeDtypeStruct((1, size), jnp.float32)
    assert [group.size for group in trace(lambda p, x: jnp.dot(jnp.dot(x, p["a"]), p["b"]), shapes, x)] == [size]


@pytest.mark.parametrize("pattern", ["second", "second/*", "second/bias", "*/bias"])
def test_protect(params, pattern):
    groups = trace(mlp, params, X, protect=[pattern])
    assert "second" not in groups.names
    assert groups.refused["second"] == f"protected by `{pattern}`"


def test_protecting_what_is_not_there(params):
    with pytest.raises(
        ValueError, match=r"`protect` holds `third/\*`, which matches no leaf. The leaves are first/bias"
    ):
        trace(mlp, params, X, protect=["third/*"])


def softmax_net(params, x):
    return jnp.dot(jax.nn.softmax(jnp.dot(x, params["a"])), params["z"])


def test_inexact_groups_are_offered_on_demand_flagged_and_compacted(rng):
    params = {"a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), "z": jnp.ones((5, 2))}
    x = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    assert trace(softmax_net, params, x).names == ()
    groups = trace(softmax_net, params, x, inexact=True)
    assert groups.names == ("a",) and "compared by a maximum" in groups["a"].inexact
    network = init_network(params, groups)
    masked = disable(network, choose(network, {"a": [1, 3]}))
    small_apply, small = compact(softmax_net, masked, x)
    kept = [0, 2, 4]
    expected = softmax_net({"a": params["a"][:, kept], "z": params["z"][np.array(kept)]}, x)
    np.testing.assert_allclose(small_apply(small, x), expected, rtol=1e-6)


def test_what_judges_an_inexact_network_is_the_compacted_one(rng):
    params = {"a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32), "z": jnp.ones((5, 2))}
    network = init_network(params, trace(softmax_net, params, X, inexact=True))
    assert judged(softmax_net, network)[0] is softmax_net
    apply, small = judged(softmax_net, disable(network, choose(network, {"a": [2]})))
    assert small["a"].shape == (3, 4)
    np.testing.assert_allclose(apply(small, jnp.ones((7, 3))).sum(1), 2.0, rtol=1e-6)  # a softmax over what is left


def test_a_plan_for_an_inexact_removal_needs_groups_that_say_so():
    params = {"a": jnp.ones((3, 5)), "z": jnp.ones((5, 2))}
    cuts = make_plan(trace(softmax_net, params, X, inexact=True), {"a": np.arange(5) < 3}).cuts
    with pytest.raises(maskprune.ShrinkError, match="change more than rounding: these channels are"):
        shrink(softmax_net, maskprune.Plan(cuts))(maskprune.Plan(cuts).cut(params), jnp.ones((7, 3)))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(6, (3, 3))(x)))
        return nn.Dense(2)(x.mean((1, 2)))


def test_batch_statistics_are_traced_and_cut(rng):
    module, x = Normed(), jnp.asarray(rng.normal(size=(2, 8, 8, 1)), jnp.float32)
    params, state = (module.init(jax.random.key(0), x, True)[name] for name in ("params", "batch_stats"))
    state = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0.5, 1, leaf.shape), leaf.dtype), state)
    apply = lambda p, s, x: module.apply({"params": p, "batch_stats": s}, x, False)
    groups = trace(apply, params, x, model_state=state)
    assert {(piece.leaf, piece.role) for piece in groups["Conv_0"].slices if piece.role == "state"} == {
        ("BatchNorm_0/mean", "state"),
        ("BatchNorm_0/var", "state"),
    }
    network = init_network(params, groups)
    masked = disable(network, choose(network, {"Conv_0": [0, 4]}))
    small_apply, small = compact(apply, masked, x, model_state=state)
    small_state = make_plan(groups, masked.enabled).cut(state, state=True)
    assert small_state["BatchNorm_0"]["mean"].shape == (4,)
    np.testing.assert_allclose(small_apply(small, small_state, x), apply(effective_params(masked), state, x), atol=1e-6)


def test_a_function_in_training_mode_shows_the_same_masks(rng):
    """Its new state is tied to the old one: statistics that evaluation never reads are found as well."""
    module, x = Normed(), jnp.asarray(rng.normal(size=(2, 8, 8, 1)), jnp.float32)
    params, state = (module.init(jax.random.key(0), x, True)[name] for name in ("params", "batch_stats"))
    state = {"BatchNorm_0": {**state["BatchNorm_0"], "unread": jnp.zeros(6)}}

    def train(p, s, x):
        stats = {"BatchNorm_0": {name: s["BatchNorm_0"][name] for name in ("mean", "var")}}
        output, new = module.apply({"params": p, "batch_stats": stats}, x, True, mutable=["batch_stats"])
        new = new["batch_stats"]["BatchNorm_0"]
        return output, {"BatchNorm_0": {**new, "unread": s["BatchNorm_0"]["unread"] + new["mean"]}}

    groups = trace(train, params, x, model_state=state)
    assert [(group.name, group.size) for group in groups] == [("Conv_0", 6)]
    assert "BatchNorm_0/unread" in {piece.leaf for piece in groups["Conv_0"].slices}
    masked = disable(init_network(params, groups), choose(init_network(params, groups), {"Conv_0": [0, 4]}))
    plan = make_plan(groups, masked.enabled)
    small = shrink(train, plan, stateful=True)
    output, new = small(plan.cut(effective_params(masked)), plan.cut(state, state=True), x)
    expected, full = train(effective_params(masked), state, x)
    np.testing.assert_allclose(output, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new, plan.cut(full, state=True))


def test_the_small_function_at_other_sizes_and_inside_transformations(params, rng):
    network = init_network(params, trace(mlp, params, X))
    masked = disable(network, choose(network, {"first": [0], "second": [1, 2]}))
    small_apply, small = compact(mlp, masked)
    x = jnp.asarray(rng.normal(size=(11, 3)), jnp.float32)
    expected = mlp(effective_params(masked), x)
    close = lambda found: np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    close(small_apply(small, x))
    close(jax.jit(small_apply)(small, x))
    close(jax.vmap(lambda row: small_apply(small, row[None])[0])(x))
    scope = jax.export.SymbolicScope()
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3", scope=scope), jnp.float32)
    exported = jax.export.export(jax.jit(small_apply))(jax.eval_shape(lambda: small), shape)
    close(exported.call(small, x))
    again = init_network(small, trace(small_apply, small, X))
    assert [(group.name, group.size) for group in again.groups] == [("first", 4), ("second", 2)]
    smaller_apply, smaller = compact(small_apply, disable(again, choose(again, {"first": [3]})), x)
    assert smaller["first"]["bias"].shape == (3,) and smaller_apply(smaller, x).shape == (11, 2)


def test_an_emptied_branch_disappears(rng):
    def apply(p, x):
        return jnp.dot(x + jnp.dot(jax.nn.relu(jnp.dot(x, p["up"])), p["down"]) + p["bias"][None], p["z"])

    shapes = {"up": (3, 4), "down": (4, 3), "bias": (3,), "z": (3, 2)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    x = jnp.asarray(rng.normal(size=(7, 3)), jnp.float32)
    network = init_network(params, trace(apply, params, x))
    masked = disable(network, choose(network, {"up": range(4)}))
    small_apply, small = compact(apply, masked, x)
    assert small["up"].shape == (3, 0)
    products = [e for e in jax.make_jaxpr(small_apply)(small, x).eqns if e.primitive.name == "dot_general"]
    assert len([e for e in products if 0 not in e.invars[1].aval.shape]) == 1


def test_unknown_primitives_are_named_and_a_rule_can_be_added():
    def apply(p, x):
        return jnp.dot(jnp.fft.fft(jnp.dot(x, p["a"]), axis=1).real, p["z"])

    shapes = {"a": jnp.ones((3, 4)), "z": jnp.ones((4, 2))}
    assert "unknown primitive `fft` (test_tracing.py:" in trace(apply, shapes, X).refused["a"]
    assert trace(apply, shapes, X, rules={"fft": ELEMENTWISE}).names == ("a",)


def test_a_rule_for_a_jitted_function_by_its_name():
    @jax.jit
    def odd(x):
        return jnp.sort(x, axis=1)

    apply = lambda p, x: jnp.dot(odd(jnp.dot(x, p["a"])), p["z"])
    shapes = {"a": jnp.ones((3, 4)), "z": jnp.ones((4, 2))}
    assert trace(apply, shapes, X).names == ()
    assert trace(apply, shapes, X, rules={"jit:odd": Rule(ELEMENTWISE.label)}).names == ("a",)


# -- errors: what was found, and what to do --------------------------------------------------------------------------


def test_a_leaf_that_is_no_array(params):
    with pytest.raises(TypeError, match="The leaf `first/activation` of `params` is a str, not an array: close over"):
        trace(mlp, {**params, "first": {**params["first"], "activation": "relu"}}, X)


def test_an_argument_that_is_no_array(params):
    with pytest.raises(TypeError, match="Argument 2 is a bool, not an array: close over"):
        trace(lambda p, x, train: mlp(p, x), params, X, True)


def test_integer_leaves_stay_and_say_so(params):
    params = {**params, "order": jnp.arange(5)}
    apply = lambda p, x: mlp(p, x) * p["order"].sum()
    assert trace(apply, params, X).names == ("first", "second")
    permuted = lambda p, x: jnp.dot(jnp.dot(x, p["first"]["kernel"])[:, p["order"]], p["second"]["kernel"])
    assert "indexed by data" in trace(permuted, params, X).refused["first/kernel[1]"]


def test_integer_inputs_are_fine():
    apply = lambda p, tokens: jnp.dot(p["table"][tokens].sum(1), p["z"])
    groups = trace(apply, {"table": jnp.ones((9, 4)), "z": jnp.ones((4, 2))}, jnp.zeros((2, 5), jnp.int32))
    assert groups.names == ("table",) and "indexed by data" in groups.refused["table[0]"]


def test_side_effects(params):
    def apply(p, x):
        jax.debug.print("{}", x[0, 0])
        return mlp(p, x)

    with pytest.raises(ValueError, match=r"side effects, the first at test_tracing.py:\d+ .*take out prints"):
        trace(apply, params, X)


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: mlp(p, x) if x.sum() > 0 else -mlp(p, x),
        lambda p, x: x[x > 0].sum() * mlp(p, x),
        lambda p, x: mlp(p, x) * float(x[0, 0]),
        lambda p, x: jnp.ones(int(x[0, 0])),
    ],
    ids=["branch", "shape", "float", "size"],
)
def test_dependence_on_values(params, apply):
    with pytest.raises(TypeError, match=r"needs the value of an argument.*Close over settings"):
        trace(apply, params, X)


def test_a_group_or_mask_that_does_not_exist(params):
    network = init_network(params, trace(mlp, params, X))
    with pytest.raises(KeyError, match=r"no group `secnd`.*did you mean `second`"):
        choose(network, {"secnd": [0]})
    with pytest.raises(IndexError, match="`second` has masks 0 to 3, not 4"):
        choose(network, {"second": [4]})


def part_of_first(params, leaves):
    """The group `first` as somebody would write it who forgot the other leaves, with mask 2 disabled."""
    whole = trace(mlp, params, X)["first"]
    part = maskprune.Group("first", 5, tuple(piece for piece in whole.slices if piece.leaf in leaves))
    network = init_network(params, maskprune.Groups((part,)))
    return disable(network, choose(network, {"first": [2]}))


@pytest.mark.parametrize("leaves", [("first/kernel", "first/bias"), ("second/kernel", "first/bias")])
def test_what_a_plan_leaves_whole_follows_where_that_is_exact(params, leaves, rng):
    """The maker's own numbers are zero, or what reads it is: either will do, and the other is cut in the function."""
    masked = part_of_first(params, leaves)
    small_apply, small = compact(mlp, masked, jnp.asarray(rng.normal(size=(7, 3)), jnp.float32))
    assert small["first"]["bias"].shape == (4,)
    whole = {"first/kernel": (3, 5), "second/kernel": (5, 4)}
    assert [maskprune.masks.groups.leaves_by_path(small)[leaf].shape for leaf in whole if leaf not in leaves] == [
        shape for leaf, shape in whole.items() if leaf not in leaves
    ]
    gradient = jax.grad(lambda p: small_apply(p, jnp.ones((7, 3))).sum())(small)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, small)


def test_groups_that_do_not_fit_the_function(params):
    """Hand-made groups that forget a kernel and what reads it: a disabled mask would not be gone."""
    masked = part_of_first(params, ("first/bias",))
    with pytest.raises(
        CompactionError, match=r"more than rounding: .*summed.*leaves axis 1 of `first/kernel`, axis 0 of"
    ):
        compact(mlp, masked, jnp.ones((7, 3)))


def test_groups_that_cut_the_output(params):
    head = maskprune.Group("head", 2, (maskprune.Slice("head/kernel", 1, (0, 1), "out"),))
    network = init_network(params, maskprune.Groups((head,)))
    masked = disable(network, choose(network, {"head": [0]}))
    with pytest.raises(CompactionError, match="channels that are the output"):
        compact(mlp, masked, jnp.ones((7, 3)))
