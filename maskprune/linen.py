"""Flax Linen modules as functions, and what a smaller module must be built with.

A module and its variables become `(apply, params, model_state)`, plain dictionaries of arrays. The way back goes
through the user's own fields: `widths` says what to build, `check_module` whether it was built right. Knows Flax and
nothing of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.core
import jax
from flax import linen

from maskprune.groups import leaves_by_path
from maskprune.rebuilt import RebuildError as RebuildError
from maskprune.rebuilt import check_rebuilt


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

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        state = {} if model_state is None else model_state
        rngs = {} if key is None else {name: jax.random.fold_in(key, i) for i, name in enumerate(random)}
        output, changed = module.apply(
            {"params": params, **state}, *inputs, method=method, rngs=rngs, mutable=list(state), **keywords
        )  # type: ignore[misc]
        return output, None if model_state is None else {**state, **flax.core.unfreeze(changed)}

    return train_apply


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
    _check_shapes(small_module, variables, lambda key: small_module.init(key, *inputs, method=method, **keywords))
    apply, params, _ = from_module(small_module, variables, settings=settings, method=method)
    check_rebuilt(
        f"The {type(small_module).__name__}",
        lambda *inputs: apply(params, *states, *inputs),
        lambda *inputs: small_apply(small_params, *states, *inputs),
        inputs,
    )


def _split(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    plain = flax.core.unfreeze(linen.meta.unbox(variables))
    if "params" not in plain:
        raise ValueError(f"`variables` has the collections {', '.join(plain)}: give what `module.init` returns.")
    params = plain.pop("params")
    return params, plain or None


def _check_shapes(module: linen.Module, given: Mapping[str, Any], init: Callable[[jax.Array], Any]) -> None:
    try:
        wanted = jax.eval_shape(init, jax.random.key(0))
    except Exception as error:  # a module's own code may raise anything
        raise RebuildError(f"The {type(module).__name__} cannot be built on these inputs: {error}") from error
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
            "`widths(small_params)` says; where one field rules several layers, give it one for each."
        )


def _shape(leaves: Mapping[str, Any], path: str) -> tuple[int, ...] | str:
    return tuple(leaves[path].shape) if path in leaves else "absent"
