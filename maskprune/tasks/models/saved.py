"""A network as one `.npz` file: plain arrays and a JSON header, readable without this library, never a pickle."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskprune.base.archives import read_npz
from maskprune.base.checks import show, strict
from maskprune.base.files import replace_file
from maskprune.masks.network import Params, on_device
from maskprune.tasks.models.fcn import check_layers, fcn, layer_names


FORMAT = "maskprune-fcn-1"
MOST_BYTES = 1 << 28  # a quarter of a gigabyte: 67 million weights


@strict
def save(path: str | Path, params: Params, *, about: Mapping[str, Any] | None = None) -> Path:
    """Writes the parameters of an FCN whole or not at all; an existing file is replaced.

    Args:
        path: File name, usually ending in `.npz`.
        params: As from `FCN.init`, or compacted.
        about: JSON-able facts to keep with the network.

    Raises:
        ValueError: `path` names no file, or an array holds numbers that are not finite.
        TypeError: `params` are none of an FCN in float32, or `about` is not JSON.
        OSError: A file or folder cannot be read, or not be written.
    """
    check_layers(params)
    arrays: dict[str, Any] = {
        f"{layer}/{name}": np.asarray(a) for layer, leaves in params.items() for name, a in leaves.items()
    }
    _check_arrays(arrays)
    header = json.dumps({"format": FORMAT, "layers": layer_names(len(params)), "about": _plain(about or {})})
    content = io.BytesIO()
    np.savez(content, header=np.array(header), **arrays)
    return replace_file(path, content.getvalue())


def _check_arrays(arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise TypeError(f"`params` hold {array.dtype} as `{name}`, not float32, which is what `load` reads.")
        if not np.isfinite(array).all():
            raise ValueError(f"`params` hold numbers that are not finite as `{name}`: the network is of no use.")


def _plain(about: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(dict(about)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"`about` is {show(about)}, which is not JSON: use texts, numbers and lists.") from error


@strict
def load(path: str | Path) -> tuple[Any, Params]:
    """Reads a saved network.

    Returns:
        `(apply, params)` with `apply(params, pictures) -> outputs`, float32[N, H, W, I] to float32[N, H, W, O].

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The file is not a saved network, its arrays do not fit together or are others, or their numbers are
            not finite.
    """
    arrays = _read(path)
    header = _header(arrays.pop("header", None), path)
    _check_names(arrays, header["layers"], path)
    params = {
        layer: {n: _array(arrays, f"{layer}/{n}", path) for n in ("kernel", "bias")} for layer in header["layers"]
    }
    _check_chain([layer["kernel"].shape for layer in params.values()], params, path)
    # Only the count of layers matters: `apply` reads every width from the parameters, and a layer may even be empty.
    return jax.jit(fcn([1] * (len(params) - 1)).apply), params


def _read(path: str | Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(path, most_bytes=MOST_BYTES)
    except ValueError as error:
        raise ValueError(f"`{path}` is not a network saved by maskprune, or it is damaged: {error}") from error


def _header(raw: np.ndarray | None, path: Any) -> dict[str, Any]:
    try:
        header = json.loads(str(raw))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"`{path}` is not a network saved by maskprune (its header does not say {FORMAT}).")
    layers = header.get("layers")
    if not isinstance(layers, list) or not layers or layers != layer_names(len(layers)):
        raise ValueError(f"`{path}`: its header gives the layers {str(layers)[:80]}, not conv1, conv2 and so on.")
    return header


def _array(arrays: Mapping[str, np.ndarray], name: str, path: Any) -> jax.Array:
    if name not in arrays:
        raise ValueError(f"`{path}` has no array `{name}`: the file is incomplete.")
    if arrays[name].dtype != np.float32:
        raise ValueError(f"`{path}`: the array `{name}` holds {arrays[name].dtype}, not float32.")
    if not np.isfinite(arrays[name]).all():
        raise ValueError(f"`{path}`: the array `{name}` holds numbers that are not finite: the network is of no use.")
    return on_device(arrays[name])


def _check_names(arrays: Mapping[str, Any], layers: list[str], path: Any) -> None:
    known = {f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")}
    if extra := sorted(arrays.keys() - known):
        raise ValueError(f"`{path}` holds the array `{extra[0][:80]}`, which no network saved by maskprune has.")


def _check_chain(kernels: list[tuple[int, ...]], params: Params, path: Any) -> None:
    square = all(len(shape) == 4 and shape[0] == shape[1] and shape[0] % 2 == 1 for shape in kernels)
    linked = square and all(a[3] == b[2] for a, b in itertools.pairwise(kernels))
    if not linked or any(layer["bias"].shape != layer["kernel"].shape[3:] for layer in params.values()):
        raise ValueError(
            f"`{path}`: the arrays do not form a chain of convolutions; the kernels are {str(kernels)[:200]}."
        )
