"""What a function computes and nobody reads, taken out of its jaxpr before anything is judged.

Calls of Python for their effect alone (`jax.debug.print`, `io_callback`) go too, since no exported program can call
Python, and are named. Effects on arrays stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskprune.masks.jaxpr import internals
from maskprune.masks.jaxpr.reader import source_line


CALLBACKS = {"debug_callback", "debug_print", "io_callback", "pure_callback"}


def live(jaxpr: Any) -> tuple[Any, tuple[str, ...]]:
    """A closed jaxpr without its dead equations, bodies within bodies included, and the calls of Python left out."""
    calls = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name in CALLBACKS]
    effects = {effect for call in calls for effect in call.effects}
    found = internals.live(_without(jaxpr.jaxpr, effects) if effects else jaxpr.jaxpr)
    kept = {equation.primitive.name for equation in equations(found)} & CALLBACKS
    gone = [call for call in calls if call.effects and call.primitive.name not in kept]
    names = dict.fromkeys(f"`{call.primitive.name}` at {source_line(call)}" for call in gone)
    return jaxpr.replace(jaxpr=found), tuple(names)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr, those of bodies included."""
    for equation in jaxpr.eqns:
        yield equation
        for body in internals.every_body(equation):
            yield from equations(body)


def _without(jaxpr: Any, effects: set[Any]) -> Any:
    """The jaxpr as if calls of Python had no effect. Those that give nothing go at once."""
    kept = [
        internals.replace_bodies(equation, lambda body: _without(body, effects), effects=equation.effects - effects)
        for equation in jaxpr.eqns
        if equation.primitive.name not in CALLBACKS or not all(map(internals.is_dropped, equation.outvars))
    ]
    return jaxpr.replace(eqns=kept, effects=jaxpr.effects - effects)
