"""What a run leaves behind in numbers: one row per round, one result, and the facts needed to repeat it.

Rows and results are plain dictionaries, ready for CSV and JSON. Files are written under another name first and then
moved, so nobody meets half a file. Knows no pictures.
"""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from maskprune.base.checks import Count, Natural, strict
from maskprune.base.files import replace_file
from maskprune.masks.network import Network
from maskprune.minimizer.rounds import Round, name_tried
from maskprune.removal.compaction import compact_params, count_params
from maskprune.removal.costs import time_calls
from maskprune.tasks.models.fcn import drop_identities, multiply_adds
from maskprune.train.session import SessionReport
from maskprune.train.step import TrainState


Row = dict[str, Any]
Size = Callable[[Network], Mapping[str, int]]


@strict
def history_row(found: Round, *, size: Size, spent: Natural) -> Row:
    """One round as a flat row. Sizes and `enabled` are those of the network that was judged, kept or not.

    Args:
        found: The round.
        size: Counts parameters and multiply-adds of the compacted network: `fcn_size`, or your own.
        spent: Gradient steps before this round.
    """
    tried = name_tried(found)
    return {
        "number": found.number,
        "verdict": ("accepted" if found.accepted else "refused") if found.number else "reference",
        "reason": found.reason,
        "chosen": tried if tried or not found.number else "trained on",
        "score": found.score,
        "held_score": found.held_score,
        "required": found.required,
        "reference": found.reference,
        **sizes(found.judged, size),
        **_measured(found.metrics, steps=found.steps, spent=spent, seconds=found.seconds),
    }


@strict
def final_row(
    state: TrainState,
    metrics: Mapping[str, float],
    report: SessionReport,
    *,
    number: Natural,
    reason: str,
    held_score: float,
    size: Size,
    spent: Natural,
) -> Row:
    """A last session, which tries no mask, as a row like the others."""
    return {
        "number": number,
        "verdict": "final",
        "reason": reason,
        "chosen": "",
        "score": metrics.get("score", float("nan")),
        "held_score": held_score,
        **sizes(state.network, size),
        **_measured(metrics, steps=len(report.losses), spent=spent, seconds=report.seconds),
    }


def _measured(metrics: Mapping[str, float], *, steps: int, spent: int, seconds: float) -> Row:
    errors = {name: metrics[name] for name in ("mae", "relative_rmse", "r2") if name in metrics}
    return {**errors, "steps": steps, "total_steps": spent + steps, "seconds": round(seconds, 3)}


@strict
def small_fcn(network: Network) -> Any:
    """The compacted parameters of an FCN, without the layers that were bypassed."""
    return drop_identities(compact_params(network))


@strict
def fcn_size(network: Network) -> dict[str, int]:
    """Parameters, and multiply-adds per pixel, of a compacted FCN."""
    small = small_fcn(network)
    return {"parameters": count_params(small), "multiply_adds": multiply_adds(small)}


@strict
def sizes(network: Network, size: Size) -> Row:
    """Masks of every group and in all, the `enabled` lists, and the size once compacted."""
    enabled = {name: np.asarray(flags).tolist() for name, flags in network.enabled.items()}
    return {
        "masks": sum(map(sum, enabled.values())),
        **{f"masks_{name}": sum(flags) for name, flags in enabled.items()},
        "enabled": enabled,
        **size(network),
    }


@strict
def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Writes rows that may differ in their columns; values that are lists or dictionaries are left out.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
    """
    columns = list(
        dict.fromkeys(name for row in rows for name, value in row.items() if not isinstance(value, list | dict))
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return replace_file(path, text.getvalue().encode())


@strict
def write_json(path: Path, value: Mapping[Any, Any]) -> Path:
    """Writes JSON a person can read; numbers that are not finite become null, as JSON has none.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
    """
    return replace_file(path, (json.dumps(_plain(value), indent=2, allow_nan=False) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    names = ("maskprune", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-image", "pillow")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device() -> str:
    """The device that computes, in words."""
    first = jax.devices()[0]
    cores = f", {os.cpu_count()} cores" if first.platform == "cpu" else ""
    return f"{first.platform}: {first.device_kind} ({platform.machine()}{cores})"


def why_no_device() -> str:
    """Why JAX has nothing here to compute on, in words, or ""; it looks for devices where nobody has yet."""
    try:
        jax.devices()
    except Exception as error:  # every platform has its own, an assertion among them
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        asked = os.environ.get("JAX_PLATFORMS")
        return f"JAX finds no device ({reason}); JAX_PLATFORMS is {asked!r}: use cpu, or leave it unset"
    return ""


@strict
def time_inference(
    networks: Sequence[tuple[Callable[..., jax.Array], Any]], pictures: jax.Array, *, repeats: Count = 30
) -> list[float]:
    """Median milliseconds of one call of each compiled network, run alternately after a warm-up, compilation apart.

    Args:
        networks: Pairs `(apply, params)`.
        pictures: float32[N, H, W, C].
        repeats: Timed calls of each.
    """
    calls = [partial(jax.jit(apply), params, pictures) for apply, params in networks]
    return [found.median_ms for found in time_calls(calls, repeats=repeats)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
