"""Started by `test_gpu.py` with little memory on the device: a population and an evaluation that exceed it.

Prints what became of them as JSON. Sizes follow from the memory there is.
"""

import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskprune
from maskprune.tasks.data.batches import to_unit
from maskprune.tasks.data.split import Dataset, Split


MEMBERS = 16


def step_of(side):
    """A step on pictures of that side, a draw, and fresh states."""
    model = maskprune.models.fcn((4, 4), kernel=3, convolution=lambda *a, **k: maskprune.conv2d(*a, **k, way="blocked"))
    optimizer = optax.sgd(1e-3)
    step = maskprune.make_train_step(lambda params, x: maskprune.losses.mse(model.apply(params, x), 0.5 * x), optimizer)
    draw = lambda key, data: jax.random.uniform(key, (1, side, side, 1))
    start = lambda key: maskprune.init_state(maskprune.init_network(model.init(key), model.groups), optimizer)
    keys = jax.random.split(jax.random.key(0), MEMBERS)
    return step, draw, keys, jax.jit(jax.vmap(start))(keys)


def need(side, members=4):
    """Bytes that a member needs in a group."""
    step, draw, keys, states = step_of(side)
    population = maskprune.make_population(step, draw, chunk=1, at_once=members)
    population.run(keys[:members], jax.tree.map(lambda leaf: leaf[:members], states), None, 1)
    found = population.programs()[-1].memory_analysis()
    return (found.temp_size_in_bytes + found.output_size_in_bytes) / members


def train(limit):
    """12 members would fill the memory: 16 are too many, 8 are not. The allocator waits long before it gives up."""
    side = 8 * int(128 * np.sqrt(limit / 12 / need(128)) / 8)
    step, draw, keys, states = step_of(side)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found, report = maskprune.make_population(step, draw, chunk=1, at_once=MEMBERS).run(keys, states, None, 2)
    few, _ = maskprune.make_population(step, draw, chunk=1, at_once=2).run(
        keys[:4], jax.tree.map(lambda leaf: leaf[:4], states), None, 2
    )
    pairs = zip(jax.tree.leaves(found.network.params), jax.tree.leaves(few.network.params), strict=True)
    return {
        "at_once": report.at_once,
        "steps": np.asarray(found.step).tolist(),
        "told": [str(each.message) for each in told if each.category is RuntimeWarning],
        "difference": max(float(jnp.max(jnp.abs(one[:4] - other))) for one, other in pairs),
    }


def judge(limit, side=1024):
    """One and a half times as many pictures as there is memory for."""
    count = int(1.5 * limit / (3 * side**2))
    rows = np.random.default_rng(0).integers(0, 256, (count, side, 1, 1), np.uint8)
    inputs = np.broadcast_to(rows, (count, side, side, 1))
    evaluation = Split(inputs, inputs.astype(np.uint16) * 200, tuple(map(str, range(count))))
    few = Split(*(each[:2] for each in evaluation[:2]), ("0", "1"))
    dataset = Dataset(few, evaluation, "half", False, "", {}, (), "")
    groups = maskprune.Groups((maskprune.Group("g", 1, (maskprune.Slice("gain", 0, (0,), "out"),)),))
    apply = lambda params, pictures: params["gain"][0] * pictures
    task = maskprune.picture_task(apply, dataset, crop=64)
    state = maskprune.init_state(maskprune.init_network({"gain": jnp.full(1, 0.75)}, groups), optax.sgd(0.1))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = task.evaluate(state)
    one = jax.jit(lambda *sides: maskprune.metrics.picture_sums(0.75 * to_unit(sides[0]), to_unit(sides[1]), border=6))
    rows = [np.asarray(one(*(jnp.asarray(side[i : i + 1]) for side in evaluation[:2]))) for i in range(count)]
    return {
        "pictures": count,
        "told": [str(each.message) for each in told if each.category is RuntimeWarning],
        "score": found["score"],
        "expected": maskprune.metrics.scores_from_sums(np.concatenate(rows))["f1"],
    }


if __name__ == "__main__":
    stats = jax.devices()[0].memory_stats() or {}
    limit = stats["bytes_limit"] if len(sys.argv) < 2 else int(sys.argv[1])
    print(json.dumps({"limit": limit, "train": train(limit), "judge": judge(limit)}))
