"""Whole networks with their weights inside, as programs that run without this library: StableHLO and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from maskprune.conv import OWN
from maskprune.export.seals import read_sealed, sealed
from maskprune.files import replace_file
from maskprune.plan import Plan
from maskprune.rules import RULES
from maskprune.shrink import shrink


Program = Callable[..., Any]
PLATFORMS = ("cpu", "cuda", "tpu")
PORTABLE = {
    name: RULES[name]._replace(shrink=partial(RULES[name].shrink, way="xla")) for name in (f"jit:{own}" for own in OWN)
}


# What stands before a program's seal. Readers of flatbuffers pass over what follows them; for ONNX it is an entry of
# `metadata_props` (field 14: a key, field 1, of 6 letters, and a value, field 2, of 64), since fields may come late.
STABLEHLO_MARK = b"\nmaskprune sha256 "
ONNX_MARK = b"\x72\x4a\x0a\x06sha256\x12\x40"


class Uncovered(ValueError):
    """Part of a function that a format does not cover."""


def portable(apply: Program, params: Any) -> Program:
    """`program(*inputs)`: the function on these parameters, with XLA's convolution in place of this library's own.

    The blocked form is made for training on a CPU; everywhere else, a convolution that says so runs better.
    """

    def program(*inputs: Any) -> Any:
        run = lambda params, *inputs: apply(params, *inputs)
        text = str(jax.make_jaxpr(run)(params, *inputs))
        if any(name in text for name in OWN):
            run = shrink(apply, Plan(()), rules=PORTABLE)
        return run(params, *inputs)

    return program


def save_stablehlo(path: Path, program: Program, structs: Sequence[Any]) -> Path:
    """Writes StableHLO for CPU, CUDA and TPU as `jax.export` serializes it."""
    exported = jax_export.export(jax.jit(program), platforms=PLATFORMS)(*structs)
    return replace_file(path, sealed(bytes(exported.serialize()), STABLEHLO_MARK))


def load_stablehlo(path: Path) -> Program:
    """Reads any function that `jax.export` serialized."""
    content = read_sealed(path, STABLEHLO_MARK)
    try:
        exported = jax_export.deserialize(bytearray(content))
    except Exception as error:  # the reader of the format raises nearly anything on other bytes
        raise ValueError(f"`{path}` is no function exported by JAX, or it is damaged: {error}") from error
    return jax.jit(exported.call)


def save_onnx(path: Path, program: Program, structs: Sequence[Any]) -> Path:
    """Writes an ONNX model."""
    from maskprune.export.onnx_graph import to_onnx

    return replace_file(path, sealed(to_onnx(program, structs).SerializeToString(), ONNX_MARK))


def load_onnx(path: Path) -> Program:
    """Reads any ONNX model, run by onnxruntime on the CPU: takes arrays in the order of its inputs."""
    import onnxruntime

    content = read_sealed(path, ONNX_MARK)
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"`{path}` is no ONNX model that onnxruntime can run: {error}") from error
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Any) -> Any:
        leaves = jax.tree.leaves(inputs)
        if len(leaves) != len(names):
            raise ValueError(f"The model takes {len(names)} arrays ({', '.join(names)}), not {len(leaves)}.")
        found = session.run(None, dict(zip(names, map(np.asarray, leaves), strict=True)))
        return found[0] if len(found) == 1 else list(found)

    return run
