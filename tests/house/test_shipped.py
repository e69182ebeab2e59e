"""The source distribution holds all that its tests need, and nothing that was built."""

from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore")
def test_tests_are_shipped_with_all_they_need(monkeypatch):
    egg_info = pytest.importorskip("setuptools.command.egg_info")
    monkeypatch.chdir(REPOSITORY)
    found = egg_info.FileList()
    for line in Path("MANIFEST.in").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            found.process_template_line(line)
    shipped = {Path(each).as_posix() for each in found.files}
    needed = {
        path.as_posix()
        for folder in ("tests", "experiments", "benchmarks", "docs")
        for path in Path(folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed and needed <= shipped, sorted(needed - shipped)
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "requirements-dev.lock"} <= shipped
    assert not [each for each in shipped if each.endswith((".pyc", ".so"))]
