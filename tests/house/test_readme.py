"""The README's examples, run as they stand but for the number of steps."""

import itertools
import re
import runpy
from pathlib import Path

import jax
import pytest

from maskprune.lab.testing import check_selector
from maskprune.minimizer.loop import minimize


README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_library_example_and_the_selector_run(blocks, tmp_path, capsys):
    library, selector, many, _, kept = blocks  # the fourth is run in test_adapters.py
    assert len([line for line in library.splitlines() if line.strip()]) <= 20
    for steps, fewer in (("800", "40"), ("400", "2")):
        assert library.count(steps) == many.count(steps) == 1
        library, many = library.replace(steps, fewer), many.replace(steps, fewer)
    path = tmp_path / "example.py"
    path.write_text(library + selector + many + kept.replace("runs/mine", str(tmp_path)))
    names = runpy.run_path(str(path))
    assert names["report"].finite.all() and names["report"].losses.shape == (16, 40)
    assert (tmp_path / "memory" / "answers.jsonl").exists() and names["evaluate"] and names["memory"].finished is False
    (_, more) = itertools.islice(
        minimize(names["key"], names["state"], selector=names["quiet"], **names["settings"]), 2
    )
    assert more.reason.startswith("best of 4") and len(more.rivals) == 3
    assert "0 {} the network to minimize" in capsys.readouterr().out
    widths = [layer["kernel"].shape[3] for layer in names["params"].values()]
    assert widths[:2] == [int(flags.sum()) for flags in names["found"].state.network.enabled.values()]
    check_selector(names["quiet"], batch=names["task"].sample, network=names["state"].network)


def test_the_commands_of_the_readme_exist():
    text = README.read_text()
    assert "pip install -e . && python experiments/minimize.py --task sobel" in text
    assert 'pip install -e ".[test]" && pytest' in text
    for path in re.findall(r"\((docs/[^)]+|[A-Z]+\.md)\)|`([A-Z]+\.md)`", text):
        assert (README.parent / "".join(path)).exists(), path


def test_the_page_on_tracing_says_what_is_printed(tmp_path, capsys):
    text = (README.parent / "docs" / "tracing.md").read_text()
    path = tmp_path / "tracing.py"
    path.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)))
    with jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(path))
    (printed,) = re.findall(r"```\n(group.*?)```", text, flags=re.DOTALL)
    assert capsys.readouterr().out == printed
