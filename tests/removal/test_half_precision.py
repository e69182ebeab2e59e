"""Half-precision parameters score and are repaired as the same numbers in float32 are, however small or large.

Squares of float16 leave its range at 256 and below 0.0002, and sums of bfloat16 keep two digits. To check another
selector or repair, add a line.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskprune import disable, repair, select
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import choose, init_network
from maskprune.train.curvature import gauss_newton, hessian


RNG = np.random.default_rng(8)
SIX = tuple(range(6))
GROUPS = Groups(
    (
        Group(
            "g",
            6,
            (Slice("in/kernel", 1, SIX, "out"), Slice("in/bias", 0, SIX, "out"), Slice("out/kernel", 0, SIX, "in")),
        ),
    )
)
BATCH = (jnp.asarray(RNG.normal(size=(40, 5)), jnp.float32), jnp.asarray(RNG.normal(size=(40, 2)), jnp.float32))
KEY = jax.random.key(0)
NAMES = ("float16", "bfloat16")


def activations(params, batch):
    return {"g": jax.nn.relu(batch[0] @ params["in"]["kernel"] + params["in"]["bias"][None])}


def residuals(params, batch):
    return (activations(params, batch)["g"] @ params["out"]["kernel"] + params["out"]["bias"][None] - batch[1]).ravel()


def loss(params, batch):
    return jnp.mean(jnp.square(residuals(params, batch)))


SELECTORS = {
    "magnitude 2": select.magnitude(2),
    "cosine": select.cosine("max"),
    "median": select.geometric_median(),
    "twin": select.twin(),
    "outgoing": lambda key, network, batch: select.outgoing_norms(network),
    "taylor": select.taylor(loss),
    "taylor 2": select.taylor(loss, 2),
    "fisher": select.fisher(loss),
    "ablation": select.ablation(loss),
    "repaired ablation": select.ablation(loss, remove=repair.least_squares(activations)),
    "mean": select.activation(activations, "mean"),
    "std": select.activation(activations, "std"),
    "information": select.information(lambda p, b: activations(p, b), lambda batch: batch[1][:, 0], bins=4),
    "redundancy": select.redundancy(activations),
    "surgeon": select.surgeon(lambda network, batch: gauss_newton(residuals, network, batch).matrix),
    "ensemble": select.ensemble([select.magnitude(2), select.twin()]),
    "standardize": select.standardize(select.magnitude(2)),
    "weigh": select.weigh(select.magnitude(2), lambda enabled: {"g": jnp.arange(1.0, 7.0)}),
}
REPAIRS = {
    "plain": repair.plain(),
    "bias": repair.bias(activations),
    "least squares": repair.least_squares(activations),
    "merge": repair.merge(),
    "second order": repair.second_order(partial(hessian, loss)),
}
score = jax.jit(lambda network: {name: each(KEY, network, BATCH)["g"] for name, each in SELECTORS.items()})


@jax.jit
def mend(network):
    gone = choose(network, {"g": [1, 4]})
    return {name: each(network, gone, BATCH).params for name, each in REPAIRS.items()}


def network_of(name, size):
    """One network in half precision, and the same numbers in float32; mask 3 is disabled."""
    rng = np.random.default_rng(2)
    shapes = {"in": {"bias": (6,), "kernel": (5, 6)}, "out": {"bias": (2,), "kernel": (6, 2)}}
    scales = {"in": size, "out": 1.0}
    make = lambda layer: {n: jnp.asarray(rng.normal(size=s) * scales[layer], name) for n, s in shapes[layer].items()}
    network = init_network({layer: make(layer) for layer in shapes}, GROUPS)
    network = disable(network, choose(network, {"g": [3]}))
    return network, dataclasses.replace(network, params=jax.tree.map(lambda p: p.astype(jnp.float32), network.params))


@pytest.mark.rotating
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-4, 0.05, 100.0])
def test_scores_are_those_of_float32(name, size):
    half, full = (score(network) for network in network_of(name, size))
    enabled = np.arange(6) != 3
    for selector, values in half.items():
        found, wanted = np.asarray(values)[enabled], np.asarray(full[selector])[enabled]
        assert found.dtype == np.float32 and np.all(np.isfinite(found)), selector
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.max(np.abs(wanted)), err_msg=selector)
        assert np.argmin(found) == np.argmin(wanted)
    assert len(set(np.asarray(half["magnitude 2"])[enabled])) == 5


@pytest.mark.rotating
@pytest.mark.parametrize("size", [1e-4, 100.0])
def test_repairs_are_those_of_float32_rounded_once(size):
    name = "float16"
    network, same = network_of(name, size)
    half, full = mend(network), mend(same)
    for kind, params in half.items():
        for found, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(full[kind]), strict=True):
            assert found.dtype == name and np.all(np.isfinite(found)), kind
            tolerance = {"rtol": 2 * float(jnp.finfo(name).eps), "atol": 1e-4 * float(jnp.max(jnp.abs(wanted)))}
            np.testing.assert_allclose(np.asarray(found, np.float32), wanted, **tolerance, err_msg=kind)
    changed = [
        kind for kind, params in half.items() if not jax.tree.all(jax.tree.map(np.array_equal, params, half["plain"]))
    ]
    assert size == 1e-4 or changed == ["bias", "least squares", "merge", "second order"]


def test_what_is_too_large_for_the_type_is_no_repair():
    """Merged weights of 40000 and 40000 are infinite in float16: the mask is disabled and that is all."""
    params = {
        "in": {"bias": np.ones(6), "kernel": np.ones((5, 6))},
        "out": {"bias": np.ones(2), "kernel": np.full((6, 2), 4e4)},
    }
    network = init_network(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float16), params), GROUPS)
    after = repair.merge()(network, choose(network, {"g": [1]}), BATCH)
    assert all(map(np.array_equal, jax.tree.leaves(after.params), jax.tree.leaves(network.params)))
    assert not after.enabled["g"][1]


def test_a_function_that_mixes_no_types_gets_its_own():
    """`jax.lax` refuses float32 beside float16; scores are then those of what it computes."""

    def strict(params, batch):
        found = jax.lax.add(batch @ params["in"]["kernel"], jnp.broadcast_to(params["in"]["bias"], (40, 6)))
        return {"g": jax.lax.mul(found, jnp.full((40, 6), 2.0, jnp.float16))}

    square = lambda params, batch: jnp.mean(jnp.square(strict(params, batch)["g"].astype(jnp.float32)))
    network, _ = network_of("float16", 0.05)
    x = BATCH[0].astype(jnp.float16)
    repaired = select.ablation(square, remove=repair.bias(strict))
    for selector in (select.taylor(square), select.activation(strict, "std"), select.ablation(square), repaired):
        scores = selector(KEY, network, x)["g"]
        assert scores.dtype == jnp.float32 and np.all(np.isfinite(scores)) and len(set(np.asarray(scores))) > 4
