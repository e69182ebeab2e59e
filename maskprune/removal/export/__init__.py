"""Writing a network for other programs, and reading it back.

The ending of the file says what it becomes: a program with its weights (`.stablehlo`, `.onnx`) or the weights alone
(`.safetensors`, `.orbax`). Knows no framework; ONNX and safetensors are optional packages, imported where used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from maskprune.base.checks import NotNegative, check_leaves, strict
from maskprune.removal.export.arrays import Arrays as Arrays
from maskprune.removal.export.errors import ExportError as ExportError
from maskprune.removal.export.stored import to_write
from maskprune.removal.export.write import ARRAYS, ENDINGS, Job, with_extras, write_arrays, write_program
from maskprune.removal.export.write import PROGRAMS as PROGRAMS
from maskprune.removal.export.write import Exported as Exported
from maskprune.removal.plan import Plan


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

    Programs take inputs of any batch, height, width and length where the function allows it. Where it does not (a
    dense layer on flattened pictures, say), as few sizes as possible are fixed, and `note` names the parameter or the
    line that needs them. What nobody reads is left out; so are calls of Python such as `jax.debug.print`, with a note.

    bfloat16 and float16 stay what they are, in weights, inputs and outputs. Where onnxruntime has no kernels of them on
    a CPU, an ONNX program computes in float32 in between, and `note` says so.

    A file is written under another name, read back, compared, and only then moved into place: where anything fails,
    nothing is left, and a file that stood there before still stands.

    Args:
        apply: `apply(params, *inputs)`, or `apply(params, model_state, *inputs)`, small or not; None for weights alone.
        params: Its parameters, or a `Network`, whose effective parameters are written. Not `network.params`: those hold
            what disabled masks stored. `note` tells it, and a warning, as long as that network exists.
        path: File to write, whole or not at all; its ending decides. Missing folders are made.
        inputs: For programs: sample inputs. Arrays are also run; `jax.ShapeDtypeStruct`s only say shapes.
        model_state: Non-trained variables, where `apply` takes them.
        plan: What was cut, kept beside the weights.
        shapes: Shapes to allow, one for every input array, as in `jax.export.symbolic_shape`: `("n, 64, 64, 3",)`.
            By default the freest that work.
        tolerance: Largest difference allowed, relative to the largest output magnitude (1 if that is smaller). More
            is allowed where rounding explains it: the unit in the last place of the coarsest type that the function
            computes in, or ten times what moving every parameter and input by that unit does to the outputs.

    Raises:
        TypeError: A leaf of `params`, `model_state` or `inputs` is no array, or of a type that the format lacks;
            `params` is a training state; or there is no function where one is written.
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The ending is unknown, `inputs` are missing, the function does not run on them or gives nothing, or
            two parameters have the same path.
        ImportError: The format needs a package that is not installed.
        ExportError: Part of the function has no counterpart in the format, or what was written cannot be read back or
            computes other numbers.
    """
    path = Path(path)
    params, stored = to_write(params)
    check_leaves("params", jax.tree.leaves(params))
    check_leaves("model_state", jax.tree.leaves(model_state))
    if path.suffix not in ENDINGS:
        raise ValueError(f"`{path}` ends in none of {', '.join(ENDINGS)}, so it does not say what to write.")
    if path.suffix in ARRAYS:
        return write_arrays(path, params, model_state, plan, note=stored)
    if apply is None:
        raise TypeError(f"`apply` is None: give the function to write as `{path.name}`.")
    if not inputs:
        raise ValueError(f"Give `inputs`, sample inputs or their shapes, to write `{path.name}`.")
    check_leaves("inputs", [leaf for leaf in jax.tree.leaves(inputs) if not isinstance(leaf, jax.ShapeDtypeStruct)])
    stateful = apply if model_state is None else lambda params, *inputs: apply(params, model_state, *inputs)
    return write_program(Job(path, stateful, params, inputs, shapes, tolerance), note=stored)


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
    return with_extras(path, lambda: PROGRAMS[path.suffix][1](path))


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
    return with_extras(path, lambda: ARRAYS[path.suffix][1](path, like))
