"""Writing a network for other programs, and reading it back.

The ending of the file says what it becomes: a program with its weights (`.stablehlo`, `.onnx`) or the weights alone
(`.safetensors`, `.orbax`). Knows no framework; ONNX and safetensors are optional packages, imported where used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maskprune._strict import NotNegative, check_leaves, strict
from maskprune.export.arrays import Arrays as Arrays
from maskprune.export.arrays import load_orbax, load_safetensors, save_orbax, save_safetensors
from maskprune.export.check import coarsest, compare
from maskprune.export.errors import ExportError as ExportError
from maskprune.export.errors import Uncovered, first_line
from maskprune.export.programs import load_onnx, load_stablehlo, portable, save_onnx, save_stablehlo, traced
from maskprune.export.stored import to_write
from maskprune.export.symbolic import Free, find_free, less_free
from maskprune.files import drafted
from maskprune.models.saved import load
from maskprune.plan import Plan


class Exported(NamedTuple):
    """What was written.

    Attributes:
        path: The file, or for orbax the folder.
        shapes: The shapes it takes, one for every input array, such as `"(n, h, w, 1)"`; none for weights alone.
        note: Which sizes had to be fixed and why; "" if none.
        difference: Largest difference from the function on the inputs, or None where they were abstract.
    """

    path: Path
    shapes: tuple[str, ...] = ()
    note: str = ""
    difference: float | None = None


PROGRAMS: dict[str, tuple[Callable[..., str], Callable[[Path], Callable[..., Any]]]] = {
    ".stablehlo": (save_stablehlo, load_stablehlo),
    ".onnx": (save_onnx, load_onnx),
}
ARRAYS: dict[str, tuple[Callable[..., Path], Callable[..., Arrays]]] = {
    ".safetensors": (save_safetensors, load_safetensors),
    ".orbax": (save_orbax, load_orbax),
}
ENDINGS = (*PROGRAMS, *ARRAYS)
EXTRAS = {"onnx": "onnx", "onnxruntime": "onnx", "safetensors": "safetensors"}


@strict
def export(
    apply: Callable[..., Any] | None,
    params: Any,
    path: str | Path,
    *,
    inputs: Sequence[Any] = (),
    model_state: Any = None,
    plan: Plan | None = None,
    shapes: Sequence[str] | None = None,
    tolerance: NotNegative = 1e-4,
) -> Exported:
    """Writes a network, reads it back and compares the two.

    | ending | holds | needs |
    | --- | --- | --- |
    | `.stablehlo` | the program with its weights, for `jax.export` on CPU, CUDA or TPU | |
    | `.onnx` | the program with its weights, opset 18 | `pip install "maskprune[onnx]"` |
    | `.safetensors` | weights and state by path; the plan in the metadata | `pip install "maskprune[safetensors]"` |
    | `.orbax` | weights and state as a checkpoint; the plan beside them | |

    Programs take inputs of any batch, height and width where the function allows it. Where it does not (a dense layer
    on flattened pictures, say), the smallest set of sizes is fixed, and `note` says which and why.

    Args:
        apply: `apply(params, *inputs)`, or `apply(params, model_state, *inputs)`, small or not; None for weights alone.
        params: Its parameters.
        path: File to write, whole or not at all; its ending decides. Missing folders are made.
        inputs: For programs: sample inputs. Arrays are also run; `jax.ShapeDtypeStruct`s only say shapes.
        model_state: Non-trained variables, where `apply` takes them.
        plan: What was cut, kept beside the weights.
        shapes: Shapes to allow, one for every input array, as in `jax.export.symbolic_shape`: `("n, 64, 64, 3",)`.
            By default the freest that work.
        tolerance: Largest difference allowed, relative to the largest output magnitude (1 if that is smaller).

    Raises:
        TypeError: A leaf of `params` or `model_state` is no array, or there is no function where one is written.
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The ending is unknown, `inputs` are missing, or the function does not run on them.
        ImportError: The format needs a package that is not installed.
        ExportError: Part of the function has no counterpart in the format, or what was written computes other numbers.
    """
    path = Path(path)
    params, stored = to_write(params)
    check_leaves("params", jax.tree.leaves(params))
    check_leaves("model_state", jax.tree.leaves(model_state))
    if path.suffix not in ENDINGS:
        raise ValueError(f"`{path}` ends in none of {', '.join(ENDINGS)}, so it does not say what to write.")
    if path.suffix in ARRAYS:
        return _noted(_write(path, partial(_write_arrays, path, params, model_state, plan)), stored)
    if apply is None:
        raise TypeError(f"`apply` is None: give the function to write as `{path.name}`.")
    if not inputs:
        raise ValueError(f"Give `inputs`, sample inputs or their shapes, to write `{path.name}`.")
    check_leaves("inputs", [leaf for leaf in jax.tree.leaves(inputs) if not isinstance(leaf, jax.ShapeDtypeStruct)])
    stateful = apply if model_state is None else lambda params, *inputs: apply(params, model_state, *inputs)
    job = _Job(path, stateful, params, inputs, shapes, tolerance)
    return _noted(_write(path, partial(_write_program, job)), stored)


def _noted(found: Exported, *notes: str) -> Exported:
    return found._replace(note="; ".join(filter(None, (found.note, *notes))))


@strict
def load_program(path: str | Path) -> Callable[..., Any]:
    """The function in a `.stablehlo` or `.onnx` file: `program(*inputs) -> output`, with its weights inside.

    An ONNX program runs in onnxruntime and gives NumPy arrays: one, or a list.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The ending is another, or the file is damaged.
        ImportError: ONNX's packages are not installed.
    """
    path = Path(path)
    if path.suffix not in PROGRAMS:
        raise ValueError(f"`{path}` is no program: those end in {' or '.join(PROGRAMS)}.")
    return _with_extras(path, lambda: PROGRAMS[path.suffix][1](path))


@strict
def load_arrays(path: str | Path, like: Arrays | None = None) -> Arrays:
    """The weights in a `.safetensors` file or an `.orbax` folder: `(params, model_state, plan)`.

    Args:
        path: What `export` wrote.
        like: Trees of (abstract) arrays to arrange the weights like, `Arrays(params, model_state)`. Without it they
            come as nested dictionaries with text as keys, `"0"` where a list had 0.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The ending is another, the file is damaged, or a leaf of `like` is missing or has another shape.
        ImportError: The format's package is not installed.
    """
    path = Path(path)
    if path.suffix not in ARRAYS:
        raise ValueError(f"`{path}` holds no weights alone: those end in {' or '.join(ARRAYS)}.")
    return _with_extras(path, lambda: ARRAYS[path.suffix][1](path, like))


class _Job(NamedTuple):
    path: Path
    apply: Callable[..., Any]
    params: Any
    inputs: Sequence[Any]
    shapes: Sequence[str] | None
    tolerance: float


def _write_program(job: _Job, draft: Path) -> Exported:
    program = portable(job.apply, job.params)
    free, note, back = _first_written(job, draft, program)
    jaxpr, _, calls = traced(job.apply, job.params, job.inputs)
    left = f"left out, since no program calls Python: {', '.join(calls)}" if calls else ""
    found = _noted(Exported(job.path, free.shapes, free.note), note, left)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(job.inputs)):
        return found
    arguments, unit = (job.params, *job.inputs), coarsest(jaxpr)
    worst = compare(job.path.name, back, job.apply, arguments, tolerance=job.tolerance, unit=unit)
    return found._replace(difference=worst)


def _first_written(job: _Job, draft: Path, program: Callable[..., Any]) -> tuple[Free, str, Callable[..., Any]]:
    """What has no counterpart may have one where fewer sizes are symbols: strided slices, for one."""
    save, load = PROGRAMS[job.path.suffix]
    free = find_free(program, job.inputs, job.shapes)
    reasons: list[str] = []
    for fewer in (free,) if job.shapes is not None else (free, *less_free(program, job.inputs, free)):
        note = fewer.note if fewer is free else f"{fewer.note}: {reasons[-1]}"
        try:
            told = save(draft, program, fewer.structs)
            return fewer._replace(note=note), told, load(draft)
        except (OSError, ImportError):
            raise
        except Uncovered as error:
            reasons.append(f"{error} has no counterpart in ONNX here")
        except Exception as error:  # each format has its own
            reasons.append(_about(job.path, draft, first_line(error)))
    raise ExportError(f"`{job.path.name}` cannot be written and read back: {reasons[-1].removesuffix('.')}.")


def _write_arrays(path: Path, params: Any, model_state: Any, plan: Plan | None, draft: Path) -> Exported:
    save, load = ARRAYS[path.suffix]
    try:
        save(draft, params, model_state, plan)
    except OSError as error:
        raise error if error.errno else OSError(_about(path, draft, str(error))) from error
    try:
        load(draft)  # which compares the digest
    except (ValueError, TypeError, AttributeError) as error:
        raise ExportError(
            f"`{path.name}` was written and cannot be read: {_about(path, draft, first_line(error))}"
        ) from error
    return Exported(path)


def _about(path: Path, draft: Path, text: str) -> str:
    """A message about the file, and not its draft."""
    return text.replace(str(draft.absolute()), path.name).replace(str(draft), path.name)


def _write(path: Path, work: Callable[[Path], Exported]) -> Exported:
    """Writes under another name, and moves the file into place when it was read back."""
    with drafted(path) as draft:
        return _with_extras(path, lambda: work(draft))


def _with_extras(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ImportError as error:
        extra = EXTRAS.get(str(error.name).split(".")[0])
        if extra is None:
            raise
        raise ImportError(
            f'`{path.name}` needs the package `{error.name}`: pip install "maskprune[{extra}]"', name=error.name
        ) from error


@strict
def export_saved(network: str | Path, folder: str | Path, formats: Sequence[str] | None = None) -> list[Exported]:
    """Writes a saved FCN (`models.save`) as `network.stablehlo` and so on, named as the file.

    Args:
        network: What `models.save` wrote, such as the `network.npz` of a search.
        folder: Where to write.
        formats: Some of `"stablehlo"`, `"onnx"`, `"safetensors"`, `"orbax"`. By default all whose packages are
            installed.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The file is no saved network, or a format is unknown.
        ImportError: A format that was asked for needs a package that is not installed.
    """
    endings = [ending[1:] for ending in ENDINGS]
    unknown = [name for name in formats or () if name not in endings]
    if unknown:
        raise ValueError(f"`formats` holds {unknown[0]!r}: use some of {', '.join(endings)}.")
    apply, params = load(network)
    channels = next(iter(params.values()))["kernel"].shape[2]
    inputs = [np.random.default_rng(0).random((1, 32, 48, channels), np.float32)]
    written = []
    for name in endings if formats is None else formats:
        try:
            written.append(export(apply, params, Path(folder) / f"{Path(network).stem}.{name}", inputs=inputs))
        except ImportError as error:
            if formats is not None or str(error.name).split(".")[0] not in EXTRAS:
                raise
    return written
