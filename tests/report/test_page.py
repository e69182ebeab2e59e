"""The page is complete, honest about what is unknown, safe against names it did not choose, and never half written."""

import base64
import copy
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from maskprune.report.page import write_report
from maskprune.report.wording import SPACE


EVIL = "\"><script>alert(1)</script><img src=http://x.test/a.png onerror='alert(2)'>.png"

RESULT = {
    "maskprune": "0.1.0",
    "task": "sobel",
    "config": {"widths": [5, 5], "threshold": 0.95, "optimizer": {"name": "adam", "learning_rate": 1e-3}},
    "seed": 0,
    "versions": {"jax": "0.10.2"},
    "device": "cpu",
    "precision": "float32",
    "convolution": "blocked",
    "data": {"summary": "10 photographs", "source": "bundled"},
    "initial_score": 0.91,
    "final_score": 0.89,
    "score_ratio": 0.978,
    "relative_rmse": 0.05,
    "metrics": {"initial": {"f1": 0.91, "psnr": 36.2}, "final": {"f1": 0.89, "psnr": None}},
    "masks_before": {"conv1": 5, "conv2": 5},
    "masks_after": {"conv1": 1, "conv2": 3},
    "enabled": {"conv1": [True, False, False, False, False], "conv2": [True, True, True, False, False]},
    "parameters_before": 886,
    "parameters_after": 180,
    "multiply_adds_before": 875,
    "multiply_adds_after": 175,
    "steps": 14000,
    "seconds": 200.0,
    "stop": "every eligible mask was refused",
    "rounds": 12,
    "verified_max_abs_difference": 1.2e-7,
    "interrupted": False,
    "border": 6,
}

ROUND = {
    "number": 3,
    "verdict": "refused",
    "reason": "score fell",
    "chosen": "conv2[1]",
    "score": 0.7,
    "required": 0.8645,
    "masks": 5,
    "enabled": {"conv1": [True, False], "conv2": [True, False, True]},
    "steps": 2000,
    "seconds": 18.2,
}


class Page(HTMLParser):
    """What a browser would find: tags, whether they close, and the text (less the None in the code to copy)."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(html)
        self.text = re.sub(r"[ \n]+", " ", " ".join(self.words)).replace("[None, :, :, None]", "")

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def pictures(rng):
    return {"masks": Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)), "my own": Image.new("RGB", (1, 1))}


def page(folder, result=RESULT, history=(ROUND,), pictures=None):
    return Page(write_report(folder, result, history, pictures or {}).read_text("utf8"))


def poisoned(value):
    if isinstance(value, dict):
        return {f"{name}{EVIL}" if name in ("conv1", "jax") else name: poisoned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + EVIL if isinstance(value, str) else value


def assert_harmless(found):
    assert found.open == []
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "style")]
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")


def test_the_answer_comes_first(tmp_path):
    text = page(tmp_path).text
    answer = [f"20{SPACE}% of the multiply-adds", "score 0.98 of the original", "1 + 3 masks"]
    places = [text.index(words) for words in ("4 of 10 masks", *answer, "Before and after", "Use it", "What it rests")]
    assert places == sorted(places)


def test_the_page_loads_nothing(tmp_path, pictures):
    found = page(tmp_path, pictures=pictures)
    assert_harmless(found)
    html = (tmp_path / "report.html").read_text("utf8")
    assert "http:" not in html and "https:" not in html and "url(" not in html and "@import" not in html
    policies = [tag["content"] for tag in found.all("meta") if "http-equiv" in tag]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_names_from_outside_cannot_become_markup(tmp_path, pictures):
    history = [poisoned(ROUND), ROUND]
    clean = page(tmp_path / "clean", RESULT, [ROUND, ROUND], pictures | {"x": pictures["masks"]})
    found = page(tmp_path / "evil", poisoned(RESULT), history, pictures | {EVIL: pictures["masks"]})
    assert_harmless(found)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean.tags]
    assert found.text.count("<script>alert(1)</script>") >= 10  # shown as the text it is


def test_picture_files_stay_in_their_folder(tmp_path, pictures):
    write_report(tmp_path / "run", RESULT, [], {"../../out": pictures["masks"], EVIL: pictures["my own"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    files = sorted(path.name for path in (tmp_path / "run" / "pictures").iterdir())
    assert files[0] == "_out.png" and len(files) == 2 and all(re.fullmatch(r"[\w-]+\.png", name) for name in files)


def test_names_of_the_same_file_are_refused(tmp_path, pictures):
    with pytest.raises(ValueError, match=r"pictures has names.*a/b.*rename one"):
        write_report(tmp_path, RESULT, [], {"a/b": pictures["masks"], "a b": pictures["my own"]})
    assert not list(tmp_path.iterdir())


def test_pictures_are_in_the_page_and_beside_it(tmp_path, pictures):
    found = page(tmp_path, pictures=pictures)
    inlined = [base64.b64decode(tag["src"].split(",")[1]) for tag in found.all("img")]
    files = [(tmp_path / "pictures" / name).read_bytes() for name in ("masks.png", "my_own.png")]
    assert inlined == files
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(inlined[0]))), np.array(pictures["masks"]))
    assert "What is left" in found.text and "my own" in found.text


def test_when_nothing_could_be_removed_the_page_says_so(tmp_path):
    text = page(tmp_path, RESULT | {"masks_after": RESULT["masks_before"]}).text
    assert "10 of 10 masks" in text and "No mask could be switched off (sobel): the network needs all 10." in text


def test_names_that_are_no_text_do_not_stop_a_report(tmp_path, pictures):
    source = {"data": {"summary": "one", "source": "caf\udce9.png"}}
    found = page(tmp_path, RESULT | source, [], {"x\udce9" * 200: pictures["my own"]})
    assert "caf\\udce9.png" in found.text and len(found.all("img")) == 1


@pytest.mark.parametrize("result", [{}, dict.fromkeys(RESULT), {"interrupted": True, "masks_after": {"a": None}}])
@pytest.mark.parametrize("history", [[], [{}], [dict.fromkeys(ROUND)]])
def test_an_interrupted_run_is_a_page_without_none(tmp_path, result, history):
    found = page(tmp_path, result, history)
    assert_harmless(found)
    assert "No result yet" in found.text and "None" not in found.text
    assert ("was interrupted" in found.text) == bool(result.get("interrupted"))


@pytest.mark.parametrize("missing", sorted(RESULT))
def test_any_single_value_may_be_missing(tmp_path, missing):
    found = page(tmp_path, RESULT | {missing: None})
    assert_harmless(found)
    assert "None" not in found.text


def test_a_round_is_a_row_and_its_masks_are_squares(tmp_path):
    alone = page(tmp_path, {}, [])
    found = page(tmp_path, {}, [ROUND, ROUND | {"verdict": "accepted", "chosen": "conv1[1]"}])
    assert len(found.all("tr")) - len(alone.all("tr")) == 3  # a heading and two rounds
    squares = [tag["class"] for tag in found.all("i")]
    assert squares == ["on", "off", "on", "off tried", "on", "on", "off tried", "on", "off", "on"]
    assert "0.700" in found.text and "≥ 0.865" in found.text and f"2{SPACE}000" in found.text
    assert [tag["aria-label"] for tag in found.all("span") if "aria-label" in tag][:2] == [
        "conv1: 1 of 2",
        "conv2: 2 of 3",
    ]


def test_equal_arguments_give_equal_bytes_and_are_left_alone(tmp_path, pictures):
    result, history = copy.deepcopy(RESULT), [copy.deepcopy(ROUND)]
    first, second = (write_report(tmp_path / name, result, history, pictures) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert result == RESULT and history == [ROUND]


def test_a_reader_of_the_old_page_keeps_it_whole(tmp_path):
    path = write_report(tmp_path, RESULT, [], {})
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_report(tmp_path, {}, [], {})
        assert reader.read() == before != path.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_a_failed_replacement_leaves_no_draft(tmp_path):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path, RESULT, [], {})
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
