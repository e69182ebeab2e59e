"""The cache: same answer, found by content, never trusted blindly, never required."""

import os

import numpy as np
import pytest
from PIL import Image

from maskprune.tasks.data import Target, make_dataset, make_pairs, sobel, threshold
from maskprune.tasks.data.cache import user_folder
from maskprune.tasks.data.targets import sobel_edges


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for seed in range(4):
        picture = np.random.default_rng(seed).integers(0, 256, (20, 24), np.uint8)
        Image.fromarray(picture).save(root / f"{seed}.png")
    (root / "bad.png").write_text("no picture")
    return root


@pytest.fixture
def work():
    """Counts the pictures that had to be prepared: a cached answer needs none."""
    return []


@pytest.fixture
def make(folder, tmp_path, work):
    def make(target=None, **options):
        progress = lambda done, total: work.append(done)
        settings = {"size": 16, "cache": tmp_path / "cache", "progress": progress, **options}
        return make_dataset(target or sobel(), folder, **settings)

    return make


def assert_equal(a, b):
    for one, other in ((a.train, b.train), (a.evaluation, b.evaluation)):
        np.testing.assert_array_equal(one.inputs, other.inputs)
        np.testing.assert_array_equal(one.targets, other.targets)
        assert one.targets.dtype == other.targets.dtype and one.names == other.names
    assert (a.summary(), a.skipped, a.notes, a.binary) == (b.summary(), b.skipped, b.notes, b.binary)


def test_second_time_is_read_not_computed(make, work):
    first = make()
    assert len(work) == 5
    assert_equal(first, make())
    assert len(work) == 5


@pytest.mark.parametrize(
    "options", [{"size": 8}, {"tiles": 2}, {"split_seed": 2}, {"evaluation_share": 0.5}, {"limit": 4}]
)
def test_every_option_is_part_of_the_key(make, work, options):
    make()
    before = len(work)
    cached = make(**options)
    assert len(work) > before
    assert_equal(cached, make(**options, cache=None))


def test_targets_and_their_options_are_part_of_the_key(make):
    names = {make(target).checksum for target in (sobel(), threshold(0.5), threshold(0.6))}
    assert len(names) == 3


def test_content_not_date_is_the_key(make, work, folder):
    make()
    os.utime(folder / "0.png", (0, 0))
    make()
    assert len(work) == 5
    picture = np.array(Image.open(folder / "0.png"))
    picture[10, 10] ^= 1
    Image.fromarray(picture).save(folder / "0.png")
    assert_equal(make(), make(cache=None))
    assert len(work) == 15


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-100], lambda data: b"x" * len(data)])
def test_a_damaged_entry_is_computed_again(make, work, tmp_path, damage):
    first = make()
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert_equal(first, make())
    assert len(work) == 10
    make()
    assert len(work) == 10  # and is sound again


def test_a_flipped_bit_is_noticed(make, work, tmp_path):
    first = make()
    (entry,) = (tmp_path / "cache").iterdir()
    data = bytearray(entry.read_bytes())
    at = data.find(first.train.inputs[0].tobytes())
    data[at] ^= 1
    entry.write_bytes(data)
    assert_equal(first, make())
    assert len(work) == 10


def test_an_unwritable_cache_is_a_note(make, tmp_path):
    (tmp_path / "file").touch()
    dataset = make(cache=tmp_path / "file" / "cache")
    assert "nothing was cached" in dataset.notes[0]
    assert dataset.checksum == make(cache=None).checksum


def test_nothing_half_written_is_left(make, tmp_path):
    make()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


def test_a_users_function_is_not_cached(make, work, tmp_path):
    mine = Target("sobel", lambda picture: sobel_edges(picture), binary=False)
    make(mine)
    make(mine)
    assert len(work) == 10 and not (tmp_path / "cache").exists()


def test_pairs_are_cached_by_both_sides(folder, tmp_path, work):
    def pair():
        progress = lambda done, total: work.append(done)
        return make_pairs(folder, folder, size=16, cache=tmp_path / "cache", progress=progress)

    assert_equal(pair(), pair())
    assert len(work) == 5


def test_user_folder_follows_xdg(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    make_dataset(sobel(), folder, size=16)
    assert len(list((tmp_path / "xdg" / "maskprune").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folder() == tmp_path / ".cache" / "maskprune"
