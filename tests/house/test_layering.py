"""The import arrows go one way only, and a few things are used nowhere.

Read from the source text, so that an import inside a function or behind `TYPE_CHECKING` counts too. A new room of the
package must be placed in `ORDER`; a failing test says so. The rules are tried on small bad sources first.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "maskprune"

# Rooms, lowest first. A file imports from its own room and those before it; rooms of one line are strangers.
ORDER = (
    {"base"},
    {"conv"},
    {"masks"},
    {"train"},
    {"select", "removal"},
    {"nnx", "linen", "equinox", "haiku"},
    {"minimizer", "tasks"},
    {"report"},
    {"lab"},
    {"app"},
    {"__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(ORDER) for room in rooms}
MOST_ENTRIES = 18  # directly in the package

# What knows neither networks nor masks, and imports only what does not either.
KNOWS_NO_MASKS = ("base", "conv", "tasks.data", "tasks.losses", "tasks.metrics", "tasks.quality", "train.accurate_sums")
READS_REPORTS = ("report", "lab", "app", "__main__")
LIBRARIES = {
    "flax": ("nnx", "linen", "tasks.models.module"),
    "equinox": ("equinox", "removal.frameworks"),
    "haiku": ("haiku",),
    "PIL": ("tasks.data", "report", "lab.study_page", "app.commands"),
    "skimage": ("tasks",),
    "matplotlib": ("report",),
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


def place_of(path: Path) -> str:
    """Where a file of the package stands, `tasks.data.split`; a folder's own file stands where the folder does."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def within(place: str, places: tuple[str, ...]) -> bool:
    return any(f"{place}.".startswith(f"{each}.") for each in places)


def broken_arrows(place: str, modules: list[str]) -> list[str]:
    """What is wrong with a file at `place` that imports `modules`, in words; empty if nothing."""
    if place.split(".")[0] not in FLOOR_OF:
        return [f"{place} stands in no room of the table; place it in ORDER"]
    wrong = []
    for module in modules:
        root, _, rest = module.partition(".")
        if root == "maskprune":
            wrong += broken_inside(place, rest)
        elif not within(place, LIBRARIES.get(root, (place,))):
            wrong.append(f"{place} imports {root}, which belongs in {LIBRARIES[root]}")
        elif root in {"experiments", "benchmarks", "tests"}:
            wrong.append(f"{place} imports {root}, which stands above the package")
    return wrong


def broken_inside(place: str, imported: str) -> list[str]:
    room, other = place.split(".")[0], imported.split(".")[0]
    if other not in FLOOR_OF and room != "app":  # which stands above all of them, and uses the public names
        return [f"{place} imports {imported or 'the package itself'}; import the room that defines the name"]
    if other != room and FLOOR_OF.get(other, -1) >= FLOOR_OF[room]:
        return [f"{place} imports {imported}; rooms import those before them in ORDER"]
    if within(place, KNOWS_NO_MASKS) and not within(imported, KNOWS_NO_MASKS):
        return [f"{place} must not know networks or masks, and imports {imported}"]
    if within(imported, ("report",)) and not within(place, READS_REPORTS):
        return [f"{place} imports {imported}, which only {READS_REPORTS} may"]
    return []


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """Those from which the arrows lead back to themselves."""
    left = dict(arrows)
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    return set(left)


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
    ("place", "source", "complaint"),
    [
        ("masks.groups", "from maskprune.train.step import TrainState", "rooms import those before them"),
        ("masks.network", "def f():\n    from ..train import step", "rooms import those before them"),
        ("select.base", "from maskprune.removal import plan", "rooms import those before them"),
        ("tasks.pictures", "from maskprune.minimizer.loop import minimize", "rooms import those before them"),
        ("minimizer.loop", "from maskprune.tasks import pictures", "rooms import those before them"),
        ("tasks.losses", "import maskprune.masks.groups", "must not know networks"),
        ("tasks.data.split", "from ...masks.groups import Group", "must not know networks"),
        ("select.base", "import maskprune", "the package itself"),
        ("train.step", "import flax.linen as nn", "imports flax"),
        ("minimizer.loop", "from matplotlib import pyplot", "imports matplotlib"),
        ("masks.tracing", "if TYPE_CHECKING:\n    import PIL.Image", "imports PIL"),
        ("train.step", "from skimage import metrics", "imports skimage"),
        ("removal.compaction", "from experiments import minimize", "above the package"),
        ("helpers", "import jax", "place it in ORDER"),
    ],
)
def test_a_wrong_arrow_is_seen(place, source, complaint):
    package = ".".join(["maskprune", *place.split(".")[:-1]])
    assert complaint in " ".join(broken_arrows(place, list(imported_modules(source, package))))


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("train.step", "import optax\nfrom .freezing import hold\nfrom maskprune.masks import network"),
        ("tasks.data.split", "from PIL import Image\nfrom .targets import sobel\nfrom ..losses import mse"),
        ("tasks.models.module", "from flax import linen\nfrom maskprune.conv import conv2d"),
        ("tasks.quality", "from skimage.metrics import structural_similarity"),
        ("app.outcome", "from maskprune.report import page"),
    ],
)
def test_a_right_arrow_passes(place, source):
    package = ".".join(["maskprune", *place.split(".")[:-1]])
    assert broken_arrows(place, list(imported_modules(source, package))) == []


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == set()


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


def test_the_package_is_its_rooms():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert {name.removesuffix(".py") for name in entries} == {*FLOOR_OF, "__init__", "py.typed"}
    assert len(entries) <= MOST_ENTRIES and len(FLOOR_OF) == sum(map(len, ORDER))


def test_no_room_has_the_name_of_a_public_function():
    import maskprune

    assert all(isinstance(getattr(maskprune, room, maskprune), type(maskprune)) for room in FLOOR_OF)


def test_files_are_found():
    assert len(python_files("maskprune")) > 5  # else every test below would pass by reading nothing


@pytest.mark.parametrize("path", python_files("maskprune"), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_arrows_go_one_way(path):
    if path == PACKAGE / "__init__.py":
        return  # it gathers the public names of all rooms
    package = ".".join(path.relative_to(REPOSITORY).parent.parts)
    assert broken_arrows(place_of(path), list(imported_modules(path.read_text("utf-8"), package))) == []


def test_nothing_imports_in_a_circle():
    files = {path: place_of(path) for path in python_files("maskprune") if path != PACKAGE / "__init__.py"}
    places, arrows = set(files.values()), {}
    for path, place in files.items():
        package = ".".join(path.relative_to(REPOSITORY).parent.parts)
        roots = [name.partition(".") for name in imported_modules(path.read_text("utf-8"), package)]
        names = [rest for root, _, rest in roots if root == "maskprune"]
        arrows[place] = {name if name in places else name.rpartition(".")[0] for name in names} & places - {place}
    assert circles(arrows) == set() and any(arrows.values())


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
