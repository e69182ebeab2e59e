"""One file of every odd kind, made on the fly, and what becomes of it."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from maskprune.tasks.data import Skipped, bundled_pictures, find_pictures, read_picture
from maskprune.tasks.data.pictures import to_grey


def noise(*shape, seed=0, high=256, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def bt601(rgb):
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def reason(path, **options):
    with pytest.raises(Skipped) as caught:
        read_picture(path, **options)
    assert caught.value.reason == str(caught.value)
    return caught.value.reason


def test_grey_comes_back_as_it_is(tmp_path):
    picture = noise(20, 30)
    found = read_picture(save(tmp_path / "a.png", picture))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, picture)
    assert found.flags.writeable


def test_colour_becomes_bt601(tmp_path):
    picture = noise(64, 64, 3)
    found = read_picture(save(tmp_path / "a.png", picture))
    np.testing.assert_allclose(found, bt601(picture), atol=0.51)  # rounded, not cut
    np.testing.assert_array_equal(found, to_grey(picture))


def test_one_by_one(tmp_path):
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", noise(1, 1))), noise(1, 1))


def test_16_bit_grey_is_scaled_or_kept(tmp_path):
    picture = np.array([[0, 128, 129], [257, 32768, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        path = save(tmp_path / name, picture)
        np.testing.assert_array_equal(read_picture(path), [[0, 0, 1], [1, 128, 255]])
        kept = read_picture(path, deep=True)
        assert kept.dtype == np.uint16
        np.testing.assert_array_equal(kept, picture)


def test_pgm_of_16_bits(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 257))
    np.testing.assert_array_equal(read_picture(path), [[255, 1]])


def test_integers_beyond_16_bits(tmp_path):
    assert reason(save(tmp_path / "a.tif", np.array([[0, 70000]], np.int32))) == "integers outside 16 bits"
    assert reason(save(tmp_path / "b.tif", np.array([[-1, 7]], np.int32))) == "integers outside 16 bits"


def test_float_in_range(tmp_path):
    path = save(tmp_path / "a.tif", np.array([[0, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(read_picture(path), [[0, 128, 255]])
    np.testing.assert_array_equal(read_picture(path, deep=True), [[0, 32768, 65535]])


@pytest.mark.parametrize("bad", [1.5, -0.1, np.nan, np.inf])
def test_float_out_of_range(tmp_path, bad):
    assert reason(save(tmp_path / "a.tif", np.array([[0.5, bad]], np.float32))) == "floats outside [0, 1]"


def test_cmyk_is_read_as_rgb(tmp_path):
    image = Image.fromarray(noise(16, 16, 3)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as stored:
        assert stored.mode == "CMYK"
        expected = np.asarray(stored.convert("RGB"))
    np.testing.assert_allclose(read_picture(tmp_path / "a.jpg"), bt601(expected), atol=0.51)


def test_one_bit(tmp_path):
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), 255 * np.eye(8, dtype=np.uint8))


def test_transparency_is_laid_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 51]  # black ink: absent, full, a fifth
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.png", rgba)), [[255, 0, 204]])


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=bytes([255, 0]))
    np.testing.assert_array_equal(read_picture(tmp_path / "plain.png"), [[76, 29]])
    np.testing.assert_array_equal(read_picture(tmp_path / "clear.png"), [[76, 255]])


def test_exif_orientation_is_applied(tmp_path):
    picture, exif = noise(4, 6), Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to see it upright
    path = save(tmp_path / "a.png", picture, exif=exif)
    np.testing.assert_array_equal(read_picture(path), np.rot90(picture, -1))


@pytest.mark.parametrize("header", [b"MM\x00*", b"MM\x00\n\x00\x00\x00\x08", b"MM\x00*\xff\xff\xff\xff garbage"])
def test_damaged_exif_costs_nothing(tmp_path, header):
    picture = noise(8, 8)
    path = save(tmp_path / "a.png", picture, exif=b"Exif\x00\x00" + header)
    np.testing.assert_array_equal(read_picture(path), picture)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animations_are_skipped(tmp_path, name):
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert reason(tmp_path / name) == "animated"


def test_several_pages_are_skipped(tmp_path):
    frames = [Image.fromarray(noise(8, 8, seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert reason(tmp_path / "a.tif") == "several pages"


def test_a_photograph_with_a_preview_is_a_photograph(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (200, 10)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), np.full((8, 8), 200))


def test_a_gif_of_one_frame(tmp_path):
    np.testing.assert_array_equal(read_picture(save(tmp_path / "a.gif", noise(8, 8))), noise(8, 8))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.bmp"])
def test_half_a_file(tmp_path, name):
    path = save(tmp_path / name, noise(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert reason(path) == "unreadable"


def test_no_picture_at_all(tmp_path):
    (tmp_path / "text.jpg").write_text("a shopping list\n" * 50)
    (tmp_path / "empty.png").touch()
    assert reason(tmp_path / "text.jpg") == "unreadable"
    assert reason(tmp_path / "empty.png") == "empty file"
    assert reason(tmp_path / "gone.png") == "unreadable"
    assert reason(tmp_path) == "not a file"


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(noise(8, 8)).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), noise(8, 8))


def test_formats_beyond_the_list_are_refused(tmp_path):
    Image.fromarray(noise(32, 32)).save(tmp_path / "a.png", format="ICO", sizes=[(16, 16)])
    assert reason(tmp_path / "a.png") == "unreadable"


def png_header(path, side):
    """A PNG that claims side × side pixels and holds none: only the header may be looked at."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = zlib.compress(b"")
    body += struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])  # beyond our limit, Pillow's warning, Pillow's error
def test_bombs_are_known_by_their_header(tmp_path, side):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason(png_header(tmp_path / "a.png", side)) == "too large"


def test_max_pixels_is_inclusive(tmp_path):
    path = save(tmp_path / "a.png", noise(10, 10))
    assert read_picture(path, max_pixels=100).shape == (10, 10)
    assert reason(path, max_pixels=99) == "too large"


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]
    assert reason(tmp_path / "a.png") == "not a file"


def test_a_forbidden_file(tmp_path):
    path = save(tmp_path / "a.png", noise(8, 8))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason(path) == "unreadable"


def test_bundled_photographs():
    pictures = bundled_pictures()
    assert len({name for name, _ in pictures}) == 10
    for _, picture in pictures:
        assert picture.dtype == np.uint8 and picture.ndim == 2 and min(picture.shape) >= 300
        assert picture.std() > 10


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_a_picture_is_the_same_strip_by_strip(tmp_path, monkeypatch, mode):
    picture = {"F": noise(40, 30) / np.float32(255), "I;16": noise(40, 30, high=65_536, dtype=np.uint16)}.get(mode)
    image = Image.fromarray(noise(40, 30, 4)).convert(mode) if picture is None else Image.fromarray(picture)
    image.save(tmp_path / "a.tif")
    whole = [read_picture(tmp_path / "a.tif", deep=deep) for deep in (False, True)]
    for pixels in (1, 30, 7 * 30 + 1):
        monkeypatch.setattr("maskprune.data.pictures.STRIP", pixels)
        for deep, expected in enumerate(whole):
            found = read_picture(tmp_path / "a.tif", deep=bool(deep))
            assert found.dtype == expected.dtype and found.std() > 0
            np.testing.assert_array_equal(found, expected)


def test_what_is_wrong_in_the_last_strip_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("maskprune.data.pictures.STRIP", 8)
    picture = np.zeros((8, 8), np.float32)
    picture[7, 7] = 2
    assert reason(save(tmp_path / "a.tif", picture)) == "floats outside [0, 1]"
