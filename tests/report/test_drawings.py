"""Pictures tell the truth: colour by sign, brightness by size, strokes on what is absent; equal data, equal bytes."""

import io
import itertools
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from maskprune.report import canvas, drawings
from maskprune.report.canvas import PALETTE


def network(rng, widths=(1, 3, 2, 1), size=(5, 5)):
    sizes = itertools.pairwise(widths)
    return {
        f"conv{n}": {"kernel": rng.normal(size=(*size, cin, c)).astype(np.float32), "bias": np.zeros(c, np.float32)}
        for n, (cin, c) in enumerate(sizes, 1)
    }


def history():
    verdicts = [("reference", 10, 0.9), ("accepted", 9, 0.89), ("refused", 8, 0.2), ("accepted", 8, 0.88)]
    return [
        {"number": n, "verdict": verdict, "masks": masks, "score": score, "reference": 0.9, "required": 0.85}
        for n, (verdict, masks, score) in enumerate(verdicts)
    ]


def where(picture, colour):
    return np.all(np.asarray(picture) == np.rint(canvas.rgb(colour)), axis=-1)


def beyond_legend(picture, colour):
    empty = {"a": {"kernel": np.zeros((3, 3, 1, 1))}}
    return int(where(picture, colour).sum() - where(drawings.masks_picture(empty, {}), colour).sum())


@pytest.mark.parametrize(("sign", "colour", "other"), [(1, "positive", "negative"), (-1, "negative", "positive")])
def test_the_largest_weight_has_the_full_colour_of_its_sign(sign, colour, other):
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 2] = sign * 0.3
    picture = drawings.masks_picture({"a": {"kernel": kernel}}, {})
    assert beyond_legend(picture, getattr(PALETTE, colour)) > 300  # one cell of 23 × 23, less its minus sign
    assert beyond_legend(picture, getattr(PALETTE, other)) == 0


def test_a_bias_grows_to_the_side_of_its_sign():
    row = np.array(canvas.bar(0.5, 1.0, (41, 3)))[0]
    left, right = (np.flatnonzero(np.all(row == canvas.rgb(c), axis=-1)) for c in (PALETTE.negative, PALETTE.positive))
    assert left.size == 0 and right.min() > 20 and right.size == 10
    mirrored = np.array(canvas.bar(-0.5, 1.0, (41, 3)))[0]
    assert np.flatnonzero(np.all(mirrored == canvas.rgb(PALETTE.negative), axis=-1)).max() < 20


def test_brightness_follows_magnitude():
    steps = np.linspace(0, 1, 9, dtype=np.float32)[None]
    for sign, channel in ((1, 1), (-1, 0)):
        assert np.all(np.diff(np.array(canvas.signed(sign * steps, 1.0))[0, :, channel].astype(int)) > 0)


def test_signs_can_be_told_apart_without_hue():
    red, green = (float(canvas.rgb(c) @ (0.299, 0.587, 0.114)) for c in (PALETTE.negative, PALETTE.positive))
    assert abs(red - green) > 10
    cells = np.array([[-1.0, 1.0]], np.float32)
    plain = canvas.enlarged(canvas.signed(cells, 1.0), 12)
    marked = np.any(np.array(canvas.dashed(plain, cells < 0, 12)) != np.array(plain), axis=-1)
    assert marked[:, :12].any() and not marked[:, 12:].any()


def test_a_disabled_mask_is_dimmed_and_crossed_out(rng):
    params = network(rng)
    alive = drawings.masks_picture(params, {"conv1": [True] * 3})
    struck = drawings.masks_picture(params, {"conv1": [True, False, True]})
    assert alive.size == struck.size
    assert beyond_legend(struck, PALETTE.ink) - beyond_legend(alive, PALETTE.ink) > 100
    changed = np.flatnonzero(np.any(np.array(alive)[110:210] != np.array(struck)[110:210], axis=(0, 2)))
    assert changed.size and changed.max() - changed.min() < 75  # conv1: its own column and no other


def test_a_kernel_that_reads_a_disabled_mask_is_struck(rng):
    params = network(rng, (1, 2, 1))
    params["conv1"]["kernel"][:] = 0.0
    params["conv2"]["kernel"][:, :, 0] = 0.0
    params["conv2"]["kernel"][0, 0, 1] = 9.0
    full = beyond_legend(drawings.masks_picture(params, {}), PALETTE.positive)
    reads_nothing = beyond_legend(drawings.masks_picture(params, {"conv1": [True, False]}), PALETTE.positive)
    unrelated = beyond_legend(drawings.masks_picture(params, {"conv1": [False, True]}), PALETTE.positive)
    assert reads_nothing == 0 < unrelated == full


@pytest.mark.parametrize("poison", [1e6, np.nan, np.inf])
def test_a_disabled_mask_does_not_change_the_brightness_of_the_others(rng, poison):
    params, enabled = network(rng), {"conv1": [True, False, True], "conv2": [True, True]}
    before = np.array(drawings.masks_picture(params, enabled))
    params["conv1"]["kernel"][..., 1] = poison
    params["conv1"]["bias"][1] = poison
    params["conv2"]["kernel"][:, :, 1] = poison
    after = np.array(drawings.masks_picture(params, enabled))
    bright = before.max(axis=-1) > 120  # brighter than anything dimmed can be
    assert bright.sum() > 1000 and np.any(before != after)
    np.testing.assert_array_equal(after[bright], before[bright])


def test_layers_are_ordered_by_number(rng):
    params = {f"conv{n}": layer for n, layer in zip((1, 2, 10), network(rng).values(), strict=True)}
    as_jax_sorts = {name: params[name] for name in sorted(params)}
    assert list(as_jax_sorts) != list(params)
    pictures = [drawings.masks_picture(p, {"conv1": [True, False, True]}) for p in (params, as_jax_sorts)]
    assert drawings.to_png(pictures[0]) == drawings.to_png(pictures[1])


def test_equal_values_give_equal_bytes(rng):
    params, maps = network(rng), {"conv1": rng.random((20, 30, 3), np.float32)}
    rows = [("one", [("input", maps["conv1"][..., 0]), ("target", maps["conv1"][..., 1])])]
    draws = [
        lambda: drawings.masks_picture(params, {"conv1": [True, False, True]}),
        lambda: drawings.activations_picture(maps, {}),
        lambda: drawings.comparison_picture(rows),
        lambda: drawings.score_history(history(), threshold_line=None),
        lambda: drawings.score_against_size(history()),
    ]
    for draw in draws:
        assert drawings.to_png(draw()) == drawings.to_png(draw())


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 7, 2, 1), (2, 2, 1, 50), (9, 9, 4, 3), (5, 1, 40, 2)])
def test_kernels_of_any_shape_are_drawn(rng, shape):
    params = {"only": {"kernel": rng.normal(size=shape), "bias": None}}
    assert min(drawings.masks_picture(params, {"only": np.zeros(shape[-1], bool)}).size) > 50


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 2), (37, 5, 9), (500, 333, 1)])
def test_activations_of_any_size_are_drawn(rng, shape):
    maps = rng.normal(size=shape)
    maps[0, 0, 0] = np.nan
    alive = np.arange(shape[-1]) > 0
    picture, struck = (drawings.activations_picture({"a": maps}, e) for e in ({}, {"a": alive}))
    assert drawings.to_png(picture) != drawings.to_png(struck)
    assert max(picture.size) < 1600


def test_values_that_are_not_finite_are_seen():
    picture = drawings.activations_picture({"a": np.full((4, 4, 1), np.nan)}, {})
    assert where(picture, PALETTE.broken).sum() == 176 * 176


def test_targets_and_outputs_share_a_range_and_the_error_has_its_own():
    target, output = np.zeros((8, 8)), np.full((8, 8), 0.5)
    target[0, 0], error = 1.0, np.full((8, 8), 0.001)
    error[0, 0] = 0.0
    row = [("input", 8 * target), ("target", target), ("output", output), ("|error|", error)]
    pixels = np.array(drawings.comparison_picture([("t", row)]))[..., 0]
    middle = pixels[150]  # a line through all four pictures
    starts = [24 + n * 248 + 120 for n in range(4)]
    assert [int(middle[x]) for x in starts] == [0, 0, 128, 255]


@pytest.mark.parametrize("title", ["", "two\nlines", "caf\udce9", "long " * 100])
def test_any_title_can_be_drawn(title):
    picture = drawings.comparison_picture([(title, [(title, np.eye(9)), ("target", np.eye(9))])])
    assert picture.width <= 24 * 2 + 2 * 248


@settings(deadline=None, max_examples=50, derandomize=True)
@given(arrays.arrays(np.float32, arrays.array_shapes(max_dims=3), elements=st.floats(-1e6, 1e6, width=32)))
def test_uint8_keeps_order_and_uses_the_whole_range(array):
    result = drawings.to_uint8(array)
    assert result.shape == array.shape and result.dtype == np.uint8
    assert np.all(np.diff(result.ravel()[np.argsort(array, axis=None)].astype(int)) >= 0)
    assert {int(result.min()), int(result.max())} == ({0} if array.min() == array.max() else {0, 255})


def test_uint8_rounds_to_the_nearest():
    np.testing.assert_array_equal(drawings.to_uint8(np.array([-1.0, 0.0, 1.0, 0.5])), [0, 128, 255, 191])


def test_png_holds_the_picture_and_nothing_else(rng):
    array = rng.random((7, 11))
    opened = Image.open(io.BytesIO(drawings.to_png(array)))
    np.testing.assert_array_equal(np.array(opened), drawings.to_uint8(array))
    assert opened.info == {}


def centre(picture, colour):
    return float(np.flatnonzero(where(picture, colour)[60:].any(axis=1)).mean())  # below the legend


@pytest.mark.parametrize("draw", [drawings.score_history, drawings.score_against_size])
def test_a_refused_round_lies_below_the_accepted_ones(draw):
    picture = draw(history(), threshold_line=0.85)
    green, amber, red = (centre(picture, c) for c in (PALETTE.positive, PALETTE.broken, PALETTE.negative))
    assert green < amber < red


@pytest.mark.parametrize("draw", [drawings.score_history, drawings.score_against_size])
@pytest.mark.parametrize("rounds", [[], history()[:1], history()[2:3], [dict.fromkeys(history()[0])], [{"score": ""}]])
def test_charts_of_unfinished_runs_are_drawn(draw, rounds):
    assert draw(rounds, threshold_line=None).size == (1200, 560)


def test_errors_name_the_argument_and_what_was_found(rng):
    params = network(rng)
    with pytest.raises(ValueError, match=r"enabled\['conv1'\] has shape \(2,\).*3 masks"):
        drawings.masks_picture(params, {"conv1": [True, False]})
    with pytest.raises(ValueError, match=r"enabled names \['conv9'\]"):
        drawings.masks_picture(params, {"conv9": [True]})
    with pytest.raises(ValueError, match=r"kernel.*\(3, 3\)"):
        drawings.masks_picture({"a": {"kernel": np.zeros((3, 3))}}, {})
    with pytest.raises(ValueError, match=r"activations\['a'\] has shape \(4, 4\)"):
        drawings.activations_picture({"a": np.zeros((4, 4))}, {})
    with pytest.raises(ValueError, match=r"the stage has 2 maps"):
        drawings.activations_picture({"a": np.zeros((4, 4, 2))}, {"a": [True]})
    with pytest.raises(ValueError, match="activations is empty"):
        drawings.activations_picture({}, {})
    with pytest.raises(ValueError, match="rows is empty"):
        drawings.comparison_picture([])
    with pytest.raises(ValueError, match=r"'target' of row 'one' has shape \(2, 2, 1\)"):
        drawings.comparison_picture([("one", [("target", np.zeros((2, 2, 1)))])])
    with pytest.raises(ValueError, match="1 values that are not finite"):
        drawings.to_uint8(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match=r"shape \(2, 2, 2\)"):
        drawings.to_png(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="size is 'weight'"):
        drawings.score_against_size(history(), size="weight")


# Networks that are no chain


class Piece(NamedTuple):
    leaf: str
    axis: int
    labels: tuple[int, ...]
    role: str


class Masks(NamedTuple):
    name: str
    size: int
    slices: tuple[Piece, ...]


def nested(rng):
    """Two convolutions, one without a bias, tied by a group, in lists and dictionaries; a norm and a dense layer."""
    kernel = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        "stem": {"kernel": kernel(3, 3, 1, 2), "bias": np.ones(2, np.float32)},
        "norm": {"scale": np.ones(2), "bias": np.ones(2)},
        "blocks": {0: {"conv": {"kernel": kernel(3, 3, 2, 2)}}, 1: {"down": {"w": kernel(1, 1, 4, 3), "b": None}}},
        "head": {"kernel": kernel(3, 7), "bias": np.ones(7)},
    }


TIED = (
    Masks("stem", 2, (
        Piece("stem/kernel", 3, (0, 1), "out"), Piece("stem/bias", 0, (0, 1), "out"),
        Piece("blocks/0/conv/kernel", 2, (0, 1), "in"), Piece("blocks/0/conv/kernel", 3, (0, 1), "out"),
        Piece("blocks/1/down/w", 2, (-1, -1, 0, 1), "in"),
    )),
    Masks("down", 3, (Piece("blocks/1/down/w", 3, (0, 1, 2), "out"), Piece("head/kernel", 0, (0, 1, 2), "in"))),
)  # fmt: skip


def test_groups_tell_what_every_kernel_of_any_network_has_and_reads(rng):
    params, off = nested(rng), {"stem": [True, False], "down": [True, True, False]}
    marks = drawings._marks(drawings._layers(params), off, TIED)
    flags, inputs, sources = ({name: each[at] for name, each in marks.items()} for at in range(3))
    assert {name: values.tolist() for name, values in flags.items()} == {
        "stem": [True, False], "blocks/0/conv": [True, False], "blocks/1/down": [True, True, False],
    }  # fmt: skip
    assert inputs["blocks/0/conv"].tolist() == [True, False]
    assert inputs["blocks/1/down"].tolist() == [True, True, True, False]
    assert sources == {"stem": "input", "blocks/0/conv": "stem", "blocks/1/down": "stem"}
    picture, every = (drawings.masks_picture(params, each, TIED) for each in (off, {}))
    assert picture.size == every.size and picture.tobytes() != every.tobytes()


def test_names_alone_do_for_layers_of_their_own(rng):
    params = nested(rng)
    flags = {"stem": [True, False], "blocks/1/down": np.array([True, True, False]), "head": [True] * 7}
    assert drawings.masks_picture(params, flags).size == drawings.masks_picture(params, {}).size
    with pytest.raises(ValueError, match=r"enabled names \['norm'\].*'stem'"):
        drawings.masks_picture(params, {"norm": [True, True]})
    with pytest.raises(ValueError, match=r"enabled names \['gone'\].*'down'"):
        drawings.masks_picture(params, {"gone": [True]}, TIED)
    with pytest.raises(ValueError, match=r"enabled\['down'\] has shape \(2,\); there are 3 masks"):
        drawings.masks_picture(params, {"down": [True, False]}, TIED)


@pytest.mark.parametrize(
    "params", [{}, {"norm": {"scale": np.ones(3)}}, {"head": nested(np.random.default_rng(0))["head"]}]
)
def test_a_network_without_convolutions_is_told(params):
    with pytest.raises(ValueError, match="params has no kernel"):
        drawings.masks_picture(params, {})
