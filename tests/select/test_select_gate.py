"""Gates and ablation against finite differences, loops over examples and masks, and networks where estimates are exact.

The reference is a small dense network written a second time in NumPy, in float64, with a gate behind every ReLU.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import NATIVE, fcn_toy

from maskprune import select
from maskprune.conv import conv2d
from maskprune.masks.alterations import disable
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, effective_params, init_network
from maskprune.tasks.models import fcn


NAMES = {"one": 3, "two": 2}
ONES = {name: np.ones(size) for name, size in NAMES.items()}
MASKS = [(name, number) for name, size in NAMES.items() for number in range(size)]
STEP = 1e-4
SIGNED = {"absolute": False}


def two_layers():
    """Dense, 4 to 3 to 2 to 1; whatever passes the first ReLU passes the second."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (4, 3), "b1": (3,), "w2": (3, 2), "b2": (2,), "w3": (2, 1)}
    params = {name: np.abs(rng.normal(size=shape)) for name, shape in shapes.items()}
    params["w1"] *= rng.choice([-1, 1], (4, 3))
    params["w3"] *= np.array([[1], [-1]])
    one = (Slice("w1", 1, (0, 1, 2), "out"), Slice("b1", 0, (0, 1, 2), "out"), Slice("w2", 0, (0, 1, 2), "in"))
    two = (Slice("w2", 1, (0, 1), "out"), Slice("b2", 0, (0, 1), "out"), Slice("w3", 0, (0, 1), "in"))
    batch = {"x": rng.normal(size=(20, 4)), "y": rng.normal(size=(20, 1))}
    network = init_network(params, Groups((Group("one", 3, one), Group("two", 2, two))))
    return network, jax.tree.map(lambda values: jnp.asarray(values, jnp.float32), batch)


def loss(params, batch, square=jnp.square):
    first = jax.nn.relu(batch["x"] @ params["w1"] + params["b1"][None])
    second = jax.nn.relu(first @ params["w2"] + params["b2"][None])
    return jnp.mean(square(second @ params["w3"] - batch["y"]))


def gated_loss(network, batch, gates):
    """The loss in float64 when the output of every mask, behind its ReLU, is multiplied by its gate."""
    p, b = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (network.params, batch))
    first = np.maximum(b["x"] @ p["w1"] + p["b1"], 0) * gates["one"]
    second = np.maximum(first @ p["w2"] + p["b2"], 0) * gates["two"]
    return np.mean(np.square(second @ p["w3"] - b["y"]))


def at(network, batch, name, number, gate):
    gates = {**ONES, name: np.where(np.arange(NAMES[name]) == number, gate, 1.0)}
    return gated_loss(network, batch, gates)


def slope(network, batch, name, number):
    up, down = (at(network, batch, name, number, 1 + step) for step in (STEP, -STEP))
    return (up - down) / (2 * STEP)


def curvature(network, batch, name, number):
    up, here, down = (at(network, batch, name, number, 1 + step) for step in (STEP, 0, -STEP))
    return (up - 2 * here + down) / STEP**2


def flat(scores):
    return np.array([float(scores[name][number]) for name, number in MASKS])


def scored(selector, network, batch):
    return flat(selector(jax.random.key(0), network, batch))


def test_the_first_order_is_the_slope_to_a_gate_on_the_output():
    network, batch = two_layers()
    slopes = np.array([slope(network, batch, *mask) for mask in MASKS])
    assert np.all(np.abs(slopes) > 0.01) and min(slopes) < 0 < max(slopes)
    np.testing.assert_allclose(scored(select.taylor(loss, **SIGNED), network, batch), -slopes, rtol=1e-4)
    np.testing.assert_allclose(scored(select.taylor(loss), network, batch), abs(slopes), rtol=1e-4)


def test_the_second_order_adds_half_the_curvature():
    network, batch = two_layers()
    bent = [curvature(network, batch, *mask) for mask in MASKS]
    expected = np.array([b / 2 - slope(network, batch, *mask) for b, mask in zip(bent, MASKS, strict=True)])
    assert min(bent) > 0.1
    np.testing.assert_allclose(scored(select.taylor(loss, 2, **SIGNED), network, batch), expected, rtol=1e-4)
    np.testing.assert_allclose(scored(select.taylor(loss, 2), network, batch), abs(expected), rtol=1e-4)


def test_the_second_order_is_exact_before_a_linear_output():
    network, batch = two_layers()
    foretold, found = (
        selector(jax.random.key(0), network, batch)
        for selector in (select.taylor(loss, 2, **SIGNED), select.ablation(loss))
    )
    np.testing.assert_allclose(foretold["two"], found["two"], rtol=1e-4)
    assert np.max(np.abs(foretold["two"])) > 0.1


@pytest.mark.parametrize("way", [NATIVE])
def test_the_compiled_convolution_has_the_same_curvature(way):
    toy = fcn_toy()
    wanted = jnp.asarray(np.random.default_rng(0).uniform(size=toy.inputs.shape), jnp.float32)

    def scores(way):
        apply = fcn((3, 2), kernel=3, convolution=partial(conv2d, way=way)).apply
        measure = lambda params, batch: jnp.mean(jnp.square(apply(params, batch) - wanted))
        selector = select.taylor(measure, 2, **SIGNED)
        return selector(jax.random.key(0), init_network(toy.params, toy.groups), toy.inputs)

    found, reference = scores(way), scores("xla")
    for name, values in reference.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-5)


def test_what_belongs_to_no_mask_has_no_gate():
    groups = Groups((Group("g", 2, (Slice("w", 0, (0, -1, 1), "out"),)),))
    network = init_network({"w": np.array([1.0, 10.0, 2.0])}, groups)
    total = lambda params, batch: jnp.square(jnp.sum(params["w"]))
    found = [select.taylor(total, order, **SIGNED)(jax.random.key(0), network, None)["g"] for order in (1, 2)]
    np.testing.assert_allclose(found, [[-26, -52], [12**2 - 13**2, 11**2 - 13**2]], rtol=1e-6)


def test_fisher_is_half_the_mean_squared_slope_of_single_examples():
    network, batch = two_layers()
    singles = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 1], batch) for n in range(20)]
    expected = [np.mean([slope(network, single, *mask) ** 2 for single in singles]) / 2 for mask in MASKS]
    np.testing.assert_allclose(scored(select.fisher(loss), network, batch), expected, rtol=1e-4)


def test_ablation_is_the_loss_without_the_mask_less_the_loss_with_it():
    network, batch = two_layers()
    network = disable(network, choose(network, {"one": [2]}))
    measure = lambda each: float(loss(effective_params(each), batch))
    expected = [measure(disable(network, choose(network, {n: [i]}))) - measure(network) for n, i in MASKS]
    found = scored(select.ablation(loss), network, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert abs(found[MASKS.index(("one", 2))]) < 1e-5 and np.sum(np.abs(found) > 0.01) == 4


def test_ablation_with_a_repair_scores_the_repaired_network():
    network, batch = two_layers()

    def repaired(network, chosen, batch):
        """Makes up for a mask of the second layer in the bias of its neighbour, by something read from the batch."""
        after = disable(network, chosen)
        shift = jnp.sum(jnp.where(chosen["two"], jnp.mean(batch["x"]) + 2.0, 0.0))
        return dataclasses.replace(after, params={**after.params, "b2": after.params["b2"] + shift})

    measure = lambda each: float(loss(effective_params(each), batch))
    removed = [repaired(network, choose(network, {n: [i]}), batch) for n, i in MASKS]
    found = scored(select.ablation(loss, remove=repaired), network, batch)
    np.testing.assert_allclose(found, [measure(each) - measure(network) for each in removed], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[3:], scored(select.ablation(loss), network, batch)[3:], rtol=0.01)


@pytest.mark.parametrize(
    "make",
    [select.taylor, partial(select.taylor, order=2), select.fisher, select.ablation],
    ids=["taylor", "second", "fisher", "ablation"],
)
def test_a_mask_that_nobody_reads_goes_first(make):
    toy = fcn_toy()
    params = toy.params | {"conv2": toy.params["conv2"] | {"kernel": toy.params["conv2"]["kernel"].at[:, :, 1].set(0)}}
    wanted = jnp.ones_like(toy.inputs)
    measure = lambda params, batch: jnp.mean(jnp.square(toy.apply(params, batch[0]) - batch[1]))
    scores = make(measure)(jax.random.key(0), init_network(params, toy.groups), (toy.inputs, wanted))
    assert {name: (np.abs(values) < 1e-6).tolist() for name, values in scores.items()} == {
        "conv1": [False, True, False],
        "conv2": [False, False],
    }


@pytest.mark.parametrize(
    "make", [partial(select.taylor, order=2), select.fisher, select.ablation], ids=["second", "fisher", "ablation"]
)
def test_other_masks_and_other_weights_compile_nothing(make):
    network, batch = two_layers()
    traced = []

    def noted(params, batch):
        traced.append(1)
        return loss(params, batch)

    selector = make(noted)
    scored(selector, network, batch)
    first = len(traced)
    scored(selector, disable(network, choose(network, {"one": [1]})), batch)
    assert len(traced) == first > 0


@pytest.mark.parametrize("batch", [None, {"x": jnp.zeros((3, 4)), "y": jnp.zeros((2, 1))}, {"x": jnp.zeros(())}])
def test_fisher_needs_examples(batch):
    network, _ = two_layers()
    with pytest.raises(ValueError, match="one common leading axis, of examples"):
        select.fisher(loss)(jax.random.key(0), network, batch)


def test_a_loss_with_gradients_of_its_own_will_do():
    network, batch = two_layers()
    square = jax.custom_vjp(jnp.square)
    square.defvjp(lambda x: (jnp.square(x), x), lambda x, g: (2 * x * g,))

    by_hand = partial(loss, square=square)
    for order in (1, 2):
        found, same = (scored(select.taylor(each, order), network, batch) for each in (by_hand, loss))
        np.testing.assert_allclose(found, same, rtol=1e-5)
