"""Stopping in good order: the first SIGINT, SIGTERM or SIGHUP asks, the second one insists.

Whoever works asks `Interrupt.asked` wherever stopping costs nothing, and raises `KeyboardInterrupt` there.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt:
    """A context manager that turns the first signal into a wish. Outside the main thread it changes nothing.

    Args:
        at_once: Raise `KeyboardInterrupt` at the first signal, where nobody asks.

    Attributes:
        signal: The number of the signal that came, or 0.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self.signal, self._at_once = 0, at_once
        self._before: dict[signal.Signals, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether the program is to stop."""
        return self.signal != 0

    @property
    def code(self) -> int:
        """What the program should exit with: 130 after SIGINT, 143 after SIGTERM and 129 after SIGHUP; 0 for none."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if signal.getsignal(each) is not signal.SIG_IGN:  # such as below `nohup`
                    self._before[each] = signal.signal(each, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        insists, self.signal = self._at_once or self.asked, number
        if insists:
            raise KeyboardInterrupt
