"""What is read of JAX's internals: the types of jaxprs, and the parameters of primitives.

JAX may rename either between releases. All other files use the names given here, so a new release is met in this file
alone. It serves JAX 0.10 to 0.12 and raises `UnknownJaxError` for anything else. Knows no rule and no label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.extend.core as jex
from jax.interpreters import partial_eval


Literal = jex.Literal
Tracer = jax.core.Tracer
Params = Mapping[str, Any]

_WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
_REDUCTIONS = ("sum", "max", "min", "prod", "and", "or", "xor")
_SCATTERS = ("scatter", "scatter-add", "scatter_add", "scatter_mul", "scatter_min", "scatter_max")

# The parameters of each primitive that this library reads or changes.
READ: dict[str, tuple[str, ...]] = {
    "broadcast_in_dim": ("shape", "broadcast_dimensions"),
    "concatenate": ("dimension",),
    "cond": ("branches",),
    "conv_general_dilated": (
        *("dimension_numbers", "feature_group_count", "batch_group_count", "window_strides", "padding"),
        *("lhs_dilation", "rhs_dilation", "preferred_element_type"),
    ),
    "convert_element_type": ("new_dtype",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "dot_general": ("dimension_numbers", "precision"),
    "dynamic_slice": ("slice_sizes",),
    "gather": ("dimension_numbers", "slice_sizes", "mode", "fill_value"),
    "integer_pow": ("y",),
    "iota": ("dimension",),
    "jit": ("jaxpr", "name"),
    "pad": ("padding_config",),
    "reshape": ("new_sizes",),
    "rev": ("dimensions",),
    "scan": ("jaxpr", "num_consts", "num_carry", "length", "reverse", "unroll"),
    "slice": ("start_indices", "limit_indices", "strides"),
    "sort": ("dimension",),
    "split": ("axis", "sizes"),
    "squeeze": ("dimensions",),
    "stack": ("axis",),
    "tile": ("reps",),
    "transpose": ("permutation",),
    "while": ("cond_jaxpr", "cond_nconsts", "body_jaxpr", "body_nconsts"),
    **{f"reduce_{name}": ("axes",) for name in _REDUCTIONS},
    **dict.fromkeys(("argmax", "argmin"), ("axes",)),
    **dict.fromkeys(("cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp"), ("axis", "reverse")),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _WINDOW),
    **dict.fromkeys(_SCATTERS, ("dimension_numbers", "mode")),
    **dict.fromkeys(("remat2", "checkpoint"), ("jaxpr", "prevent_cse", "policy")),
}

# Where an equation keeps its inner functions, in the order in which rules number them.
BODIES: dict[str, Callable[[Params], list[Any]]] = {
    **dict.fromkeys(("jit", "pjit", "remat2", "checkpoint", "scan"), lambda params: [params["jaxpr"]]),
    **dict.fromkeys(("closed_call", "core_call"), lambda params: [params["call_jaxpr"]]),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call"), lambda params: [params["call_jaxpr"]]),
    "while": lambda params: [params["cond_jaxpr"], params["body_jaxpr"]],
    "cond": lambda params: list(params["branches"]),
}


class UnknownJaxError(RuntimeError):
    """The installed JAX describes a primitive in a way that this release of maskprune does not know."""


def parameters(equation: Any) -> Params:
    """The parameters of an equation, under the names of JAX 0.10.

    Raises:
        UnknownJaxError: One that is needed is not there.
    """
    name, params = equation.primitive.name, equation.params
    if name == "scan" and "ft_in" in params:
        params = _scan_of_0_12(params)
    missing = [each for each in READ.get(name, ()) if each not in params]
    if missing:
        raise UnknownJaxError(
            f"JAX {jax.__version__} describes `{name}` by {', '.join(params)}, without {', '.join(missing)}. This "
            "release of maskprune reads JAX 0.10 to 0.12: install one of these, or a newer maskprune."
        )
    return params


def _scan_of_0_12(params: Params) -> Params:
    """Since JAX 0.12 a scan holds trees of its inputs (constants, carry, rows) in place of their numbers."""
    consts, carry, _ = params["ft_in"].unpack()
    return {**params, "num_consts": len(consts), "num_carry": len(carry)}


def bodies(equation: Any) -> list[Any]:
    """The inner functions of an equation."""
    found = BODIES.get(equation.primitive.name)
    return [] if found is None else found(parameters(equation))


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants; one that is not closed has none."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, ())


def called(equation: Any) -> str | None:
    """The name of the jitted function that an equation calls, or None."""
    return equation.params.get("name") if equation.primitive.name in ("jit", "pjit") else None


def frames(equation: Any) -> list[tuple[str, int]]:
    """File and line of every call that led to an equation, innermost first."""
    traceback = equation.source_info.traceback
    return [] if traceback is None else [(frame.file_name, frame.line_num) for frame in traceback.frames]


def context(equation: Any) -> Any:
    """What stood around an equation where it was written: a mesh, a kind of device."""
    return equation.ctx.manager


def bind(equation: Any, arrays: Sequence[Any], changed: Params, debug_info: Any) -> Any:
    """Runs one equation on other arrays, with changed parameters.

    Args:
        equation: The equation. One with inner functions is run as a jaxpr of its own, and takes no changes.
        arrays: One for every input.
        changed: Parameters to change, by their names in `READ`.
        debug_info: That of the jaxpr which the equation stands in.
    """
    if changed or not _holds_jaxpr(equation):
        return equation.primitive.bind(*arrays, **{**equation.params, **changed})
    variables, given = {}, []
    for atom, array in zip(equation.invars, arrays, strict=True):
        if not isinstance(atom, Literal) and atom not in variables:
            variables[atom] = None
            given.append(array)
    jaxpr = jex.Jaxpr([], list(variables), equation.outvars, [equation], equation.effects, debug_info)
    return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, []))(*given)


def is_jaxpr(value: Any) -> bool:
    return isinstance(value, (jex.ClosedJaxpr, jex.Jaxpr))


def run(jaxpr: Any, *arrays: Any) -> list[Any]:
    """Runs a closed jaxpr."""
    return jex.jaxpr_as_fun(jaxpr)(*arrays)


def live(jaxpr: Any) -> Any:
    """An open jaxpr without the equations whose results nothing reads, and with all its inputs."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def is_dropped(variable: Any) -> bool:
    """Whether nothing reads an output of an equation."""
    return type(variable).__name__ == "DropVar"


def replace_bodies(equation: Any, change: Callable[[Any], Any], **fields: Any) -> Any:
    """The equation with other fields, and every jaxpr among its parameters changed, which is handed over open."""
    params = {name: _changed(value, change) for name, value in equation.params.items()}
    return equation.replace(params=params, **fields)


def every_body(equation: Any) -> list[Any]:
    """All jaxprs among the parameters of an equation, open, those of primitives that no rule knows too."""
    return [opened(each)[0] for value in equation.params.values() for each in _inside(value)]


def _inside(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [each for item in value for each in _inside(item)]
    return [value] if is_jaxpr(value) else []


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if not _inside(value):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_changed(item, change) for item in value)
    return value.replace(jaxpr=change(value.jaxpr)) if hasattr(value, "consts") else change(value)


def _holds_jaxpr(equation: Any) -> bool:
    return any(map(is_jaxpr, equation.params.values()))
