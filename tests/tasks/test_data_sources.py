"""Data sets from arrays and from pairs of folders: what is taken, what is matched, what is refused."""

import numpy as np
import pytest
from PIL import Image

from maskprune.tasks.data import Target, make_dataset, make_pairs, sobel


SAME = Target("same", lambda picture: picture, binary=False)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def small(target, source):
    return make_dataset(target, source, size=16, cache=None)


def sides(dataset):
    return dataset.train, dataset.evaluation


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("shape", [(5, 20, 24), (5, 20, 24, 3), (5, 20, 24, 1)])
def test_npz_of_pictures(tmp_path, shape):
    dataset = small(SAME, npz(tmp_path / "a.npz", pictures=noise(*shape)))
    assert len(dataset.train.names) + len(dataset.evaluation.names) == 5
    assert dataset.target_name == "same"


def test_npz_with_targets(tmp_path):
    inputs = noise(6, 20, 24)
    for targets, binary in ((inputs.astype(np.uint16) * 257, False), (inputs > 90, True)):
        dataset = small(sobel(), npz(tmp_path / "mine.npz", inputs=inputs, targets=targets))
        assert dataset.binary == binary and dataset.target_name == "targets of mine.npz"
        assert "sobel was not computed" in dataset.notes[0]
        for split in sides(dataset):
            expected = np.where(split.inputs > 90, 255, 0) if binary else split.inputs.astype(np.uint16) * 257
            np.testing.assert_array_equal(split.targets, expected)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": noise(2, 20, 20) / 255}, "pictures is float64"),
        ({"pictures": noise(20, 20)}, "pictures is uint8"),
        ({"pictures": np.array([None, "x"], object)}, "not a usable"),
        ({"images": noise(2, 20, 20)}, "images"),
        ({"inputs": noise(3, 20, 20), "targets": noise(2, 20, 20)}, "3 inputs but 2 targets"),
        ({"inputs": noise(2, 20, 20), "targets": noise(2, 20, 20, 3)}, "targets is uint8"),
    ],
)
def test_npz_that_cannot_serve(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        small(SAME, npz(tmp_path / "a.npz", **arrays))


def test_a_file_that_is_no_npz(tmp_path):
    (tmp_path / "a.npz").write_text("no archive")
    with pytest.raises(ValueError, match="not a usable"):
        small(SAME, tmp_path / "a.npz")


def pairs(root):
    return make_pairs(root / "in", root / "out", size=16, cache=None)


def test_pairs_match_by_stem_and_keep_16_bits(tmp_path):
    for i in range(5):
        save(tmp_path / f"in/d/{i}.bmp", picture := noise(20, 24, seed=i))
        save(tmp_path / f"out/d/{i}.png", picture.astype(np.uint16) * 257)
    dataset = pairs(tmp_path)
    assert dataset.train.targets.dtype == np.uint16 and not dataset.binary
    assert dataset.target_name == "out" and dataset.skipped == {}
    for split in sides(dataset):
        np.testing.assert_array_equal(split.targets, split.inputs.astype(np.uint16) * 257)


def test_pairs_of_mixed_depth_mean_the_same(tmp_path):
    for i in range(5):
        save(tmp_path / f"in/{i}.png", picture := noise(20, 24, seed=i))
        save(tmp_path / f"out/{i}.png", picture if i % 2 else picture.astype(np.uint16) * 257)
    for split in sides(pairs(tmp_path)):
        np.testing.assert_array_equal(split.targets, split.inputs.astype(np.uint16) * 257)


def test_pairs_of_8_bits_may_be_binary(tmp_path):
    for i in range(4):
        save(tmp_path / f"in/{i}.png", picture := noise(20, 24, seed=i))
        save(tmp_path / f"out/{i}.png", np.where(picture > 99, np.uint8(255), np.uint8(0)))
    dataset = pairs(tmp_path)
    assert dataset.binary and dataset.train.targets.dtype == np.uint8


def test_pairs_without_partner_or_of_other_size_are_counted(tmp_path):
    for folder, names in (
        ("in", ("0.png", "1.png", "2.png", "3.png", "lone.png", "0.jpg")),
        ("out", ("0.png", "1.png", "3.png", "other.png", "another.png")),
    ):
        for seed, name in enumerate(names):
            save(tmp_path / folder / name, noise(40, 50, seed=seed))
    save(tmp_path / "out/2.png", noise(50, 40))
    dataset = pairs(tmp_path)
    expected = {"input without target": 1, "target without input": 2, "size mismatch": 1, "name with two suffixes": 1}
    assert dataset.skipped == expected
    assert len(dataset.train.names) + len(dataset.evaluation.names) == 3


def test_equal_targets_do_not_make_pictures_equal(tmp_path):
    for i in range(3):
        save(tmp_path / f"in/{i}.png", noise(20, 24, seed=i))
        save(tmp_path / f"out/{i}.png", np.zeros((20, 24), np.uint8))
    dataset = pairs(tmp_path)
    assert len(dataset.train.names) + len(dataset.evaluation.names) == 3
