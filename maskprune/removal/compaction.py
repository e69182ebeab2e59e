"""From masks to a physically smaller network that computes the same.

Slicing follows a `Plan`; the function runs on the small parameters through `shrink`, which derives every size anew, so
it works for any function whose masks were traced. Knows no framework.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from maskprune.base.checks import NotNegative, check_leaves, strict
from maskprune.masks.alterations import kernel_of, own_slices
from maskprune.masks.groups import leaves_by_path
from maskprune.masks.jaxpr.reader import Rules
from maskprune.masks.network import Network, Params, effective_arrays, effective_params
from maskprune.masks.tracing import handed_on
from maskprune.removal.agreement import Run, agree, has_numbers
from maskprune.removal.plan import Dropped, Plan, make_plan
from maskprune.removal.rerun import ShrinkError, shrink


Apply = Callable[..., Any]


class CompactionError(RuntimeError):
    """The small network does not compute what the masked one does."""


@strict
def compact(
    apply: Apply,
    network: Network,
    *inputs: Any,
    model_state: Any = None,
    round_to: int = 1,
    tolerance: NotNegative = 1e-5,
    rules: Rules | None = None,
) -> tuple[Apply, Params]:
    """Removes disabled masks for good.

    Args:
        apply: `apply(params, *inputs) -> output`, or `apply(params, model_state, *inputs)`, which may also hand on a
            new state.
        network: The masked network.
        *inputs: Sample inputs. When given, both networks are run on them and compared.
        model_state: Non-trained variables such as batch statistics, where `apply` takes them.
        round_to: Keeps widths on a grid, see `make_plan`.
        tolerance: Largest difference allowed, relative to the largest magnitude of each output (1 if that is smaller).
            More is allowed only where rounding explains it: see `check_same`. Groups that are not exact are not
            compared.
        rules: Rules for primitives that have none, as for `trace`.

    Returns:
        `(small_apply, small_params)`. `small_apply` takes what `apply` takes, in small: at any batch or picture size,
        under `jit`, `grad`, `vmap` and `jax.export`. The small state is `make_plan(...).cut(model_state, state=True)`.

    Raises:
        TypeError: A leaf of the inputs or of `model_state` is no array.
        ValueError: `round_to` is below 1.
        CompactionError: The groups do not fit the function, or on the sample inputs the outputs differ by more than
            rounding.
    """
    plan = make_plan(network.groups, network.enabled, round_to=round_to)
    params = effective_arrays(network)
    small = plan.cut(params)
    if dropped := tuple(_identities(network, leaves_by_path(small))):
        plan = dataclasses.replace(plan, dropped=dropped)
        small = plan.cut(params)
    small_apply = shrink(apply, plan, stateful=model_state is not None, rules=rules)
    if inputs and not plan.inexact:
        checked = {"small_apply": small_apply, "model_state": model_state, "plan": plan, "tolerance": tolerance}
        check_same(apply, network, small, *inputs, **checked)
    return small_apply, small


@strict
def judged(apply: Apply, network: Network) -> tuple[Apply, Params]:
    """The function and the parameters by which a network should be judged.

    Where removing the disabled masks is exact, `apply` itself with the effective parameters: nothing compiles anew.
    Where it is not (`trace(..., inexact=True)`), the compacted network, since that is what will be handed over.
    """
    if make_plan(network.groups, network.enabled).inexact:
        return compact(apply, network)
    return apply, effective_params(network)


def _identities(network: Network, small: dict[str, Any]) -> Iterator[Dropped]:
    """The leaves of layers whose held masks only hand on what they read: see `bypass`."""
    for group in network.groups:
        own = own_slices(network, group.name)
        kernels = [path for path in own if small[path].ndim >= 2]
        held = np.all(np.asarray(network.frozen[group.name]) | ~np.asarray(network.enabled[group.name]))
        if len(kernels) != 1 or not held or 0 in small[kernels[0]].shape:
            continue
        _, reads, writes = kernel_of(network, own)
        shape = small[kernels[0]].shape
        found = [
            Dropped(p, small[p].shape, str(small[p].dtype), *((reads, writes) if p in kernels else ())) for p in own
        ]
        if shape[reads] == shape[writes] and all(np.array_equal(small[each.leaf], each.values()) for each in found):
            yield from found


def compact_params(network: Network) -> Params:
    """The effective parameters without the positions of disabled masks. Runs outside `jit`, since shapes change."""
    return make_plan(network.groups, network.enabled).cut(effective_arrays(network))


@strict
def check_same(
    apply: Apply,
    network: Network,
    small: Params,
    *inputs: Any,
    small_apply: Apply | None = None,
    model_state: Any = None,
    plan: Plan | None = None,
    tolerance: NotNegative = 1e-5,
) -> float:
    """Compares the masked and the small network on sample inputs.

    A new model state that is handed on is compared as well, once that of the masked network is cut. What is not finite
    (a logit of -inf) must be the same in both.

    Args:
        apply: The masked network's function.
        network: The masked network.
        small: The small network's parameters.
        *inputs: Sample inputs.
        small_apply: The small network's function; by default `apply`, which must then read its widths from `small`.
        model_state: The masked network's state, where `apply` takes one. The small one's is cut from it.
        plan: What was cut; by default every disabled mask.
        tolerance: Largest difference allowed, relative to the largest magnitude of each output (1 if that is smaller).
            Whole numbers must be equal.

    Returns:
        The largest absolute difference of any output number.

    Raises:
        TypeError: A leaf of the inputs or of `model_state` is no array.
        CompactionError: It exceeds what `tolerance` allows, also where both are computed in double precision (whatever
            number formats they use), and there also ten times what moving every parameter by one unit in its last
            place does; or an output is not finite, the outputs have other shapes, or `apply` does not run on the small
            parameters.

    Example:
        >>> import maskprune as mp
        >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> params, x = {"a": np.ones((2, 3)), "b": np.ones((3, 1))}, np.ones((4, 2))
        >>> network = mp.init_network(params, mp.trace(apply, params, x))
        >>> network = mp.disable(network, mp.choose(network, {"a": [0]}))
        >>> small_apply, small = mp.compact(apply, network)
        >>> mp.check_same(apply, network, small, x, small_apply=small_apply)
        0.0
    """
    check_leaves("inputs", jax.tree.leaves(inputs))
    check_leaves("small", jax.tree.leaves(small))
    check_leaves("model_state", jax.tree.leaves(model_state))
    plan = make_plan(network.groups, network.enabled) if plan is None else plan
    states = ((), ()) if model_state is None else ((model_state,), (plan.cut(model_state, state=True),))
    masked = Run(apply, effective_arrays(network), (*states[0], *inputs), partial(_cut_state, plan, model_state))
    removed = Run(apply if small_apply is None else small_apply, small, (*states[1], *inputs))
    numbers = masked.numbers(), _run_small(removed)
    _check_comparable(*numbers)
    silent = [number for number, array in enumerate(numbers[0]) if not has_numbers(array)]
    if silent and not set(silent) <= _states(jax.eval_shape(apply, masked.params, *masked.inputs), model_state).keys():
        raise CompactionError("On these `inputs` an output is not finite anywhere, so nothing can be compared.")
    found = agree(masked, removed, numbers, tolerance=tolerance)
    if not found.same:
        raise CompactionError(
            f"The compacted network differs from the masked one by {found.worst:.3g}, more than {tolerance:.1g} of the "
            f"largest output {found.scale:.3g} and more than rounding explains ({found.rounding:.3g})."
        )
    return found.worst


def _cut_state(plan: Plan, model_state: Any, outputs: Any) -> list[Any]:
    """The flat outputs, a new state among them cut."""
    states = _states(outputs, model_state)
    leaves = enumerate(jax.tree.leaves(outputs))
    return [plan.cut_leaf(states[n], leaf, state=True) if n in states else leaf for n, leaf in leaves]


def _states(outputs: Any, model_state: Any) -> dict[int, str]:
    leaves, structure = jax.tree.flatten(outputs)
    return handed_on(structure, [leaf.shape for leaf in leaves], model_state)


def _check_comparable(masked: list[np.ndarray], removed: list[np.ndarray]) -> None:
    shapes = [a.shape for a in masked], [b.shape for b in removed]
    if shapes[0] != shapes[1]:  # some would broadcast without a word
        raise CompactionError(f"The masked network gives the shapes {shapes[0]}, the compacted one {shapes[1]}.")


def _run_small(run: Run) -> list[np.ndarray]:
    try:
        return run.numbers()
    except (TypeError, ValueError, ShrinkError) as error:
        raise CompactionError(
            f"`apply` runs on the masked parameters, but not on `small`, the compacted ones: {error}"
        ) from error


@strict
def count_params(params: Params) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
