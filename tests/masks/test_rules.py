"""One small function per primitive: which masks it has, and that removing them is exact.

Weights and inputs are small integers, so sums are exact and a wrong index shows as a whole number; the masked and the
compacted function must agree to the last bit wherever the function itself is exact on integers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maskprune import choose, compact, disable, effective_params, init_network, trace


C = 6


def chain(middle, *, read=C, rows=3):
    """x -> C channels -> `middle` -> `read` channels -> 2 outputs; `middle` sees [rows, C]."""

    def apply(params, x):
        hidden = middle(jnp.dot(x, params["a"]["w"]) + params["a"]["b"][None], params)
        return jnp.dot(hidden.reshape(x.shape[0], -1), params["z"])

    shapes = {"a": {"w": (4, C), "b": (C,)}, "z": (read, 2)}
    return apply, shapes, (rows, 4)


def picture(middle, *, read=C, side=4):
    """[2, side, side, 1] -> C channels -> `middle` -> summed over places -> 2 outputs."""

    def apply(params, x):
        hidden = jnp.einsum("nhwi,io->nhwo", x, params["a"]["w"]) + params["a"]["b"][None, None, None]
        return jnp.dot(middle(hidden, params).sum((1, 2)), params["z"])

    return apply, {"a": {"w": (1, C), "b": (C,)}, "z": (read, 2)}, (2, side, side, 1)


def with_leaves(case, **leaves):
    apply, shapes, inputs = case
    return apply, {**shapes, **leaves}, inputs


def conv(x, kernel, **options):
    return lax.conv_general_dilated(
        x, kernel, options.pop("strides", (1, 1)), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def pool(x, start, combine):
    return lax.reduce_window(x, start, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvp(lambda primals, tangents: (doubled(primals[0]), 3 * tangents[0]))


@jax.custom_vjp
def tripled(x):
    return 3 * x


tripled.defvjp(lambda x: (3 * x, x), lambda x, g: (5 * g,))


def fast_norm(x):
    mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(square - mean * mean + 1e-3)


def slow_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3)


INDEX = np.array([5, 0, 0, 3])
EACH = dict.fromkeys(["a"], C)  # every channel can go by itself

# name: (function, parameter shapes, input shape), {group: masks}. Channels that nobody reads are masks too.
EXACT = {
    "elementwise": (chain(lambda h, p: jnp.maximum(h, 0) * 2 - h), EACH),
    "sigmoid": (chain(lambda h, p: jax.nn.sigmoid(h)), EACH),
    "clamp and select": (chain(lambda h, p: jnp.where(h > 1, jnp.clip(h, -1, 2), -h)), EACH),
    "transpose": (chain(lambda h, p: h.T.T), EACH),
    "reversed": (chain(lambda h, p: h[:, ::-1]), EACH),
    "rolled": (chain(lambda h, p: jnp.roll(h, 2, axis=1)), EACH),
    "every second": (chain(lambda h, p: h[:, ::2], read=3), {"a[1]#1": 3, "a[1]#2": 3}),
    "a range": (chain(lambda h, p: h[:, 1:5], read=4), {"a[1]#1": 2, "a[1]#2": 4}),
    "gathered": (chain(lambda h, p: h[:, INDEX], read=4), {"a[1]#1": 3, "a[1]#2": 3}),
    "taken": (chain(lambda h, p: jnp.take(h, INDEX, axis=1), read=4), {"a[1]#1": 3, "a[1]#2": 3}),
    "dynamic slice": (chain(lambda h, p: lax.dynamic_slice(h, (0, 2), (3, 3)), read=3), {"a[1]#1": 3, "a[1]#2": 3}),
    "slice by data of rows": (chain(lambda h, p: lax.dynamic_slice(h, (jnp.argmax(h[:, 0] * 0), 0), (3, C))), {"a": 5}),
    "update of rows": (chain(lambda h, p: lax.dynamic_update_slice(h, h[:1] + 1, (1, 0))), EACH),
    "scatter to rows": (chain(lambda h, p: h.at[jnp.array([0, 2])].add(h[:2])), EACH),
    "split": (chain(lambda h, p: jnp.concatenate(jnp.split(h, 2, axis=1)[::-1], axis=1)), EACH),
    "halves multiplied": (chain(lambda h, p: h[:, :3] * jnp.maximum(h[:, 3:], 0), read=3), {"a": 3}),
    "concatenated": (chain(lambda h, p: jnp.concatenate([h, h * 2, h], axis=1), read=3 * C), EACH),
    "joined with constants": (chain(lambda h, p: jnp.concatenate([h, jnp.ones((3, 2))], axis=1), read=C + 2), EACH),
    "tiled": (chain(lambda h, p: jnp.tile(h, (1, 2)), read=2 * C), EACH),
    "repeated": (chain(lambda h, p: jnp.repeat(h, 2, axis=1), read=2 * C), EACH),
    "stacked": (chain(lambda h, p: jnp.stack([h, h + 1], axis=1).sum(1)), EACH),
    "padded channels": (chain(lambda h, p: jnp.pad(h, ((0, 0), (1, 2))), read=C + 3), EACH),
    "cut by negative padding": (
        chain(lambda h, p: lax.pad(h, 0.0, ((0, 0, 0), (-1, -2, 0))), read=3),
        {"a[1]#1": 3, "a[1]#2": 3},
    ),
    "padded rows": (picture(lambda h, p: jnp.pad(h, ((0, 0), (1, 1), (0, 2), (0, 0)), constant_values=1.0)), EACH),
    "pairs of channels": (chain(lambda h, p: h.reshape(3, 3, 2).sum(2), read=3), {"a[1]#1": 3, "a[1]#2": 2}),
    "maximum of pairs": (chain(lambda h, p: h.reshape(3, 3, 2).max(2), read=3), {"a": 3}),
    "shuffled": (chain(lambda h, p: h.reshape(3, 3, 2).transpose(0, 2, 1).reshape(3, C)), {"a[1]#1": 3, "a[1]#2": 2}),
    "by position": (chain(lambda h, p: h * lax.broadcasted_iota(jnp.float32, (3, C), 1)), EACH),
    "with a constant": (chain(lambda h, p: h * np.arange(C, dtype=np.float32)[None]), EACH),
    "summed over channels": (chain(lambda h, p: h + h.sum(1, keepdims=True)), EACH),
    "running sum": (chain(lambda h, p: jnp.cumsum(h, axis=1)), EACH),
    "running maximum of rows": (chain(lambda h, p: lax.cummax(h, axis=0)), EACH),
    "sorted rows": (chain(lambda h, p: jnp.sort(h, axis=0)), EACH),
    "maximum of rows": (chain(lambda h, p: h - h.max(0, keepdims=True)), EACH),
    "first of rows": (chain(lambda h, p: h + jnp.argmax(h, axis=0)[None].astype(h.dtype)), EACH),
    "products of channels with themselves": (chain(lambda h, p: jnp.dot(jnp.dot(h, h.T), h)), EACH),
    "batched products": (chain(lambda h, p: jnp.einsum("rc,rc->r", h, h)[:, None], read=1), EACH),
    "outer product": (chain(lambda h, p: jnp.einsum("rc,rd->rcd", h, h), read=C * C), EACH),
    "fast norm": (chain(lambda h, p: fast_norm(h) * p["g"][None]), EACH),
    "gradient of the inputs": (chain(lambda h, p: jax.grad(lambda v: (v * v * v).sum())(h)), EACH),
    "custom jvp": (chain(lambda h, p: doubled(h)), EACH),
    "custom vjp": (chain(lambda h, p: tripled(h)), EACH),
    "remat": (chain(lambda h, p: jax.checkpoint(lambda v: v * v)(h)), EACH),
    "jit": (chain(lambda h, p: jax.jit(lambda v: v * v)(h)), EACH),
    "scan": (chain(lambda h, p: lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(C), h)[1]), EACH),
    "while": (chain(lambda h, p: lax.while_loop(lambda c: c.sum() < -9e9, lambda c: c + 1, h)), {}),
    "for": (chain(lambda h, p: lax.fori_loop(0, 3, lambda i, c: c + h, h)), EACH),
    "cond": (chain(lambda h, p: lax.cond(p["z"].sum() > 0, lambda v: v * 2, lambda v: v, h)), EACH),
    "convolution": (with_leaves(picture(lambda h, p: conv(h, p["k"])), k=(3, 3, C, C)), {"a": C, "k": C}),
    "strided": (with_leaves(picture(lambda h, p: conv(h, p["k"], strides=(2, 2))), k=(3, 3, C, C)), {"a": C, "k": C}),
    "dilated": (
        with_leaves(picture(lambda h, p: conv(h, p["k"], rhs_dilation=(2, 2))), k=(3, 3, C, C)),
        {"a": C, "k": C},
    ),
    "transposed": (
        with_leaves(picture(lambda h, p: lax.conv_transpose(h, p["k"], (2, 2), "SAME")), k=(2, 2, C, C)),
        {"a": C, "k": C},
    ),
    "depthwise": (with_leaves(picture(lambda h, p: conv(h, p["k"], feature_group_count=C)), k=(3, 3, 1, C)), EACH),
    "grouped": (
        with_leaves(picture(lambda h, p: conv(h, p["k"], feature_group_count=2)), k=(3, 3, 3, C)),
        {"a[1]#1": 2, "a[1]#2": 3, "k": 3},
    ),
    "maximum pooling": (picture(lambda h, p: pool(h, -jnp.inf, lax.max)), EACH),
    "average pooling": (picture(lambda h, p: pool(h, 0.0, lax.add)), EACH),
    "resized": (picture(lambda h, p: jax.image.resize(h, (2, 8, 8, C), "nearest")), EACH),
    "pixel shuffle": (
        picture(
            lambda h, p: h[..., :4].reshape(2, 4, 4, 2, 2, 1).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 8, 1), read=1
        ),
        {"a[1]#1": 4, "a[1]#2": 2},
    ),
    "vmap": (chain(lambda h, p: jax.vmap(lambda row: row * row.sum())(h)), EACH),
    "embedding": (
        with_leaves(chain(lambda h, p: h + p["e"][jnp.argmax(h[:, :1] * 0, axis=1)]), e=(5, C)),
        {"a": 5},
    ),
}

# name: function, what the reason says
REFUSED = {
    "softmax": (chain(lambda h, p: jax.nn.softmax(h, axis=1)), "compared by a maximum"),
    "slow norm": (chain(lambda h, p: slow_norm(h)), "summed while a disabled one would still count"),
    "sorted channels": (chain(lambda h, p: jnp.sort(h, axis=1)), "sorted"),
    "maximum of channels": (chain(lambda h, p: h * h.max(1, keepdims=True)), "compared by a maximum"),
    "product of channels": (chain(lambda h, p: h + h.prod(1, keepdims=True)), "multiplied up"),
    "largest channels": (chain(lambda h, p: lax.top_k(h, 2)[0], read=2), "the largest of these channels are picked"),
    "first channel": (chain(lambda h, p: h + jnp.argmax(h, 1)[:, None]), "compared by a maximum"),
    "indexed by data": (chain(lambda h, p: h[:, jnp.argmax(p["x"])][:, None], read=1), "indexed by data"),
    "fourier": (chain(lambda h, p: jnp.fft.fft(h, axis=1).real), "unknown primitive `fft`"),
    "window over channels": (
        chain(lambda h, p: lax.reduce_window(h, 0.0, lax.add, (1, 2), (1, 1), "SAME")),
        "a window slides over these channels",
    ),
    "sigmoid summed": (chain(lambda h, p: h + jax.nn.sigmoid(h).sum(1, keepdims=True)), "summed"),
    "divided by a norm of weights": (
        chain(lambda h, p: h / jnp.linalg.norm(p["a"]["w"], axis=0)[None] * 1),
        "summed while a disabled one would still count",
    ),
}


def integers(rng, shapes):
    draw = lambda shape: jnp.asarray(rng.choice([-2, -1, 1, 2, 3], shape), jnp.float32)
    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def build(case, seed=0):
    apply, shapes, inputs = case
    rng = np.random.default_rng(seed)
    params = integers(rng, {**shapes, "g": (C,)} if "g" not in shapes else shapes)
    return apply, params, integers(rng, inputs)


@pytest.mark.rotating
@pytest.mark.parametrize(("case", "expected"), EXACT.values(), ids=EXACT.keys())
def test_masks_and_exact_removal(case, expected, rng):
    apply, params, x = build(case)
    groups = trace(apply, params, x)
    assert {group.name: group.size for group in groups if group.name != "g"} == expected
    network = init_network(params, groups)
    run = jax.jit(apply)
    single = [{group.name: [0]} for group in groups] + [{group.name: [group.size - 1]} for group in groups]
    several = {group.name: rng.permutation(group.size)[: group.size // 2].tolist() for group in groups}
    for chosen in [*single, several] if len(groups) else []:
        masked = disable(network, choose(network, chosen))
        small_apply, small = compact(apply, masked)
        full, found = run(effective_params(masked), x), jax.jit(small_apply)(small, x)
        assert full.shape == found.shape
        scale = max(1.0, float(jnp.abs(full).max()))
        assert float(jnp.abs(full - found).max()) <= 1e-6 * scale, chosen
        sizes = [leaf.size for leaf in jax.tree.leaves(small)]
        assert sum(sizes) < sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(("case", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_say_why_and_where(case, reason):
    apply, params, x = build((case[0], {**case[1], "x": (C,)}, case[2]))
    groups = trace(apply, params, x)
    assert "a" not in groups.names
    assert reason in groups.refused["a"]
    assert "test_rules.py:" in groups.refused["a"]


DERIVED = ["custom jvp", "custom vjp", "remat", "scan", "cond", "elementwise", "fast norm", "gathered", "grouped"]


@pytest.mark.rotating
@pytest.mark.parametrize("name", DERIVED)
def test_gradients_of_what_is_kept(name):
    """Also where the function brings its own derivative, which here is deliberately not the true one."""
    apply, params, x = build(EXACT[name][0])
    network = init_network(params, trace(apply, params, x))
    masked = disable(network, choose(network, {network.groups.names[0]: [1]}))
    small_apply, small = compact(apply, masked)
    loss = lambda function: jax.grad(lambda p: (function(p, x) ** 2).sum())
    full, found = loss(apply)(effective_params(masked)), loss(small_apply)(small)
    assert float(jnp.abs(found["a"]["w"]).max()) > 0
    for a, b in zip(jax.tree.leaves(cut_like(masked, full)), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def cut_like(network, tree):
    from maskprune import make_plan

    return make_plan(network.groups, network.enabled).cut(tree)
