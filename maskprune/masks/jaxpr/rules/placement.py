"""Primitives that say on which devices an array lies.

A sharding divides an axis evenly among devices. Where fewer channels no longer divide, that axis is replicated, and a
warning says which grid of widths would keep it divided; all other axes stay as they were.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from maskprune.masks.jaxpr.labels import Labels, Value
from maskprune.masks.jaxpr.rules.base import Equation, Kept, Rule, Site, as_rules


def unchanged(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """The same numbers in another place."""
    del labels, equation
    return list(values)


def constraint_shrink(site: Site, array: Any) -> Any:
    return site.bind(array, sharding=fitted(site.params["sharding"], site.shapes[0], site.outputs[0]))


def device_put_shrink(site: Site, *arrays: Any) -> Any:
    places = zip(site.params["devices"], site.shapes, site.outputs, strict=True)
    return site.bind(*arrays, devices=tuple(fitted(*each) for each in places))


def placed(shardings: Sequence[Any] | None, arrays: Sequence[Any], kept: Sequence[Kept]) -> list[Any]:
    """Arrays where a jitted function wants them, if it says so."""
    wanted = shardings if shardings else [None] * len(arrays)
    return [
        jax.lax.with_sharding_constraint(x, fitted(each, x.shape, k)) if isinstance(each, NamedSharding) else x
        for each, x, k in zip(wanted, arrays, kept, strict=True)
    ]


def fitted(sharding: Any, shape: Sequence[Any], kept: Kept) -> Any:
    """The sharding without the axes that lost channels and no longer divide."""
    wrong = _undivided(sharding, shape, kept)
    if not wrong:
        return sharding
    spec = [None if axis in wrong else names for axis, names in enumerate(sharding.spec)]
    for axis, parts in wrong.items():
        found = _sentence(sharding, shape, axis, parts)
        warnings.warn(f"{found}, so they are replicated. {_remedy(parts)}", stacklevel=2)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)


def explicit_misfit(aval: Any, shape: Sequence[Any], kept: Kept) -> str | None:
    """What is wrong where the type of a value says how it is divided, in a sentence. None if nothing is."""
    sharding = getattr(aval, "sharding", None)
    if not isinstance(sharding, NamedSharding) or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    for axis, parts in _undivided(sharding, shape, kept).items():
        return f"{_sentence(sharding, shape, axis, parts)}, and the mesh is explicit. {_remedy(parts)}"
    return None


def _undivided(sharding: Any, shape: Sequence[Any], kept: Kept) -> dict[int, int]:
    """Axes that lost channels and no longer divide, and into how many parts they should."""
    if not isinstance(sharding, NamedSharding):
        return {}
    wrong = {}
    for axis, names in enumerate(sharding.spec):
        if kept[axis] is not None and names is not None and names is not PartitionSpec.UNCONSTRAINED:
            parts = math.prod(sharding.mesh.shape[name] for name in ([names] if isinstance(names, str) else names))
            wrong |= {axis: parts} if shape[axis] % parts else {}
    return wrong


def _sentence(sharding: NamedSharding, shape: Sequence[Any], axis: int, parts: int) -> str:
    return (
        f"The function divides axis {axis} of an array among {parts} devices by {sharding.spec}, but the "
        f"{shape[axis]} channels that are left there do not divide"
    )


def _remedy(parts: int) -> str:
    return f"`round_to={parts}`, for `compact` or `make_plan`, keeps widths that do."


def shard_map(labels: Labels, equation: Equation, *values: Value) -> list[Value]:
    """Its body sees the share of one device, whose sizes are fixed."""
    labels.pin_all(values, equation.why("`shard_map` divides it among devices by itself: trace the function inside"))
    return [labels.whole(shape) for shape in equation.shapes]


RULES = {
    "sharding_constraint": Rule(unchanged, constraint_shrink),
    "device_put": Rule(unchanged, device_put_shrink),
    **as_rules(["mesh_cast", "reshard"], Rule(unchanged)),
    "shard_map": Rule(shard_map),
}
