"""What a search leaves behind: the small network, its proof, its size and speed, the history, pictures, a report.

Joins the numbers of a search (`record`), the pictures (`drawings`) and the page (`page`) for networks that turn
pictures into pictures. Nothing here trains or decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from maskprune.app import record
from maskprune.base.checks import strict
from maskprune.conv import describe_way
from maskprune.masks.network import Network, effective_params
from maskprune.removal.compaction import check_same, count_params
from maskprune.tasks.data.batches import to_unit
from maskprune.tasks.data.split import Dataset
from maskprune.tasks.models.fcn import FCN, multiply_adds
from maskprune.tasks.models.saved import save
from maskprune.tasks.pictures import PictureTask
from maskprune.train.step import TrainState


class Outcome(NamedTuple):
    """What a search found, finished or not.

    Attributes:
        initial: The network the search began with.
        state: The state held at the end.
        rows: One row per round, from `record.history_row`.
        steps: Gradient steps of the whole run.
        seconds: Its wall time.
        stop: Why it ended.
        interrupted: Whether somebody stopped it.
        training_seconds: The part of the wall time that was spent training, without compiling it.
        compile_seconds: The part that was spent compiling the training loop.
        score: Of `state`, as it was last judged; NaN where it was interrupted before that.
    """

    initial: Network
    state: TrainState
    rows: Sequence[record.Row]
    steps: int
    seconds: float
    stop: str
    interrupted: bool = False
    training_seconds: float = 0.0
    compile_seconds: float = 0.0
    score: float = math.nan


@strict
def summarize(found: Outcome, *, model: FCN, task: PictureTask, dataset: Dataset) -> dict[str, Any]:
    """The result in numbers, as `result.json` holds it.

    Compacts the network, compares it with the masked one on every evaluation picture, and times both on one picture.

    Raises:
        CompactionError: The small network does not compute what the masked one does.
    """
    network, full = found.state.network, found.initial.params
    small = record.small_fcn(network)
    before, after = (task.evaluate(_with_network(found.state, each)) for each in (found.initial, network))
    flags = {name: np.asarray(values).tolist() for name, values in network.enabled.items()}
    pictures = to_unit(dataset.evaluation.inputs[:1])
    milliseconds = record.time_inference([(model.apply, full), (model.apply, small)], pictures)
    sizes = {
        "parameters": (count_params(full), count_params(small)),
        "multiply_adds": (multiply_adds(full), multiply_adds(small)),
        "bytes": (_count_bytes(full), _count_bytes(small)),
        "inference_ms": milliseconds,
    }
    return {
        "initial_score": before["score"],
        "final_score": after["score"],
        "score_ratio": after["score"] / before["score"] if before["score"] else None,
        "relative_rmse": after["relative_rmse"],
        "metrics": {"initial": before, "final": after},
        "masks_before": {name: len(values) for name, values in flags.items()},
        "masks_after": {name: sum(values) for name, values in flags.items()},
        "enabled": flags,
        "dead_masks": dead_masks(model, network, dataset),
        **{f"{name}_before": values[0] for name, values in sizes.items()},
        **{f"{name}_after": values[1] for name, values in sizes.items()},
        "verified_max_abs_difference": verify(model, network, small, dataset),
        "rounds": sum(row["verdict"] in ("accepted", "refused") for row in found.rows),
        "steps": found.steps,
        "seconds": round(found.seconds, 3),
        "training_seconds": round(found.training_seconds, 3),
        "compile_seconds": round(found.compile_seconds, 3),
        "stop": found.stop,
        "interrupted": found.interrupted,
        "data": {
            "summary": dataset.summary(),
            "source": dataset.source,
            "skipped": dataset.skipped,
            "notes": dataset.notes,
        },
        "versions": record.versions(),
        "device": record.device(),
        "precision": "float32, products at full precision",
        "convolution": describe_way(),
    }


def verify(model: FCN, network: Network, small: Any, dataset: Dataset, *, at_once: int = 1) -> float:
    """Largest difference between the masked and the small network on all evaluation pictures.

    One picture at once is what is timed and drawn, too: both networks are then compiled for one shape only.

    Raises:
        CompactionError: It is more than rounding.
    """
    inputs = dataset.evaluation.inputs
    parts = (to_unit(inputs[i : i + at_once]) for i in range(0, len(inputs), at_once))
    return max(check_same(model.apply, network, small, part) for part in parts)


def dead_masks(model: FCN, network: Network, dataset: Dataset) -> dict[str, list[int]]:
    """Enabled masks that are 0 at every pixel of every evaluation picture, so that nothing would change without them.

    Returns:
        `{group: [numbers]}`, groups without any left out.
    """
    params, lively = effective_params(network), {name: np.zeros(len(on), bool) for name, on in network.enabled.items()}
    for inputs in np.split(dataset.evaluation.inputs, len(dataset.evaluation.inputs)):
        found = jax.jit(model.activations)(params, to_unit(inputs))
        lively = {name: alive | np.any(np.asarray(found[name]) != 0, (0, 1, 2)) for name, alive in lively.items()}
    dead = {name: np.flatnonzero(np.asarray(network.enabled[name]) & ~alive) for name, alive in lively.items()}
    return {name: numbers.tolist() for name, numbers in dead.items() if numbers.size}


@strict
def write_outcome(folder: Path, found: Outcome, result: Mapping[str, Any], *, model: FCN, dataset: Dataset) -> Path:
    """Writes `network.npz`, `result.json`, `history.csv`, `pictures/*.png` and `report.html`.

    Returns:
        The path of the report.

    Raises:
        OSError: A file or folder cannot be read, or not be written.
    """
    from maskprune.report import page

    small = record.small_fcn(found.state.network)
    save(folder / "network.npz", small, about={"task": result.get("task"), "score": result.get("final_score")})
    record.write_json(folder / "result.json", result)
    record.write_csv(folder / "history.csv", found.rows)
    pictures = draw(found, model=model, dataset=dataset, border=int(result.get("border") or 0))
    return page.write_report(folder, result, found.rows, pictures)


def draw(found: Outcome, *, model: FCN, dataset: Dataset, border: int = 0, most: int = 4) -> dict[str, Any]:
    """The pictures of the report, by name: masks, some evaluation pictures before and after, activations, history.

    The frame that is not scored, `border` pixels wide, is not shown: zero padding makes false edges there.
    """
    from maskprune.report import drawings

    network, evaluation = found.state.network, dataset.evaluation
    enabled = {name: np.asarray(flags) for name, flags in network.enabled.items()}
    shown = [evaluation.names.index(name) for name in dict.fromkeys(evaluation.names)][:most]
    before, after = found.initial.params, effective_params(network)
    first = to_unit(evaluation.inputs[shown[0] : shown[0] + 1])
    inside = slice(border, first.shape[1] - border)
    stages = {"input": first, **jax.jit(model.activations)(after, first)}
    activations = {name: np.asarray(values)[0, inside, inside] for name, values in stages.items()}
    rounds = [row for row in found.rows if row["verdict"] != "final"]
    pictures = {
        "masks": drawings.masks_picture(network.params, enabled),
        "comparison": drawings.comparison_picture(
            [_compared(model, (before, after), evaluation, i, border=border) for i in shown]
        ),
        "activations": drawings.activations_picture(activations, enabled),
    }
    if rounds:
        pictures["score_history"] = drawings.score_history(rounds)
        pictures["score_against_size"] = drawings.score_against_size(rounds, threshold_line=rounds[-1]["required"])
    return pictures


def _compared(model: FCN, params: tuple[Any, Any], evaluation: Any, i: int, *, border: int) -> tuple[str, list]:
    picture, target = (to_unit(side[i : i + 1]) for side in (evaluation.inputs, evaluation.targets))
    old, new = (np.minimum(jax.jit(model.apply)(each, picture), 1.0) for each in params)
    inside = slice(border, picture.shape[1] - border)
    named = {
        "input": picture,
        "target": target,
        "output before": old,
        "output after": new,
        "|error|": abs(new - np.asarray(target)),
    }
    return evaluation.names[i], [(label, np.asarray(values)[0, inside, inside, 0]) for label, values in named.items()]


def _with_network(state: TrainState, network: Network) -> TrainState:
    return TrainState(network=network, opt_state=None, model_state=state.model_state, step=state.step)


def _count_bytes(params: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
