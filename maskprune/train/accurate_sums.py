"""Sums of very many terms that stay as accurate in float32 as a few would be.

What XLA *reduces* (`jnp.sum`, `jnp.mean`, `jnp.std`) it adds up in a tree: of ten million equal terms the sum is right
to about one unit in the last place, and nothing here is needed. What a matrix product or the carry of a scan adds up,
it adds one after another: the error grows with the number of terms, and tells by the thousands. Those sums are taken
here. Knows arrays only.

References:
    Knuth, The Art of Computer Programming 2, 4.2.2; Dekker, A floating-point technique for extending the available
    precision, Numerische Mathematik 1971.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


ROWS = 128  # of a matrix product that are added one after another


def centred(values: jax.Array, axis: int | tuple[int, ...] = 0) -> jax.Array:
    """The values less their mean along these axes, and less what that mean lost to rounding.

    Far from zero the second part is what counts: a float32 mean of 1000 is sure to 6e-5, however little values vary.
    Equal values become zeros, to rounding of that rounding.
    """
    apart = values - jnp.mean(values, axis=axis, keepdims=True)
    return apart - jnp.mean(apart, axis=axis, keepdims=True)


def sum_of_parts(function: Callable[[Any], Any], batch: Any, examples: int) -> Any:
    """The sum of `function(part)` over parts of a batch, each of so many examples and the last of what remains.

    What every addition rounds off is kept and added at the end, so that the number of parts does not matter.

    Args:
        function: Gives a pytree of floating-point arrays.
        batch: A pytree of arrays whose first axis counts the same examples.
        examples: Of a part, at least 1.

    Raises:
        ValueError: `examples` is less than 1, or the arrays of `batch` do not agree on the number of examples.
    """
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if examples < 1 or len(counts) != 1 or () in counts:
        found = f"`examples` is {examples} and the arrays of `batch` have the lengths {sorted(counts)}"
        raise ValueError(f"{found}: give 1 or more, and arrays whose first axis counts the same examples.")
    ((count,),) = counts
    parts, rest = divmod(count, examples)
    if not parts:
        return function(batch)
    whole = jax.tree.map(lambda leaf: leaf[: count - rest].reshape(parts, examples, *leaf.shape[1:]), batch)
    zero = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(function, batch))
    carry, _ = jax.lax.scan(lambda carry, part: (_add(carry, function(part)), None), (zero, zero), whole)
    if rest:
        carry = _add(carry, function(jax.tree.map(lambda leaf: leaf[count - rest :], batch)))
    return jax.tree.map(jnp.add, *carry)


def product_of_rows(one: jax.Array, other: jax.Array) -> jax.Array:
    """`one.T @ other` at full precision, however many rows there are.

    Args:
        one: float[P, D].
        other: float[P, E].

    Returns:
        float[D, E]. Sums of positive terms are right to 2e-6; a plain product of two million rows may be off by 2 %.
    """
    multiply = lambda pair: jnp.matmul(pair[0].T, pair[1], precision="highest")
    # Parts are as long as they are wide, so that adding them up costs little beside the products.
    return sum_of_parts(multiply, (one, other), max(ROWS, min(one.shape[1], other.shape[1])))


def _add(carry: tuple[Any, Any], found: Any) -> tuple[Any, Any]:
    """Running totals with one term more, each as two numbers: the second is what the first lost to rounding."""
    every = [jax.tree.leaves(tree) for tree in (*carry, found)]
    pairs = [_two_sum(total, term, lost) for total, lost, term in zip(*every, strict=True)]
    totals, losts = zip(*pairs, strict=True)
    structure = jax.tree.structure(found)
    return structure.unflatten(totals), structure.unflatten(losts)


def _two_sum(total: jax.Array, term: jax.Array, lost: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Knuth's exact sum of two numbers; what was lost before joins in, so that it never grows large itself."""
    found = total + term
    shadow = found - total
    of_finite = lambda rounded: jnp.where(jnp.isfinite(found), rounded, 0.0)  # an infinite sum has lost nothing
    lost = of_finite(lost + ((total - (found - shadow)) + (term - shadow)))
    after = found + lost
    return after, of_finite(lost - (after - found))
