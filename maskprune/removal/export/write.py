"""Files of every format: written under another name, read back, compared, and moved into place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from maskprune.base.files import drafted
from maskprune.removal.export.arrays import Arrays, load_orbax, load_safetensors, save_orbax, save_safetensors
from maskprune.removal.export.check import coarsest, compare
from maskprune.removal.export.errors import ExportError, Uncovered, first_line
from maskprune.removal.export.programs import load_onnx, load_stablehlo, portable, save_onnx, save_stablehlo, traced
from maskprune.removal.export.symbolic import Free, find_free, less_free
from maskprune.removal.plan import Plan


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


class Job(NamedTuple):
    """A program to write, as `export` was asked for it."""

    path: Path
    apply: Callable[..., Any]
    params: Any
    inputs: Sequence[Any]
    shapes: Sequence[str] | None
    tolerance: float


def write_program(job: Job, *, note: str = "") -> Exported:
    """Writes a program with its weights. See `export` for what it raises."""
    return _noted(_write(job.path, partial(_program, job)), note)


def write_arrays(path: Path, params: Any, model_state: Any, plan: Plan | None, *, note: str = "") -> Exported:
    """Writes weights alone. See `export` for what it raises."""
    return _noted(_write(path, partial(_arrays, path, params, model_state, plan)), note)


def _noted(found: Exported, *notes: str) -> Exported:
    return found._replace(note="; ".join(filter(None, (found.note, *notes))))


def _program(job: Job, draft: Path) -> Exported:
    program = portable(job.apply, job.params)
    free = find_free(program, job.inputs, job.shapes)
    jaxpr, tree, calls = traced(job.apply, job.params, job.inputs)
    if not tree.num_leaves:
        raise ValueError(f"`apply` gives no arrays, so there is nothing to write as `{job.path.name}`.")
    free, note, back = _first_written(job, draft, program, free)
    left = f"left out, since no program calls Python: {', '.join(calls)}" if calls else ""
    found = _noted(Exported(job.path, free.shapes, free.note), note, left)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(job.inputs)):
        return found
    arguments, unit = (job.params, *job.inputs), coarsest(jaxpr)
    worst = compare(job.path.name, back, job.apply, arguments, tolerance=job.tolerance, unit=unit)
    return found._replace(difference=worst)


def _first_written(
    job: Job, draft: Path, program: Callable[..., Any], free: Free
) -> tuple[Free, str, Callable[..., Any]]:
    """What has no counterpart may have one where fewer sizes are symbols: strided slices, for one."""
    save, load = PROGRAMS[job.path.suffix]
    reasons: list[str] = []
    for fewer in _candidates(job, program, free):
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


def _candidates(job: Job, program: Callable[..., Any], free: Free) -> Iterator[Free]:
    yield free
    if job.shapes is None:
        yield from less_free(program, job.inputs, free)


def _arrays(path: Path, params: Any, model_state: Any, plan: Plan | None, draft: Path) -> Exported:
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
        return with_extras(path, lambda: work(draft))


def with_extras(path: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ImportError as error:
        extra = EXTRAS.get(str(error.name).split(".")[0])
        if extra is None:
            raise
        raise ImportError(
            f'`{path.name}` needs the package `{error.name}`: pip install "maskprune[{extra}]"', name=error.name
        ) from error
