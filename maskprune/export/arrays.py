"""Weights alone, in files that other programs read: safetensors and orbax.

Both hold the parameters and the model state as nested dictionaries with text as keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.files import replace_file
from maskprune.groups import leaf_path, leaves_by_path
from maskprune.plan import Plan


FORMAT = "maskprune arrays 1"


class Arrays(NamedTuple):
    """Weights read from a file.

    Attributes:
        params: Nested dictionaries with text as keys, or a tree like the one that was asked for.
        model_state: Likewise, or None.
        plan: What was cut from the full network, where the file says it.
    """

    params: Any
    model_state: Any = None
    plan: Plan | None = None


def save_safetensors(path: Path, params: Any, model_state: Any = None, plan: Plan | None = None) -> Path:
    """Writes one `.safetensors` file: names such as `params/conv1/kernel`, the plan as JSON in its metadata."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    about = {"format": FORMAT, "plan": "" if plan is None else plan.to_json()}
    try:
        content = save(_flat(params, model_state), metadata=about)
    except SafetensorError as error:
        raise TypeError(f"`params` or `model_state` hold what safetensors cannot: {error}") from error
    return replace_file(path, content)


def load_safetensors(path: Path, like: Arrays | None = None) -> Arrays:
    """Reads what `save_safetensors` wrote, or any other `.safetensors` file as parameters."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise ValueError(f"`{path}` is no safetensors file, or it is damaged: {error}") from error
    if about.get("format") != FORMAT:
        flat = {f"params/{name}": array for name, array in flat.items()}
    plan = Plan.from_json(about["plan"]) if about.get("plan") else None
    return _arranged(_nested(flat), like, path)._replace(plan=plan)


def save_orbax(path: Path, params: Any, model_state: Any = None, plan: Plan | None = None) -> Path:
    """Writes an orbax checkpoint, a folder, with `params`, `model_state` and beside them `plan.json`."""
    from orbax import checkpoint

    path = Path(path).absolute()
    with checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, _nested(_flat(params, model_state)), force=True)
    if plan is not None:
        replace_file(path / "plan.json", plan.to_json().encode())
    return path


def load_orbax(path: Path, like: Arrays | None = None) -> Arrays:
    """Reads what `save_orbax` wrote."""
    from orbax import checkpoint

    path = Path(path).absolute()
    with checkpoint.StandardCheckpointer() as checkpointer:
        structs = jax.tree.map(
            lambda found: jax.ShapeDtypeStruct(found.shape, found.dtype), checkpointer.metadata(path).item_metadata.tree
        )
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        structs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), structs)
        found = checkpointer.restore(path, structs)
    text = path / "plan.json"
    return _arranged(found, like, path)._replace(plan=Plan.from_json(text.read_text()) if text.exists() else None)


def _flat(params: Any, model_state: Any) -> dict[str, np.ndarray]:
    trees = {"params": params} | ({} if model_state is None else {"model_state": model_state})
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    flat = {leaf_path(path): np.ascontiguousarray(leaf) for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("Two leaves of the parameters have the same path; give their dictionaries keys without `/`.")
    return flat


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return tree


def _arranged(tree: Any, like: Arrays | None, path: Any) -> Arrays:
    if "params" not in tree:
        raise ValueError(f"`{path}` holds {', '.join(tree) or 'nothing'}, not `params`.")
    tree = jax.tree.map(jnp.asarray, tree)
    found = Arrays(tree["params"], tree.get("model_state"))
    if like is None:
        return found
    return Arrays(*(_like(a, b, path) for a, b in zip(found[:2], like[:2], strict=True)))


def _like(found: Any, wanted: Any, path: Any) -> Any:
    leaves = leaves_by_path(found)

    def pick(key_path: Any, leaf: Any) -> jax.Array:
        name = leaf_path(key_path)
        shape = None if name not in leaves else leaves[name].shape
        if shape != tuple(leaf.shape):
            has = "lacks it" if shape is None else f"has {shape}"
            raise ValueError(f"The leaf `{name}` is to have the shape {tuple(leaf.shape)}, but `{path}` {has}.")
        return leaves[name]

    return jax.tree_util.tree_map_with_path(pick, wanted)
