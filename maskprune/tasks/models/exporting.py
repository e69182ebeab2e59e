"""A saved network, written for other programs. Knows files and formats by name only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskprune.base.checks import strict
from maskprune.removal.export import Exported, export
from maskprune.removal.export.write import ENDINGS, EXTRAS
from maskprune.tasks.models.saved import load


@strict
def export_saved(network: str | Path, folder: str | Path, formats: Sequence[str] | None = None) -> list[Exported]:
    """Writes a saved FCN (`models.save`) as `network.stablehlo` and so on, named as the file.

    Args:
        network: What `models.save` wrote, such as the `network.npz` of a search.
        folder: Where to write.
        formats: Some of `"stablehlo"`, `"onnx"`, `"safetensors"`, `"orbax"`. By default all whose packages are
            installed.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
        ValueError: The file is no saved network, or a format is unknown.
        ImportError: A format that was asked for needs a package that is not installed.
    """
    endings = [ending[1:] for ending in ENDINGS]
    unknown = [name for name in formats or () if name not in endings]
    if unknown:
        raise ValueError(f"`formats` holds {unknown[0]!r}: use some of {', '.join(endings)}.")
    apply, params = load(network)
    channels = next(iter(params.values()))["kernel"].shape[2]
    inputs = [np.random.default_rng(0).random((1, 32, 48, channels), np.float32)]
    written = []
    for name in endings if formats is None else formats:
        try:
            written.append(export(apply, params, Path(folder) / f"{Path(network).stem}.{name}", inputs=inputs))
        except ImportError as error:
            if formats is not None or str(error.name).split(".")[0] not in EXTRAS:
                raise
    return written
