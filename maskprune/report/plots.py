"""Charts for the page of a study: points, numbers with their intervals, how often, and a lattice of numbers.

They take plain numbers and words and draw them as ``charts`` does: matplotlib's objects, never pyplot, on the Agg
canvas, in the colours of every picture. This file must not know what was measured, and imports from maskprune only the
palette.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image

from maskprune.report.canvas import PALETTE


# Distinct in lightness as well as in hue, so that they stay apart for readers to whom red and green are one colour.
SERIES = (PALETTE.positive, PALETTE.broken, "#6fb1ff", PALETTE.negative, "#c79bff", PALETTE.faint)
_MARKS = "osD^vX"
_LIGHT = LinearSegmentedColormap.from_list("light", [PALETTE.zero, "#1d6b52", PALETTE.positive, "#e9fff6"])


class Panel(NamedTuple):
    """One chart of points: name of each series to its (x, y)."""

    title: str
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def scatter(panels: Sequence[Sequence[Panel]], *, xlabel: str, ylabel: str) -> Image.Image:
    """Charts of points in rows and columns, with common axes.

    Points that are not finite are left out.
    """
    tall, wide = len(panels), max(map(len, panels))
    figure = _figure(4.2 * wide, 3.5 * tall + 0.5)
    axes = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    for row, charts in enumerate(panels):
        for column, panel in enumerate(charts):
            _points(axes[row, column], panel)
            _dressed(axes[row, column], xlabel if row == tall - 1 else "", ylabel if column == 0 else "")
    _legend(figure, axes[0, 0])
    return _finished(figure)


def intervals(
    rows: Sequence[tuple[str, Mapping[str, Any]]], *, xlabel: str, lines: Mapping[str, float] | None = None
) -> Image.Image:
    """Numbers with their intervals, one line of the chart for each row and one mark for each series.

    Args:
        rows: Name, and series to a tuple with `value`, `low` and `high`; from top to bottom.
        xlabel: Of the numbers.
        lines: Names and numbers of upright lines for comparison.
    """
    series = list(dict.fromkeys(name for _, values in rows for name in values))
    figure = _figure(10, 1.3 + len(rows) * max(0.3, 0.17 * len(series)))
    axes = figure.subplots()
    for number, name in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * 0.7 / len(series)
        found = [(at + shift, values[name]) for at, (_, values) in enumerate(rows) if name in values]
        found = [(at, each) for at, each in found if np.isfinite(each.value)]
        colour, mark = SERIES[number % len(SERIES)], _MARKS[number % len(_MARKS)]
        for at, each in found:
            axes.plot([each.low, each.high], [at, at], color=colour, linewidth=1.6, alpha=0.75, solid_capstyle="round")
        axes.plot([each.value for _, each in found], [at for at, _ in found], mark, color=colour, label=name, ms=6)
    for name, value in (lines or {}).items():
        axes.axvline(value, color=PALETTE.faint, linewidth=1.2, linestyle="--", label=name)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _dressed(axes, xlabel, "", grid="x")
    _legend(figure, axes)
    return _finished(figure)


def shares(rows: Sequence[tuple[str, Mapping[int, int]]], *, xlabel: str, what: str) -> Image.Image:
    """How often each whole number was found: one bar for each row, cut by the number, from the smallest on.

    Args:
        rows: Name, and number to how often; from top to bottom.
        xlabel: Of the counts.
        what: Of the numbers, in the legend.
    """
    values = sorted({value for _, counts in rows for value in counts})
    figure = _figure(10, 1.6 + 0.36 * len(rows))
    axes = figure.subplots()
    colours = _LIGHT(np.linspace(1.0, 0.12, len(values))) if values else []
    left = np.zeros(len(rows))
    for value, colour in zip(values, colours, strict=True):
        counts = np.array([found.get(value, 0) for _, found in rows])
        label = f"{what} {value}" if value == values[0] else str(value)
        axes.barh(range(len(rows)), counts, left=left, color=colour, edgecolor=PALETTE.paper, label=label, height=0.72)
        for row in np.flatnonzero(counts).tolist():
            ink = PALETTE.paper if colour[:3].mean() > 0.45 else PALETTE.ink
            axes.text(left[row] + counts[row] / 2, row, str(value), color=ink, fontsize=10, ha="center", va="center")
        left += counts
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    _dressed(axes, xlabel, "", grid="x")
    return _finished(figure)


class Lattice(NamedTuple):
    """A picture of numbers: [row, column], with a frame round some of them."""

    title: str
    values: np.ndarray
    framed: Sequence[tuple[int, int]] = ()


def lattice(
    panels: Sequence[Lattice], *, rows: Sequence[str], columns: Sequence[str], xlabel: str, ylabel: str
) -> Image.Image:
    """Numbers as coloured squares, side by side and on one scale; brighter is larger."""
    figure = _figure(4.4 * len(panels), 4.6)
    found = np.concatenate([panel.values.ravel() for panel in panels])
    found = found[np.isfinite(found)]
    low, high = (found.min(), found.max()) if len(found) else (0.0, 1.0)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axes, panel) in enumerate(zip(every, panels, strict=True)):
        axes.imshow(panel.values, cmap=_LIGHT, vmin=low, vmax=high, origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(panel.values):
            bright = np.isfinite(value) and value > low + 0.55 * (high - low)
            words = f"{value:.2f}" if np.isfinite(value) else "–"
            ink = PALETTE.paper if bright else PALETTE.ink
            axes.text(column, row, words, color=ink, fontsize=10, ha="center", va="center")
        for row, column in panel.framed:
            edge = {"fill": False, "edgecolor": PALETTE.broken, "linewidth": 2.5}
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, **edge))
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_title(panel.title, color=PALETTE.ink, fontsize=12, loc="left")
        _dressed(axes, xlabel, "" if number else ylabel, grid=None)
        axes.spines["bottom"].set_visible(False)
    return _finished(figure)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120, facecolor=PALETTE.paper, layout="constrained")


def _points(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, color=PALETTE.ink, fontsize=12, loc="left")
    for number, (name, (x, y)) in enumerate(panel.series.items()):
        x, y = np.asarray(x, float), np.asarray(y, float)
        fine = np.isfinite(x) & np.isfinite(y)
        style = {"color": SERIES[number % len(SERIES)], "marker": _MARKS[number % len(_MARKS)], "linewidths": 0}
        axes.scatter(x[fine], y[fine], s=26, alpha=0.75, label=name, **style)


def _dressed(axes: Axes, xlabel: str, ylabel: str, *, grid: Any = "both") -> None:
    axes.set_facecolor(PALETTE.paper)
    axes.set_xlabel(xlabel, color=PALETTE.faint, fontsize=12)
    axes.set_ylabel(ylabel, color=PALETTE.faint, fontsize=12)
    axes.tick_params(colors=PALETTE.faint, labelsize=11, length=0)
    if grid:
        axes.grid(axis=grid, color=PALETTE.rule, linewidth=0.6)
        axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(PALETTE.rule)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        words = {"frameon": False, "labelcolor": PALETTE.ink, "fontsize": 11, "ncols": 6}
        figure.legend(handles, labels, loc="outside upper left", **words)


def _finished(figure: Figure) -> Image.Image:
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")
