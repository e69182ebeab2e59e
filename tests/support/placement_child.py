"""Run by `test_placement.py` on four devices: networks that say where their arrays lie, compacted and run.

    python placement_child.py OUT

OUT becomes JSON: for every function what it warned of, where a batch went, and how far the small network was off.
"""

import contextlib
import json
import os
import sys
import warnings
from pathlib import Path


os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskprune import choose, compact, disable, effective_params, init_network, trace


line = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Auto,))
square = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
explicit = jax.make_mesh((4,), ("m",), axis_types=(AxisType.Explicit,))
P, relu = PartitionSpec, jax.nn.relu


def constrained(mesh, *spec):
    place = NamedSharding(mesh, P(*spec))
    return lambda p, x: jax.lax.with_sharding_constraint(relu(x @ p["a"]), place) @ p["c"]


def by_jit(p, x):
    inner = jax.jit(relu, in_shardings=NamedSharding(line, P("m")), out_shardings=NamedSharding(line, P(None, "m")))
    return inner(x @ p["a"]) @ p["c"]


def put(p, x):
    return jax.device_put(relu(x @ p["a"]), NamedSharding(line, P(None, "m"))) @ p["c"]


def weights(p, x):
    return relu(x @ jax.lax.with_sharding_constraint(p["a"], NamedSharding(line, P(None, "m")))) @ p["c"]


def by_mesh(p, x):
    return jax.lax.with_sharding_constraint(relu(x @ p["a"]), P(None, "m")) @ p["c"]


def by_shard_map(p, x):
    local = jax.shard_map(relu, mesh=line, in_specs=P(None, "m"), out_specs=P(None, "m"))
    return local(x @ p["a"]) @ p["c"]


def by_type(p, x):
    hidden = jax.sharding.reshard(relu(x @ p["a"]), P(None, "m"))
    return jax.sharding.reshard(hidden, P(None, None)) @ p["c"]


FUNCTIONS = {
    "channels": (constrained(line, None, "m"), None),
    "channels over two axes": (constrained(square, None, ("a", "b")), None),
    "channels and batch": (constrained(square, "a", "b"), None),
    "batch": (constrained(line, "m"), None),
    "weights": (weights, None),
    "device_put": (put, None),
    "jit": (by_jit, None),
    "mesh": (by_mesh, line),
    "explicit": (by_type, explicit),
    "shard_map": (by_shard_map, None),
}


def main(out: str) -> None:
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(5, 8)).astype("f"), "c": rng.normal(size=(8, 3)).astype("f")}
    x = rng.normal(size=(4, 5)).astype("f")
    found = {}
    for name, (apply, mesh) in FUNCTIONS.items():
        with jax.set_mesh(mesh) if mesh else contextlib.nullcontext():
            network = init_network(params, trace(apply, params, x))
            found[name] = {"refused": {what: str(why) for what, why in network.groups.protected}}
            for kept in (4, 3) if network.groups else ():
                less = disable(network, choose(network, {"a": range(8 - kept)}))
                found[name][str(kept)] = one(apply, less, x)
    Path(out).write_text(json.dumps(found))


def one(apply, network, x):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            small_apply, small = compact(apply, network, x)
            outputs = {"eager": small_apply(small, x), "jit": jax.jit(small_apply)(small, x)}
        except Exception as error:
            return {"error": str(error)}
    expected = apply(effective_params(network), x)
    return {
        "off": max(float(np.max(np.abs(np.asarray(each - expected)))) for each in outputs.values()),
        "warnings": sorted({str(each.message) for each in said}),
        "divided": places(small_apply, small, x),
    }


def places(function, *args):
    """The number of devices along each axis of all that the function places, in the order in which it does."""
    specs = []
    for equation in jax.make_jaxpr(function)(*args).eqns:
        place = equation.params.get("sharding") or (equation.params.get("devices") or [None])[0]
        if equation.primitive.name in ("sharding_constraint", "device_put") and isinstance(place, NamedSharding):
            specs.append([n // k for n, k in zip((4, 24), place.shard_shape((4, 24)), strict=True)])
    return specs


if __name__ == "__main__":
    assert len(jax.devices()) == 4
    main(sys.argv[1])
