"""onnxruntime, on the CPU. The only file that imports it.

Its telemetry is native code and on by default: it writes a device's number and a queue of events below the user's
cache folder, and sends them. It reads the variable below once, when it is imported, and nothing turns it off later.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import jax
import ml_dtypes
import numpy as np


# Types that onnxruntime computes with and NumPy has no name for: their numbers of ONNX, and as what bits travel.
OF_NO_NUMPY = {"tensor(bfloat16)": (16, np.dtype(ml_dtypes.bfloat16), np.dtype(np.uint16))}


def silent_onnxruntime() -> Any:
    """The module, imported with its telemetry off."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


# What JAX does without 64 bits, and Python's own numbers need.
NARROWED = {("f", "tensor(float)"): np.float32, ("i", "tensor(int32)"): np.int32, ("u", "tensor(uint32)"): np.uint32}


class Session:
    """A model that onnxruntime has read.

    Raises:
        ValueError: It cannot be read, or has an operation for which there is no kernel.
    """

    def __init__(self, content: bytes) -> None:
        onnxruntime = silent_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # each kind of failure has its own
            raise ValueError(" ".join(str(error).split())) from error

    def run(self, *inputs: Any) -> Any:
        """Takes arrays in the order of the model's inputs; gives a NumPy array, or a list of them.

        Raises:
            ValueError: There are more or fewer arrays.
        """
        leaves, wanted = jax.tree.leaves(inputs), self._session.get_inputs()
        names = [each.name for each in wanted]
        if len(leaves) != len(names):
            raise ValueError(f"The model takes {len(names)} arrays ({', '.join(names)}), not {len(leaves)}.")
        values = {each.name: _value(leaf, each.type) for each, leaf in zip(wanted, leaves, strict=True)}
        found = [_array(value) for value in self._session.run_with_ort_values(None, values)]
        return found[0] if len(found) == 1 else found


def _value(leaf: Any, kind: str) -> Any:
    array = np.ascontiguousarray(leaf).reshape(np.shape(leaf))
    if (array.dtype.kind, kind) in NARROWED and array.dtype.itemsize == 8:
        array = array.astype(NARROWED[array.dtype.kind, kind])
    value = silent_onnxruntime().OrtValue
    if kind not in OF_NO_NUMPY:
        return value.ortvalue_from_numpy(array)
    number, dtype, bits = OF_NO_NUMPY[kind]
    if array.dtype != dtype:
        raise ValueError(f"The model takes {dtype}, not {array.dtype}.")
    return value.ortvalue_from_numpy_with_onnx_type(array.view(bits), number)


def _array(value: Any) -> np.ndarray:
    if value.data_type() not in OF_NO_NUMPY:
        return value.numpy()
    _, dtype, _ = OF_NO_NUMPY[value.data_type()]
    shape = tuple(value.shape())
    content = ctypes.string_at(value.data_ptr(), dtype.itemsize * int(np.prod(shape)))
    return np.frombuffer(content, dtype).reshape(shape)
