"""Files written whole or not at all: a reader never meets half a file, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: Path | str, content: bytes) -> Path:
    """Writes `content` under another name in the same folder, then moves it into place. Makes missing folders."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path
