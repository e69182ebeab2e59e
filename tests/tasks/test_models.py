"""The FCN: its size, its initial weights, its Flax form, and two tasks whose exact networks are known by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from toys import away_from_zero

from maskprune import choose, count_params, disable, init_network, models
from maskprune.removal.compaction import compact_params
from maskprune.tasks.metrics import relative_rmse
from maskprune.tasks.models.module import FCNModule, from_module, to_module


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def layer(taps, bias) -> dict[str, jax.Array]:
    return {"kernel": jnp.asarray(taps, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def test_the_network_of_the_source_document():
    model = models.fcn()
    shapes = shapes_of(model)
    kernels = {name: part["kernel"].shape for name, part in shapes.items()}
    assert kernels == {"conv1": (5, 5, 1, 5), "conv2": (5, 5, 5, 5), "conv3": (5, 5, 5, 1)}
    params = jax.tree.map(lambda s: np.zeros(s.shape), shapes)
    assert count_params(params) == 886
    assert models.multiply_adds(params) == 875
    assert model.groups.names == ("conv1", "conv2")
    assert "conv3" in model.groups.refused


@pytest.mark.parametrize(("name", "own"), [("conv1", 26), ("conv2", 126)])
def test_numbers_of_one_mask(name, own):
    model = models.fcn()
    shapes = shapes_of(model)[name]
    slices = model.groups[name].with_role("out")
    leaf = lambda piece: shapes[piece.leaf.rsplit("/")[-1]].shape
    assert sum(int(np.prod(leaf(piece))) // leaf(piece)[piece.axis] for piece in slices) == own


@pytest.mark.parametrize(
    ("initial", "spread"), [("he", lambda fan_in: np.sqrt(2 / fan_in)), ("thesis", lambda fan_in: 0.05 * 0.8796)]
)
def test_initial_distribution(initial, spread):
    model = models.fcn((20, 30), initial=initial)
    params = jax.jit(model.init)(jax.random.key(5))
    for name, bias in [("conv1", 0.05), ("conv2", 0.05), ("conv3", 0.1)]:
        kernel = np.asarray(params[name]["kernel"])
        scale = spread(np.prod(kernel.shape[:3]))
        assert kernel.std() == pytest.approx(scale, rel=0.06)
        assert abs(kernel.mean()) < 4 * scale / np.sqrt(kernel.size)
        assert np.abs(kernel).max() <= 2 * scale / 0.8796 + 1e-6
        assert np.array_equal(
            params[name]["bias"], np.full(kernel.shape[3], bias if initial == "he" else 0, np.float32)
        )
    if initial == "thesis":
        assert max(np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(params)) <= 0.1


def test_every_key_and_layer_draws_its_own():
    init = jax.jit(models.fcn((4, 4), inputs=4, outputs=4).init)
    drawn = [init(jax.random.key(seed)) for seed in (0, 0, 1)]
    kernels = [np.asarray(params[name]["kernel"]) for params in drawn for name in ("conv1", "conv2", "conv3")]
    assert len(np.unique(np.stack(kernels), axis=0)) == 6
    assert np.array_equal(kernels[0], kernels[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (3, 0)}, r"layer widths are \[1, 3, 0, 1\]"),
        ({"outputs": 0}, "`outputs` is 0"),
        ({"kernel": 4}, "`kernel` is 4: kernel sizes must be odd"),
        ({"kernel": (3, -1, 3)}, "odd and positive"),
        ({"kernel": (3, 5)}, "`kernel` has 2 sizes for 3 layers"),
        ({"initial": "xavier"}, '`initial` is \'xavier\': use "he" or "thesis"'),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        models.fcn(**{"widths": (2, 2), **options})


def test_activations_are_what_the_next_layer_reads(rng):
    model = models.fcn((3, 2), kernel=(3, 5, 1), inputs=2, outputs=2)
    params = away_from_zero(1, shapes_of(model))
    pictures = jnp.asarray(rng.uniform(size=(2, 6, 5, 2)), jnp.float32)
    found = jax.jit(model.activations)(params, pictures)
    assert {name: x.shape for name, x in found.items()} == {
        "conv1": (2, 6, 5, 3),
        "conv2": (2, 6, 5, 2),
        "conv3": (2, 6, 5, 2),
    }
    assert all(np.all(x >= 0) for x in found.values())
    assert np.array_equal(found["conv3"], jax.jit(model.apply)(params, pictures))


def test_any_convolution_can_be_put_in():
    calls = []

    def flat(x, kernel, bias, *, relu):
        calls.append(kernel.shape)
        return jnp.broadcast_to(bias, (*x.shape[:3], bias.shape[0]))

    model = models.fcn((2,), kernel=1, convolution=flat)
    params = {"conv1": layer(np.ones((1, 1, 1, 2)), [1, 2]), "conv2": layer(np.ones((1, 1, 2, 1)), [3])}
    assert np.array_equal(model.apply(params, jnp.zeros((1, 2, 2, 1))), np.full((1, 2, 2, 1), 3))
    assert calls == [(1, 1, 1, 2), (1, 1, 2, 1)]


def test_a_threshold_needs_one_mask_in_each_layer():
    """relu(1 - relu(1 - relu(s (x - T)))) is 0 up to T and 1 from T + 1/s on."""
    level, steep = 0.4, 100.0
    model = models.fcn((1, 1), kernel=1)
    one = np.ones((1, 1, 1, 1))
    params = {
        "conv1": layer(steep * one, [-steep * level]),
        "conv2": layer(-one, [1]),
        "conv3": layer(-one, [1]),
    }
    x = np.linspace(0, 1, 1200, dtype=np.float32).reshape(1, 30, 40, 1)
    x = np.where((x > level - 1e-4) & (x < level + 1.1 / steep), 0.0, x)
    found = jax.jit(model.apply)(params, x)
    assert np.array_equal(found, x > level)
    assert 0.3 < found.mean() < 0.7


def sobel_fcn(widths: tuple[int, int]):
    """Sobel slopes along three directions 120 degrees apart, rectified and added; K = 3 sums to 3 / pi on average."""
    along = np.outer([1, 2, 1], [-1, 0, 1])[:, :, None]
    angles = np.deg2rad([10, 130, 250])
    slopes = np.cos(angles) * along + np.sin(angles) * along.transpose(1, 0, 2)
    centre, wide = np.zeros((3, 3, 1, 1)), 3
    centre[1, 1] = 1
    directions = layer(slopes[:, :, None, :], np.zeros(wide))
    total = layer(np.repeat(centre, wide, axis=2) * np.pi / 3 / np.sqrt(20), [0])
    copy = layer(centre, [0])
    order = [directions, total, copy] if widths == (3, 1) else [copy, directions, total]
    return models.fcn(widths, kernel=3), dict(zip(("conv1", "conv2", "conv3"), order, strict=True))


@pytest.mark.parametrize("widths", [(3, 1), (1, 3)])
def test_sobel_needs_four_masks(rng, widths):
    model, params = sobel_fcn(widths)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, shapes_of(model))
    picture = scipy.ndimage.gaussian_filter(rng.normal(size=(64, 64)), 3.0)
    picture = (picture - picture.min()) / np.ptp(picture)
    truth = np.hypot(*(scipy.ndimage.sobel(picture, axis) for axis in (0, 1))) / np.sqrt(20)
    found = jax.jit(model.apply)(params, jnp.asarray(picture, jnp.float32)[None, :, :, None])
    error = relative_rmse(found, truth[None, :, :, None], border=3)
    assert 0.02 < error < 0.045  # the ripple of three directions is 2 / 35 from middle to top
    fewer = disable(init_network(params, model.groups), {f"conv{widths.index(3) + 1}": np.array([True, False, False])})
    found = jax.jit(model.apply)(compact_params(fewer), jnp.asarray(picture, jnp.float32)[None, :, :, None])
    assert relative_rmse(found, truth[None, :, :, None], border=3) > 0.25


def flax_case(widths, kernel, **options):
    model = models.fcn(widths, kernel=kernel, **options)
    return model, away_from_zero(3, shapes_of(model))


@pytest.mark.rotating
@pytest.mark.parametrize(
    ("widths", "kernel", "options"),
    [((4,), (3, 1), {"inputs": 2}), ((2, 3, 2), (1, 3, 5, 3), {"outputs": 2})],
)
def test_flax_module_computes_the_same(rng, widths, kernel, options):
    model, params = flax_case(widths, kernel, **options)
    pictures = jnp.asarray(rng.uniform(size=(2, 7, 6, options.get("inputs", 1))), jnp.float32)
    module = to_module(params)
    assert isinstance(module, FCNModule)
    expected = np.asarray(jax.jit(model.apply)(params, pictures))
    np.testing.assert_allclose(module(pictures), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert expected.any()
    back = from_module(module)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (back, params)), strict=True))


def test_flax_module_of_a_compacted_network():
    model, params = flax_case((3, 2), 3)
    network = init_network(params, model.groups)
    small = compact_params(disable(network, choose(network, {"conv1": [1], "conv2": [0]})))
    module = to_module(small)
    assert {name: part["kernel"].shape for name, part in from_module(module).items()} == {
        "conv1": (3, 3, 1, 2),
        "conv2": (3, 3, 2, 1),
        "conv3": (3, 3, 1, 1),
    }


def test_more_than_nine_layers_keep_their_order():
    """JAX sorts the keys of dictionaries as text: conv1, conv10, conv11, conv2, ..."""
    widths = (2, 3) * 4 + (2,)
    params = flax_case(widths, 1)[1]
    assert list(params)[1] == "conv10"
    pairs = itertools.pairwise([1, *widths, 1])
    module = to_module(params)
    assert module.names == tuple(f"conv{n}" for n in range(1, 11))
    for name, (before, after) in zip(module.names, pairs, strict=True):
        assert (getattr(module, name).in_features, getattr(module, name).out_features) == (before, after)
        assert np.array_equal(from_module(module)[name]["kernel"], params[name]["kernel"])
