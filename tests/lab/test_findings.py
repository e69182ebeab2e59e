"""The page of findings: its tables are those of the files beside it, and nothing else of it changes."""

import importlib

import pytest


@pytest.fixture(scope="module")
def program():
    return importlib.import_module("findings")


def test_the_page_is_up_to_date(program):
    page = program.PAGE.read_text("utf-8")
    assert program.filled(page, program.PAGE.with_suffix("")) == page, "run `python experiments/findings.py`"
    for name in program.TABLES:
        assert f"<!-- {name} -->" in page, f"{name} is not shown"


@pytest.fixture
def of_reset(program, monkeypatch):
    shown = program.means("reset/reset.csv", "share of the session", "fresh", "kept", "fresh - kept")
    monkeypatch.setattr(program, "TABLES", {"reset": shown})


@pytest.mark.usefixtures("of_reset")
def test_a_table_is_filled_and_the_words_stay(program, tmp_path):
    (tmp_path / "reset").mkdir()
    (tmp_path / "reset" / "reset.csv").write_text(
        "share of the session,fresh,fresh_low,fresh_high,kept,fresh - kept\n0.5,0.91234,0.8,1,nan,\n"
    )
    page = "before\n<!-- reset -->\nold\n<!-- end -->\nafter <!-- a remark -->\n"
    lines = program.filled(page, tmp_path).splitlines()
    assert (lines[0], lines[-1]) == ("before", "after <!-- a remark -->") and "old" not in lines
    assert lines[4] == "| 0.50 | 0.91 (0.80 to 1.00) | – |  |"
    assert program.filled("\n".join(lines), tmp_path).splitlines() == lines


@pytest.mark.usefixtures("of_reset")
@pytest.mark.parametrize(("name", "words"), [("resett", "'resett'"), ("reset", r"reset\.csv is missing")])
def test_what_cannot_be_filled_is_named(program, tmp_path, name, words):
    with pytest.raises(SystemExit, match=words):
        program.filled(f"<!-- {name} -->\n<!-- end -->", tmp_path)
