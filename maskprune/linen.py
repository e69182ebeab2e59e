"""Flax Linen modules as functions, and what a smaller module must be built with.

A module and its variables become `(apply, params, model_state)`, plain dictionaries of arrays. The way back goes
through the user's own fields: `widths` says what to build, `check_module` whether it was built right. Knows Flax and
nothing of masks.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
from flax import linen

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.model_state import Flags, flags_of, like, plain, select_stored
from maskprune.removal.agreement import Run
from maskprune.removal.frameworks.grouped import convolution_groups
from maskprune.removal.rebuilt import RebuildError as RebuildError
from maskprune.removal.rebuilt import check_rebuilt


Apply = Callable[..., Any]
Settings = Mapping[str, Any]
NONE: Settings = {}


def from_module(
    module: linen.Module,
    variables: Mapping[str, Any],
    *,
    settings: Settings = NONE,
    method: Callable[..., Any] | str | None = None,
) -> tuple[Apply, Any, Any]:
    """A module as a function of its parameters, in evaluation mode.

    The three go straight into `trace(apply, params, *inputs, model_state=model_state)`, `init_network(params, groups)`
    and `compact(apply, network, *inputs, model_state=model_state)`.

    Args:
        module: Any Linen module.
        variables: As from `module.init` (arrays, or abstract ones from `jax.eval_shape`); frozen or not.
        settings: Keyword arguments of the call in evaluation mode, such as `{"train": False}`.
        method: Which method to call; `__call__` by default.

    Returns:
        `(apply, params, model_state)`. Where the variables hold nothing but `"params"`, `model_state` is None and the
        function is `apply(params, *inputs)`; else the state is all other collections, such as
        `{"batch_stats": ...}`, and the function is `apply(params, model_state, *inputs)`.

    Raises:
        ValueError: `variables` lacks the collection `"params"`.

    Example:
        >>> module = linen.Dense(3)
        >>> apply, params, state = from_module(module, module.init(jax.random.key(0), jax.numpy.ones((1, 2))))
        >>> params["kernel"].shape, state
        ((2, 3), None)
    """
    params, state = _split(variables)
    keywords = dict(settings)
    if state is None:
        return (
            lambda params, *inputs: module.apply({"params": params}, *inputs, method=method, **keywords),
            params,
            None,
        )

    def apply(params: Any, model_state: Any, *inputs: Any) -> Any:
        if not isinstance(model_state, Mapping):
            raise TypeError(
                "The model state is missing: give the third of what "
                "`from_module` gave, to `trace` and the others as `model_state=model_state`."
            )
        return module.apply({"params": params, **model_state}, *inputs, method=method, **keywords)

    return apply, params, state


def training(
    module: linen.Module,
    *,
    settings: Settings = NONE,
    method: Callable[..., Any] | str | None = None,
    random: Sequence[str] = ("dropout",),
) -> Apply:
    """The same function in training mode, with dropout and batch statistics at work.

    A layer whose own field says `use_running_average=True` stays in evaluation. In a training step, channels whose
    masks are frozen are normalized by their stored statistics.

    Args:
        module: As for `from_module`.
        settings: Keyword arguments of the call in training mode, such as `{"train": True}`.
        method: Which method to call.
        random: Names of the random streams the module draws from.

    Returns:
        `train_apply(params, model_state, *inputs, key=None) -> (output, new_model_state)`, pure. `model_state` is as
        `from_module` gives it, None included. A module that draws random numbers needs a `key`; each stream gets its
        own from it.
    """
    keywords = dict(settings)
    known: set[tuple[str, ...]] = set()  # leaves of layers that select: a user's own `jit` may trace them once only

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        flags = flags_of(model_state)
        state = {} if model_state is None else _with_flags(plain(model_state), flags)
        rngs = {} if key is None else {name: jax.random.fold_in(key, i) for i, name in enumerate(random)}
        with linen.intercept_methods(functools.partial(_select, known)) if flags else contextlib.nullcontext():
            output, changed = module.apply(
                {"params": params, **state}, *inputs, method=method, rngs=rngs, mutable=list(state), **keywords
            )  # type: ignore[misc]
        for keys in known & flags.keys():
            flags[keys].use()
        if model_state is None:
            return output, None
        return output, like(model_state, _without_flags({**state, **flax.core.unfreeze(changed)}))

    return train_apply


# Flags of held statistics travel as variables beside them, which every lifted transform takes along.

HELD = " held"


def _with_flags(state: Any, flags: Mapping[tuple[Any, ...], Flags], keys: tuple[Any, ...] = ()) -> Any:
    if not isinstance(state, dict):
        return state
    inner = {key: _with_flags(value, flags, (*keys, key)) for key, value in state.items()}
    mine = {f"{key}{HELD}": flags[*keys, key].entries for key in state if (*keys, key) in flags}
    return inner | mine


def _without_flags(state: Any) -> Any:
    if not isinstance(state, Mapping):
        return state
    return {key: _without_flags(value) for key, value in state.items() if not str(key).endswith(HELD)}


def _select(known: set[tuple[str, ...]], call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Runs a layer that is in training in both modes, and selects by the flags of its statistics."""
    module = context.module
    spectral = isinstance(module, linen.SpectralNorm)  # computes the same in both modes
    if context.method_name != "__call__" or not (spectral or hasattr(module, "use_running_average")):
        return call(*args, **kwargs)
    variables = module.variables
    held = {
        (collection, name): value
        for collection, found in variables.items()
        for name, value in found.items()
        if name.endswith(HELD)
    }
    known |= {(collection, *module.path, name.removesuffix(HELD)) for collection, name in held}
    bound = inspect.signature(type(module).__call__).bind(module, *args, **kwargs)
    given = bound.arguments.get("use_running_average")
    if not held or spectral or (module.use_running_average if given is None else given):
        return call(*args, **kwargs)
    before = _without_flags(variables)  # a copy: training changes the others
    stored = _evaluated(module, before, bound)
    axis = getattr(module, "axis", -1)
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    trained = call(*args, **kwargs)
    for (collection, name), flags in held.items():  # the layer may be used again
        if module.is_mutable_collection(collection):
            name = name.removesuffix(HELD)
            new = jnp.where(flags, before[collection][name], module.get_variable(collection, name))
            module.put_variable(collection, name, new)
    return select_stored(list(held.values()), stored, trained, axes=axes)


def _evaluated(module: Any, variables: Any, bound: inspect.BoundArguments) -> Any:
    """What a layer gives in evaluation, by a copy of it that stands alone."""
    told = "use_running_average" in bound.signature.parameters
    alone = module.clone(parent=None, use_running_average=None if told else True)
    arguments = {**bound.arguments, "use_running_average": True} if told else dict(bound.arguments)
    again = inspect.BoundArguments(bound.signature, arguments)  # type: ignore[arg-type]
    return alone.apply(variables, *again.args[1:], **again.kwargs)


def widths(small_params: Any) -> dict[str, int | tuple[int, ...]]:
    """What to put into the fields (`features`, `num_heads`, ...) of a smaller module.

    Args:
        small_params: Parameters of a small network, as `compact` gives them.

    Returns:
        `{layer path: features}` for every layer with a kernel or an embedding, in the order of the tree. The layers of
        attention have several: `(heads, width of a head)` of the queries, keys and values.

    Example:
        >>> widths({"Conv_0": {"kernel": jax.numpy.ones((3, 3, 1, 4)), "bias": jax.numpy.ones(4)}})
        {'Conv_0': 4}
    """
    leaves = leaves_by_path(small_params)
    found: dict[str, int | tuple[int, ...]] = {}
    for path, leaf in leaves.items():
        layer, _, name = path.rpartition("/")
        if name in ("kernel", "embedding"):
            shape = tuple(leaf.shape)
            bias = leaves.get(f"{layer}/bias" if layer else "bias")
            outer = shape[-1:] if bias is None else shape[len(shape) - bias.ndim :]
            found[layer] = outer[0] if len(outer) == 1 else outer
    return found


def group_counts(small_apply: Apply, small_params: Any, *inputs: Any, model_state: Any = None) -> dict[str, int]:
    """What to put into `feature_group_count` of a smaller module: the widths alone do not tell it.

    Args:
        small_apply: The small function, from `compact` or `shrink`.
        small_params: Its parameters.
        *inputs: Sample inputs.
        model_state: The small state, where there is one.

    Returns:
        `{layer path: groups}` for every convolution with more than one group.
    """
    states = () if model_state is None else (model_state,)
    counts = convolution_groups(lambda params: small_apply(params, *states, *inputs), small_params)
    return {path.rpartition("/")[0]: count for path, count in counts.items() if count > 1}


def check_module(
    small_module: linen.Module,
    small_apply: Apply,
    small_params: Any,
    *inputs: Any,
    model_state: Any = None,
    settings: Settings = NONE,
    method: Callable[..., Any] | str | None = None,
) -> None:
    """Checks a module that you built with the small widths: it takes the small weights and computes the same.

    Args:
        small_module: The module with its new fields.
        small_apply: The small function, from `compact` or `shrink`.
        small_params: Its parameters.
        *inputs: Sample inputs; at least one array.
        model_state: The small state, where there is one.
        settings: Keyword arguments of the call in evaluation mode.
        method: Which method to call.

    Raises:
        RebuildError: A layer has another shape than the small weights (it names all such layers), or the outputs
            differ.
    """
    states = () if model_state is None else (model_state,)
    variables = {"params": small_params, **(model_state or {})}
    keywords = dict(settings)
    groups = group_counts(small_apply, small_params, *inputs, model_state=model_state)
    hint = f" Its `feature_group_count` must be {groups}, and 1 elsewhere." if groups else ""
    init = lambda key: small_module.init(key, *inputs, method=method, **keywords)
    _check_shapes(small_module, variables, init, hint)
    apply, params, _ = from_module(small_module, variables, settings=settings, method=method)
    check_rebuilt(
        f"The {type(small_module).__name__}",
        Run(apply, params, states),
        Run(small_apply, small_params, states),
        inputs,
    )


def _split(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    plain = flax.core.unfreeze(linen.meta.unbox(variables))
    if "params" not in plain:
        raise ValueError(f"`variables` has the collections {', '.join(plain)}: give what `module.init` returns.")
    params = plain.pop("params")
    return params, plain or None


def _check_shapes(module: linen.Module, given: Mapping[str, Any], init: Callable[[jax.Array], Any], hint: str) -> None:
    try:
        wanted = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # a module's own code may raise anything
        raise RebuildError(f"The {type(module).__name__} cannot be built on these inputs: {error}{hint}") from error
    wanted = leaves_by_path(flax.core.unfreeze(linen.meta.unbox(wanted)))
    found = leaves_by_path(given)
    wrong = [
        f"`{path}` is {_shape(wanted, path)} in the module and {_shape(found, path)} in the small weights"
        for path in sorted({*wanted, *found})
        if _shape(wanted, path) != _shape(found, path)
    ]
    if wrong:
        raise RebuildError(
            f"The {type(module).__name__} does not fit the small weights: {'; '.join(wrong)}. Set its fields to what "
            f"`widths(small_params)` says; where one field rules several layers, give it one for each.{hint}"
        )


def _shape(leaves: Mapping[str, Any], path: str) -> tuple[int, ...] | str:
    return tuple(leaves[path].shape) if path in leaves else "absent"
