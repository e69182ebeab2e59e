"""The widths that Equinox's layers keep beside their arrays, set to fit these. For the adapter only."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx


def fit(node: Any, before: Any, suspects: list[str], path: str = "") -> Any:
    """A copy of a module with the widths of its arrays; layers that may count their channels are added to `suspects`.

    Args:
        node: The module with other arrays.
        before: The module it was made of.
        suspects: Grows by a few words for every such layer.
        path: Where the node lies.
    """
    inside = lambda name: f"{path}/{name}" if path else str(name)
    if isinstance(node, eqx.nn.StateIndex):
        return node
    if isinstance(node, eqx.Module):
        names = [field.name for field in dataclasses.fields(node) if hasattr(node, field.name)]
        inner = {name: fit(getattr(node, name), getattr(before, name), suspects, inside(name)) for name in names}
        return _refitted(with_fields(node, inner), before, suspects, path)
    if isinstance(node, dict):
        return {key: fit(value, before[key], suspects, inside(key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        values = [fit(value, old, suspects, inside(i)) for i, (value, old) in enumerate(zip(node, before, strict=True))]
        return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)
    return node


def _refitted(layer: Any, before: Any, suspects: list[str], path: str) -> Any:
    for kinds, widths in WIDTHS:
        if isinstance(layer, kinds):
            changed = widths(layer, before)
            old = {name: getattr(before, name) for name in changed}
            if isinstance(layer, COUNTING) and changed != old:
                name = next(name for name in changed if changed[name] != old[name])
                suspects.append(f"`{path}`, a {type(layer).__name__} ({name} {old[name]} → {changed[name]})")
            return with_fields(layer, changed)
    return layer


def with_fields(layer: Any, fields: dict[str, Any]) -> Any:
    """A copy with other fields, which no constructor checks."""
    new = object.__new__(type(layer))
    for field in dataclasses.fields(layer):
        if field.name in fields or hasattr(layer, field.name):
            object.__setattr__(new, field.name, fields.get(field.name, getattr(layer, field.name, None)))
    return new


Widths = dict[str, Any]


def _linear(layer: Any, before: Any) -> Widths:
    outer, inner = layer.weight.shape[-2:]
    keep = lambda old, new: old if old == "scalar" else new
    return {"in_features": keep(before.in_features, inner), "out_features": keep(before.out_features, outer)}


def _conv(layer: Any, before: Any) -> Widths:
    first = layer.weight.ndim - layer.num_spatial_dims - 2
    outer, inner = layer.weight.shape[first : first + 2]
    groups = before.groups
    if groups > 1 and inner == before.weight.shape[first + 1]:  # the groups that are left are whole
        groups = groups * outer // before.out_channels
    return {"in_channels": inner * groups, "out_channels": outer, "groups": groups}


def _batch_norm(layer: Any, before: Any) -> Widths:
    return {} if layer.weight is None else {"input_size": layer.weight.shape[-1]}


def _layer_norm(layer: Any, before: Any) -> Widths:
    array = layer.weight if layer.weight is not None else layer.bias
    return {} if array is None else {"shape": array.shape[array.ndim - len(before.shape) :]}


def _group_norm(layer: Any, before: Any) -> Widths:
    if layer.weight is None:
        return {}
    channels, size = layer.weight.shape[-1], before.channels // before.groups
    return {"channels": channels, "groups": channels // size if channels % size == 0 else before.groups}


def _embedding(layer: Any, before: Any) -> Widths:
    number, size = layer.weight.shape[-2:]
    return {"num_embeddings": number, "embedding_size": size}


def _cell(layer: Any, before: Any) -> Widths:
    return {"input_size": layer.weight_ih.shape[-1], "hidden_size": layer.weight_hh.shape[-1]}


def _attention(layer: Any, before: Any) -> Widths:
    """Heads and their widths stand in one axis: as many whole heads as there are, else heads that are narrower."""
    keys, values = layer.query_proj.weight.shape[-2], layer.value_proj.weight.shape[-2]
    whole = (keys / before.qk_size, values / before.vo_size)
    fits = [heads for heads in whole if heads == int(heads) and keys % heads == 0 == values % heads]
    heads = before.num_heads if not keys % before.num_heads and not values % before.num_heads else None
    heads = int(fits[0]) if fits and (heads is None or whole[0] == whole[1]) else heads or math.gcd(keys, values)
    return {
        "num_heads": heads,
        "qk_size": keys // heads,
        "vo_size": values // heads,
        "query_size": layer.query_proj.weight.shape[-1],
        "key_size": layer.key_proj.weight.shape[-1],
        "value_size": layer.value_proj.weight.shape[-1],
        "output_size": layer.output_proj.weight.shape[-2],
    }


def _mlp(layer: Any, before: Any) -> Widths:
    first, last = layer.layers[0], layer.layers[-1]
    hidden = {} if len(layer.layers) < 2 else {"width_size": first.out_features}
    return {"in_size": first.in_features, "out_size": last.out_features, **hidden}


WIDTHS: tuple[tuple[Any, Callable[[Any, Any], Widths]], ...] = (
    (eqx.nn.Linear, _linear),
    ((eqx.nn.Conv, eqx.nn.ConvTranspose), _conv),
    (eqx.nn.BatchNorm, _batch_norm),
    ((eqx.nn.LayerNorm, eqx.nn.RMSNorm), _layer_norm),
    (eqx.nn.GroupNorm, _group_norm),
    (eqx.nn.Embedding, _embedding),
    ((eqx.nn.GRUCell, eqx.nn.LSTMCell), _cell),
    (eqx.nn.MultiheadAttention, _attention),
    (eqx.nn.MLP, _mlp),
)

COUNTING = (eqx.nn.LayerNorm, eqx.nn.RMSNorm, eqx.nn.GroupNorm, eqx.nn.MultiheadAttention)
