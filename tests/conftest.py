"""What every test has: a fixed key, shapes that never match by accident; and which seventh of the many runs.

Tests marked `rotating` try one claim on many networks, or take long. A run has a seventh of them, which `--part` names,
so that seven runs have them all; the rest counts as `slow`.
"""

import sys
import zlib
from argparse import ArgumentTypeError
from pathlib import Path

import jax
import numpy as np
import pytest


HERE = Path(__file__).parent
sys.path += [str(HERE / "support"), str(HERE.parent / "experiments")]
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(20181126)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20181126)


PARTS = 7


def part(text: str) -> int | None:
    """A part of the rotating tests, None for all of them."""
    if text != "all" and text not in map(str, range(1, PARTS + 1)):
        raise ArgumentTypeError(f"{text!r} is no part; name one of 1 to {PARTS}, or all")
    return None if text == "all" else int(text)


def part_of(item: pytest.Item) -> int:
    """The same for a test, whatever else is collected; the cases of one test are dealt out evenly."""
    callspec = getattr(item, "callspec", None)
    number = sum(callspec.indices.values()) if callspec else 0
    return (zlib.crc32(item.nodeid.split("[")[0].encode()) + number) % PARTS + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", type=part, default=1, help=f"which of the {PARTS} parts of the rotating tests runs: a number, or all"
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen = config.getoption("part")
    for item in items:
        if chosen is not None and item.get_closest_marker("rotating") and part_of(item) != chosen:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    chosen = config.getoption("part")
    which = "all of them" if chosen is None else f"part {chosen} of {PARTS}"
    terminalreporter.write_line(f"rotating tests: {which} (--part; the rest: -m slow)")
