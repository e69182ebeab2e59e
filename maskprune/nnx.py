"""Flax NNX modules as functions, and small functions as modules again.

A module becomes `(apply, params, model_state)`, plain dictionaries of arrays, which is all that the rest of the library
wants; a small network becomes an ordinary module with narrower layers. Knows Flax and nothing of masks.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.model_state import Flags, flags_of, like, plain, select_stored
from maskprune.removal.agreement import Run
from maskprune.removal.frameworks.grouped import convolution_groups
from maskprune.removal.rebuilt import REMEDY, check_rebuilt
from maskprune.removal.rebuilt import RebuildError as RebuildError


Apply = Callable[..., Any]

# Variables that are neither trained nor random numbers: running statistics, caches, whatever the user defines.
STATE = nnx.All(nnx.Variable, nnx.Not(nnx.Param), nnx.Not(nnx.RngState), nnx.Not(nnx.Intermediate))


def from_module(module: nnx.Module) -> tuple[Apply, Any, Any]:
    """A module as a function of its parameters, in evaluation mode.

    The three go straight into `trace(apply, params, *inputs, model_state=model_state)`, `init_network(params, groups)`
    and `compact(apply, network, *inputs, model_state=model_state)`. The module itself is not changed.

    Args:
        module: Any NNX module. Shared layers stay shared.

    Returns:
        `(apply, params, model_state)`. The trees are nested dictionaries, keyed as the module's attributes. Where the
        module has no variables but parameters, `model_state` is None and the function is `apply(params, *inputs)`;
        else it is `apply(params, model_state, *inputs)`, and a state the module changes is not handed out.

    Example:
        >>> apply, params, model_state = from_module(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
        >>> params["kernel"].shape, model_state
        ((2, 3), None)
    """
    evaluated = _copy(module)
    evaluated.eval()
    graph, params, state, rest = nnx.split(evaluated, nnx.Param, STATE, ...)
    params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
    names = set(leaves_by_path(params)), set(leaves_by_path(state))

    def run(params: Any, state: Any, *inputs: Any) -> Any:
        _check_trees(params, state, *names)
        return nnx.merge(graph, params, state, rest, copy=True)(*inputs)

    if not state:
        return lambda params, *inputs: run(params, {}, *inputs), params, None
    return run, params, state


def training(module: nnx.Module) -> Apply:
    """The same function in training, with dropout and batch statistics at work.

    Every layer runs in the mode in which it stands in the module: a layer that you set to evaluation stays there. In a
    training step, channels whose masks are frozen are normalized by their stored statistics.

    Returns:
        `train_apply(params, model_state, *inputs, key=None) -> (output, new_model_state)`, pure. `model_state` is as
        `from_module` gives it, None included. `key` seeds every random stream of the module; without one, all calls
        draw the same numbers.

    Warns:
        UserWarning: All layers stand in evaluation mode, as after `module.eval()`.
    """
    _warn_if_evaluated(module)
    graph, *both, random, rest = nnx.split(_copy(module), nnx.Param, STATE, nnx.RngState, ...)
    names = [set(leaves_by_path(nnx.to_pure_dict(each))) for each in both]

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        streams = random if key is None else _reseeded(random, key)
        state = {} if model_state is None else plain(model_state)
        _check_trees(params, state, *names)
        running = nnx.merge(graph, params, state, streams, rest, copy=True)
        _hold(running, flags_of(model_state))
        output = running(*inputs)
        if model_state is None:
            return output, None
        return output, like(model_state, nnx.to_pure_dict(nnx.state(running, nnx.All(STATE, nnx.Not(Held)))))

    return train_apply


MODES = ("use_running_average", "deterministic")


def _warn_if_evaluated(module: nnx.Module) -> None:
    found = [getattr(layer, name) for _, layer in nnx.iter_modules(module) for name in MODES if hasattr(layer, name)]
    if len(found) > 1 and all(flag is True for flag in found):
        warnings.warn(
            f"All layers of the {type(module).__name__} stand in evaluation mode, and so they will train: without "
            "dropout, by stored statistics. Call `module.train()` first; to hold some layers, use `freeze`.",
            stacklevel=3,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Held statistics. A layer that is in training gets the flags as a variable of its own, which every transform of Flax
# takes along, and a class that runs it in both modes and selects.
# ---------------------------------------------------------------------------------------------------------------------


HELD = "held_"


class Held(nnx.BatchStat):
    """Flags of a layer's statistics, true where they are held."""


def _hold(module: nnx.Module, flags: Mapping[tuple[Any, ...], Flags]) -> None:
    """Makes the layers whose statistics may be held select by the flags."""
    for keys, found in flags.items():
        layer, name = _owner(module, keys)
        called = any("__call__" in vars(kind) for kind in type(layer).__mro__)
        if isinstance(layer, nnx.SpectralNorm):  # computes the same in both modes
            found.use()
        elif called and hasattr(layer, "use_running_average") and hasattr(layer, name):
            found.use()
            object.__setattr__(layer, "__class__", _selecting(type(layer)))
            setattr(layer, f"{HELD}{name}", Held(found.entries))


def _owner(module: nnx.Module, keys: Sequence[Any]) -> tuple[Any, str]:
    """The innermost layer on the way to a variable, and the way from there."""
    node: Any = module
    owner, rest = node, keys
    for number, key in enumerate(keys):
        node = node[key] if isinstance(node, list | tuple | dict | nnx.List | nnx.Dict) else getattr(node, key)
        if isinstance(node, nnx.Module):
            owner, rest = node, keys[number + 1 :]
    return owner, "_".join(map(str, rest))


@functools.cache
def _selecting(kind: type) -> type:
    """The kind of layer, which selects by its flags; such a kind itself."""
    if getattr(kind, "selects", False):
        return kind
    signature = inspect.signature(kind.__call__)

    def __call__(layer: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(layer, *args, **kwargs)
        given = bound.arguments.get("use_running_average")
        if layer.use_running_average if given is None else given:
            return kind.__call__(layer, *args, **kwargs)
        flagged = ((name, value) for name, value in vars(layer).items() if isinstance(value, Held))
        held = {name.removeprefix(HELD): value[...] for name, value in flagged}
        before = {name: getattr(layer, name)[...] for name in held}
        stored = _evaluated(kind, layer, bound)
        trained = kind.__call__(layer, *args, **kwargs)
        for name, flags in held.items():  # the layer may be used again
            variable = getattr(layer, name)
            variable[...] = jnp.where(flags, before[name], variable[...])
        axis = getattr(layer, "axis", -1)
        return select_stored(list(held.values()), stored, trained, axes=axis if isinstance(axis, tuple) else (axis,))

    return type(kind.__name__, (kind,), {"__call__": __call__, "selects": True, "__module__": kind.__module__})


def _evaluated(kind: Any, layer: Any, bound: inspect.BoundArguments) -> Any:
    """What a layer gives in evaluation mode."""
    mode, fields = layer.use_running_average, vars(layer)
    arguments = dict(bound.arguments)
    if "use_running_average" in bound.signature.parameters:
        arguments["use_running_average"] = True
    again = inspect.BoundArguments(bound.signature, arguments)  # type: ignore[arg-type]
    fields["use_running_average"] = True
    try:
        return kind.__call__(*again.args, **again.kwargs)
    finally:
        fields["use_running_average"] = mode


def to_module(
    module: nnx.Module, small_apply: Apply, small_params: Any, *inputs: Any, model_state: Any = None
) -> nnx.Module:
    """An ordinary module with the small weights.

    A copy of `module` gets the small arrays, and Flax's own layers in it get the widths to match (`in_features`,
    `num_features`, `num_heads`, ...). Then both run on the inputs and are compared, because a module's own code can
    hold widths too.

    Args:
        module: The module that `from_module` was given. It is not changed.
        small_apply: The small function, from `compact` or `shrink`.
        small_params: Its parameters.
        *inputs: Sample inputs; at least one array.
        model_state: The small state, `plan.cut(model_state, state=True)`, where there is one.

    Returns:
        The new module, in the mode (train or eval) of the old one.

    Raises:
        RebuildError: The module's code does not do on the small widths what the small function does. It names the
            line, or the layers that count their channels.
    """
    graph, _, _, rest = nnx.split(_copy(module), nnx.Param, STATE, ...)
    small = nnx.merge(graph, small_params, model_state or {}, rest, copy=True)
    before = {path: layer for path, layer in nnx.iter_modules(module)}
    states, suspects = () if model_state is None else (model_state,), []
    _regroup(small, before, lambda params: small_apply(params, *states, *inputs), small_params)
    for path, layer in nnx.iter_modules(small):
        changed = _fit(layer, before[path])
        if changed and isinstance(layer, COUNTING):
            suspects.append(f"`{'/'.join(map(str, path))}`, a {type(layer).__name__} ({changed})")
    rebuilt, params, state = from_module(small)
    own = () if state is None else (state,)
    check_rebuilt(
        f"The {type(module).__name__}",
        Run(rebuilt, params, own),
        Run(small_apply, small_params, states),
        inputs,
        suspects=suspects,
    )
    return small


def _check_trees(params: Any, state: Any, wanted: set[str], wanted_state: set[str]) -> None:
    """Raises a `TypeError` where the state was forgotten, or where it and the parameters are swapped."""
    if wanted_state and not isinstance(state, Mapping):
        raise TypeError(
            "The model state is missing: give the third of what `from_module` "
            "gave, to `trace` and the others as `model_state=model_state`."
        )
    found = set(leaves_by_path(params)), set(leaves_by_path(state))
    if wanted_state and found != (wanted, wanted_state) and found == (wanted_state, wanted):
        raise TypeError("`params` and the model state are swapped: the parameters come first.")


def _copy(module: nnx.Module) -> Any:
    return nnx.merge(*nnx.split(module), copy=True)


def _reseeded(random: Any, key: jax.Array) -> Any:
    """Every random stream with a key of its own, and its counter at zero."""
    pure = nnx.to_pure_dict(random)
    number = iter(range(len(jax.tree.leaves(pure))))

    def fresh(leaf: jax.Array) -> jax.Array:
        mine = jax.random.fold_in(key, next(number))
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros_like(leaf)
        return jax.random.split(mine, leaf.shape) if leaf.shape else mine

    return jax.tree.map(fresh, pure)


# ---------------------------------------------------------------------------------------------------------------------
# Widths that Flax's layers keep beside their arrays. Leading axes (of layers that were vmapped) are left alone.
# ---------------------------------------------------------------------------------------------------------------------

COUNTING = (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.MultiHeadAttention)


def _fit(layer: Any, before: Any) -> str:
    """Sets the widths of a layer by its arrays. Returns the change in words where it may count them, else ""."""
    for kinds, fit in FITS:
        if isinstance(layer, kinds):
            return fit(layer, before) or ""
    return ""


def _fit_linear(layer: Any, before: Any) -> None:
    layer.in_features, layer.out_features = layer.kernel.shape[-2:]


def _regroup(small: Any, before: Mapping[Any, Any], function: Callable[[Any], Any], params: Any) -> None:
    """Gives grouped layers the number of groups with which the small function runs them.

    Raises:
        RebuildError: No layer of that kind has such groups.
    """
    grouped = any(getattr(layer, "feature_group_count", 1) > 1 for layer in before.values())
    counts = convolution_groups(function, params) if grouped else {}
    for path, layer in nnx.iter_modules(small):
        layer, whole, why = cast(Any, layer), before[path], ""
        if getattr(whole, "feature_group_count", 1) > 1 and layer.kernel.shape != whole.kernel.shape:
            layer.feature_group_count = counts.get("/".join([*map(str, path), "kernel"]), 0)
            why = _lacks_groups(layer)
        elif isinstance(layer, nnx.GroupNorm) and (_norm_width(layer) or 0) % layer.group_size:
            why = (
                f"has lost channels inside its {whole.num_groups} groups of {whole.group_size}, which count towards "
                f"its means ({_norm_width(layer)} of {_norm_width(whole)} are left)"
            )
        if why:
            raise RebuildError(f"`{'/'.join(map(str, path))}`, a {type(layer).__name__}, {why}. {REMEDY}")


def _lacks_groups(layer: Any) -> str:
    """Why no convolution has the groups of this one, or "". One that reads nothing may have any."""
    inner, outer = layer.kernel.shape[-2:]
    if not outer:
        return f"gives no channels any more, with a kernel {layer.kernel.shape}: nothing tells its number of groups"
    layer.feature_group_count = layer.feature_group_count if inner else 1
    if not layer.feature_group_count or outer % layer.feature_group_count:
        found = f"{layer.feature_group_count or 'unequal'} groups for {outer} output channels"
        return f"has a kernel {layer.kernel.shape}, which the small function runs in {found}"
    return ""


def _fit_conv(layer: Any, before: Any) -> None:
    inner, layer.out_features = layer.kernel.shape[-2:]
    layer.in_features = inner * layer.feature_group_count
    layer.kernel_shape = layer.kernel.shape[-len(before.kernel_shape) :]


def _fit_conv_transpose(layer: Any, before: Any) -> None:
    widths = layer.kernel.shape[-2:]
    layer.in_features, layer.out_features = reversed(widths) if layer.transpose_kernel else widths
    layer.kernel_shape = layer.kernel.shape[-len(before.kernel_shape) :]


def _fit_general(layer: Any, before: Any) -> None:
    inner, outer = len(before.in_features), len(before.out_features)
    shape = layer.kernel.shape[-inner - outer :]
    layer.in_features, layer.out_features = tuple(shape[:inner]), tuple(shape[inner:])


def _fit_einsum(layer: Any, before: Any) -> None:
    layer.kernel_shape = layer.kernel.shape
    layer.bias_shape = None if layer.bias is None else layer.bias.shape


def _fit_embed(layer: Any, before: Any) -> None:
    layer.num_embeddings, layer.features = layer.embedding.shape[-2:]


def _fit_attention(layer: Any, before: Any) -> str:
    layer.in_features, layer.num_heads, layer.head_dim = layer.query.kernel.shape[-3:]
    layer.in_kv_features, layer.num_kv_heads = layer.key.kernel.shape[-3:-1]
    layer.qkv_features, layer.out_features = layer.num_heads * layer.head_dim, layer.out.kernel.shape[-1]
    return "" if layer.head_dim == before.head_dim else f"heads {before.head_dim} → {layer.head_dim} wide"


def _fit_cell(layer: Any, before: Any) -> None:
    dense = [getattr(layer, name) for name in ("dense_h", "hf") if hasattr(layer, name)]
    layer.hidden_features = dense[0].kernel.shape[-2]
    inner = [getattr(layer, name) for name in ("dense_i", "if_") if hasattr(layer, name)]
    layer.in_features = inner[0].kernel.shape[-2]


def _fit_norm(layer: Any, before: Any) -> str:
    now, then = _norm_width(layer), _norm_width(before)
    if now is None or now == then:
        return ""
    if hasattr(layer, "num_features"):
        layer.num_features = now
    if isinstance(layer, nnx.GroupNorm) and layer.group_size and now % layer.group_size == 0:
        layer.num_groups = now // layer.group_size
    return f"{then} → {now} channels"


def _norm_width(layer: Any) -> int | None:
    arrays = (getattr(layer, name, None) for name in ("scale", "bias", "mean"))
    return next((array.shape[-1] for array in arrays if array is not None), None)


FITS: tuple[tuple[Any, Callable[[Any, Any], str | None]], ...] = (
    (nnx.Linear, _fit_linear),
    (nnx.Conv, _fit_conv),
    (nnx.ConvTranspose, _fit_conv_transpose),
    (nnx.LinearGeneral, _fit_general),
    (nnx.Einsum, _fit_einsum),
    (nnx.Embed, _fit_embed),
    (nnx.MultiHeadAttention, _fit_attention),
    ((nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell), _fit_cell),
    ((nnx.BatchNorm, nnx.InstanceNorm, nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm), _fit_norm),
)
