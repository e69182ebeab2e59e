"""What the data rooms may import: light at the start, and nothing from the floors above."""

import ast
from pathlib import Path

from maskprune import data


def modules(path):
    """The modules that a file imports when it is itself imported."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_importing_is_light():
    """Only batches.py needs jax, and no other file it; scikit-image and scipy wait until they are called."""
    files = sorted(Path(data.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for path in files:
        needs = set(modules(path))
        heavy = {"jax", "skimage", "scipy"} & {name.split(".")[0] for name in needs}
        assert heavy == ({"jax"} if path.name == "batches.py" else set()), path.name
        assert "maskprune.tasks.data.batches" not in needs, path.name
        ours = {name for name in needs if name.startswith("maskprune")} - {"maskprune.base.checks"}
        known = ("maskprune.tasks.data", "maskprune.base.archives")
        assert all(name.startswith(known) for name in ours), path.name
