"""Weights alone, in files that other programs read: safetensors and orbax.

Both hold the parameters and the model state as nested dictionaries with text as keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checkpoints import quiet
from maskprune.base.files import replace_file
from maskprune.masks.groups import leaf_path, leaves_by_path
from maskprune.removal.export.seals import digest_arrays
from maskprune.removal.plan import Plan


FORMAT = "maskprune arrays 1"
EMPTY = "empty.json"  # in a checkpoint: types and shapes of arrays without entries
NOTHING = {"nothing": np.zeros(1, np.int8)}  # what a checkpoint holds that would hold no array


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

    flat, text = _flat(params, model_state), "" if plan is None else plan.to_json()
    about = {"format": FORMAT, "plan": text, "sha256": digest_arrays(flat, text)}
    try:
        content = save(flat, metadata=about)
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
    except (SafetensorError, ValueError, TypeError, MemoryError) as error:
        raise ValueError(f"`{path}` is no safetensors file, or it is damaged: {error}") from error
    _check_digest(path, about.get("sha256"), flat, about.get("plan", ""))
    if about.get("format") != FORMAT:
        flat = {f"params/{name}": array for name, array in flat.items()}
    plan = Plan.from_json(about["plan"]) if about.get("plan") else None
    return _arranged(_nested(flat, path), like, path)._replace(plan=plan)


def save_orbax(path: Path, params: Any, model_state: Any = None, plan: Plan | None = None) -> Path:
    """Writes an orbax checkpoint, a folder, with `params`, `model_state` and beside them `plan.json` and a digest."""
    from orbax import checkpoint

    path, flat, text = Path(path).absolute(), _flat(params, model_state), "" if plan is None else plan.to_json()
    full = {name: array for name, array in flat.items() if array.size}
    # Not the checkpointer that saves in the background: where the disk fails, its threads keep the program from ending.
    try:
        with quiet(), checkpoint.Checkpointer(checkpoint.StandardCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=checkpoint.args.StandardSave(_nested(full or NOTHING, path)), force=True)
    except Exception as error:  # orbax and tensorstore each have their own
        raise OSError(f"`{path}` cannot be written: {error}") from error
    if text:
        replace_file(path / "plan.json", text.encode())
    if empty := {name: [str(array.dtype), array.shape] for name, array in flat.items() if not array.size}:
        replace_file(path / EMPTY, json.dumps(empty).encode())
    replace_file(path / "sha256", digest_arrays(flat, text).encode())
    return path


def load_orbax(path: Path, like: Arrays | None = None) -> Arrays:
    """Reads what `save_orbax` wrote."""
    from orbax import checkpoint

    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"`{path}` is no folder, so no orbax checkpoint.")
    try:
        text, digest = (_text(path / name) for name in ("plan.json", "sha256"))
        with checkpoint.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(path, _blank(checkpointer.metadata(path).item_metadata.tree))
        found = _nested({**_leaves(found), **_empty(path)}, path)
        flat = _flat(**{name: found.get(name) for name in ("params", "model_state")})
    except Exception as error:  # its many readers each have their own
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"`{path}` is no orbax checkpoint, or it is damaged: {line}") from error
    _check_digest(path, digest, flat, text)
    return _arranged(found, like, path)._replace(plan=Plan.from_json(text) if text else None)


def _leaves(found: Any) -> dict[str, Any]:
    return {name: leaf for name, leaf in leaves_by_path(found).items() if name not in NOTHING}


def _empty(path: Path) -> dict[str, np.ndarray]:
    """The arrays without entries, which orbax itself cannot hold."""
    empty = json.loads(_text(path / EMPTY) or "{}")
    return {name: np.zeros(shape, jnp.dtype(kind)) for name, (kind, shape) in empty.items()}


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _blank(tree: Any) -> Any:
    """What orbax is to fill: on the host, where 64 bits stay 64 bits."""
    return jax.tree.map(lambda found: np.zeros(found.shape, found.dtype), tree)


def _check_digest(path: Path, digest: str | None, flat: Mapping[str, np.ndarray], text: str) -> None:
    if digest and digest != digest_arrays(flat, text):
        raise ValueError(f"`{path}` is damaged: its arrays or its plan are not those that were written.")


def _flat(params: Any, model_state: Any) -> dict[str, np.ndarray]:
    trees = {"params": params} | ({} if model_state is None else {"model_state": model_state})
    leaves = jax.tree_util.tree_leaves_with_path(trees)
    flat = {leaf_path(path): np.ascontiguousarray(leaf).reshape(np.shape(leaf)) for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("Two leaves of the parameters have the same path; give their dictionaries keys without `/`.")
    return flat


def _nested(flat: Mapping[str, Any], source: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise ValueError(f"`{source}`: `{path}` cannot be, since a part of it is an array already.")
        if name in place:
            raise ValueError(f"`{source}`: `{path}` is an array, and the first part of another's name.")
        place[name] = leaf
    return tree


def _arranged(tree: Any, like: Arrays | None, path: Any) -> Arrays:
    if set(tree) - {"params", "model_state"}:
        raise ValueError(f"`{path}` holds {', '.join(tree)}, not `params`.")
    tree = jax.tree.map(jnp.asarray, tree)
    found = Arrays(tree.get("params", {}), tree.get("model_state"))
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
