"""What a mask's output tells of the target, in bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.stats import rankdata

from maskprune.base.checks import strict
from maskprune.masks.half_precision import wide, widely
from maskprune.masks.network import Network, wide_params
from maskprune.select.activation import Activations, columns
from maskprune.select.base import Scores, Selector, by_group


@strict
def information(activations: Activations, targets: Callable[[Any], jax.Array], *, bins: int = 16) -> Selector:
    """Mutual information, in bits, of a mask's output and the target at the same position; the least goes first.

        I = sum over bins a, b of p(a, b) * log2(p(a, b) / (p(a) * p(b)))

    Output and target are each cut into bins that hold equally many positions, so a growing function of either changes
    nothing; equal values share a bin, so a constant output says 0 bits. The most that can be found is log2(bins).
    Chance agreement, which the sum overrates, is taken off to first order (Miller 1955), as if positions were
    independent: what says nothing scores 0 on average, and may be slightly negative. One forward pass, and a sort of
    every mask's output.

    Args:
        activations: `activations(params, batch) -> {group: float[..., C]}`; may hold more names than there are groups.
        targets: `targets(batch) -> [...]`: one number for every position of the activations, in the same order.
        bins: How many bins, at least 2. Positions should be many times its square.

    Raises:
        ValueError: `bins` is below 2.

    References:
        Cover and Thomas, Elements of Information Theory, Wiley 2006.
        Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017, who
        compare it.
        Miller, Note on the bias of information estimates, 1955.
    """
    if bins < 2:
        raise ValueError(f"`bins` is {bins}: use 2 or more.")

    def score(key: jax.Array, network: Network, batch: Any) -> Scores:
        del key
        outputs = columns(widely(activations, network.params)(wide_params(network), batch), network.groups)
        wanted = wide(jnp.ravel(targets(batch)))
        _check_positions(outputs, wanted.size)
        every = jnp.concatenate([*outputs.values(), wanted[:, None]], axis=1)
        labels = jax.vmap(partial(binned, bins=bins))(every.T)
        bits = jax.vmap(lambda label: mutual_information(label, labels[-1], bins))(labels[:-1])
        return by_group(network.groups, bits)

    return jax.jit(score)


def binned(values: jax.Array, bins: int) -> jax.Array:
    """The bins, int[N] from 0, of values by their place: equally full, but equal values share the bin of their middle.

    Two bins are enough to tell two values apart, however rare one of them is.
    """
    middle = (rankdata(values) - 0.5) / values.size
    return jnp.minimum((bins * middle).astype(jnp.int32), bins - 1)


def mutual_information(one: jax.Array, other: jax.Array, bins: int) -> jax.Array:
    """float[], in bits, of two labels int[N] below `bins`, less the first order of the bias."""
    counts = jnp.bincount(one * bins + other, length=bins * bins).reshape(bins, bins)
    share = counts / one.size
    apart = jnp.sum(share, axis=1, keepdims=True) * jnp.sum(share, axis=0, keepdims=True)
    told = jnp.sum(jnp.where(counts > 0, share * jnp.log2(share / jnp.where(apart > 0, apart, 1.0)), 0.0))
    filled = [jnp.sum(jnp.any(counts > 0, axis=axis)) for axis in (1, 0)]
    freedom = jnp.sum(counts > 0) - filled[0] - filled[1] + 1
    return told - freedom / (2 * one.size * jnp.log(2.0))


def _check_positions(outputs: Mapping[str, jax.Array], positions: int) -> None:
    for name, values in outputs.items():
        if len(values) != positions:
            raise ValueError(
                f"`targets` gave {positions} numbers, but the activations of `{name}` have {len(values)} positions: "
                "give one number for each."
            )
