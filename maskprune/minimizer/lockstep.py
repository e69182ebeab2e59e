"""Whole searches at once: wherever all of them wait for training, their sessions are trained as one population.

Every job is an ordinary function that knows nothing of the others. It runs in a thread of its own and asks for
sessions; the caller's thread answers when all that still run have asked. Jobs may ask for sessions of different
lengths, and end at different times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from maskprune.base.checks import strict
from maskprune.train.session import TrainMany


Result = TypeVar("Result")


@strict
def run_together(jobs: Sequence[Callable[[TrainMany], Result]], train: TrainMany) -> list[Result]:
    """Runs jobs at once.

    Args:
        jobs: `job(train) -> result`, with a `train` of the same signature as below.
        train: `train(keys, states, *, steps, share=1.0, rate=1.0) -> [(state, report), ...]`, from
            `population.train_many`.

    Returns:
        The results, in order. The same jobs ask in the same order, whichever thread was faster.

    Raises:
        BaseException: The first job's that failed, after all have ended. An error of `train`, or an interruption, is
            raised in every job that waits for it, and in all later calls.
    """
    meeting = _Meeting(train, len(jobs))
    with ThreadPoolExecutor(max(1, len(jobs))) as pool:
        running = [pool.submit(meeting.attend, number, job) for number, job in enumerate(jobs)]
        meeting.serve()
    return [each.result() for each in running]


class _Request(NamedTuple):
    keys: Sequence[Any]
    states: Sequence[Any]
    steps: int
    share: float
    rate: float

    @property
    def kind(self) -> tuple[int, float, float, int]:
        """What sessions must have in common to be trained at once: length, end, rate and beginning."""
        return self.steps, self.share, self.rate, int(self.states[0].step)


class _Meeting:
    def __init__(self, train: TrainMany, jobs: int) -> None:
        self._train, self._active, self._change = train, jobs, threading.Condition()
        self._waiting: dict[int, _Request] = {}
        self._answers: dict[int, Any] = {}
        self._error: BaseException | None = None

    def attend(self, number: int, job: Callable[[TrainMany], Result]) -> Result:
        try:
            return job(partial(self._ask, number))
        finally:
            with self._change:
                self._active -= 1
                self._change.notify_all()

    def _ask(
        self,
        number: int,
        keys: Sequence[Any],
        states: Sequence[Any],
        *,
        steps: int,
        share: float = 1.0,
        rate: float = 1.0,
    ) -> list[Any]:
        with self._change:
            self._waiting[number] = _Request(keys, states, steps, share, rate)
            self._change.notify_all()
            self._change.wait_for(lambda: number in self._answers or self._error is not None)
            self._waiting.pop(number, None)
            if self._error is not None:
                raise self._error
            return self._answers.pop(number)

    def serve(self) -> None:
        """Answers until no job is left."""
        while True:
            try:
                with self._change:
                    self._change.wait_for(lambda: self._active == 0 or self._all_wait())
                    if self._active == 0:
                        return
                    requests = dict(sorted(self._waiting.items()))
                answers = self._answer(requests)
                with self._change:
                    self._answers |= answers
                    for number in requests:
                        del self._waiting[number]
                    self._change.notify_all()
            except BaseException as error:  # an interruption too: the jobs write down what they know, and end
                with self._change:
                    self._error = error
                    self._change.notify_all()

    def _all_wait(self) -> bool:
        return self._error is None and len(self._waiting) == self._active

    def _answer(self, requests: dict[int, _Request]) -> dict[int, Any]:
        """Trains what was asked for, all sessions of one kind at once."""
        answers = {}
        for kind in dict.fromkeys(each.kind for each in requests.values()):
            asked = {number: each for number, each in requests.items() if each.kind == kind}
            keys = [key for each in asked.values() for key in each.keys]
            states = [state for each in asked.values() for state in each.states]
            rate = {} if kind[2] == 1.0 else {"rate": kind[2]}
            found = iter(self._train(keys, states, steps=kind[0], share=kind[1], **rate))
            answers |= {number: [next(found) for _ in each.keys] for number, each in asked.items()}
        return answers
