"""What a run was told, on disk, so that it can be told again: sessions, scores and orders of masks.

A search is plain Python, and what it does follows from the answers of a few functions: training, evaluation, selection.
`Memory` wraps these. It keeps every answer under a digest of its question, and gives it again when the same question is
asked; so a run that was stopped, by whatever means, is simply begun again, and passes in seconds over what it knows,
to where it was. Whatever a plan or a selector holds in its own variables comes back by itself. Within a session, where
it stands is kept as well. As every answer belongs to one question, to the bit, an answer can be lost but never be given
to another question.

Answers are written in the background. A disk that fails is told to the user and costs what it could not take; the run
goes on. Knows no pictures, no framework, and nothing of how a search goes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base import checkpoints
from maskprune.base.ledger import Ledger
from maskprune.base.returned import named_numbers, same_form, words
from maskprune.minimizer import progress
from maskprune.minimizer.progress import Place, digest
from maskprune.train.halving import trained
from maskprune.train.population import Population, PopulationReport
from maskprune.train.session import Session, SessionReport
from maskprune.train.step import TrainState


ANSWERS, STATES, REACHED = "answers.jsonl", "states", "reached"
PENDING = 8  # answers that may wait for the disk before the run waits, too


class Memory:
    """The answers that a run was given. A context manager: at its end everything is on the disk. Make it with `open`.

    Attributes:
        folder: Where it lies.
        about: What the run is.
        failed: Why the disk took something not, or "".
    """

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        *,
        say: Callable[[str], None],
        every: float,
        asked_to_stop: Callable[[], bool],
    ) -> None:
        self.folder, self.about, self.failed = folder, ledger.about, ""
        self._ledger, self._say, self._every, self._asked_to_stop = ledger, say, every, asked_to_stop
        self._known = {row["asked"]: row for row in ledger.rows if "asked" in row}
        self._writer = ThreadPoolExecutor(1, "memory")
        self._waiting: list[Future[None]] = []
        self._turn = threading.Lock()  # searches that run at once share one memory
        self._saving: Future[None] | None = None
        self._saved_at = self._live_since = time.perf_counter()
        self._spent = 0.0

    @classmethod
    def open(
        cls,
        folder: Path | str,
        about: Mapping[str, Any],
        *,
        say: Callable[[str], None] = print,
        every: float = 1.0,
        same: Sequence[str] = ("config", "data"),
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> Memory:
        """Begins the memory of a run, or goes on with the one that is there.

        Args:
            folder: Its own folder; it is made.
            about: What the run is, as JSON can hold it.
            say: Is told what goes wrong.
            every: Seconds from one save within a session to the next, which is then at the end of a chunk; a save that
                is still being written is not waited for.
            same: Entries of `about` that must be what they were.
            asked_to_stop: Asked between all questions and after every chunk. When it says yes, what was reached is
                saved, and `KeyboardInterrupt` raised.

        Raises:
            ValueError: The folder holds another run, or what is no memory.
            OSError: It cannot be written to.
        """
        folder = Path(folder)
        bits = {"bits": 64} if jnp.result_type(float) == np.float64 else {}  # 32 bits go without saying
        ledger = Ledger.open(folder / ANSWERS, {**about, **bits}, same=("bits", *same))
        if ledger.damaged:
            say(f"{len(ledger.damaged)} lines of {ledger.path} are damaged: what they held is computed again.")
        for name in (STATES, REACHED):
            checkpoints.drop_incomplete(folder / name)
        return cls(folder, ledger, say=say, every=every, asked_to_stop=asked_to_stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
        self._writer.shutdown()

    @property
    def finished(self) -> bool:
        """Whether the run has ended and was written out."""
        return has_ended(self._ledger)

    def clock(self) -> float:
        """Seconds that the run has taken so far, all its parts together. What it is told again takes none."""
        return self._spent + time.perf_counter() - self._live_since

    def flush(self) -> None:
        """Waits until everything is on the disk, or was told to have failed."""
        with self._turn:
            while self._waiting:
                self._waiting.pop().result()

    def finish(self, about: Mapping[str, Any]) -> None:
        """Ends the run. The states of its sessions are removed; the digests of all answers stay, for comparing runs."""
        self._write(lambda: self._ledger.add([{"finished": True, **about, "at": self.clock()}]))
        self.flush()
        if self.finished:
            self._write(lambda: [checkpoints.remove(self.folder / name) for name in (STATES, REACHED)])

    def forget(self) -> None:
        """Drops all answers: what they led to is safe elsewhere. The clock goes on."""
        self.flush()
        self._known.clear()
        self._write(lambda: self._ledger.clear())
        self._write(lambda: [checkpoints.remove(self.folder / name) for name in (STATES, REACHED)])

    def recalling(self, name: str, function: Callable[..., Mapping[str, Any]]) -> Callable[..., dict[str, Any]]:
        """The same function, whose answers are kept: numbers or arrays by name, for arguments that are pytrees.

        Args:
            name: Tells functions apart that are asked the same.
            function: Gives the same answer to the same question, always.

        Raises:
            TypeError: When called: the function gives something else. For a training loop of your own see `training`.
        """

        def ask(*arguments: Any) -> dict[str, Any]:
            self._pause()
            asked = digest(name, arguments)
            if asked in self._known:
                self._go_to(self._known[asked])
                return {key: _number(each) for key, each in self._known[asked]["answer"].items()}
            found = jax.device_get(named_numbers(function(*arguments), name))
            answer = {key: _plain(each) for key, each in found.items()}
            self._known[asked] = self._keep(asked, {"name": name, "answer": answer})
            return {key: _number(each) for key, each in answer.items()}

        return ask

    def training(
        self, name: str, train: Callable[[jax.Array, TrainState], tuple[TrainState, Any]]
    ) -> Callable[[jax.Array, TrainState], tuple[TrainState, SessionReport]]:
        """The same training loop, of your own making, whose results are kept. A stop costs the session at work.

        Args:
            name: Tells loops apart that are asked the same, such as a long one and a short one.
            train: `train(key, state) -> (state, report)`, as for `minimize`; the same result for the same arguments.

        Raises:
            TypeError: When called: `train` gives something else, or a state of another form than it was given.
        """

        def run(key: jax.Array, state: TrainState) -> tuple[TrainState, SessionReport]:
            self._pause()
            asked = digest(name, (key, state))
            if (known := self._recalled(asked, state)) is not None:
                return known
            after, report = trained(train(key, state), state, name)
            after = jax.tree.map(jnp.asarray, after)
            same_form(after, state, name)
            self._keep(asked, {"name": "training"}, Place(after, report))
            return after, report

        return run

    def session(self, session: Session) -> Session:
        """The same session, whose results are kept, and which goes on where it stood."""

        def run(
            key: jax.Array,
            state: TrainState,
            data: Any,
            steps: int,
            *,
            until: Any = None,
            rate: Any = 1.0,
            watch: Any = None,
        ) -> tuple[TrainState, SessionReport]:
            asked = digest("session", (key, state, steps, until, rate))
            go = lambda state, watch, **options: session.run(
                key, state, data, steps, until=until, rate=rate, watch=watch
            )
            return self._train(asked, state, go, watch, so_far=progress.session_so_far)

        return session._replace(run=run)

    def population(self, population: Population) -> Population:
        """The same population, whose results are kept, and which goes on where it stood."""

        def run(
            keys: jax.Array,
            states: TrainState,
            data: Any,
            steps: int,
            *,
            until: Any = None,
            rates: Any = None,
            watch: Any = None,
        ) -> tuple[TrainState, PopulationReport]:
            asked = digest("population", (keys, states, steps, until, rates))

            def go(states: TrainState, watch: Any, report: Any = None) -> Any:
                alive = None if report is None else report.finite
                return population.run(keys, states, data, steps, until=until, rates=rates, watch=watch, alive=alive)

            return self._train(asked, states, go, watch, so_far=partial(progress.population_so_far, states))

        return population._replace(run=run)

    def _train(
        self, asked: str, like: TrainState, go: Callable[..., Any], watch: Any, *, so_far: Callable[..., Any]
    ) -> tuple[TrainState, Any]:
        self._pause()
        if (known := self._recalled(asked, like)) is not None:
            return known
        place = self._reached(asked, like)
        began = time.perf_counter()

        def look(state: TrainState, losses: np.ndarray, fresh: bool = True) -> str:
            before = [place.report.losses] if fresh and place is not None else []
            losses = np.concatenate([*before, losses], axis=-1)
            stop = self._asked_to_stop()
            if fresh and (stop or self._is_due()):
                here = Place(state, so_far(state, losses)._replace(seconds=time.perf_counter() - began))
                self._save_reached(asked, here)
            if stop:
                self.flush()
                raise KeyboardInterrupt
            return words(watch(state, losses), "watch") if watch else ""

        if place is None:
            state, report = go(like, look)
        elif stopped := look(place.state, place.report.losses, fresh=False):
            state, report = place.state, progress.ended(place, stopped)
        else:
            state, report = go(place.state, look, report=place.report)
            report = progress.joined(place.report, report)
        self._keep(asked, {"name": "training"}, Place(state, report))
        return state, report

    # Reading

    def _recalled(self, asked: str, like: TrainState) -> tuple[TrainState, Any] | None:
        row = self._known.get(asked)
        if row is None:
            return None
        try:
            place = progress.load(self.folder / STATES / asked, like, asked=asked)
        except checkpoints.CheckpointError as error:
            self._say(f"A session is trained again: {error}")
            del self._known[asked]
            return None
        self._go_to(row)
        return place.state, place.report

    def _reached(self, asked: str, like: TrainState) -> Place | None:
        """Where the session stood that is now asked for, by the newest sound checkpoint."""
        for folder in sorted((self.folder / REACHED).glob(f"{asked}-*"), reverse=True):
            try:
                return progress.load(folder, like, asked=asked)
            except checkpoints.CheckpointError as error:
                if folder.exists() and (folder / checkpoints.MANIFEST).exists():
                    self._say(f"An earlier save is used: {error}")
        return None

    def _go_to(self, row: Mapping[str, Any]) -> None:
        """Sets the clock to when this answer was given, unless it is past that."""
        if row["at"] > self.clock():
            self._spent, self._live_since = row["at"], time.perf_counter()

    # Writing

    def _keep(self, asked: str, row: Mapping[str, Any], place: Place | None = None) -> dict[str, Any]:
        row = {"asked": asked, **row, "at": self.clock()}

        def write() -> None:
            found = dict(row)
            if place is not None:
                found["ended"] = digest("ended", (place.state, place.report.losses))  # no times
                progress.save(self.folder / STATES / asked, place, asked=asked)
            self._ledger.add([found])
            for each in (self.folder / REACHED).glob(f"{asked}-*") if place is not None else ():
                checkpoints.remove(each)

        self._write(write)
        return row

    def _is_due(self) -> bool:
        """Whether a session should be saved at this look: not while its last save is still being written."""
        written = self._saving is None or self._saving.done()
        return written and time.perf_counter() - self._saved_at >= self._every

    def _save_reached(self, asked: str, place: Place) -> None:
        self._saved_at = time.perf_counter()

        def write() -> None:
            folder = self.folder / REACHED
            progress.save(folder / f"{asked}-{int(np.max(np.asarray(place.state.step))):012d}", place, asked=asked)
            for each in sorted(folder.glob(f"{asked}-*"))[:-2]:
                checkpoints.remove(each)

        self._saving = self._write(write)

    def _write(self, task: Callable[[], Any]) -> Future[None]:
        def guarded() -> None:
            try:
                task()
                self.failed = ""
            except Exception as error:  # a disk has many ways to fail, and orbax more names for them
                self._fail(error)

        with self._turn:
            self._waiting = [each for each in self._waiting if not each.done()]
            if len(self._waiting) >= PENDING:
                self._waiting.pop(0).result()
            self._waiting.append(self._writer.submit(guarded))
            return self._waiting[-1]

    def _fail(self, error: Exception) -> None:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        if reason != self.failed:
            self._say(
                f"{self.folder} cannot be written to: {reason}. The run goes on; what is not saved is lost with it."
            )
        self.failed = reason

    def _pause(self) -> None:
        if self._asked_to_stop():
            self.flush()
            raise KeyboardInterrupt


def read_answers(folder: Path | str) -> Ledger:
    """The answers that lie in the folder of a memory. Raises ValueError if it is none, OSError if it cannot be read."""
    return Ledger.read(Path(folder) / ANSWERS)


def has_ended(answers: Ledger) -> bool:
    """Whether the run was carried through and written out."""
    return bool(answers.find(finished=True))


def _plain(value: Any) -> Any:
    """A number or an array as JSON can hold it; float32 numbers are exact in it."""
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else {"dtype": array.dtype.name, "values": array.tolist()}


def _number(value: Any) -> Any:
    return np.asarray(value["values"], value["dtype"]) if isinstance(value, dict) else value
