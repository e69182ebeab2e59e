"""What a function computes and nobody reads, taken out of its jaxpr before anything is judged.

Calls of Python for their effect alone (`jax.debug.print`, `io_callback`) go too, since no exported program can call
Python, and are named. Effects on arrays stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jax.interpreters import partial_eval

from maskprune.reading import source_line


CALLBACKS = {"debug_callback", "debug_print", "io_callback", "pure_callback"}


def live(jaxpr: Any) -> tuple[Any, tuple[str, ...]]:
    """A closed jaxpr without its dead equations, bodies within bodies included, and the calls of Python left out."""
    calls = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name in CALLBACKS]
    effects = {effect for call in calls for effect in call.effects}
    pure = _without(jaxpr.jaxpr, effects) if effects else jaxpr.jaxpr
    found, _ = partial_eval.dce_jaxpr(pure, [True] * len(pure.outvars), instantiate=True)
    kept = {equation.primitive.name for equation in equations(found)} & CALLBACKS
    gone = [call for call in calls if call.effects and call.primitive.name not in kept]
    names = dict.fromkeys(f"`{call.primitive.name}` at {source_line(call)}" for call in gone)
    return jaxpr.replace(jaxpr=found), tuple(names)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of bodies included."""
    for equation in jaxpr.eqns:
        yield equation
        for body in _bodies(list(equation.params.values())):
            yield from equations(getattr(body, "jaxpr", body))


def _bodies(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [body for item in value for body in _bodies(item)]
    return [value] if _is_body(value) else []


def _is_body(value: Any) -> bool:
    return hasattr(value, "eqns") and hasattr(value, "replace")


def _without(jaxpr: Any, effects: set[Any]) -> Any:
    """The jaxpr as if calls of Python had no effect. Those that give nothing go at once."""
    kept = [
        equation.replace(
            effects=equation.effects - effects,
            params={
                name: _changed(value, lambda body: _without(body, effects)) for name, value in equation.params.items()
            },
        )
        for equation in jaxpr.eqns
        if equation.primitive.name not in CALLBACKS or any(type(v).__name__ != "DropVar" for v in equation.outvars)
    ]
    return jaxpr.replace(eqns=kept, effects=jaxpr.effects - effects)


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if not _bodies(value):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value.replace(jaxpr=change(value.jaxpr)) if hasattr(value, "consts") else change(value)
