"""What is wrong with what a user gives for a function and its arguments, in a sentence that says what to do.

Modules are recognised by the names of their classes, so that no module library is imported. Must not know how a
function is read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from maskprune.base.checks import is_array, show
from maskprune.masks.groups import leaf_path


STATES = ("state", "stats", "buffers", "variables")
ADVICE = {
    "linen": "`apply, params, model_state = maskprune.linen.from_module(module, variables)`",
    "nnx": "`apply, params, model_state = maskprune.nnx.from_module(module)`",
    "equinox": "`params, static = equinox.partition(module, equinox.is_inexact_array)` and "
    "`apply = lambda params, *inputs: equinox.combine(params, static)(*inputs)`",
    "haiku": "`apply = lambda params, *inputs: net.apply(params, None, *inputs)` with `params` from `net.init`; of a "
    "network with a state `apply = lambda params, state, *inputs: net.apply(params, state, None, *inputs)[0]`",
    "keras": "`params = [each.value for each in model.trainable_variables]`, the other variables alike, and "
    "`apply = lambda params, state, *inputs: model.stateless_call(params, state, *inputs, training=False)[0]`",
}
WORDS = {"linen": "Linen module", "nnx": "NNX module", "equinox": "Equinox module", "haiku": "Haiku network"}
WORDS |= {"keras": "Keras layer or model"}


def check_function(name: str, apply: Any, params: Any = None) -> None:
    """Raises a `TypeError` for a module, a method of one, or anything else that is no function of parameters."""
    owner, method = _owner(apply)
    kind = _kind(owner)
    # Linen's `module.apply(variables, ...)` takes what it needs; an Equinox module without arrays is a function.
    free = kind == "linen" and method == "apply"
    if kind and not free and (kind != "equinox" or inspect.isclass(owner) or _holds_arrays(owner)):
        what = f"the method `{method}` of the {WORDS[kind]}" if method else f"the {WORDS[kind]}"
        raise TypeError(
            f"`{name}` is {what} `{_class_name(owner)}`, not a function of its parameters: make one with "
            f"{ADVICE[kind]}."
        )
    if free and isinstance(params, Mapping) and "params" not in params:
        raise TypeError(
            f"`{name}` is the method `{method}` of the Linen module `{_class_name(owner)}`, which takes all variables, "
            f"not `params` alone: make a function of the parameters with {ADVICE['linen']}."
        )
    if not callable(apply):
        what = show(apply) if is_array(apply) or isinstance(apply, str | None) else f"a {type(apply).__name__}"
        hint = "it and `params` are swapped." if callable(params) else "use a function of the parameters."
        raise TypeError(f"`{name}` is {what}: {hint}")


def check_arguments(apply: Callable[..., Any], args: tuple[Any, ...], states: int) -> None:
    """Raises a `TypeError` or `ValueError` for arguments that are no arrays, too few, too many or in another order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        if not is_array(leaf):
            number = leaf_path(path[:1])
            where = "`params`" if number == "0" else f"argument {number}"
            what = f"The leaf `{leaf_path(path[1:])}` of {where}" if len(path) > 1 else f"Argument {number}"
            raise TypeError(
                f"{what} is a {type(leaf).__name__}, not an array: close over what is no array "
                "(`lambda params, x: apply(params, x, train=False)`)."
            )
    _check_order(args, states)
    _check_count(apply, args, states)


def _check_order(args: tuple[Any, ...], states: int) -> None:
    trees = [number for number, arg in enumerate(args) if number > states and _is_tree(arg)]
    if is_array(args[0]) and trees:
        raise ValueError(
            f"`params` is one array and argument {trees[0]} a {type(args[trees[0]]).__name__} of "
            f"{len(jax.tree.leaves(args[trees[0]]))} arrays: the parameters come first, before the inputs. A function "
            "that takes them in another order is given as `lambda params, x: apply(x, params)`."
        )


def _is_tree(arg: Any) -> bool:
    return not is_array(arg) and any(np.issubdtype(_dtype(leaf), np.floating) for leaf in jax.tree.leaves(arg))


def _dtype(leaf: Any) -> Any:
    dtype = getattr(leaf, "dtype", None)
    return dtype if isinstance(dtype, np.dtype) else np.dtype(object)


def _check_count(apply: Callable[..., Any], args: tuple[Any, ...], states: int) -> None:
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        given = ["`params`", "`model_state`"][: 1 + states] + ["an input"] * (len(args) - 1 - states)
        hint = _state_hint(apply, states) or "give all inputs, and close over settings."
        names = ", ".join(signature.parameters)
        raise TypeError(f"`apply({names})` is called with {', '.join(given)}: {error}; {hint}") from error


def explain_failure(apply: Callable[..., Any], states: int, error: Exception) -> TypeError | None:
    """The error to raise where a function failed that seems to want a model state and got none."""
    hint = _state_hint(apply, states)
    if not hint or "`model_state=" in str(error):  # said already
        return None
    first = (str(error).strip() or "no message").splitlines()[0]
    return TypeError(f"`apply` fails on `params` and the inputs alone: {hint} It says: {first}")


def _state_hint(apply: Callable[..., Any], states: int) -> str:
    """What to do where the second parameter is named like a state and none was given."""
    try:
        names = list(inspect.signature(apply).parameters)
    except (TypeError, ValueError):
        return ""
    if states or len(names) < 2 or not any(word in names[1].lower() for word in STATES):
        return ""
    return f"its second parameter is `{names[1]}`; give the state as `model_state=`."


def _owner(apply: Any) -> tuple[Any, str]:
    """The object behind partial functions, wrappers and methods, and the name of the method."""
    method = ""
    for _ in range(20):
        owner = getattr(apply, "__self__", None)
        inner = getattr(apply, "__wrapped__", None)
        if owner is not None and not inspect.ismodule(owner) and not inspect.isclass(owner):
            method, inner = getattr(apply, "__name__", method), owner
        elif isinstance(apply, functools.partial):
            inner = apply.func
        if inner is None or inner is apply:
            break
        apply = inner
    return apply, method


def _kind(found: Any) -> str:
    """Which library's module an object or a class is, or "" for none."""
    for each in (found if inspect.isclass(found) else type(found)).__mro__:
        package, _, inside = each.__module__.partition(".")
        if package == "flax" and each.__name__ in ("Module", "Pytree"):
            return "linen" if inside.startswith("linen") else "nnx"
        if package == "equinox" and each.__name__ == "Module":
            return "equinox"
        if package == "haiku" and each.__name__ in (
            "Module",
            "Transformed",
            "TransformedWithState",
            "MultiTransformed",
        ):
            return "haiku"
        if package == "keras" and each.__name__ in ("Layer", "Model", "Operation"):
            return "keras"
    return ""


def _class_name(found: Any) -> str:
    return found.__name__ if inspect.isclass(found) else type(found).__name__


def _holds_arrays(module: Any) -> bool:
    return any(is_array(leaf) for leaf in jax.tree.leaves(module))
