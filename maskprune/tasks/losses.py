"""What training makes small: differentiable scalars that compare an output picture with its target.

Every loss takes float pictures `[N, H, W, C]` and a `border` that leaves out the frame where zero padding
reaches, runs under `jit`, `grad` and `vmap`, and stays finite, with finite gradients, on blank pictures. This
file must not know what a network, a mask or a data set is. The scores that decide are in `metrics`.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import Positive, strict


Picture = jax.Array | np.ndarray  # float[N, H, W, C]


@strict
def crop_border(output: Picture, target: Picture, border: int) -> tuple[jax.Array, jax.Array]:
    """Checks that two pictures can be compared and takes `border` pixels off each side of both.

    Args:
        output: `float[N, H, W, C]`; boolean is read as 0 and 1.
        target: the same shape.
        border: pixels left out on each of the four sides, 0 or more.

    Returns:
        Both as floats of at least 32 bits, `[N, H − 2·border, W − 2·border, C]`.

    Raises:
        ValueError: the shapes differ, are not four-dimensional, hold no pixel, or `border` is negative or leaves none.
        TypeError: integer pictures, whose differences would wrap around and whose range is not 0 to 1.
    """
    output, target = _as_float("output", output), _as_float("target", target)
    if output.ndim != 4 or output.shape != target.shape:
        raise ValueError(
            f"output {output.shape} and target {target.shape} must have one shape [N, H, W, C]; add or drop an axis"
        )
    if border < 0 or 2 * border >= min(output.shape[1:3]):
        height, width = output.shape[1:3]
        raise ValueError(
            f"border={border} must be 0 or more and leave a pixel of {height}×{width}; choose a smaller one"
        )
    if output.size == 0:
        raise ValueError(f"output {output.shape} holds no pictures; pass at least one")
    rows, columns = (slice(border, side - border) for side in output.shape[1:3])
    return output[:, rows, columns], target[:, rows, columns]


def _as_float(name: str, picture: Picture) -> jax.Array:
    picture = jnp.asarray(picture)
    if not (jnp.issubdtype(picture.dtype, jnp.floating) or picture.dtype == jnp.bool_):
        raise TypeError(f"{name} has dtype {picture.dtype}, expected a float picture in [0, 1]; divide by 255 first")
    return picture.astype(jnp.promote_types(picture.dtype, jnp.float32))


@strict
def picture_total(values: jax.Array) -> jax.Array:
    """Sums `[N, H, W, C]` over all but the first axis to `[N]`, rows first, so that float32 loses little."""
    return jnp.sum(jnp.sum(values, axis=(2, 3)), axis=1)


@strict
def mse(output: jax.Array, target: jax.Array, *, border: int = 0) -> jax.Array:
    """Mean squared error over pictures, rows and columns.

    Args:
        output: `float[N, H, W, C]`.
        target: the same shape.
        border: pixels left out on each side.

    Returns:
        A scalar, 0 or more, in squared units of the picture.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `crop_border`.
    """
    output, target = crop_border(output, target, border)
    return _mean(jnp.square(output - target))


@strict
def mae(output: jax.Array, target: jax.Array, *, border: int = 0) -> jax.Array:
    """Mean absolute error over pictures, rows and columns; its gradient is 0 where both are equal.

    Args:
        output: `float[N, H, W, C]`.
        target: the same shape.
        border: pixels left out on each side.

    Returns:
        A scalar, 0 or more, in units of the picture.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `crop_border`.
    """
    output, target = crop_border(output, target, border)
    return _mean(jnp.abs(output - target))


def _mean(values: jax.Array) -> jax.Array:
    return jnp.sum(picture_total(values)) / values.size


@strict
def overlap(output: jax.Array, target: jax.Array, ceiling: Positive = 1.0) -> jax.Array:
    """What each pixel adds to TP: the output, at most `ceiling`, times the target. NaN stays NaN."""
    return jnp.where(output > ceiling, ceiling, output) * target if math.isfinite(ceiling) else output * target


@strict
def soft_f1(output: jax.Array, target: jax.Array, *, border: int = 0, ceiling: Positive = 1.0) -> jax.Array:
    """One minus the soft F1 score of each picture, averaged over pictures ("macro").

    With E = Σ|O − T| and TP = Σ min(O, ceiling)·T over the pixels of a picture, its loss is E / (2TP + E). For binary
    pictures E = FP + FN, and this is one minus the F1 score. The scale matters: both pictures are expected in [0, 1].

    Without the ceiling an output without bounds can cheat: a few enormous pixels in the right places score 2/3
    whatever the rest looks like, since TP grows as fast as E. With it, overshooting can only lose.

    Args:
        output: `float[N, H, W, C]`, 0 or more.
        target: the same shape and range.
        border: pixels left out on each side.
        ceiling: the largest output that counts in TP; infinity for the formula of the source document.

    Returns:
        A scalar in [0, 1]. A blank output for a blank target costs 0. Any other output for a blank target costs 1,
        with gradient exactly 0: only the other pictures teach. Where negative values make 2TP + E ≤ 0 although
        E > 0, the picture counts as wholly wrong: 1.

    Raises:
        TypeError: see `losses.crop_border`.
        ValueError: see `crop_border`.

    Example:
        >>> import jax.numpy as jnp
        >>> target = jnp.array([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2, 1)
        >>> output = jnp.array([1.0, 0.0, 1.0, 0.0]).reshape(1, 2, 2, 1)
        >>> float(soft_f1(output, target))
        0.5
    """
    output, target = crop_border(output, target, border)
    errors = picture_total(jnp.abs(output - target))
    overlaps = picture_total(overlap(output, target, ceiling))
    return jnp.mean(_error_share(errors, overlaps))


@jax.custom_jvp
def _error_share(error: jax.Array, common: jax.Array) -> jax.Array:
    """error / (2·common + error), 0/0 = 0; NaN stays NaN."""
    whole = 2 * common + error
    empty = whole < jnp.finfo(whole.dtype).tiny
    wrong = jnp.where(error < jnp.finfo(error.dtype).tiny, 0.0, 1.0)
    return jnp.where(empty, wrong, error / jnp.where(empty, 1, whole))


@_error_share.defjvp
def _error_share_jvp(primals, tangents):
    # The quotient rule as autodiff writes it subtracts two large numbers where a target is blank and the output
    # nearly so, and squares the small denominator. This form has neither: a blank target gives exactly 0.
    error, common = primals
    d_error, d_common = tangents
    whole = 2 * common + error
    empty = whole < jnp.finfo(whole.dtype).tiny
    safe = jnp.where(empty, 1, whole)
    slope = 2 * ((common / safe) * d_error - (error / safe) * d_common) / safe
    return _error_share(error, common), jnp.where(empty, 0, slope)
