"""The import arrows go down only, and a few things are used nowhere.

Read from the source text, so that an import inside a function or behind `TYPE_CHECKING` counts too. A new module of the
package must be placed on a floor here; a failing test says so. The rules are tried on small bad sources first.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "maskprune"

# The first part of a module's path inside the package, lowest floor first. A file imports from its own or a lower one.
FLOORS = {
    1: {
        "_jaxprs",
        "_answers",
        "_terminal",
        "_strict",
        "alive",
        "groups",
        "conv",
        "losses",
        "metrics",
        "quality",
        "data",
        "files",
        "archives",
        "headroom",
        "sums",
        "wide",
        "statistics",
        "transfer",
        "checkpoint",
    },
    2: {
        "arguments",
        "cells",
        "labels",
        "lines",
        "model_state",
        "models",
        "naming",
        "network",
        "origins",
        "overlaps",
        "reading",
        "reasons",
        "rules",
        "trace",
    },
    3: {
        "alter",
        "plan",
        "fitting",
        "shrink",
        "compact",
        "objective",
        "hold",
        "average",
        "accumulate",
        "soap",
        "conditions",
        "sizes",
        "positions",
        "cost",
        "export",
        "grouped",
        "rebuilt",
        "precision",
        "agreement",
        "nnx",
        "linen",
        "equinox",
        "_equinox_parts",
        "_equinox_widths",
        "haiku",
        "curvature",
        "surgery",
        "readers",
    },
    4: {
        "train",
        "levenberg",
        "session",
        "start",
        "handover",
        "task",
        "select",
        "population",
        "lanes",
        "early",
        "race",
        "repair",
        "subsets",
    },
    5: {
        "minimize",
        "moves",
        "together",
        "search",
        "outcome",
        "rounds",
        "report",
        "visualize",
        "worth",
        "_canvas",
        "_charts",
        "_wording",
        "record",
        "ledger",
        "interrupt",
        "memory",
        "repeat",
        "places",
        "regret",
        "replay",
        "study",
        "plots",
        "display",
        "testing",
        "__main__",
    },
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}

KNOWS_NO_MASKS = {
    "_jaxprs",
    "_strict",
    "conv",
    "data",
    "losses",
    "metrics",
    "quality",
    "files",
    "archives",
    "headroom",
    "statistics",
    "sums",
    "wide",
}
KNOWS_NO_LIBRARY = {
    "_jaxprs",
    "sums",
    "alive",
    "subsets",
    "regret",
    "replay",
    "cells",
    "overlaps",
    "labels",
    "reading",
    "lines",
    "origins",
    "reasons",
    "naming",
    "arguments",
    "fitting",
    "shrink",
    "conditions",
    "sizes",
    "positions",
    "cost",
    "plan",
    "curvature",
    "surgery",
    "readers",
    "repair",
    "trace",
    "rules",
    "compact",
    "average",
    "accumulate",
    "levenberg",
    "train",
    "select",
    "moves",
    "minimize",
}
LIBRARY_ROOMS = {
    "flax": {"models", "nnx", "linen"},
    "equinox": {"equinox", "_equinox_parts", "_equinox_widths"},
    "haiku": {"haiku"},
    "PIL": {"data", "__main__", "report", "visualize", "_canvas", "_charts", "plots", "study"},
    "skimage": {"data", "report", "visualize", "metrics", "quality"},
    "matplotlib": {"report", "visualize", "_canvas", "_charts", "plots"},
}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PICKLING = ("np.load", "numpy.load", "read_array", "torch.load")  # they pickle, or did, unless told not to
RUNNING = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"}
LONGEST_FILE = 400
LONGEST_EXPERIMENT = 450  # it holds its own command line, with a line of help for every option


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Absolute dotted names of everything imported in `source`, which lies directly in `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(path: Path) -> str:
    """The room a file of the package lives in: its folder, or its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def broken_arrows(room: str, modules: list[str]) -> list[str]:
    """What is wrong with a file of `room` that imports `modules`, in words; empty if nothing."""
    if room not in FLOOR_OF:
        return [f"{room} stands on no floor; place it in FLOORS"]
    wrong = []
    for module in modules:
        root, *rest = module.split(".")
        if root == "maskprune":
            wrong += broken_inside(room, rest[0] if rest else "")
        elif room not in LIBRARY_ROOMS.get(root, {room}):
            wrong.append(f"{room} imports {root}, which belongs in {sorted(LIBRARY_ROOMS[root])}")
        elif root in {"experiments", "benchmarks", "tests"}:
            wrong.append(f"{room} imports {root}, which stands above the package")
    return wrong


def broken_inside(room: str, imported: str) -> list[str]:
    if imported not in FLOOR_OF:
        return [f"{room} imports {imported or 'the package itself'}; import the room that defines the name"]
    if FLOOR_OF[imported] > FLOOR_OF[room]:
        return [f"{room} (floor {FLOOR_OF[room]}) imports {imported} (floor {FLOOR_OF[imported]}); arrows go down"]
    if room in KNOWS_NO_MASKS and imported not in KNOWS_NO_MASKS:
        return [f"{room} must not know networks or masks, and imports {imported}"]
    return []


def unsafe_uses(source: str) -> list[str]:
    """Ways in which a file could run what it reads."""
    wrong = [f"imports {name}" for name in imported_modules(source, "") if name.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in {"eval", "exec"}:
            wrong.append(f"line {node.lineno} uses {node.id}")
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"builtins.eval", "builtins.exec"}:
            wrong.append(f"line {node.lineno} uses {node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            wrong.append(f"line {node.lineno} allows pickle")
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).endswith(PICKLING):
            words = {keyword.arg for keyword in node.keywords}
            wrong += [] if words & {"allow_pickle", "weights_only"} else [f"line {node.lineno} leaves {name} free"]
        if isinstance(node, ast.Attribute) and ast.unparse(node) in RUNNING:
            wrong.append(f"line {node.lineno} uses {ast.unparse(node)}")
    return wrong


@pytest.mark.parametrize(
    ("room", "source", "complaint"),
    [
        ("groups", "from maskprune.network import Network", "arrows go down"),
        ("network", "def f():\n    from .train import step", "arrows go down"),
        ("train", "from maskprune import minimize", "arrows go down"),
        ("losses", "import maskprune.groups", "must not know networks"),
        ("conv", "from .. import models", "arrows go down"),
        ("data", "from ..groups import Group", "must not know networks"),
        ("select", "import maskprune", "the package itself"),
        ("train", "import flax.linen as nn", "imports flax"),
        ("minimize", "from matplotlib import pyplot", "imports matplotlib"),
        ("trace", "if TYPE_CHECKING:\n    import PIL.Image", "imports PIL"),
        ("losses", "from skimage import metrics", "imports skimage"),
        ("compact", "from experiments import minimize", "above the package"),
        ("helpers", "import jax", "place it in FLOORS"),
    ],
)
def test_a_wrong_arrow_is_seen(room, source, complaint):
    package = "maskprune" if room not in {"conv", "data", "select", "models"} else f"maskprune.{room}"
    assert complaint in " ".join(broken_arrows(room, list(imported_modules(source, package))))


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("train", "import optax\nfrom .hold import hold\nfrom maskprune import network"),
        ("data", "from PIL import Image\nfrom .targets import sobel\nfrom ..losses import mse"),
        ("models", "from flax import linen\nfrom maskprune.conv import conv2d"),
        ("quality", "from skimage.metrics import structural_similarity"),
    ],
)
def test_a_right_arrow_passes(room, source):
    package = "maskprune" if room not in {"conv", "data", "select", "models"} else f"maskprune.{room}"
    assert broken_arrows(room, list(imported_modules(source, package))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import dill",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=trusted)",
        "numpy.load(path)",
        "np.lib.format.read_array(file)",
        "torch.load(path)",
        "yaml.load(text)",
        "import os\nos.system('ls')",
    ],
)
def test_an_unsafe_use_is_seen(source):
    assert unsafe_uses(source)


def test_harmless_uses_pass():
    assert unsafe_uses("jax.eval_shape(f, x)\nmodel.eval()\nnp.load(path, allow_pickle=False)") == []


def test_no_library_is_allowed_where_none_is_wanted():
    for library, rooms in LIBRARY_ROOMS.items():
        assert not rooms & KNOWS_NO_LIBRARY, f"{library} is allowed in {rooms & KNOWS_NO_LIBRARY}"
    assert len(FLOOR_OF) == sum(map(len, FLOORS.values())), "a room stands on two floors"


def test_files_are_found():
    assert len(python_files("maskprune")) > 5  # else every test below would pass by reading nothing


@pytest.mark.parametrize("path", python_files("maskprune"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_arrows_go_down(path):
    if path == PACKAGE / "__init__.py":
        return  # it gathers the public names of all floors
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    assert broken_arrows(room_of(path), list(imported_modules(path.read_text("utf-8"), package))) == []


@pytest.mark.parametrize(
    "path", python_files("maskprune", "experiments"), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_nothing_runs_what_it_reads(path):
    assert unsafe_uses(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "path", python_files("maskprune", "experiments"), ids=lambda path: str(path.relative_to(REPOSITORY))
)
def test_files_stay_short(path):
    lines = len(path.read_text("utf-8").splitlines())
    longest = LONGEST_EXPERIMENT if path.parent.name == "experiments" else LONGEST_FILE
    assert lines <= longest, f"{lines} lines; split the file"
