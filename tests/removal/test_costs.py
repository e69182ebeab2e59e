"""Counted costs against numbers worked out by hand, and promised savings against networks really cut."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from toys import TOYS
from zoo.networks import BY_ID

from maskprune import Groups, compact, conv2d, cost, count_params, init_network, make_plan, models, shrink, trace
from maskprune.removal.costs import MEASURES


NO_MASKS = Groups(())
CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def abstract(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def multiply_adds(function, *args):
    return cost(function, args[0], *args[1:], groups=NO_MASKS).multiply_adds


def convolution(strides=(1, 1), padding="SAME", **settings):
    return lambda kernel, x: lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=CHANNELS_LAST, **settings
    )


@pytest.mark.parametrize(
    ("function", "kernel", "inputs", "expected"),
    [
        (convolution(), (3, 3, 2, 5), (4, 8, 6, 2), 4 * 8 * 6 * 5 * 2 * 9),
        (convolution((2, 2)), (3, 3, 2, 5), (4, 8, 6, 2), 4 * 4 * 3 * 5 * 2 * 9),
        (convolution(padding="VALID"), (3, 3, 2, 5), (4, 8, 6, 2), 4 * 6 * 4 * 5 * 2 * 9),
        (convolution(rhs_dilation=(2, 2)), (3, 3, 2, 5), (4, 8, 6, 2), 4 * 8 * 6 * 5 * 2 * 9),
        (convolution(feature_group_count=2), (3, 3, 3, 4), (1, 5, 5, 6), 25 * 4 * 3 * 9),
        (convolution(feature_group_count=6), (3, 3, 1, 6), (1, 5, 5, 6), 25 * 6 * 9),  # depthwise
        (convolution(batch_group_count=2), (3, 3, 2, 4), (6, 5, 5, 2), 3 * 25 * 4 * 2 * 9),
    ],
)
def test_convolutions(function, kernel, inputs, expected):
    assert multiply_adds(function, shape(*kernel), shape(*inputs)) == expected


@pytest.mark.parametrize(("size", "stride"), [(4, 2), (3, 2), (2, 2), (3, 1)])
def test_a_transposed_convolution_counts_no_zeros_between_its_inputs(size, stride):
    function = lambda kernel, x: lax.conv_transpose(x, kernel, (stride, stride), "SAME")
    # Each input meets every kernel position once.
    assert multiply_adds(function, shape(size, size, 2, 5), shape(3, 6, 7, 2)) == 3 * 6 * 7 * 2 * 5 * size**2


def test_products():
    both = lambda w, x: (jnp.einsum("bic,bcj->bij", x, x.transpose(0, 2, 1)), (x @ w) @ w.T)
    assert multiply_adds(both, shape(5, 7), shape(2, 3, 5)) == 2 * 3 * 3 * 5 + 2 * (2 * 3 * 5 * 7)


def test_our_blocked_convolution_counts_as_the_convolution_it_stands_for():
    found = [
        cost(models.fcn((3, 2), convolution=partial(conv2d, way=way)).apply, params, shape(2, 9, 6, 1))
        for way in ("xla", "blocked")
        for params in [jax.eval_shape(models.fcn((3, 2)).init, jax.random.key(0))]
    ]
    assert found[0].multiply_adds == found[1].multiply_adds == 2 * 9 * 6 * 25 * (3 + 3 * 2 + 2)
    assert str(found[0]) == str(found[1])


def test_inside_calls_and_loops():
    dense = lambda w, x: x @ w
    derived = jax.custom_jvp(dense)
    derived.defjvp(lambda primals, tangents: (derived(*primals), tangents[1] @ primals[0]))
    for wrapped in (jax.jit(dense), jax.checkpoint(dense), derived, jax.vmap(dense, in_axes=(None, 0))):
        assert multiply_adds(wrapped, shape(4, 4), shape(3, 4)) == 3 * 16
    scanned = lambda w, x: lax.scan(lambda x, _: (jax.jit(dense)(w, x), None), x, length=7)[0]
    assert multiply_adds(scanned, shape(4, 4), shape(3, 4)) == 7 * 3 * 16


def test_a_loop_of_unknown_length_counts_once_and_a_choice_by_its_largest_branch():
    until = lambda w, x: lax.while_loop(lambda x: jnp.sum(x) < 9.0, lambda x: x @ w, x)
    found = cost(until, shape(4, 4), shape(3, 4), groups=NO_MASKS)
    assert found.multiply_adds == 3 * 16 and "counts once" in found.notes[0]
    either = lambda w, x: lax.cond(jnp.sum(x) > 0, lambda: x @ w, lambda: (x @ w) @ w)
    found = cost(either, shape(4, 4), shape(3, 4), groups=NO_MASKS)
    assert found.multiply_adds == 2 * 3 * 16 and "largest branch" in str(found)


def test_what_a_choice_saves_follows_the_branch_that_is_then_the_largest():
    def apply(params, x):
        one, two = (lambda n=n: jax.nn.relu(x @ params[n]) @ params[n + "_out"] for n in ("one", "two"))
        return lax.cond(jnp.sum(x) > 0, one, two)

    params = {"one": shape(4, 3), "one_out": shape(3, 1), "two": shape(4, 2), "two_out": shape(2, 1)}
    found = cost(apply, params, shape(1, 4))
    assert found.multiply_adds == 15
    assert [found.saves[name]["multiply_adds"].tolist() for name in ("one", "two")] == [[5, 5, 5], [0, 0]]
    found = cost(apply, params, shape(1, 4), enabled={"one": np.array([True, False, False]), "two": np.ones(2, bool)})
    assert found.multiply_adds == 10
    assert [found.saves[name]["multiply_adds"].tolist() for name in ("one", "two")] == [[0, 0, 0], [5, 5]]


def test_the_last_mask_takes_everything_along():
    apply, params = (lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]), {"a": shape(4, 3), "b": shape(3, 2)}
    found = cost(apply, params, shape(5, 4), enabled={"a": np.array([False, True, False])})
    assert (found.parameters, found.multiply_adds) == (4 + 2, 5 * (4 + 2))
    assert found.saves["a"]["parameters"].tolist() == [0, 6, 0]
    assert found.saves["a"]["multiply_adds"].tolist() == [0, 30, 0]


def test_what_nobody_needs_or_what_is_known_in_advance_is_free():
    unused = lambda w, x: (x @ w, (x @ w) @ w)[0]
    assert multiply_adds(unused, shape(4, 4), shape(3, 4)) == 3 * 16
    constant = lambda w, x: x + w + jnp.sum(jnp.asarray(np.eye(4)) @ jnp.asarray(np.eye(4)))
    assert multiply_adds(constant, shape(3, 4), shape(3, 4)) in (0, 4**3)  # where the product is folded, nothing


def test_a_primitive_without_a_rule_is_named():
    found = cost(lambda w, x: jnp.fft.fft(x @ w).real, shape(4, 4), shape(3, 4))
    assert found.notes == ("`fft` is not counted",) and "fft" in str(found)


@pytest.mark.parametrize("toy", [make() for make in TOYS], ids=[make.__name__ for make in TOYS])
def test_every_combination_of_savings_of_masks_written_by_hand(toy):
    params, inputs = abstract(toy.params), abstract(toy.inputs)
    full = cost(toy.apply, params, inputs, groups=toy.groups)
    for group in toy.groups:
        for number in range(group.size):
            check_saving(toy.apply, params, None, (inputs,), full, everything(toy.groups), group.name, number)


ZOO = (
    "unet-plain",  # concatenation
    "espcn-plain",  # pixel shuffle
    "resnext-linen",  # grouped convolutions
    "mobilenet_v2-linen",  # depthwise convolutions
    "vit-linen",
    "gru_scan-plain",
    "weight_standardized-plain",  # products of weights alone
)


@pytest.fixture
def networks_as_they_are():
    """Layers of other libraries add vectors to pictures."""
    with jax.numpy_rank_promotion("allow"):
        yield


def everything(groups):
    return {group.name: np.ones(group.size, bool) for group in groups}


def check_saving(apply, params, state, inputs, found, enabled, name, number):
    """Cuts one more mask out and counts again."""
    groups = found.sizes.groups
    fewer = {each: flags.copy() for each, flags in enabled.items()}
    fewer[name][number] = False
    plan = make_plan(groups, fewer)
    small = shrink(apply, plan, stateful=state is not None)
    cut = None if state is None else plan.cut(state, state=True)
    left = cost(small, plan.cut(params), *inputs, model_state=cut, groups=NO_MASKS)
    promised = {measure: getattr(found, measure) - found.saves[name][measure][number] for measure in MEASURES}
    assert {measure: getattr(left, measure) for measure in MEASURES} == promised, f"{name}[{number}]"


@pytest.mark.rotating
@pytest.mark.parametrize("name", ZOO)
def test_savings_are_those_of_the_network_really_cut(name, rng, networks_as_they_are):
    net = BY_ID[name].build()
    params, state, inputs = abstract((net.params, net.model_state, net.inputs))
    groups = trace(net.apply, params, *inputs, model_state=state)
    thinned = {g.name: (rng.random(g.size) < 0.8) | (np.arange(g.size) == 0) for g in groups}
    for enabled in (everything(groups), thinned):
        found = cost(net.apply, params, *inputs, model_state=state, groups=groups, enabled=enabled)
        left = [
            (name, number) for name, flags in enabled.items() if flags.sum() > 1 for number in np.flatnonzero(flags)
        ]
        for number in rng.choice(len(left), 2, replace=False):
            check_saving(net.apply, params, state, inputs, found, enabled, *left[number])


def test_the_formula_in_jax_is_the_exact_one_and_compiles():
    model = models.fcn((4, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    enabled = {"conv1": np.array([True, False, True, True]), "conv2": np.array([True, True, False])}
    found = cost(model.apply, params, shape(1, 32, 32, 1), groups=model.groups, enabled=enabled)
    every = cost(model.apply, params, shape(1, 32, 32, 1), groups=model.groups)
    for measure in MEASURES:
        saved = jax.jit(every.saving(measure))(jax.tree.map(jnp.asarray, enabled))
        for name in enabled:
            np.testing.assert_allclose(saved[name], found.saves[name][measure], rtol=1e-5)
    assert found.saves["conv1"]["parameters"].tolist() == [76, 0, 76, 76]  # 25 + 1, and 25 in each of two that read it
    assert found.saves["conv2"]["multiply_adds"].tolist() == [1024 * (3 * 25 + 25)] * 2 + [0]


def test_the_size_is_that_of_the_compacted_network(rng):
    model = models.fcn((4, 3), convolution=partial(conv2d, way="xla"))
    network = init_network(model.init(jax.random.key(0)), model.groups)
    network.enabled["conv1"] = jnp.asarray([True, False, True, True])
    pictures = jnp.asarray(rng.uniform(size=(1, 8, 8, 1)), jnp.float32)
    small_apply, small = compact(model.apply, network, pictures)
    found = cost(model.apply, network.params, pictures, groups=network.groups, enabled=network.enabled, latency=True)
    assert found.parameters == count_params(small) and found.bytes == 4 * found.parameters
    assert found.multiply_adds == 64 * models.multiply_adds(small)
    assert found.multiply_adds == cost(small_apply, small, pictures).multiply_adds
    assert found.latency is not None and found.latency.median_ms > 0 and found.latency.spread >= 1
    assert "latency" in str(found)


def test_the_time_of_abstract_arrays_can_be_taken():
    found = cost(lambda w, x: x @ w, shape(4, 4), shape(3, 4), latency=True)
    assert found.latency is not None


def test_the_table_names_every_group():
    model = models.fcn((4, 3))
    params = jax.eval_shape(model.init, jax.random.key(0))
    enabled = {"conv1": np.array([True, False, True, True]), "conv2": np.ones(3, bool)}
    table = str(cost(model.apply, params, shape(1, 8, 8, 1), groups=model.groups, enabled=enabled)).splitlines()
    assert table[0].split() == ["parameters", "382", "(1,528", "bytes)"]
    assert table[1].split() == ["multiply-adds", "24,000"]
    assert table[-2].split() == ["conv1", "3", "of", "4", "101", "6,400"]
    assert table[-1].split() == ["conv2", "3", "101", "6,400"]


def test_misuse_is_explained():
    apply, params = (lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]), {"a": shape(4, 3), "b": shape(3, 2)}
    groups = trace(apply, params, shape(5, 4))
    with pytest.raises(ValueError, match=r"bool\[3\] for the group `a`"):
        cost(apply, params, shape(5, 4), groups=groups, enabled={"a": np.ones(4, bool)})
    with pytest.raises(ValueError, match=r"axis 1 of `a`"):
        cost(lambda p, x: x @ (p["a"] @ p["b"]).T, {"a": shape(3, 1), "b": shape(1, 4)}, shape(5, 4), groups=groups)
    with pytest.raises(ValueError, match="use one of parameters"):
        cost(apply, params, shape(5, 4)).saving("macs")
    (symbolic,) = jax.export.symbolic_shape("n")
    with pytest.raises(ValueError, match="symbolic shape"):
        cost(apply, params, shape(symbolic, 4))
