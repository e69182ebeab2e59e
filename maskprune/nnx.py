"""Flax NNX modules as functions, and small functions as modules again.

A module becomes `(apply, params, model_state)`, plain dictionaries of arrays, which is all that the rest of the library
wants; a small network becomes an ordinary module with narrower layers. Knows Flax and nothing of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from maskprune.groups import leaves_by_path
from maskprune.rebuilt import RebuildError as RebuildError
from maskprune.rebuilt import check_rebuilt


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
    """The same function in training mode, with dropout and batch statistics at work.

    Returns:
        `train_apply(params, model_state, *inputs, key=None) -> (output, new_model_state)`, pure. `model_state` is as
        `from_module` gives it, None included. `key` seeds every random stream of the module; without one, all calls
        draw the same numbers.
    """
    trained = _copy(module)
    trained.train()
    graph, *both, random, rest = nnx.split(trained, nnx.Param, STATE, nnx.RngState, ...)
    names = [set(leaves_by_path(nnx.to_pure_dict(each))) for each in both]

    def train_apply(params: Any, model_state: Any, *inputs: Any, key: jax.Array | None = None) -> tuple[Any, Any]:
        streams = random if key is None else _reseeded(random, key)
        state = {} if model_state is None else model_state
        _check_trees(params, state, *names)
        running = nnx.merge(graph, params, state, streams, rest, copy=True)
        output = running(*inputs)
        return output, None if model_state is None else nnx.to_pure_dict(nnx.state(running, STATE))

    return train_apply


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
    suspects = []
    for path, layer in nnx.iter_modules(small):
        changed = _fit(layer, before[path])
        if changed and isinstance(layer, COUNTING):
            suspects.append(f"`{'/'.join(map(str, path))}`, a {type(layer).__name__} ({changed})")
    states = () if model_state is None else (model_state,)
    rebuilt, params, state = from_module(small)
    own = () if state is None else (state,)
    check_rebuilt(
        f"The {type(module).__name__}",
        lambda *inputs: rebuilt(params, *own, *inputs),
        lambda *inputs: small_apply(small_params, *states, *inputs),
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


def _fit_conv(layer: Any, before: Any) -> None:
    inner, layer.out_features = layer.kernel.shape[-2:]
    groups = before.feature_group_count
    if groups > 1 and inner == before.kernel.shape[-2]:  # the groups that are left are whole
        groups = groups * layer.out_features // before.out_features
    layer.feature_group_count, layer.in_features = groups, inner * groups
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
