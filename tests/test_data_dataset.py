"""Data sets from folders, files and pairs: crops, split, counts, errors."""

import dataclasses
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from maskprune.data import Target, canny, make_dataset, make_pairs, sobel, threshold
from maskprune.data.crops import encode, tile_corners
from maskprune.data.targets import sobel_edges, unit


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


@pytest.mark.parametrize("height", [16, 17, 33, 64])
@pytest.mark.parametrize("width", [16, 47, 80])
@pytest.mark.parametrize("tiles", [1, 2, 4, 5, 100])
def test_tiles_lie_inside_apart_and_centred(height, width, tiles):
    corners = tile_corners(height, width, size=16, tiles=tiles)
    covered = np.zeros((height, width), int)
    for row, column in corners:
        assert row >= 0 and column >= 0
        covered[row : row + 16, column : column + 16] += 1
    assert 1 <= len(corners) <= tiles
    assert covered.sum() == 256 * len(corners) and covered.max() == 1
    assert len(corners) == min(tiles, (height // 16) * (width // 16)) or tiles == 5
    rows, columns = np.nonzero(covered)
    assert abs((height - 1 - rows.max()) - rows.min()) <= 1
    assert abs((width - 1 - columns.max()) - columns.min()) <= 1


def test_tiles_are_many_before_square_and_square_before_long():
    assert tile_corners(64, 70, size=16, tiles=4) == [(16, 19), (16, 35), (32, 19), (32, 35)]
    assert len(tile_corners(48, 40, size=16, tiles=4)) == 4  # two by two, though three rows would fit
    assert tile_corners(15, 99, size=16, tiles=4) == []


def test_encoding_keeps_faint_values():
    values = np.linspace(0, 1, 10_001)[None]
    stored = encode(values, binary=False)
    np.testing.assert_allclose(stored / 65535, values, atol=0.5 / 65535)
    np.testing.assert_array_equal(encode(values > 0.5, binary=True), np.where(values > 0.5, 255, 0))


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


def pairs(root, **options):
    return make_pairs(root / "in", root / "out", size=16, **{"cache": None, **options})


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
    fill(tmp_path / "in", "0.png", "1.png", "2.png", "3.png", "lone.png", "0.jpg")
    fill(tmp_path / "out", "0.png", "1.png", "3.png", "other.png", "another.png")
    save(tmp_path / "out/2.png", noise(50, 40))
    dataset = pairs(tmp_path)
    expected = {"input without target": 1, "target without input": 2, "size mismatch": 1, "name with two suffixes": 1}
    assert dataset.skipped == expected
    assert len(crops(dataset)) == 3


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


def test_importing_is_light():
    code = "import sys, maskprune.data; print([m for m in ('jax', 'skimage', 'scipy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"
