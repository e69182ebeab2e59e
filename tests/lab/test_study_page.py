"""The page of a study holds every number it promises, escapes what it is given, and is the same twice."""

import csv
import io
import math

import numpy as np
import pytest
from PIL import Image

from maskprune.lab.statistics import Correlation, Estimate
from maskprune.lab.study_page import Picture, Section, Table, as_csv, write_study
from maskprune.report import plots


EVIL = '"><script>alert(1)</script>'
ROWS = [
    {"who": "cosine", "masks": Estimate(4.0, 3.0, 6.0, 9), "r": Correlation(0.25, -0.1, 0.5, 0.04, 90, 0.2), "n": 3},
    {"who": EVIL, "masks": Estimate(5.0, math.nan, math.nan, 1), "r": None, "n": 1400},
]


def write(folder, **change):
    picture = Picture("one", "A picture", EVIL, Image.new("RGB", (4, 3)))
    sections = [Section("Evidence", ["A paragraph."], [picture], [Table("numbers", "All of them", ROWS)])]
    given = {"title": "A study", "question": f"Why? {EVIL}", "command": "python study.py", "settings": {"a": {"b": 1}}}
    return write_study(
        folder, **{"sections": sections, "answers": ["So."], "facts": [("Device", "cpu")], **given, **change}
    )


def test_tables_hold_every_part_of_a_number(tmp_path):
    write(tmp_path)
    first, second = csv.DictReader(io.StringIO((tmp_path / "numbers.csv").read_text()))
    assert (first["masks"], first["masks_low"], first["masks_high"], first["masks_n"]) == ("4.0", "3.0", "6.0", "9")
    assert (first["r"], first["r_p"], first["r_n"], first["r_p_holm"]) == ("0.25", "0.04", "90", "0.2")
    assert second["who"] == EVIL and second["r"] == ""


def test_the_page_shows_numbers_pictures_and_the_way_back(tmp_path):
    page = write(tmp_path).read_text("utf8")
    for words in (
        "A study",
        "So.",
        "4.00 <small>3.00 … 6.00</small>",
        "A paragraph.",
        "python study.py",
        "a.b",
        "Device",
    ):
        assert words in page
    assert EVIL not in page and "&lt;script&gt;" in page and "data:image/png" in page and "http" not in page.replace(
        "http-equiv", "")  # fmt: skip
    assert (tmp_path / "pictures" / "one.png").exists()


def test_equal_arguments_give_equal_bytes(tmp_path):
    assert write(tmp_path / "a").read_bytes() == write(tmp_path / "b").read_bytes()


def test_two_tables_of_one_name_are_refused(tmp_path):
    table = Table("same", "", ROWS)
    with pytest.raises(ValueError, match="tables of the same name"):
        write(tmp_path, sections=[Section("x", tables=[table, table])])
    assert not list(tmp_path.iterdir())


def test_rows_may_differ_in_their_columns():
    assert as_csv([{"a": 1}, {"b": 2}]) == b"a,b\n1,\n,2\n"


def test_charts_draw_what_is_there_and_survive_what_is_not():
    nothing = Estimate(math.nan, math.nan, math.nan, 0)
    images = [
        plots.scatter([[plots.Panel("a", {"x": ([0, math.nan], [1, 2]), "y": ([], [])})]], xlabel="x", ylabel="y"),
        plots.intervals([("a", {"one": ROWS[0]["masks"], "two": nothing})], xlabel="x", lines={"zero": 0.0}),
        plots.shares([("a", {4: 3, 5: 1}), ("b", {})], xlabel="n", what="masks:"),
        plots.lattice([plots.Lattice("a", np.array([[1.0, math.nan]]), [(0, 1)])], rows=["1"], columns=["1", "2"],
                      xlabel="x", ylabel="y"),
    ]  # fmt: skip
    for image in images:
        assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 10


def test_a_bar_is_as_long_as_its_count():
    image = np.asarray(plots.shares([("a", {4: 30}), ("b", {4: 10})], xlabel="n", what="masks:"))
    bright = (image.astype(int).sum(axis=2) > 680).sum(axis=1)
    top, bottom = bright[: len(bright) // 2].max(), bright[len(bright) // 2 :].max()
    assert top == pytest.approx(3 * bottom, rel=0.1)
