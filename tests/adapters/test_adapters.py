"""Flax modules as functions and back: what the adapters hand out computes what the module computes."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from zoo import linen_convnets, nnx_nets
from zoo.entry import pictures, randomize

import maskprune as mp
import maskprune.linen
import maskprune.nnx
from maskprune.masks.groups import leaves_by_path
from maskprune.removal.agreement import Run
from maskprune.removal.rebuilt import RebuildError, check_rebuilt


WORDS = jnp.asarray(np.random.default_rng(4).integers(0, 20, (2, 7)), jnp.int32)


class Grouped(nnx.Module):
    """Grouped and group-normed convolutions: widths that Flax's layers hold and that shrink by whole groups."""

    def __init__(self, rngs):
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.grouped = nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=rngs)
        self.norm = nnx.GroupNorm(8, num_groups=None, group_size=2, rngs=rngs)
        self.last = nnx.Conv(8, 1, (1, 1), rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.norm(self.grouped(nnx.relu(self.first(x))))))


class Attention(nnx.Module):
    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(3, 6, qkv_features=12, decode=False, rngs=rngs)
        self.embed = nnx.Embed(20, 6, rngs=rngs)
        self.head = nnx.LinearGeneral(6, (2, 2), rngs=rngs)

    def __call__(self, x):
        return self.head(self.attention(self.embed(x)))


class Shared(nnx.Module):
    """One layer used under two names."""

    def __init__(self, rngs):
        self.front, self.first = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.again = self.first
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.again(nnx.relu(self.first(nnx.relu(self.front(x)))))))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.first, self.drop = nnx.Linear(4, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.norm, self.last = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.relu(self.norm(self.first(x)))))


class TinyResNet(nnx.Module):
    """Batch norm, a residual block with a projection, a depthwise block."""

    def __init__(self, rngs):
        self.stem = nnx_nets.ConvNorm(3, 4, 3, rngs=rngs)
        self.block = nnx_nets.BasicBlock(4, 6, 2, rngs)
        self.depthwise = nnx_nets.InvertedResidual(6, 6, expand=2, stride=1, rngs=rngs)
        self.up = nnx.ConvTranspose(6, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        x = self.up(self.depthwise(self.block(nnx.relu(self.stem(x)))))
        return self.head(jnp.mean(nnx.relu(x), axis=(1, 2)))


class Norms(nnx.Module):
    """A layer norm, which counts its channels."""

    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 6, rngs=rngs), nnx.LayerNorm(6, rngs=rngs)
        self.last = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(self.first(x)))


class Fixed(nnx.Module):
    """A reshape to a width that is written down."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.first(x).reshape(-1, 2, 3))


REBUILT = {
    "resnet18": (lambda: nnx_nets.ResNet18((4, 6, 8, 10), nnx.Rngs(0)), pictures(1, 2, 16, 16, 3)),
    "vgg": (lambda: nnx_nets.VGG(((4, 5), (6, 7), (9, 8, 10)), nnx.Rngs(0)), pictures(2, 2, 16, 16, 3)),
    "unet": (lambda: nnx_nets.UNet(nnx.Rngs(0)), pictures(3, 2, 16, 16, 3)),
    "mobilenet": (lambda: nnx_nets.MobileNetV2(nnx.Rngs(0)), pictures(5, 2, 16, 16, 3)),
    "squeeze_excite": (lambda: nnx_nets.SqueezeExciteNet(nnx.Rngs(0)), pictures(8, 2, 12, 12, 3)),
    "grouped": (lambda: Grouped(nnx.Rngs(0)), pictures(9, 2, 8, 8, 3)),
    "attention": (lambda: Attention(nnx.Rngs(0)), WORDS),
    "shared": (lambda: Shared(nnx.Rngs(0)), pictures(10, 2, 3)),
    "dropped": (lambda: Dropped(nnx.Rngs(0)), pictures(11, 3, 4)),
    "tiny_resnet": (lambda: TinyResNet(nnx.Rngs(0)), pictures(12, 2, 8, 8, 3)),
}
SLOW = ("tiny_resnet", "grouped", "resnet18", "vgg", "unet", "mobilenet", "squeeze_excite")


def randomized(module):
    graph, params, stats, rest = nnx.split(module, nnx.Param, nnx.BatchStat, ...)
    params, stats = randomize(3, (nnx.to_pure_dict(params), nnx.to_pure_dict(stats)))
    return nnx.merge(graph, params, stats, rest)


def first_mask(group):
    """The first mask, but not of groups within a group of channels, nor of what a softmax scales by."""
    within = group.name in ("first[3]#2", "grouped", "attention/query[2]", "attention/value")
    return [] if within or group.size == 1 else [0]


def shrunk(apply, params, state, *inputs, masks=first_mask):
    groups = mp.trace(apply, params, *inputs, model_state=state)
    network = mp.init_network(params, groups)
    network = mp.disable(network, mp.choose(network, {group.name: masks(group) for group in groups}))
    small_apply, small_params = mp.compact(apply, network, *inputs, model_state=state)
    small_state = None if state is None else mp.make_plan(groups, network.enabled).cut(state, state=True)
    return small_apply, small_params, small_state


def numbers(module) -> dict:
    return {k: np.asarray(v) for k, v in leaves_by_path(nnx.to_pure_dict(nnx.state(module, nnx.Param))).items()}


@pytest.mark.rotating
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in REBUILT]
)
def test_an_nnx_module_comes_back_small(name):
    make, x = REBUILT[name]
    module = randomized(make())
    before = numbers(module)
    apply, params, state = maskprune.nnx.from_module(module)
    module.eval()
    states = () if state is None else (state,)
    expected = nnx.jit(lambda module, x: module(x))(module, x)
    np.testing.assert_allclose(jax.jit(apply)(params, *states, x), expected, rtol=1e-5, atol=1e-5)
    module.train()
    small_apply, small_params, small_state = shrunk(apply, params, state, x)
    small = maskprune.nnx.to_module(module, small_apply, small_params, x, model_state=small_state)
    assert type(small) is type(module) and sum(map(np.size, numbers(small).values())) < sum(
        map(np.size, before.values())
    )
    for path, array in numbers(module).items():
        np.testing.assert_array_equal(array, before[path])
    for _, layer in nnx.iter_modules(small):  # ordinary layers: their widths say what their arrays hold
        if isinstance(layer, (nnx.Linear, nnx.Conv)):
            assert layer.kernel.shape[-1] == layer.out_features
        if isinstance(layer, nnx.BatchNorm):
            assert layer.num_features == layer.mean.shape[-1]


@pytest.mark.parametrize(
    ("kind", "x", "words"),
    [
        (Fixed, pictures(7, 2, 3), r"The Fixed cannot run on .*\(test_adapters.py:\d+\)"),
        (Norms, pictures(7, 2, 3), r"`norm`, a LayerNorm \(6 → 5 channels\)"),
        (Attention, WORDS, r"`attention`, a MultiHeadAttention \(heads 4 → 3 wide\)"),
    ],
)
def test_a_module_whose_code_holds_a_width_is_refused(kind, x, words):
    module = randomized(kind(nnx.Rngs(0)))
    apply, params, state = maskprune.nnx.from_module(module)
    small_apply, small_params, _ = shrunk(apply, params, state, x, masks=lambda group: [0])
    with pytest.raises(RebuildError, match=words):
        maskprune.nnx.to_module(module, small_apply, small_params, x)


def test_a_rebuilt_module_needs_inputs():
    with pytest.raises(ValueError, match="sample inputs"):
        check_rebuilt("The Net", Run(abs, 1.0, ()), Run(abs, 1.0, ()), ())


def test_nnx_training_changes_statistics_and_draws_by_the_key(key):
    module, x = randomized(Dropped(nnx.Rngs(0))), pictures(11, 5, 4)
    _, params, state = maskprune.nnx.from_module(module)
    train = maskprune.nnx.training(module)
    first, new = train(params, state, x, key=key)
    second, _ = train(params, state, x, key=jax.random.key(2))
    again, _ = jax.jit(train)(params, state, x, key=key)
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3
    mean = jnp.mean(module.first(x), axis=0)
    np.testing.assert_allclose(new["norm"]["mean"], 0.99 * state["norm"]["mean"] + 0.01 * mean, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_an_nnx_module_without_statistics_has_no_state(key):
    module = Shared(nnx.Rngs(0))
    _, params, state = maskprune.nnx.from_module(module)
    assert state is None and set(params) == {"again", "front", "last"}  # shared arrays appear once
    output, new = maskprune.nnx.training(module)(params, None, pictures(0, 2, 3), key=key)
    assert new is None and output.shape == (2, 2)


def test_training_shrinks_like_evaluation(key):
    module, x = randomized(TinyResNet(nnx.Rngs(0))), pictures(1, 2, 8, 8, 3)
    apply, params, state = maskprune.nnx.from_module(module)
    groups = mp.trace(apply, params, x, model_state=state)
    network = mp.init_network(params, groups)
    network = mp.disable(network, mp.choose(network, {group.name: [1] for group in groups}))
    plan = mp.make_plan(groups, network.enabled)
    train = maskprune.nnx.training(module)
    output, _ = jax.jit(train)(mp.effective_params(network), state, x)
    small, new = jax.jit(mp.shrink(train, plan, stateful=True))(
        plan.cut(mp.effective_params(network)), plan.cut(state, state=True), x
    )
    np.testing.assert_allclose(small, output, rtol=2e-4, atol=2e-4)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, plan.cut(state, state=True))


# Linen


class LinenNet(nn.Module):
    widths: tuple[int, ...] = (6, 5)

    @nn.compact
    def __call__(self, x, train: bool):
        for width in self.widths:
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(width, (3, 3))(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(2)(x)


def linen_net(widths=(6, 5)):
    model, x = LinenNet(widths), pictures(5, 3, 8, 8, 1)
    variables = randomize(1, model.init(jax.random.key(0), x, train=False))
    return model, variables, x


def test_a_linen_module_as_a_function():
    model, variables, x = linen_net()
    apply, params, state = maskprune.linen.from_module(model, variables, settings={"train": False})
    assert set(state) == {"batch_stats"}
    np.testing.assert_array_equal(apply(params, state, x), model.apply(variables, x, train=False))
    dense = nn.Dense(3)
    apply, params, state = maskprune.linen.from_module(dense, dense.init(jax.random.key(0), jnp.ones((1, 4))))
    assert state is None and apply(params, jnp.ones((1, 4))).shape == (1, 3)
    with pytest.raises(ValueError, match="collections batch_stats"):
        maskprune.linen.from_module(model, {"batch_stats": {}})


def test_linen_training(key):
    model, variables, x = linen_net()
    _, params, state = maskprune.linen.from_module(model, variables)
    train = maskprune.linen.training(model, settings={"train": True})
    first, new = train(params, state, x, key=key)
    expected = model.apply(
        variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.fold_in(key, 0)}
    )
    np.testing.assert_array_equal(first, expected[0])
    for path, leaf in leaves_by_path(new).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(expected[1])[path])


def test_the_widths_rebuild_a_linen_module():
    model, variables, x = linen_net()
    settings = {"train": False}
    apply, params, state = maskprune.linen.from_module(model, variables, settings=settings)
    small = shrunk(apply, params, state, x, masks=lambda group: [0, 2] if group.size == 6 else [1])
    found = maskprune.linen.widths(small[1])
    assert found == {"Conv_0": 4, "Conv_1": 4, "Dense_0": 2}
    rest = {"model_state": small[2], "settings": settings}
    maskprune.linen.check_module(LinenNet((found["Conv_0"], found["Conv_1"])), *small[:2], x, **rest)
    with pytest.raises(RebuildError, match=r"`params/Conv_0/kernel` is \(3, 3, 1, 6\) in the module and"):
        maskprune.linen.check_module(model, *small[:2], x, **rest)
    with pytest.raises(RebuildError, match="cannot be built"):
        maskprune.linen.check_module(LinenNet((0.5, 1)), *small[:2], x, **rest)


class LinenGain(nn.Module):
    gain: float

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x) * self.gain


def test_a_linen_module_that_computes_something_else_is_refused():
    model, x = LinenGain(2.0), pictures(0, 2, 3)
    apply, params, _ = maskprune.linen.from_module(model, model.init(jax.random.key(0), x))
    maskprune.linen.check_module(model, apply, params, x)
    with pytest.raises(RebuildError, match="outputs differ"):
        maskprune.linen.check_module(LinenGain(2.1), apply, params, x)


def test_attention_has_several_widths():
    x = pictures(0, 2, 5, 6)
    variables = nn.MultiHeadDotProductAttention(3, qkv_features=12).init(jax.random.key(0), x)
    found = maskprune.linen.widths(variables["params"])
    assert found == {"key": (3, 4), "out": 6, "query": (3, 4), "value": (3, 4)}


# The example of the README


def test_the_example_of_the_readme(tmp_path):
    resnet = randomized(nnx_nets.ResNet18((4, 6), nnx.Rngs(0)))
    images = pictures(1, 2, 16, 16, 3)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```python\n(from maskprune.nnx.*?)```", readme, flags=re.DOTALL)
    (tmp_path / "example.py").write_text(example)
    given = {"resnet": resnet, "images": images, "mp": mp, "jax": jax, "np": np}
    found = runpy.run_path(str(tmp_path / "example.py"), init_globals=given)
    small = found["small"]
    assert mp.count_params(found["small_params"]) < 0.35 * mp.count_params(found["params"])
    assert small.stem.conv.kernel.shape == (7, 7, 3, 2) and small.head.in_features == 3
    masked = jax.jit(found["apply"])(mp.effective_params(found["network"]), found["state"], images)
    small.eval()
    np.testing.assert_allclose(nnx.jit(lambda net, x: net(x))(small, images), masked, rtol=1e-4, atol=1e-4)


def test_abstract_variables_are_enough_to_trace():
    model = linen_convnets.ResNet(linen_convnets.BasicBlock, [(1, 5, 6)])
    x = pictures(1, 1, 16, 16, 3)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    apply, params, state = maskprune.linen.from_module(model, variables, settings={"train": False})
    assert len(mp.trace(apply, params, x, model_state=state)) > 1
