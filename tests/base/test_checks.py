"""Every public function against odd arguments: a result, or a documented error that names the argument.

`world` holds a valid value for every argument name, `own` what a function wants otherwise. Each test takes a valid call
and puts one bad value in one place.
"""

import ast
import collections.abc
import inspect
import itertools
import re
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odd_arguments import POOL, own, world

import maskprune as mp
from maskprune.base import checks


PACKAGE = Path(mp.__file__).parent


def submodules():
    """The public submodules, {name: module}: those that the package names, and those of its room of studies."""
    named = {name: getattr(mp, name) for name in mp.__all__}
    for node in ast.parse((PACKAGE / "lab" / "__init__.py").read_text("utf-8")).body:
        named |= {each.name: getattr(mp.lab, each.name) for each in getattr(node, "names", [])}
    return {name: value for name, value in named.items() if inspect.ismodule(value)}


def public():
    """{name: callable}: the package's own names, and those of its public submodules."""
    found = {}
    for module, prefix in [(mp, ""), *((module, f"{name}.") for name, module in submodules().items())]:
        for name, value in vars(module).items():
            home = getattr(value, "__module__", "") or ""
            own = home == module.__name__ or (hasattr(module, "__path__") and home.startswith(module.__name__))
            if not name.startswith("_") and callable(value) and own:
                found.setdefault(prefix + name, value)
    return found


PUBLIC = public()

# What is not fuzzed, and why.
RECORDS = "a record: holds what the library found, and is not made by users"
EXEMPT = {
    **dict.fromkeys(
        ["Cost", "Latency", "Arrays", "Exported", "Network", "Outcome", "Cut", "Plan", "Population", "Lengths",
         "PopulationReport", "Round", "SessionReport", "PictureTask", "StepInfo", "TrainState", "data.Dataset",
         "data.Split", "models.FCN", "strategies.Move", "strategies.Proposal", "strategies.Verdict",
         "strategies.View", "regret.Regret", "regret.Anytime", "regret.StepQuality", "regret.Agreement",
         "curvature.Flat", "curvature.Quadratic", "table_search.Trial", "subnetworks.Tried", "worth.Worth"],
        RECORDS,
    ),
    **dict.fromkeys(["CompactionError", "ExportError", "NoReference", "NothingLearned"], "an error"),
    **dict.fromkeys(["ShrinkError", "data.Skipped"], "an error"),
    **dict.fromkeys(
        ["rules.Equation", "rules.Rule", "rules.Site", "rules.rebind", "rules.elementwise_label"],
        "called by the tracer only, thousands of times a network",
    ),
    "select.Selector": "a protocol, which is not called",
    **dict.fromkeys(
        ["conv.finish", "curvature.flags_of", "losses.picture_total", "losses.overlap", "metrics.f1_of"],
        "a part of what checks its arguments, for compiled code",
    ),
    "Memory": "made by `Memory.open`; its own tests break its files",
    "Ledger": "opened by `Ledger.open`; a ledger's own tests break its file",
}  # fmt: skip


def valid(name):
    """Valid arguments of a function: what it requires, and what its entry adds."""
    function, mine = PUBLIC[name], own().get(name, {})
    arguments = dict(mine)
    for each in inspect.signature(function).parameters.values():
        if each.name not in arguments and (each.default is each.empty):
            arguments[each.name] = world()[each.name]
    return arguments


def call(name, arguments):
    """Calls a function; of a generator the first item is taken, so that its body begins."""
    function, positional = PUBLIC[name], []
    parameters = inspect.signature(function).parameters.values()
    rest = dict(arguments)
    many = [each.name for each in parameters if each.kind is each.VAR_POSITIONAL]
    if many and many[0] in rest:
        for each in parameters:
            if each.kind is each.POSITIONAL_OR_KEYWORD and each.name in rest:
                positional.append(rest.pop(each.name))
            elif each.kind is each.VAR_POSITIONAL:
                positional += rest.pop(each.name)
                break
    result = function(*positional, **rest)
    return list(itertools.islice(result, 1)) if isinstance(result, collections.abc.Iterator) else result


def documented(name):
    """The errors under "Raises:" of a function."""
    text = inspect.getdoc(PUBLIC[name]) or ""
    part = re.search(r"Raises:\n(.*?)(?=\n\S|\Z)", text, re.DOTALL)
    names = re.findall(r"^ {4}((?:\w+, )*\w+):", part[1], re.MULTILINE) if part else []
    every = {one for found in names for one in found.split(", ")}
    return every


class Slow(BaseException):
    """A call that takes too long."""


def give_up(*_):
    raise Slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a picture, an archive and a saved network, to which files are written."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("place")
    grey = np.random.default_rng(1).integers(0, 256, (4, 16, 16)).astype(np.uint8)
    np.savez(folder / "pictures.npz", pictures=grey)
    for at, each in enumerate(grey):
        Image.fromarray(each).save(folder / f"picture{at or ''}.png")
    mp.models.save(folder / "network.npz", world()["params"])
    mp.export(world()["apply"], world()["params"], folder / "network.safetensors")
    mp.export(world()["apply"], world()["params"], folder / "network.onnx", inputs=world()["inputs"])
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    signal.signal(signal.SIGALRM, give_up)
    yield
    signal.alarm(0)


def complaint(name, argument, bad):
    """What is wrong with how a function answers one bad argument, or ""."""
    arguments, value = valid(name), POOL[bad]
    many = inspect.signature(PUBLIC[name]).parameters[argument].kind is inspect.Parameter.VAR_POSITIONAL
    arguments[argument] = [value] if many else value
    signal.alarm(60)
    try:
        call(name, arguments)
    except Slow:
        return "takes too long"
    except Exception as error:
        files, codes = zip(
            *((frame.f_code.co_filename, frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__)),
            strict=True,
        )
        if set(codes) & given_code(arguments) or "positional argument" in str(error):
            return ""  # what a function of the caller's raises is the caller's
        own = documented(name) | ({"TypeError", "ValueError"} if files[-1] == checks.__file__ else set())
        if not own & {each.__name__ for each in type(error).__mro__}:
            return f"{type(error).__name__} is not documented: {str(error)[:200]}"
        said, shown = (
            str(error),
            str(value and next(iter(value))) if isinstance(value, dict) else checks.show(value).strip("'"),
        )
        if isinstance(error, mp.data.Skipped):
            return ""  # its reason is counted; whoever reads many pictures knows which one it was
        if not (argument in said or shown in said or str(value)[:40] in said or re.search(r"[Aa]rgument \d", said)):
            return f"{type(error).__name__} does not name it: {said[:200]}"
    finally:
        signal.alarm(0)
    return ""


def given_code(arguments):
    """The code of the functions among the arguments, which are the caller's."""
    if isinstance(arguments, dict):
        return set().union(*map(given_code, arguments.values()))
    if isinstance(arguments, list | tuple):
        return set().union(*map(given_code, arguments), given_code(None))
    return {getattr(inspect.unwrap(arguments), "__code__", None)} - {None} if callable(arguments) else set()


def pairs(name):
    """Arguments and bad values for them. A function is no bad value where one is wanted; what it returns is its own."""
    hints = checks.resolved(inspect.unwrap(PUBLIC[name]))
    wants = lambda argument: "Callable" in str(hints.get(argument, "Callable")) or "Selector" in str(hints[argument])
    every = itertools.product(inspect.signature(PUBLIC[name]).parameters, POOL)
    return [(argument, bad) for argument, bad in every if bad != "a function" or not wants(argument)]


FUZZED = [name for name in PUBLIC if name not in EXEMPT and inspect.signature(PUBLIC[name]).parameters]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", FUZZED)
def test_one_odd_argument(name):
    @settings(max_examples=5, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(pairs(name)))
    def check(pair):
        assert complaint(name, *pair) == ""

    check()


@pytest.mark.slow
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", FUZZED)
def test_every_odd_argument(name):
    found = {pair: complaint(name, *pair) for pair in pairs(name)}
    assert not {pair: words for pair, words in found.items() if words}


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", FUZZED)
def test_the_valid_call_is_valid(name):
    if name != "data.make_pairs":  # a folder paired with itself: every picture is its own target
        call(name, valid(name))


def test_every_public_callable_is_fuzzed_or_excused():
    assert not EXEMPT.keys() - PUBLIC.keys()
    without = [name for name in PUBLIC if name not in EXEMPT and name not in FUZZED]
    assert all(not inspect.signature(PUBLIC[name]).parameters for name in without)
    for name in FUZZED:
        if not inspect.isclass(PUBLIC[name]):
            assert PUBLIC[name].__code__.co_filename == checks.__file__, f"{name} lacks @strict"
