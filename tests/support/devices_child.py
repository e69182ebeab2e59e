"""Trains on the devices of its command line and writes what came out: `devices_child.py OUT DEVICES [PORT PROCESS]`.

Started by `test_devices.py` in processes of their own, because JAX counts its devices once. With a port it is one of
two processes that work on the same population.
"""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskprune


out, devices, *rest = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
if rest:
    jax.distributed.initialize(f"127.0.0.1:{rest[0]}", num_processes=2, process_id=int(rest[1]))

MEMBERS, STEPS = 11, 5  # 11 fill no number of devices
OPTIMIZER = optax.adam(1e-2)


def parts(way):
    """A small convolutional network: its training step, how batches are drawn, and fresh states."""
    model = maskprune.models.fcn((3, 2), kernel=3, convolution=partial(maskprune.conv2d, way=way))
    step = maskprune.make_train_step(
        lambda params, x: maskprune.losses.soft_f1(model.apply(params, x), 0.5 * x, border=1), OPTIMIZER
    )
    start = lambda key: maskprune.init_state(maskprune.init_network(model.init(key), model.groups), OPTIMIZER)
    return step, lambda key, data: data * jax.random.uniform(key, (8, 9, 7, 1)), start


def main():
    mesh = jax.make_mesh((jax.device_count(),), ("members",)) if jax.device_count() > 1 else None
    data, keys = jnp.float32(0.9), jax.random.split(jax.random.key(3), MEMBERS)
    step, draw, start = parts(None)
    states = maskprune.stack([start(key) for key in keys])
    population = maskprune.make_population(step, draw, chunk=2, mesh=mesh)
    trained, report = population.run(keys, states, data, STEPS, rates=np.linspace(0.5, 1.5, MEMBERS))
    found = {"losses": report.losses, "compilations": population.compilations(), "at_once": report.at_once}
    found |= {f"members/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(trained))}
    if not rest:  # one network whose batches are divided
        step, draw, start = parts("xla")
        session = maskprune.make_session(step, draw, chunk=2, mesh=mesh)
        state, report = session.run(keys[0], start(keys[0]), data, STEPS)
        found |= {"batch/losses": report.losses, "batch/compilations": session.compilations()}
        found |= {f"batch/{i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    np.savez(out, devices=jax.device_count(), **{name: np.asarray(value) for name, value in found.items()})


main()
