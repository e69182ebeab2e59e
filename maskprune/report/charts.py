"""Curves for ``drawings``: how the score went, round by round, and against the size of the network.

It reads rows of the history as plain dictionaries and draws them with matplotlib's objects (never pyplot, whose state
is shared by the whole process), on the Agg canvas, without a date. It must not know how a round came about, and
imports from maskprune only the palette.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from maskprune.report.canvas import PALETTE


_KEPT = ("reference", "accepted", "final")
_SIZES = {"masks": "masks", "multiply_adds": "multiply-adds per pixel", "parameters": "parameters"}

Rounds = Sequence[Mapping[str, Any]]


def score_history(rounds: Rounds, *, threshold_line: float | None = None) -> Image.Image:
    """The score of every round: accepted ones filled and joined, refused ones as crosses.

    Args:
        rounds: rows of the history with ``number``, ``verdict``, ``score`` and, where known, ``masks``, ``reference``
            and ``required``. Rows without a number or a score are left out; higher scores are better.
        threshold_line: the score required in every round. None: each row's own ``required``, as steps.

    Returns:
        An RGB picture of 1200 × 560 pixels. Numbers beside accepted rounds are the masks left.
    """
    figure, axes = _sheet("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _required_lines(axes, rounds, threshold_line)
    _verdicts(axes, rounds, "number")
    for x, y, row in _points(rounds, "number", _KEPT):
        if row.get("masks") is not None:
            offset = {"xytext": (0, 10), "textcoords": "offset points", "ha": "center"}
            axes.annotate(str(row["masks"]), (x, y), color=PALETTE.ink, fontsize=11, **offset)
    return _finished(figure, axes)


def score_against_size(rounds: Rounds, *, size: str = "masks", threshold_line: float | None = None) -> Image.Image:
    """The score against what is left of the network: the accepted path as a line, refused attempts as crosses.

    Args:
        rounds: rows of the history with ``verdict``, ``score`` and the column ``size``.
        size: ``masks``, ``multiply_adds`` or ``parameters``; it falls from left to right, as the search does.
        threshold_line: the required score, or None for none.

    Returns:
        An RGB picture of 1200 × 560 pixels.

    Raises:
        ValueError: another column.
    """
    if size not in _SIZES:
        raise ValueError(f"size is {size!r}; choose one of {list(_SIZES)}")
    figure, axes = _sheet(_SIZES[size] + " left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.invert_xaxis()
    if threshold_line is not None:
        axes.axhline(threshold_line, color=PALETTE.broken, linewidth=1.4, linestyle="--", label="required")
    _verdicts(axes, rounds, size)
    return _finished(figure, axes)


def _sheet(xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(10, 14 / 3), dpi=120, facecolor=PALETTE.paper, layout="constrained")
    axes = figure.add_subplot(facecolor=PALETTE.paper)
    axes.set_xlabel(xlabel, color=PALETTE.faint, fontsize=12)
    axes.set_ylabel("score", color=PALETTE.faint, fontsize=12)
    axes.tick_params(colors=PALETTE.faint, labelsize=11, length=0)
    axes.grid(axis="y", color=PALETTE.rule, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE.rule)
    axes.margins(0.06, 0.14)
    return figure, axes


def _known(value: Any) -> bool:
    return value is not None and value != "" and bool(np.isfinite(float(value)))


def _points(rounds: Rounds, column: str, verdicts: Sequence[str]) -> list[tuple[float, float, Mapping[str, Any]]]:
    rows = [row for row in rounds if row.get("verdict") in verdicts]
    rows = [row for row in rows if _known(row.get(column)) and _known(row.get("score"))]
    return [(float(row[column]), float(row["score"]), row) for row in rows]


def _verdicts(axes: Axes, rounds: Rounds, column: str) -> None:
    kept, refused = _points(rounds, column, _KEPT), _points(rounds, column, ("refused",))
    if refused:
        x, y, _ = zip(*refused, strict=True)
        axes.plot(x, y, "x", color=PALETTE.negative, markersize=9, markeredgewidth=2.2, label="refused")
    if kept:
        x, y, _ = zip(*kept, strict=True)
        axes.plot(x, y, "-o", color=PALETTE.positive, linewidth=2, markersize=8, label="accepted")


def _required_lines(axes: Axes, rounds: Rounds, threshold_line: float | None) -> None:
    lines = (("reference", PALETTE.faint, "-"), ("required", PALETTE.broken, "--"))
    for column, colour, style in lines:
        if column == "required" and threshold_line is not None:
            axes.axhline(threshold_line, color=colour, linewidth=1.4, linestyle=style, label=column)
            continue
        rows = [row for row in rounds if _known(row.get("number")) and _known(row.get(column))]
        x, y = [float(row["number"]) for row in rows], [float(row[column]) for row in rows]
        if rows:
            axes.step(x, y, where="mid", color=colour, linewidth=1.4, linestyle=style, label=column)


def _finished(figure: Figure, axes: Axes) -> Image.Image:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False, labelcolor=PALETTE.ink, fontsize=11, ncols=4, loc="lower left", bbox_to_anchor=(0, 1)
        )
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")
