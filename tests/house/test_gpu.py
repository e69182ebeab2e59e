"""On a CUDA device: the native way, sessions as CUDA graphs, populations. By name: `pytest -m gpu`."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maskprune
from maskprune import conv2d
from maskprune.conv import default_way, describe_way


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA device"),
]

LAYERS = [
    # pictures, height, width, channels in and out, sides of the kernel
    (3, 256, 256, 1, 5, 5, 5),
    (3, 128, 128, 5, 5, 5, 5),
    (8, 64, 64, 5, 1, 5, 5),
    (2, 33, 130, 13, 7, 3, 7),
    (1, 17, 21, 2, 9, 1, 41),
    (1, 5, 3, 1, 1, 1, 1),
    (2, 65, 66, 33, 32, 3, 3),
]


def numbers(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def layer_and_slopes(x, kernel, bias, g, *, relu=True, way="native"):
    outputs, pull = jax.vjp(functools.partial(conv2d, relu=relu, way=way), x, kernel, bias)
    return outputs, *pull(g)


def difference(one, other):
    return float(np.linalg.norm(np.asarray(one, np.float64) - other) / np.linalg.norm(other))


def test_the_native_way_is_the_default_in_float32_alone():
    assert default_way() == "native" and describe_way() == "native (cuda)"
    assert default_way(jnp.bfloat16) == "xla"
    assert default_way(sides=(301, 301)) == "blocked"
    with pytest.raises(ValueError, match="a kernel of 301 x 301 is too large for it"):
        conv2d(jnp.ones((1, 9, 9, 1)), jnp.ones((301, 301, 1, 1)), way="native")


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_outputs_and_gradients_are_those_in_double_precision(rng, layer):
    *shape, after, tall, wide = layer
    given = [numbers(rng, *shape), numbers(rng, tall, wide, shape[3], after), numbers(rng, after)]
    given.append(numbers(rng, *shape[:3], after))
    relu = sum(layer) % 2 == 0  # in double precision an output may fall on the other side of zero
    found = jax.jit(functools.partial(layer_and_slopes, relu=relu))(*given)
    again = jax.jit(functools.partial(layer_and_slopes, relu=relu))(*given)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        doubles = [jnp.asarray(np.asarray(each, np.float64)) for each in given]
        expected = jax.jit(functools.partial(layer_and_slopes, relu=relu, way="xla"))(*doubles)
    for one, same, other in zip(found, again, expected, strict=True):
        assert difference(one, np.asarray(other)) < 1e-5
        np.testing.assert_array_equal(one, same)


def test_members_are_apart_and_as_if_alone(rng):
    given = [
        numbers(rng, 5, 2, 40, 36, 3),
        numbers(rng, 5, 5, 5, 3, 4),
        numbers(rng, 5, 4),
        numbers(rng, 5, 2, 40, 36, 4),
    ]
    many = jax.jit(jax.vmap(layer_and_slopes))
    clean = many(*given)
    alone = jax.jit(layer_and_slopes)(*(each[3] for each in given))
    for together, one in zip(clean, alone, strict=True):
        assert difference(together[3], np.asarray(one)) < 1e-5
    given[1] = given[1].at[1, 0, 0, 0, 0].set(jnp.nan)
    for before, after in zip(clean, many(*given), strict=True):
        np.testing.assert_array_equal(before[::2], after[::2])
        np.testing.assert_array_equal(before[3], after[3])
    shared = jax.jit(jax.vmap(functools.partial(conv2d, way="native"), (None, 0)))(given[0][0], given[1][2:])
    for kernel, found in zip(given[1][2:], shared, strict=True):
        assert difference(found, np.asarray(conv2d(given[0][0], kernel, way="xla"))) < 1e-5


def test_second_derivatives_are_those_of_xla(rng):
    x, kernel, bias = numbers(rng, 1, 7, 9, 2), numbers(rng, 3, 3, 2, 2), numbers(rng, 2)
    loss = lambda k, way: jnp.sum(jnp.tanh(conv2d(x, k, bias, relu=True, way=way)))
    one, other = (jax.jit(jax.hessian(functools.partial(loss, way=way)))(kernel) for way in ("native", "xla"))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def task(way="native", make=lambda: optax.adam(1e-2)):
    model, optimizer = maskprune.models.fcn((3, 2), convolution=functools.partial(conv2d, way=way)), make()
    loss = lambda params, x: maskprune.losses.mse(model.apply(params, x), 0.5 * x)
    step = maskprune.make_train_step(loss, optimizer)
    draw = lambda key, data: data[jax.random.randint(key, (2,), 0, len(data))]
    start = lambda key: maskprune.init_state(maskprune.init_network(model.init(key), model.groups), optimizer)
    return step, draw, start, jax.random.uniform(jax.random.key(5), (7, 32, 40, 1))


@pytest.mark.parametrize("make", [lambda: optax.adam(1e-2), maskprune.optim.soap], ids=["adam", "soap"])
def test_a_session_is_its_steps_and_is_compiled_once(key, make):
    step, draw, start, data = task(make=make)
    session, state, after = maskprune.make_session(step, draw, chunk=10), start(key), start(key)
    single = jax.jit(step)
    for number in range(25):
        draw_key, _ = jax.random.split(jax.random.fold_in(key, number))
        after, info = single(after, draw(draw_key, data), progress=number / 25)
    for again in range(2):
        found, report = session.run(key, state, data, 25)
        assert len(report.losses) == 25 and int(found.step) == 25, again
        np.testing.assert_allclose(report.losses[-1], info.loss, rtol=1e-2)
    assert report.losses[-1] < report.losses[0]
    masks = maskprune.disable(state.network, maskprune.choose(state.network, {"conv1": [1]}))
    session.run(key, maskprune.init_state(masks, make()), data, 15)
    assert session.compilations() == 1


def test_a_session_ends_before_the_first_step_that_is_not_finite(key):
    step, draw, start, data = task()
    bad = lambda key, data: (
        jnp.where(jax.random.uniform(jax.random.fold_in(key, 1)) < 0.05, jnp.nan, 1.0) * draw(key, data)
    )
    found, report = maskprune.make_session(step, bad, chunk=50).run(key, start(key), data, 200)
    assert not report.finite and len(report.losses) == int(found.step) + 1 < 200
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.network.params))


def test_a_population_is_its_members(key):
    step, draw, start, data = task()
    keys = jax.random.split(key, 6)
    states = jax.jit(jax.vmap(start))(keys)
    for at_once in (None, 4):
        population = maskprune.make_population(step, draw, chunk=10, at_once=at_once)
        found, report = population.run(keys, states, data, 30, rates=np.linspace(0.5, 1.5, 6))
        alone, said = maskprune.make_session(step, draw, chunk=10).run(
            keys[4], jax.tree.map(lambda leaf: leaf[4], states), data, 30, rate=1.3
        )
        np.testing.assert_allclose(report.losses[4], said.losses, rtol=1e-3)
        for one, other in zip(
            jax.tree.leaves(found.network.params), jax.tree.leaves(alone.network.params), strict=True
        ):
            np.testing.assert_allclose(one[4], other, rtol=1e-2, atol=1e-4)


def test_more_members_than_fit_are_trained_in_groups(key):
    step, draw, start, _ = task()
    data = jnp.zeros((2, 2048, 2048, 1))
    keys = jax.random.split(key, 512)  # about half a gigabyte each
    states = jax.jit(jax.vmap(start))(keys)
    found, report = maskprune.make_population(step, draw, chunk=1).run(keys, states, data, 1)
    assert report.at_once < 512 and report.finite.all() and (np.asarray(found.step) == 1).all()


def test_memory_that_runs_out_is_met_by_smaller_parts():
    """In a process of its own that may take a fiftieth of the device's memory."""
    child = Path(__file__).parents[1] / "support" / "memory_child.py"
    little = {"XLA_PYTHON_CLIENT_PREALLOCATE": "true", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.02"}
    environment = {**os.environ, **little, "PYTHONPATH": str(child.parents[2])}
    found = subprocess.run([sys.executable, str(child)], env=environment, capture_output=True, text=True, timeout=400)
    assert found.returncode == 0, found.stderr[-3000:]
    said = json.loads(found.stdout.splitlines()[-1])
    train, judge = said["train"], said["judge"]
    assert train["steps"] == [2] * 16 and train["at_once"] < 16 and train["difference"] < 1e-5
    assert 1 <= len(train["told"]) <= 3 and "networks are trained at once in place of 16" in train["told"][0]
    assert 1 <= len(judge["told"]) <= 3 and f"in place of {judge['pictures']}" in judge["told"][0]
    assert judge["score"] == pytest.approx(judge["expected"], rel=1e-6)
