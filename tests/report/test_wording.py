"""Numbers, durations and settings read as a person would write them."""

import numpy as np
import pytest

from maskprune.report import wording as wording


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        ("", "–"),
        (True, "yes"),
        (14000, "14_000"),
        (1234567.0, "1_234_567"),
        (0.891234, "0.891"),
        (1.2e-7, "1.2·10⁻⁷"),
        (0.0, "0"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (np.float32(0.5), "0.5"),
        (np.int64(2000), "2_000"),
        (np.bool_(False), "no"),
        ("adam", "adam"),
    ],
)
def test_numbers_are_written_for_people(value, shown):
    assert wording.number(value) == shown.replace("_", wording.SPACE)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "–"), (0.84, "0.8_s"), (59.4, "59_s"), (59.7, "1_min 0_s"), (200.0, "3_min 20_s"), (7500, "2_h 5_min")],
)
def test_durations_are_written_for_people(seconds, shown):
    assert wording.duration(seconds) == shown.replace("_", wording.SPACE)


def test_shares_and_settings():
    assert [wording.percent(share) for share in (0.2, 0.004, 0.0, 1.0)] == [
        text.replace("_", wording.SPACE) for text in ("20_%", "0.4_%", "0_%", "100_%")
    ]
    assert list(wording.flattened({"a": {"b": [1, 2], "c": {}}, "d": None})) == [
        ("a.b", "1, 2"),
        ("a.c", "{}"),
        ("d", "–"),
    ]
