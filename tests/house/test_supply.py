"""The floors of pyproject.toml, the lock file, and what the code must never do with strangers' files."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
LOCK = (REPOSITORY / "requirements-dev.lock").read_text("utf-8")


def wanted():
    """Every requirement of the library and of the extras that development installs."""
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    lines += PROJECT["optional-dependencies"]["onnx"] + PROJECT["optional-dependencies"]["safetensors"]
    return [each for each in map(Requirement, lines) if each.name != "maskprune"]


def locked():
    """{name: versions, one for each range of Pythons}."""
    found = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", LOCK, re.MULTILINE):
        found.setdefault(name.lower(), []).append(Version(version))
    return found


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_everything_is_locked_at_its_floor_or_above(requirement):
    assert requirement.specifier, "give a floor"
    versions = locked().get(requirement.name.lower())
    assert versions, "make requirements-dev.lock anew; it says how"
    assert all(version in requirement.specifier for version in versions)


def test_every_package_of_the_lock_has_hashes():
    packages = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) > 50
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", package) for package in packages)
    assert not re.search(r"https?://|file:|index-url|find-links", LOCK)


@pytest.mark.parametrize(
    ("name", "safe"),
    # The first releases without what is known of them; see the comments in pyproject.toml.
    [("pillow", "12.2"), ("jinja2", "3.1.6"), ("onnx", "1.21"), ("protobuf", "6.33.5"), ("pytest", "9.0.3")],
)
def test_no_floor_is_below_what_is_safe(name, safe):
    (floor,) = [each for each in wanted() if each.name == name]
    (bound,) = floor.specifier
    assert bound.operator == ">=" and Version(bound.version) >= Version(safe)


FORBIDDEN = {
    "pickle",
    "cPickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "socket",
    "urllib",
    "http",
    "requests",
    "ftplib",
}


def test_nothing_is_unpickled_and_nothing_is_fetched():
    sources = [*(REPOSITORY / "maskprune").rglob("*.py"), *(REPOSITORY / "experiments").glob("*.py")]
    assert len(sources) > 100
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
            assert not {name.partition(".")[0] for name in names} & FORBIDDEN, path
