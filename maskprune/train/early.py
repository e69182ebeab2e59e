"""Sessions whose verdict is clear end early: those that pass already, and those that would hardly pass any more.

A network that reaches the required score in mid-session has passed, whatever the rest would have brought. That one
will not reach it is concluded from the gains of earlier sessions: what they still won between that look and their end.
Knows scores only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping


LOOKS = (0.25, 0.5, 0.75)  # shares of a session


@dataclasses.dataclass(eq=False)
class Early:
    """Remembers sessions that ran to their end, and judges those under way.

    Giving up at a look is a one-sided conformal prediction: with n earlier gains, a new one is larger than the k-th
    smallest with probability at most 1 - k / (n + 1), if all are exchangeable. The rate is divided over the looks, so
    that the chance to give up a network that would have passed is at most `rate`; the first n gains, n + 1 at least
    `len(looks) / rate`, must come from whole sessions. Sessions that were given up leave no gain behind, and gains
    shrink as a search comes to its end, so the figure is exact only as far as sessions are alike.

    Attributes:
        rate: Chance, at most, to give up a network that would have passed, in [0, 1). 0: nothing is ever given up.
        looks: Shares of a session at which it is looked at, ascending, in (0, 1).
        gains: What sessions won after each look, `{look: [final score - score at the look]}`.

    References:
        Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, Springer, 2005, section 2.
    """

    rate: float = 0.1
    looks: tuple[float, ...] = LOOKS
    gains: dict[float, list[float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"`rate` is {self.rate}: it is a probability in [0, 1).")
        if not self.looks or not all(0 < look < 1 for look in self.looks):
            raise ValueError(f"`looks` is {self.looks}: give one share of a session or more, each in (0, 1).")

    def hopeless(self, look: float, score: float, required: float) -> bool:
        """Whether a session that stands at `score` would reach `required` with a chance of less than the rate."""
        gains = sorted(self.gains.get(look, []))
        needed = math.ceil((1 - self.rate / len(self.looks)) * (len(gains) + 1))
        return needed <= len(gains) and score + gains[needed - 1] < required

    def remember(self, scores: Mapping[float, float], final: float) -> None:
        """Learns from a session that ran to its end: its scores at the looks, and the last one."""
        for look in self.looks:
            if look in scores and math.isfinite(final - scores[look]):
                self.gains.setdefault(look, []).append(final - scores[look])
