"""From masks to a physically smaller network that computes the same.

Slicing follows the `Groups`: along every axis that belongs to masks, the positions of disabled ones are left out. The
function is unchanged, so it must read its widths from the parameters, as every FCN does. Knows no framework.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.groups import leaf_path
from maskprune.network import Network, Params, effective_params


Apply = Callable[..., Any]


class CompactionError(RuntimeError):
    """The small network does not compute what the masked one does."""


def compact(apply: Apply, network: Network, *inputs: Any, tolerance: float = 1e-5) -> tuple[Apply, Params]:
    """Removes disabled masks for good.

    Args:
        apply: `apply(params, *inputs) -> output`, reading its widths from `params`.
        network: The masked network.
        *inputs: Sample inputs. When given, both networks are run on them and compared.
        tolerance: Largest difference allowed, relative to the largest output magnitude (1 if that is smaller). More
            is allowed only where rounding explains it: see `check_same`.

    Returns:
        `(small_apply, small_params)`.

    Raises:
        CompactionError: On the sample inputs the outputs differ by more than rounding.
    """
    small = compact_params(network)
    if inputs:
        check_same(apply, network, small, *inputs, tolerance=tolerance)
    return apply, small


def compact_params(network: Network) -> Params:
    """The effective parameters without the positions of disabled masks. Runs outside `jit`, since shapes change."""
    enabled = {name: np.append(np.asarray(flags), True) for name, flags in network.enabled.items()}

    def shrink(path: Any, leaf: jax.Array) -> jax.Array:
        small = np.asarray(leaf)  # in NumPy: JAX would compile every cut anew for every new shape
        for axis in range(leaf.ndim):
            keep = np.ones(leaf.shape[axis], bool)
            for group, piece in network.groups.of_leaf(leaf_path(path)):
                if piece.axis == axis:
                    keep &= enabled[group.name][np.asarray(piece.labels)]
            small = np.compress(keep, small, axis=axis)
        return jnp.asarray(small)

    return jax.tree_util.tree_map_with_path(shrink, effective_params(network))


def check_same(apply: Apply, network: Network, small: Params, *inputs: Any, tolerance: float = 1e-5) -> float:
    """Compares the masked and the small network on sample inputs.

    Returns:
        The largest absolute difference of any output number.

    Raises:
        CompactionError: It exceeds `tolerance` times the largest output magnitude (1 if that is smaller), and also ten
            times what moving every parameter by one unit in its last place does to the outputs; or an output is not
            finite, the outputs have other shapes, or `apply` does not run on the small parameters.
    """
    run = jax.jit(apply)
    masked, removed = _numbers(run(effective_params(network), *inputs)), _numbers(_run_small(run, small, inputs))
    _check_comparable(masked, removed)
    worst = max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(masked, removed, strict=True)), default=0.0)
    scale = max([1.0, *(float(np.max(np.abs(a), initial=0.0)) for a in masked)])
    if worst > tolerance * scale and worst > 10 * (rounding := _rounding(run, network, inputs, masked)):
        raise CompactionError(
            f"The compacted network differs from the masked one by {worst:.3g}, more than {tolerance:.1g} of the "
            f"largest output {scale:.3g} and more than rounding explains ({rounding:.3g}). Does `apply` read every "
            "width from its parameters?"
        )
    return worst


def _rounding(run: Apply, network: Network, inputs: tuple[Any, ...], masked: list[np.ndarray]) -> float:
    """How far the outputs move when every parameter is moved by one unit in its last place, up or down at random.

    Where large numbers cancel inside a network, equal networks differ by more than their small outputs suggest.
    """
    rng = np.random.default_rng(0)

    def nudge(leaf: jax.Array) -> jax.Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        signs = rng.choice([-1.0, 1.0], leaf.shape)
        return leaf * jnp.asarray(1 + jnp.finfo(leaf.dtype).eps * signs, leaf.dtype)

    moved = _numbers(run(jax.tree.map(nudge, effective_params(network)), *inputs))
    return max((float(np.max(np.abs(a - b), initial=0.0)) for a, b in zip(masked, moved, strict=True)), default=0.0)


def _check_comparable(masked: list[np.ndarray], removed: list[np.ndarray]) -> None:
    shapes = [a.shape for a in masked], [b.shape for b in removed]
    if shapes[0] != shapes[1]:  # some would broadcast without a word
        raise CompactionError(f"The masked network gives the shapes {shapes[0]}, the compacted one {shapes[1]}.")
    if not all(np.all(np.isfinite(x)) for x in masked + removed):
        raise CompactionError("An output is not finite, so the masked and the compacted network cannot be compared.")


def _run_small(run: Apply, small: Params, inputs: tuple[Any, ...]) -> Any:
    try:
        return run(small, *inputs)
    except (TypeError, ValueError) as error:
        raise CompactionError(
            f"`apply` runs on the masked parameters, but not on the compacted ones: {error} "
            "Does it read every width from its parameters?"
        ) from error


def _numbers(outputs: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(outputs)]


def count_params(params: Params) -> int:
    """How many numbers a pytree of arrays holds."""
    return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(params))
