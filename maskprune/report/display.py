"""What a person sees in the terminal while a search runs: a bar for the session at work, a line for every verdict.

On a terminal the bar shows the loss and the time left; where the output goes to a file, only whole lines are written.
Showing never waits for the device: the bar moves when a chunk has ended anyway.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from maskprune.minimizer.rounds import Round
from maskprune.report.terminal import discard_outputs, encodable
from maskprune.report.wording import printable
from maskprune.train.session import Watch
from maskprune.train.step import TrainState


class _Console(Console):
    """A console that falls silent when nobody reads it any more: a search is not to end for that."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        discard_outputs()


class Display:
    """Progress and verdicts on the terminal. A context manager.

    Args:
        quiet: Show nothing but errors.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = _Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._bar: TaskID | None = None
        self.upcoming = "round 1"  # the label of the next round's bar

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # a terminal that is gone needs no tidying up
            self._progress.stop()

    def say(self, text: str) -> None:
        """Prints lines as they are: no part of a name is taken for a command to the terminal."""
        self._print(escape(printable(text)))

    def _print(self, markup: str) -> None:
        try:
            self.console.print(encodable(markup, self.console.file))
        except OSError:  # a terminal that hung up, a full disk behind `>`
            self.console.on_broken_pipe()

    def start(self, label: str, total: int) -> None:
        """Begins a bar; the one before goes."""
        self.end()
        self._bar = self._progress.add_task(escape(label), total=total, note="")

    def move(self, done: int, note: str = "") -> None:
        if self._bar is not None:
            self._progress.update(self._bar, completed=done, note=note)

    def end(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def counting(self, label: str) -> Callable[[int, int], None]:
        """A `progress(done, total)` that shows a bar and takes it away at the end."""

        def progress(done: int, total: int) -> None:
            if self._bar is None:
                self.start(label, total)
            self.move(done)
            if done == total:
                self.end()

        return progress

    def session(self, label: str, steps: int) -> Watch:
        """A bar for a session, or for that of a population, and the `watch` that moves it."""
        self.start(label, steps)

        def watch(state: TrainState, losses: np.ndarray) -> str:
            last = losses[..., -100:]
            last = last[np.isfinite(last)]  # members that are dead or done have none
            self.move(int(np.max(np.asarray(state.step))), f"loss {np.mean(last):.3g}" if last.size else "")
            return ""

        return watch

    def tagged(self, tag: str) -> Tagged:
        """The same display for one of several searches: its lines begin with a tag."""
        return Tagged(self, tag)

    def verdict(self, found: Round, row: Mapping[str, Any], *, tag: str = "") -> None:
        """One line for a round: the masks of the judged network as blocks, the verdict and why."""
        mark = "[green]✔ kept[/]   " if found.accepted else "[red]✘ refused[/]"
        what = escape(row["chosen"]) if found.number else "trained"
        extra = f"  relative RMSE {row['relative_rmse']:.3f}" if "relative_rmse" in row else ""
        tag = f"{escape(tag)} " if tag else ""
        self._print(
            f"{tag}{found.number:>3}  {what:<12} {mark} {_blocks(row['enabled'])}  {escape(found.reason)}{extra}"
        )
        seconds = int(found.left * found.seconds)
        soon = f", {seconds // 60}:{seconds % 60:02}" if seconds else ""
        self.upcoming = f"round {found.number + 1} (at most {found.left} to go{soon})"


class Tagged:
    """Says what one of several searches says, with its name in front."""

    def __init__(self, display: Display, tag: str) -> None:
        self._display, self._tag, self.upcoming = display, tag, ""

    def say(self, text: str) -> None:
        self._display.say(f"{self._tag} {text}")

    def verdict(self, found: Round, row: Mapping[str, Any]) -> None:
        self._display.verdict(found, row, tag=self._tag)


def _blocks(enabled: Mapping[str, list[bool]]) -> str:
    layers = [
        f"{escape(name)} {''.join('■' if on else '[dim]□[/]' for on in flags)}" for name, flags in enabled.items()
    ]
    return "  ".join(layers)
