"""Where crops lie, and what storing a target in integers costs."""

import numpy as np
import pytest

from maskprune.tasks.data.crops import encode, tile_corners, widen


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


def test_widening_keeps_the_worth():
    values = np.arange(256, dtype=np.uint8)
    wide = widen(values, np.dtype(np.uint16))
    np.testing.assert_array_equal(wide / 65535, values / 255)
    assert widen(values, np.dtype(np.uint8)) is values
