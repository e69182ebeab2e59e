"""The loss and the score are those of the pictures without their border, and batches follow from their key."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskprune import losses, metrics
from maskprune.masks.groups import Group, Groups, Slice
from maskprune.masks.network import init_network
from maskprune.tasks.data import batches
from maskprune.tasks.data.split import Dataset, Split
from maskprune.tasks.pictures import constant_score, picture_task
from maskprune.train.step import init_state


GROUPS = Groups((Group("g", 1, (Slice("gain", 0, (0,), "out"),)),))


def apply(params, pictures):
    return params["gain"][0] * pictures + params["shift"]


def state_of(gain, shift=0.0):
    network = init_network({"gain": jnp.full(1, gain), "shift": jnp.float32(shift)}, GROUPS)
    return init_state(network, optax.sgd(0.1))


def side(rng, count, *, size, targets=np.uint16):
    inputs = rng.integers(0, 256, (count, size, size, 1), np.uint8)
    wanted = rng.integers(0, np.iinfo(targets).max + 1, inputs.shape, targets)
    return Split(inputs, wanted, tuple(f"picture {number}" for number in range(count)))


def dataset(rng, *, size=20, targets=np.uint16):
    return Dataset(
        train=side(rng, 5, size=size, targets=targets),
        evaluation=side(rng, 3, size=size, targets=targets),
        target_name="noise",
        binary=False,
        source="made up",
        skipped={},
        notes=(),
        checksum="0" * 12,
    )


def values(stored):
    return stored.astype(np.float64) / np.iinfo(stored.dtype).max


@pytest.mark.parametrize("border", [0, 3])
def test_the_loss_leaves_out_the_border(border):
    inputs, targets = np.full((2, 10, 10, 1), 0.5), np.zeros((2, 10, 10, 1))
    targets[:, 4, 4] = 1.0
    inputs[:, 0, 5] = 100.0  # in the border of 3
    # The output is the input + 0.25: wrong by 0.75 but at the one target, and at the bright spot if it counts.
    total = {0: 98 * 0.75**2 + 0.25**2 + 100.25**2, 3: 15 * 0.75**2 + 0.25**2}[border]
    task = picture_task(apply, dataset(np.random.default_rng(0)), border=border, crop=10, batch=2, sample=2)
    batch = (jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.float32))
    found = task.loss(state_of(1.0, 0.25).network.params, batch)
    np.testing.assert_allclose(found, total / (10 - 2 * border) ** 2, rtol=1e-5)


@pytest.mark.parametrize("targets", [np.uint8, np.uint16])
@pytest.mark.parametrize("border", [0, 6])
def test_the_evaluation_is_that_of_all_pictures_whole(border, targets, rng):
    data = dataset(rng, targets=targets)
    task = picture_task(apply, data, border=border, crop=16)
    output = jnp.asarray(0.8 * values(data.evaluation.inputs) + 0.1, jnp.float32)
    wanted = jnp.asarray(values(data.evaluation.targets), jnp.float32)
    found = task.evaluate(state_of(0.8, 0.1))
    expected = metrics.scores_from_sums(metrics.picture_sums(output, wanted, border=border))
    assert set(found) == {"score", "flat", *expected} and found["flat"] == 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert found["score"] == found["f1"]


def test_the_mean_square_of_the_residuals_is_the_loss(rng):
    task = picture_task(apply, dataset(rng), border=3, crop=10, batch=2)
    batch, params = task.draw(jax.random.key(0), task.data), state_of(0.7, 0.1).network.params
    found = task.residuals(params, batch)
    assert found.shape == (2 * 4 * 4,)
    assert float(jnp.mean(jnp.square(found))) == pytest.approx(float(task.loss(params, batch)), rel=1e-6)
    assert found[0] == pytest.approx(float(0.7 * batch[0][0, 3, 3, 0] + 0.1 - batch[1][0, 3, 3, 0]), rel=1e-5)


def test_the_score_is_the_soft_f1_of_each_picture_then_their_mean(rng):
    data = dataset(rng)
    task = picture_task(apply, data, border=2, crop=16)
    inner = [values(stored)[:, 2:-2, 2:-2, 0] for stored in (data.evaluation.inputs, data.evaluation.targets)]
    each = [2 * np.sum(o * t) / (2 * np.sum(o * t) + np.sum(np.abs(o - t))) for o, t in zip(*inner, strict=True)]
    np.testing.assert_allclose(task.evaluate(state_of(1.0))["score"], np.mean(each), rtol=1e-5)


def test_a_perfect_network_scores_one(rng):
    data = dataset(rng)
    data = Dataset(**{**vars(data), "evaluation": data.evaluation._replace(targets=data.evaluation.inputs)})
    task = picture_task(apply, data, crop=16)
    found = task.evaluate(state_of(1.0))
    assert [found["score"], found["r2"], found["mae"]] == pytest.approx([1.0, 1.0, 0.0], abs=1e-6)
    assert task.evaluate(state_of(0.9))["score"] < 0.95


def test_a_disabled_mask_is_absent_from_the_score(rng):
    state = state_of(1.0)
    network = init_network({"gain": jnp.full(1, 0.0), "shift": jnp.float32(0.0)}, GROUPS)
    off = state.network.__class__(**{**vars(state.network), "enabled": {"g": jnp.zeros(1, bool)}})
    task, optimizer = picture_task(apply, dataset(rng), crop=16), optax.sgd(0.1)
    assert task.evaluate(init_state(off, optimizer)) == task.evaluate(init_state(network, optimizer))


def test_batches_follow_from_the_key(rng, key):
    data = dataset(rng)
    task = picture_task(apply, data, border=2, batch=4, crop=12, sample=7)
    batch = task.draw(key, task.data)
    assert [part.shape for part in batch] == [(4, 12, 12, 1)] * 2 and batch[0].dtype == jnp.float32
    assert all(map(np.array_equal, batch, jax.jit(task.draw)(key, task.data)))
    assert not np.array_equal(batch[0], task.draw(jax.random.key(1), task.data)[0])
    assert [part.shape for part in task.sample] == [(7, 12, 12, 1)] * 2
    again = picture_task(apply, data, border=2, batch=4, crop=12, sample=7)
    assert all(map(np.array_equal, task.sample, again.sample))


def test_batches_come_from_the_training_side(rng, key):
    data = dataset(rng, size=12)
    task = picture_task(apply, data, border=2, batch=20, crop=12)
    drawn = {tuple(np.rint(np.asarray(crop)[0, :, 0] * 255).astype(int)) for crop in task.draw(key, task.data)[0]}
    assert drawn <= {tuple(picture[0, :, 0].tolist()) for picture in data.train.inputs} and len(drawn) > 2


@pytest.mark.parametrize("loss", [losses.mae, losses.soft_f1])
def test_another_loss_gets_the_same_border(loss, rng):
    task = picture_task(apply, dataset(rng), loss=loss, border=4, crop=16)
    params, (inputs, targets) = state_of(0.7).network.params, task.sample
    assert task.loss(params, task.sample) == loss(apply(params, inputs), targets, border=4)


@pytest.mark.parametrize(("border", "crop"), [(6, 12), (6, 21), (0, 0)])
def test_a_crop_that_does_not_fit_is_named(border, crop, rng):
    with pytest.raises(ValueError, match=rf"`crop` is {crop}.*border \({border}\).*20"):
        picture_task(apply, dataset(rng), border=border, crop=crop)


def test_a_negative_border_is_named(rng):
    with pytest.raises(ValueError, match="`border` is -1"):
        picture_task(apply, dataset(rng), border=-1, crop=16)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_best_constant_is_one_for_binary_targets(rng, share):
    binary = np.where(rng.random((4, 30, 30, 1)) < share, 255, 0).astype(np.uint8)
    shares = (binary > 0).mean(axis=(1, 2, 3))
    assert constant_score(binary) == pytest.approx(np.mean(2 * shares / (1 + shares)), abs=1e-6)


def test_no_constant_beats_the_best_constant(rng):
    targets = np.round(65535 * rng.random((3, 24, 24, 1)) ** 2).astype(np.uint16)
    values, best = targets / 65535.0, constant_score(targets, border=2)
    for level in (0.1, 0.3, 0.5, 0.7, 1.0):
        constant = np.full(targets.shape, level, np.float32)
        assert metrics.soft_f1(constant, values.astype(np.float32), border=2) <= best + 0.01


def test_a_start_that_learned_nothing_is_in_trouble_and_one_that_learned_is_not(rng):
    pictures = dataset(rng)
    same = dataclasses.replace(pictures, evaluation=pictures.evaluation._replace(targets=pictures.evaluation.inputs))
    task = picture_task(apply, same, border=2, batch=1, crop=8)
    assert task.trouble(state_of(1.0)) == ""
    for gain, shift in ((0.0, 0.0), (0.0, 0.5), (0.0, 1.0)):
        assert "the same everywhere, and no better than a constant" in task.trouble(state_of(gain, shift))
    assert task.trouble(state_of(-1.0, 1.0)).startswith("its output is no better than a constant")
    assert task.trouble(state_of(np.nan)) == "its score is nan"


def many(rng, count=11):
    return dataclasses.replace(dataset(rng), evaluation=side(rng, count, size=20))


def short_of_memory(monkeypatch, most, error="RESOURCE_EXHAUSTED: Out of memory allocating 1 byte."):
    """More pictures than this no longer fit on the device. Remembers how many were asked for."""
    asked, real = [], batches.to_device

    def to_device(split):
        asked.append(len(split.inputs))
        if asked[-1] > most:
            raise jax.errors.JaxRuntimeError(error)
        return real(split)

    monkeypatch.setattr(batches, "to_device", to_device)
    return asked


def test_an_evaluation_short_of_memory_looks_at_fewer_pictures_and_finds_the_same_bits(rng, monkeypatch):
    data = many(rng)
    expected = picture_task(apply, data, crop=16).evaluate(state_of(0.8, 0.1))
    asked, short = short_of_memory(monkeypatch, 3), picture_task(apply, data, crop=16)
    with pytest.warns(RuntimeWarning, match="pictures are judged at once") as told:
        assert short.evaluate(state_of(0.8, 0.1)) == expected
    assert asked == [11, 6, 3, 3, 3, 2]
    assert [str(each.message).partition(": ")[2] for each in told] == [
        "6 pictures are judged at once in place of 11.",
        "3 pictures are judged at once in place of 6.",
    ]
    assert short.evaluate(state_of(0.8, 0.1)) == expected and asked[6:] == [
        3,
        3,
        3,
        2,
    ]  # it remembers, and says no more


@pytest.mark.parametrize(
    ("error", "asked"), [("RESOURCE_EXHAUSTED: Out of memory", [11, 6, 3, 2]), ("INTERNAL: broken", [11])]
)
def test_an_evaluation_gives_up_after_three_tries_and_at_other_errors(error, asked, rng, monkeypatch):
    found, task = short_of_memory(monkeypatch, 0, error), picture_task(apply, many(rng), crop=16)
    with warnings.catch_warnings(), pytest.raises(jax.errors.JaxRuntimeError, match=error):
        warnings.simplefilter("ignore")
        task.evaluate(state_of(1.0))
    assert found == asked


def test_a_single_picture_is_not_halved(rng, monkeypatch):
    found, task = short_of_memory(monkeypatch, 0), picture_task(apply, many(rng, 1), crop=16)
    with pytest.raises(jax.errors.JaxRuntimeError) as raised:
        task.evaluate(state_of(1.0))
    assert found == [1] and "The memory of the device is too small" in raised.value.__notes__[0]
