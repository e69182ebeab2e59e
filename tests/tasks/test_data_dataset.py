"""Data sets from folders: crops, split, counts, errors, memory."""

import dataclasses
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from maskprune.tasks.data import Target, canny, make_dataset, sobel, threshold
from maskprune.tasks.data.targets import sobel_edges, unit


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def fill(root, *names, shape=(40, 50), first=0):
    """Different noise pictures under these names."""
    for seed, name in enumerate(names, start=first):
        save(root / name, noise(*shape, seed=seed))
    return root


def same(picture):
    return picture


def inverse(picture):
    return picture < 0.5


SAME = Target("same", same, binary=False)
INVERSE = Target("inverse", inverse, binary=True)


def small(target=SAME, source=None, *, size=16, **options):
    return make_dataset(target, source, size=size, **{"cache": None, **options})


def sides(dataset):
    return dataset.train, dataset.evaluation


def crops(dataset):
    """{picture name: its crops}, over both sides."""
    found = {}
    for split in sides(dataset):
        for name, crop in zip(split.names, split.inputs, strict=True):
            found.setdefault(name, []).append(crop[..., 0])
    return found


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "pictures", *(f"{i}.png" for i in range(10)))


def test_types_and_shapes(folder):
    for target, dtype in ((SAME, np.uint16), (INVERSE, np.uint8)):
        for split in sides(small(target, folder, tiles=4)):
            assert split.inputs.dtype == np.uint8 and split.targets.dtype == dtype
            assert split.inputs.shape == split.targets.shape == (len(split.names), 16, 16, 1)


@pytest.mark.parametrize("tiles", [1, 4, 6])
def test_input_and_target_are_cut_alike(folder, tiles):
    for split in sides(small(SAME, folder, tiles=tiles)):
        np.testing.assert_array_equal(split.targets, split.inputs.astype(np.uint16) * 257)
    for split in sides(small(INVERSE, folder, tiles=tiles)):
        np.testing.assert_array_equal(split.targets, np.where(split.inputs < 128, 255, 0))


def test_target_is_computed_before_the_cut(folder):
    """Sobel at a crop's border sees the picture beyond it."""
    dataset = small(sobel(), folder)
    for split in sides(dataset):
        for name, target in zip(split.names, split.targets, strict=True):
            whole = np.asarray(Image.open(folder / name))
            expected = sobel_edges(unit(whole))[12:28, 17:33]
            np.testing.assert_allclose(target[..., 0] / 65535, expected, atol=0.51 / 65535)


def test_one_tile_is_the_centre_crop(folder):
    for name, found in crops(small(SAME, folder)).items():
        np.testing.assert_array_equal(found, [np.asarray(Image.open(folder / name))[12:28, 17:33]])


@pytest.mark.parametrize("seed", range(5))
def test_split_is_by_picture(folder, seed):
    train, evaluation = sides(small(SAME, folder, tiles=6, split_seed=seed))
    assert not set(train.names) & set(evaluation.names)
    assert (len(set(train.names)), len(set(evaluation.names))) == (7, 3)
    assert len(train.names) == 7 * 6


def test_split_follows_its_seed_alone(folder):
    first, again = (small(SAME, folder, split_seed=3, workers=workers) for workers in (1, 4))
    assert first.checksum == again.checksum
    assert first.train.names == again.train.names
    assert len({small(SAME, folder, split_seed=seed).evaluation.names for seed in range(5)}) > 1


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 5), (0.99, 9)])
def test_each_side_gets_a_picture(folder, share, expected):
    assert len(small(SAME, folder, evaluation_share=share).evaluation.names) == expected


def test_train_and_val_folders_are_the_sides(tmp_path):
    fill(tmp_path, "train/a.png", "train/b.png", "train/c.png", "val/d.png", "test/e.png", "f.png")
    dataset = small(SAME, tmp_path)
    assert dataset.train.names == ("train/a.png", "train/b.png", "train/c.png")
    assert dataset.evaluation.names == ("val/d.png",)
    assert dataset.skipped == {"outside train and val": 2}


def test_bsds_root(tmp_path):
    base = "BSDS500/data/images/"
    fill(tmp_path, base + "train/1.jpg", base + "val/2.jpg", base + "test/3.jpg")
    dataset = small(SAME, tmp_path)
    assert dataset.train.names == (base + "train/1.jpg",)
    assert dataset.evaluation.names == (base + "val/2.jpg",)


def test_voc_root(tmp_path):
    fill(tmp_path, *(f"VOC2012/JPEGImages/{i}.jpg" for i in range(4)), "VOC2012/SegmentationClass/0.png")
    assert len(crops(small(SAME, tmp_path))) == 4


def test_what_cannot_serve_is_counted(folder):
    save(folder / "tiny.png", noise(15, 90))
    save(folder / "again.png", np.asarray(Image.open(folder / "3.png")))
    (folder / "new\nline.jpg").write_text("no picture")
    (folder / "empty.jpg").touch()
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to(folder)
    dataset = small(SAME, folder)
    expected = {"smaller than 16": 1, "duplicate": 1, "unreadable": 1, "empty file": 1, "not a file": 1}
    assert dataset.skipped == expected
    assert len(crops(dataset)) == 10
    assert "10 pictures; 7 train / 3 evaluation" in dataset.summary()
    assert "skipped 5: duplicate 1, empty file 1" in dataset.summary()


def test_a_picture_in_train_is_kept_out_of_val(tmp_path):
    fill(tmp_path, "train/a.png", "train/b.png", "val/c.png")
    save(tmp_path / "val/copy.bmp", np.asarray(Image.open(tmp_path / "train/b.png")))
    dataset = small(SAME, tmp_path)
    assert dataset.evaluation.names == ("val/c.png",)
    assert dataset.skipped == {"duplicate": 1}


def test_limit(folder):
    for limit in (2, 5, 50):
        assert len(crops(small(SAME, folder, limit=limit))) == min(limit, 10)
    assert small(SAME, folder, limit=4).checksum == small(SAME, folder, limit=4).checksum


def test_limit_leaves_both_sides_a_picture(tmp_path):
    fill(tmp_path, *(f"train/{i}.png" for i in range(9)), "val/v.png")
    for limit in (2, 3, 5):
        dataset = small(SAME, tmp_path, limit=limit)
        assert (len(dataset.train.names), len(dataset.evaluation.names)) == (limit - 1, 1)


def test_bundled_photographs():
    dataset = make_dataset(threshold(), cache=None)
    assert len(dataset.train.names) + len(dataset.evaluation.names) == 27
    assert "27 crops of 256x256 from 10 pictures; 7 train / 3 evaluation; target threshold" in dataset.summary()
    assert dataset.size == 256 and dataset.binary


def test_progress_counts_to_the_end(folder):
    seen = []
    small(SAME, folder, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 10) for i in range(1, 11)]


@pytest.mark.parametrize(
    "options",
    [{"size": 0}, {"tiles": 0}, {"limit": 1}, {"evaluation_share": 0.0}, {"evaluation_share": 1.0}],
)
def test_bad_options_are_named(folder, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        make_dataset(SAME, folder, cache=None, **options)


def test_nothing_usable_says_why(tmp_path):
    with pytest.raises(ValueError, match=rf"{tmp_path}.*0 usable.*skipped 0.*more pictures"):
        small(SAME, tmp_path)
    fill(tmp_path, "a.png", "b.png")
    with pytest.raises(ValueError, match=r"skipped 2: smaller than 99 2.*smaller size"):
        small(SAME, tmp_path, size=99)
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match="1 usable"):
        small(SAME, tmp_path)


def test_no_such_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small(SAME, tmp_path / "nowhere")


@pytest.mark.parametrize("function", [lambda x: x[1:], lambda x: 2 * x, lambda x: x + np.nan])
def test_a_target_that_misbehaves_is_an_error(folder, function):
    with pytest.raises(ValueError, match="target"):
        small(Target("odd", function, binary=False), folder)


def test_a_binary_target_must_be_binary(folder):
    with pytest.raises(ValueError, match="0 or 1"):
        small(Target("odd", same, binary=True), folder)


def test_nothing_is_changed_in_place(folder):
    dataset = small(SAME, folder)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset.__setattr__("train", dataset.evaluation)


def test_memory_holds_crops_not_pictures(tmp_path):
    fill(tmp_path, *(f"{i}.png" for i in range(24)), shape=(256, 256))
    canny()(noise(8, 8))  # imports are not what is measured
    tracemalloc.start()
    dataset = small(canny(), tmp_path, size=32, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = sum(split.inputs.nbytes + split.targets.nbytes for split in sides(dataset))
    assert kept == 24 * 32 * 32 * 2
    assert peak < 24 * 256 * 256 * 2  # the pictures and their targets, even in one byte a pixel, would not fit
