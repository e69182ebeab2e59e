"""What an optimizer may ask of a step: the loss, its gradient, and the loss elsewhere.

Optimizers of optax that want more than a gradient name what they want: `value` (Polyak's step, a plateau), `value_fn`
(line searches), `grad_fn` (sharpness-aware steps), `obj_fn` (Sophia's curvature). Every step offers all of it, and what
an optimizer cannot be given is told in a sentence. Knows optax and pytrees, no network.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax


REFUSED = "`optimizer` cannot take this step"
OFFERED = "`value`, `grad`, `value_fn`, `grad_fn`, `obj_fn`, `progress`, `rate` and `trainable`"


def offers(loss: Callable[[Any], jax.Array], value: jax.Array, grad: Any, params: Any, moves: Any) -> dict[str, Any]:
    """The loss in every form that optax's transforms ask for, as extra arguments of `update`.

    Args:
        loss: `loss(params) -> float[]`.
        value: float[], the loss at `params`.
        grad: Its gradient there, a pytree like `params`, zero where entries may not move.
        params: As the optimizer sees them.
        moves: Which entries may move: a pytree like `params` of bool arrays that broadcast against its leaves.
    """

    # A line search refuses every argument of the step that its function does not take.
    def value_fn(
        given: Any,
        *,
        progress: Any = None,
        rate: Any = None,
        trainable: Any = None,
        trust: Any = None,
        grad_fn: Any = None,
        obj_fn: Any = None,
    ) -> jax.Array:
        """The loss where no held entry has moved; leaves that `optax.masked` has hidden are those of `params`."""
        del progress, rate, trainable, trust, grad_fn, obj_fn
        every = jax.tree.map(lambda new, old: old if _is_hidden(new) else new, given, params, is_leaf=_is_hidden)
        return loss(jax.tree.map(lambda m, new, old: jnp.where(m, new.astype(old.dtype), old), moves, every, params))

    def grad_fn(given: Any, step: Any = 0) -> Any:
        del step
        return jax.grad(value_fn)(given)

    return {"value": value, "grad": grad, "value_fn": value_fn, "grad_fn": grad_fn, "obj_fn": value_fn}


def informed(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer under a signature that takes every extra argument; it gets those that it names.

    Raises:
        TypeError: When called: the optimizer wants what no step has, or numbers on the host.
        ValueError: When called: it refuses for a reason of its own, or makes updates of other shapes.
    """
    taken = _names(optimizer.update)

    def init(params: Any) -> Any:
        with _told():
            return optimizer.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> Any:
        given = {name: value for name, value in extra_args.items() if taken is None or name in taken}
        with _told():
            found, state = optimizer.update(updates, state, params, **given)
            _check_shapes(updates, found)
        return found, state

    return optax.GradientTransformationExtraArgs(init, update)


def _is_hidden(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _names(update: Callable[..., Any]) -> set[str] | None:
    """The extra arguments that an update takes; None for any."""
    parameters = inspect.signature(update).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return {each.name for each in parameters}


@contextmanager
def _told() -> Iterator[None]:
    """Errors that name the argument `optimizer`, and what to do where that is known."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        if str(error).startswith(REFUSED):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{REFUSED}: {_why(error)}{error}") from error


def _why(error: Exception) -> str:
    """A reason that introduces what the error says, or ""."""
    text = str(error)
    if isinstance(error, jax.errors.JAXTypeError):
        return "it reads numbers on the host, where a compiled step has none; let it compute with `jax.numpy`. "
    if "unexpected keyword argument" in text:
        return (
            f"a transform in it takes only some of the extra arguments {OFFERED}; wrap that transform in "
            "`optax.GradientTransformationExtraArgs(init, update)`, with `**extra_args` in its `update`. "
        )
    if "required keyword-only argument" in text:
        return f"it wants more than {OFFERED}, or a wrapper in it keeps them back. "
    if isinstance(error, AttributeError):
        return "it wants parameters in a form of its own, as `optax.lookahead` does; take one for any pytree. "
    if "MaskedNode" in text:
        return (
            "an `optax.masked` or `optax.partition` in it hides leaves of the parameters and not of `grad`; give it "
            "`mask_compatible_extra_args=True`. "
        )
    return ""


def _check_shapes(updates: Any, found: Any) -> None:
    wanted, given = ([jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (updates, found))
    if wanted != given:
        raise ValueError(
            f"it makes updates of the shapes {given} of gradients of the shapes {wanted}. A step has one gradient, of "
            "the whole batch: optimizers that want one for every example cannot be used."
        )
