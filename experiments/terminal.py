"""`maskprune._terminal` by its file, for programs whose `--help` answers at once: `import maskprune` loads JAX."""

import importlib.util
from pathlib import Path


_package = importlib.util.find_spec("maskprune")
assert _package is not None and _package.origin is not None
_spec = importlib.util.spec_from_file_location("_terminal", Path(_package.origin).with_name("_terminal.py"))
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
outputs = _module.outputs
