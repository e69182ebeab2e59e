"""Any function computed in double precision: every array of it in float64 (or complex128), whatever it says itself.

Two functions that are equal but for rounding differ by as much as their own arithmetic is coarse: bfloat16, float16,
float8, TF32 products. In double precision hardly anything is left of that, so a real difference shows. Knows no masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.masks.jaxpr.internals import Literal, bind, bodies, context, is_jaxpr, opened
from maskprune.masks.jaxpr.reader import to_jaxpr


LOOPS = ("scan", "while", "cond")  # bound with a body of their own; all other bodies are run in place
FINEST = float(np.finfo(np.float64).eps)


class Double:
    """A function in double precision. Casts to coarser numbers do nothing; those to whole numbers stay.

    A primitive that cannot be computed so (a kernel written for one number format, a look at bits) runs as it is.

    Attributes:
        epsilon: The relative distance of neighbouring numbers in the coarsest format that is left to compute in.
        coarsest: The same of the function as it is. Both are known once the function was called.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.epsilon = self.coarsest = FINEST
        closed, self._structure = to_jaxpr(function, *args)
        self._run = jax.jit(lambda *flat: self._body(closed, flat))

    def __call__(self, *args: Any) -> Any:
        own = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in jax.tree.leaves(args)]
        with jax.enable_x64(True):
            found = self._run(*map(widen, own))
        return jax.tree.unflatten(self._structure, found)

    def _body(self, jaxpr: Any, arrays: Sequence[Any]) -> list[Any]:
        body, consts = opened(jaxpr)
        known = dict(zip(body.invars, arrays, strict=True))
        known.update(zip(body.constvars, map(widen, consts), strict=True))

        def get(atom: Any) -> Any:
            return widen(jnp.asarray(atom.val, atom.aval.dtype)) if isinstance(atom, Literal) else known[atom]  # type: ignore[attr-defined]

        for raw in body.eqns:
            with context(raw):  # the mesh, the kind of device and the like around it
                found = self._equation(raw, [get(atom) for atom in raw.invars], body.debug_info)
            known.update(zip(raw.outvars, found, strict=True))
        return [get(var) for var in body.outvars]

    def _equation(self, raw: Any, arrays: list[Any], debug_info: Any) -> list[Any]:
        self.coarsest = max([self.coarsest, *map(_epsilon, raw.outvars)])
        name = raw.primitive.name
        if bodies(raw) and name not in LOOPS:
            return self._body(bodies(raw)[0], arrays)
        if name == "reduce_precision":
            return arrays
        found = self._wide(raw, arrays)
        return self._as_it_is(raw, arrays, debug_info) if found is None else found

    def _wide(self, raw: Any, arrays: list[Any]) -> list[Any] | None:
        """What an equation gives in double precision; None if its primitive cannot be computed so."""
        try:
            found = raw.primitive.bind(*arrays, **self._params(raw.params))
        except Exception:  # each primitive has its own way of refusing
            return None
        found = list(found) if raw.primitive.multiple_results else [found]
        alike = all(_alike(array, var.aval) for array, var in zip(found, raw.outvars, strict=True))
        return found if alike else None

    def _as_it_is(self, raw: Any, arrays: list[Any], debug_info: Any) -> list[Any]:
        self.epsilon = max([self.epsilon, *map(_epsilon, raw.invars)])
        own = [x.astype(atom.aval.dtype) if is_inexact(x) else x for x, atom in zip(arrays, raw.invars, strict=True)]
        found = bind(raw, own, {}, debug_info)
        return [widen(x) for x in (found if raw.primitive.multiple_results else [found])]

    def _params(self, params: dict[str, Any]) -> dict[str, Any]:
        exact = {"precision": None} if "precision" in params else {}
        return {**{name: self._param(value) for name, value in params.items()}, **exact}

    def _param(self, value: Any) -> Any:
        if isinstance(value, np.dtype):
            return _double(value)
        if is_jaxpr(value):
            return self._inner(value)
        if not isinstance(value, tuple) or not any(map(is_jaxpr, value)):
            return value
        if type(value) is not tuple:
            raise NotImplementedError("functions that belong to a record")
        return tuple(map(self._inner, value))

    def _inner(self, jaxpr: Any) -> Any:
        body = getattr(jaxpr, "jaxpr", jaxpr)
        given = [jax.ShapeDtypeStruct(var.aval.shape, _double(var.aval.dtype)) for var in body.invars]
        closed, _ = to_jaxpr(lambda *arrays: self._body(jaxpr, arrays), *given)
        if body is not jaxpr:
            return closed
        if closed.consts:
            raise NotImplementedError("constants inside an open jaxpr")
        return closed.jaxpr


def is_inexact(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


def _epsilon(atom: Any) -> float:
    return float(jnp.finfo(atom.aval.dtype).eps) if is_inexact(atom.aval) else 0.0


def widen(array: Any) -> Any:
    """The array in double precision, if its numbers are not exact. To be called with 64 bits enabled."""
    return jnp.asarray(array).astype(_double(array.dtype)) if is_inexact(array) else array


def _double(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.dtype(np.complex128)
    return np.dtype(np.float64) if jnp.issubdtype(dtype, jnp.floating) else dtype


def _alike(array: Any, aval: Any) -> bool:
    return array.shape == aval.shape and array.dtype == _double(aval.dtype)
