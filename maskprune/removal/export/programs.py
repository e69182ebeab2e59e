"""Whole networks with their weights inside, as programs that run without this library: StableHLO and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax import export as jax_export

from maskprune.base.files import replace_file
from maskprune.conv import OWN
from maskprune.masks.jaxpr.internals import run
from maskprune.masks.jaxpr.rules import RULES
from maskprune.removal.export.blame import unfit
from maskprune.removal.export.dead import live
from maskprune.removal.export.seals import read_sealed, sealed
from maskprune.removal.plan import Plan
from maskprune.removal.rerun import shrink


Program = Callable[..., Any]
PLATFORMS = ("cpu", "cuda", "tpu")
PORTABLE = {
    name: RULES[name]._replace(shrink=partial(RULES[name].shrink, way="xla")) for name in (f"jit:{own}" for own in OWN)
}


# What stands before a program's seal. Readers of flatbuffers pass over what follows them; for ONNX it is an entry of
# `metadata_props` (field 14: a key, field 1, of 6 letters, and a value, field 2, of 64), since fields may come late.
STABLEHLO_MARK = b"\nmaskprune sha256 "
ONNX_MARK = b"\x72\x4a\x0a\x06sha256\x12\x40"


def portable(apply: Program, params: Any) -> Program:
    """`program(*inputs)`: the function on these parameters, without what nobody reads, with XLA's convolution in place
    of this library's own.

    The blocked form is made for training on a CPU; everywhere else, a convolution that says so runs better.

    Raises:
        Unfit: When called: the function does not run on these inputs.
    """

    def program(*inputs: Any) -> Any:
        run = lambda params, *inputs: evaluate(traced(apply, params, inputs), params, inputs)
        if any(name in str(traced(apply, params, inputs)[0]) for name in OWN):
            run = shrink(run, Plan(()), rules=PORTABLE)
        return run(params, *inputs)

    return program


def traced(apply: Program, params: Any, inputs: Sequence[Any]) -> tuple[Any, Any, tuple[str, ...]]:
    """The live jaxpr of `apply(params, *inputs)`, the tree of its output, and calls of Python that are left out."""

    def watched(params: Any, *inputs: Any) -> Any:
        try:
            return apply(params, *inputs)
        except Exception as error:  # whatever a function does with a size that it is not made for
            raise unfit(error, params) from error

    jaxpr, output = jax.make_jaxpr(watched, return_shape=True)(params, *inputs)
    jaxpr, calls = live(jaxpr)
    return jaxpr, jax.tree.structure(output), calls


def evaluate(program: tuple[Any, Any, tuple[str, ...]], params: Any, inputs: Sequence[Any]) -> Any:
    """Runs what `traced` gave."""
    jaxpr, tree, _ = program
    return jax.tree.unflatten(tree, run(jaxpr, *jax.tree.leaves((params, *inputs))))


def save_stablehlo(path: Path, program: Program, structs: Sequence[Any]) -> str:
    """Writes StableHLO for CPU, CUDA and TPU as `jax.export` serializes it. Returns a note, "" here."""
    exported = jax_export.export(jax.jit(program), platforms=PLATFORMS)(*structs)
    replace_file(path, sealed(bytes(exported.serialize()), STABLEHLO_MARK))
    return ""


def load_stablehlo(path: Path) -> Program:
    """Reads any function that `jax.export` serialized."""
    content = read_sealed(path, STABLEHLO_MARK)
    try:
        exported = jax_export.deserialize(bytearray(content))
    except Exception as error:  # the reader of the format raises nearly anything on other bytes
        raise ValueError(f"`{path}` is no function exported by JAX, or it is damaged: {error}") from error
    return jax.jit(exported.call)


def save_onnx(path: Path, program: Program, structs: Sequence[Any]) -> str:
    """Writes an ONNX model, in float32 where onnxruntime has no kernels of a smaller type. Returns a note."""
    from maskprune.removal.export.onnx_float32 import in_float32, small_types
    from maskprune.removal.export.onnx_graph import to_onnx
    from maskprune.removal.export.runtime import Session

    model, note = to_onnx(program, structs), ""
    content = model.SerializeToString()
    if small := small_types(model):
        try:
            Session(content)
        except ValueError:
            content = in_float32(model).SerializeToString()
            note = f"computed in float32: onnxruntime does not compute all of it in {' and '.join(small)} on a CPU"
    replace_file(path, sealed(content, ONNX_MARK))
    return note


def load_onnx(path: Path) -> Program:
    """Reads any ONNX model, run by onnxruntime on the CPU: takes arrays in the order of its inputs."""
    from maskprune.removal.export.runtime import Session, silent_onnxruntime

    silent_onnxruntime()  # before the file: a package that is missing is told first
    content = read_sealed(path, ONNX_MARK)
    try:
        return Session(content).run
    except ValueError as error:
        raise ValueError(f"`{path}` is no ONNX model that onnxruntime can run: {error}") from error
