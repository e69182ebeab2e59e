"""Grouped convolutions and norms come back as ordinary layers, in as many groups as the small function runs them.

A mask may be a whole group, a place in every group that is read, or a place in every group that is given.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import maskprune
import maskprune.linen
import maskprune.nnx
from maskprune.removal.frameworks.grouped import convolution_groups
from maskprune.removal.rebuilt import RebuildError


def positions(dims, channels=3):
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, *[4] * dims, channels)), jnp.float32)


class Net(nnx.Module):
    """A convolution in groups between two plain ones, perhaps with a norm behind it."""

    def __init__(self, reads, gives, groups, dims=1, norm=None):
        rngs, window = nnx.Rngs(0), (3,) * dims
        self.first = nnx.Conv(3, reads, window, rngs=rngs)
        self.grouped = nnx.Conv(reads, gives, window, feature_group_count=groups, rngs=rngs)
        self.norm = nnx.data(None if norm is None else nnx.GroupNorm(gives, rngs=rngs, **norm))
        self.last = nnx.Conv(gives, 2, (1,) * dims, rngs=rngs)

    def __call__(self, x):
        x = self.grouped(nnx.relu(self.first(x)))
        return self.last(nnx.relu(x if self.norm is None else self.norm(x)))


def small(module, x, pick):
    apply, params, _ = maskprune.nnx.from_module(module)
    groups = maskprune.trace(apply, params, x)
    network = maskprune.init_network(params, groups)
    network = maskprune.disable(network, maskprune.choose(network, pick(groups)))
    return maskprune.compact(apply, network, x)


def first_of(*numbers):
    """The first masks, so many of every group in turn."""
    return lambda groups: {group.name: range(count) for group, count in zip(groups, numbers, strict=False)}


@pytest.mark.parametrize("lost", [(0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)])
def test_whatever_is_lost_the_layer_comes_back(lost):
    """4 groups of 2 channels that give 3: whole groups, inner places and outer places, alone and together."""
    module, x = Net(8, 12, 4), positions(1)
    rebuilt = maskprune.nnx.to_module(module, *small(module, x, first_of(*lost)), x)
    groups, inner, outer = 4 - lost[0], 2 - lost[1], 3 - lost[2]
    layer = rebuilt.grouped
    assert (layer.feature_group_count, layer.in_features, layer.out_features) == (
        groups,
        groups * inner,
        groups * outer,
    )
    assert layer.kernel.shape == layer.kernel_shape == (3, inner, groups * outer)


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("net", "lost", "groups"),
    [
        ((8, 16, 8), (3, 1), 5),  # depthwise, with a multiplier
        ((4, 4, 2, 2), (1, 1, 1), 1),  # one group is left: plain
        ((8, 8, 4), (0, 2, 0), 1),  # nothing is read any more
        ((8, 8, 4, 1, {"num_groups": 4}), (2, 1, 0), 2),
        ((8, 8, 4, 1, {"num_groups": None, "group_size": 2}), (1, 0, 0), 3),
        ((8, 8, 4, 1, {"num_groups": 8}), (2, 1, 1), 2),  # its own groups are channels
    ],
)
def test_other_kinds_come_back_too(net, lost, groups):
    module, x = Net(*net), positions(net[3] if len(net) > 3 else 1)
    rebuilt = maskprune.nnx.to_module(module, *small(module, x, first_of(*lost)), x)
    assert rebuilt.grouped.feature_group_count == groups
    if rebuilt.norm is not None:
        assert rebuilt.norm.num_groups * rebuilt.norm.group_size == rebuilt.grouped.out_features


@pytest.mark.parametrize(
    ("norm", "lost", "words"),
    [
        ({"num_groups": 4}, (1, 0, 1), r"`norm`, a GroupNorm, has lost channels inside its 4 groups of 2.*3 of 8"),
        ({"num_groups": 1}, (1, 0, 0), r"`norm`, a GroupNorm, has lost channels inside its 1 groups of 8.*6 of 8"),
        (None, (4, 0, 0), r"`grouped`, a Conv, gives no channels any more, with a kernel \(3, 2, 0\)"),
    ],
)
def test_where_no_layer_has_such_groups_the_layer_is_named(norm, lost, words):
    module, x = Net(8, 8, 4, 1, norm), positions(1)
    with pytest.raises(RebuildError, match=words) as refused:
        maskprune.nnx.to_module(module, *small(module, x, first_of(*lost)), x)
    assert ".py" not in str(refused.value)


class Linen(linen.Module):
    widths: tuple[int, int]
    groups: int

    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(self.widths[0], (3,))(x))
        x = linen.relu(linen.Conv(self.widths[1], (3,), feature_group_count=self.groups)(x))
        return linen.Conv(2, (1,))(x)


def test_linen_says_which_groups_to_build(key):
    module, x = Linen((8, 8), 4), positions(1)
    apply, params, _ = maskprune.linen.from_module(module, module.init(key, x))
    groups = maskprune.trace(apply, params, x)
    network = maskprune.init_network(params, groups)
    network = maskprune.disable(network, maskprune.choose(network, first_of(1, 0, 1)(groups)))
    small_apply, small_params = maskprune.compact(apply, network, x)
    assert maskprune.linen.group_counts(small_apply, small_params, x) == {"Conv_1": 3}
    maskprune.linen.check_module(Linen((6, 3), 3), small_apply, small_params, x)
    for wrong in (Linen((6, 3), 1), Linen((6, 3), 4)):
        with pytest.raises(RebuildError, match=r"`feature_group_count` must be \{'Conv_1': 3\}"):
            maskprune.linen.check_module(wrong, small_apply, small_params, x)


def test_groups_are_read_inside_loops_branches_and_derivative_rules():
    """By the path of the kernel, however it is handed in; one that is read in two ways has no number."""
    convolve = lambda x, kernel, groups: jax.lax.conv_general_dilated(
        x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=groups
    )

    @jax.custom_jvp
    def ruled(x, kernel):
        return convolve(x, kernel, 2)

    ruled.defjvps(None, None)

    def function(params, x):
        x = jax.lax.scan(lambda x, _: (convolve(x, params["a"].astype(x.dtype), 4), None), x, length=2)[0]
        x = jax.lax.cond(x[0, 0, 0] > 0, lambda x: jax.jit(ruled)(x, params["b"]), lambda x: x, x)
        return (
            convolve(x, params["c"][::-1], 1) + convolve(x, params["d"], 2) + convolve(x, params["d"], 2) * params["e"]
        )

    params = {"a": jnp.ones((3, 1, 4), jnp.float16), "b": jnp.ones((3, 2, 4)), "c": jnp.ones((3, 4, 4))}
    params |= {"d": jnp.ones((3, 2, 4)), "e": jnp.ones(())}
    assert convolution_groups(function, params, positions(1, 4)) == {"a": 4, "b": 2, "c": 1, "d": 2}
    both = lambda params, x: convolve(x, params["k"], 2) + convolve(x[..., :2], params["k"], 1)
    assert convolution_groups(both, {"k": jnp.ones((3, 2, 4))}, positions(1, 4)) == {}
