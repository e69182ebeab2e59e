"""The words of a search: the rules it judges by, the limits it stops at, and what it says of every round."""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from maskprune.base.checks import BelowOne, Count, Fraction, Natural, NotNegative, Share, check_fields
from maskprune.masks.groups import Group, Groups
from maskprune.masks.network import Network
from maskprune.train.step import TrainState


THRESHOLD = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """How a candidate is chosen and judged.

    Attributes:
        threshold: A candidate is accepted at this share of the reference score or more, in (0, 1].
        drop: In place of `threshold`: a candidate is accepted when it scores at most this much less than the
            reference, 0 or more, in units of the score. The rule for scores that may be negative, such as minus a
            loss, of which a share would ask for improvement.
        reference: Which network sets the reference score: the `"initial"` one; the `"previous"` accepted one, which
            compounds (0.85 eight times over is 0.27); or the `"best"` so far.
        control: The reference network also gets each short session, so that "more training" is not mistaken for
            "fewer masks are as good". Doubles the cost.
        retry: Refused masks are tried again after the next acceptance (`"accepted"`) or `"never"`.
        min_enabled: Masks that stay in every group.
        count: Masks disabled at once. When every choice is refused, it is halved, down to 1 (`strategies.one_by_one`).
        only: Patterns (as in `fnmatch`) of the groups, or of the leaves of their masks, that may lose masks.
        protect: Patterns of those that may not.
        share: At most this share of a group's masks may be disabled, in [0, 1].
        layers: Whole layers are tried, too, once no mask may go any more, or beside the masks of several candidates:
            see `bypass`.
        candidates: Choices tried side by side in a round, the first ones in the selector's order; the best one is
            judged. When it is refused, all of them are.
        racing: The worse half of the candidates drops out at every doubling of their session (`halving`).
        early: Sessions whose verdict is clear end early (`Early`): one that passes at a look, and one that would still
            pass with at most this probability, in [0, 1). None: they run to their end.
    """

    threshold: Fraction = THRESHOLD
    reference: Literal["initial", "previous", "best"] = "initial"
    control: bool = False
    retry: Literal["accepted", "never"] = "accepted"
    min_enabled: Natural = 1
    count: Count = 1
    only: tuple[str, ...] = ("*",)
    protect: tuple[str, ...] = ()
    share: Share = 1.0
    layers: bool = False
    candidates: Count = 1
    racing: bool = False
    early: BelowOne | None = None
    drop: NotNegative | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.drop is not None and self.threshold != THRESHOLD:
            raise ValueError(f"`threshold` is {self.threshold} and `drop` {self.drop}: give one of them.")

    def required(self, reference: float) -> float:
        """The score to be reached where the reference scores this."""
        return self.threshold * reference if self.drop is None else reference - self.drop

    def no_reference(self, score: float) -> str:
        """Why a score cannot be the reference, or "". A share of what is negative is more, not less."""
        if self.drop is not None or score >= 0:
            return ""
        return f"it scores {score}, and a share of that is not less; use `Rules(drop=...)`, how much may be lost"

    def least(self, groups: Groups) -> dict[str, int]:
        """How many masks of every group must stay enabled.

        Raises:
            ValueError: A pattern of `only` or `protect` matches no group.
        """
        for field in ("only", "protect"):
            for pattern in getattr(self, field):
                if len(groups) and not any(_touches(group, pattern) for group in groups):
                    raise ValueError(
                        f"`{field}` holds `{pattern}`, which matches no group. There are {', '.join(groups.names)}."
                    )
        return {group.name: self._least(group) for group in groups}

    def allows(self, group: Group) -> bool:
        """Whether a group may lose masks at all."""
        inside = any(_touches(group, pattern) for pattern in self.only)
        return inside and not any(_touches(group, pattern) for pattern in self.protect)

    def _least(self, group: Group) -> int:
        if not self.allows(group):
            return group.size
        return max(self.min_enabled, group.size - math.floor(self.share * group.size))


def _touches(group: Group, pattern: str) -> bool:
    names = [group.name, *(piece.leaf for piece in group.with_role("out"))]
    return any(fnmatch.fnmatch(name, pattern) for name in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop before every mask is refused. None: no limit; all are checked between rounds.

    Attributes:
        rounds: At most this many rounds.
        steps: No new round once this many gradient steps were spent in rounds.
        seconds: No new round after this time.
        masks: Stop when no more than this many masks are enabled.
    """

    rounds: Natural | None = None
    steps: Natural | None = None
    seconds: NotNegative | None = None
    masks: Natural | None = None

    def __post_init__(self) -> None:
        check_fields(self)


def name_masks(masks: Mapping[str, Sequence[int]]) -> str:
    """Masks in words: `name_masks({"conv1": [3, 4]})` is "conv1[3], conv1[4]"."""
    return ", ".join(f"{name}[{number}]" for name, numbers in masks.items() for number in numbers)


def name_tried(tried: Rival | Round) -> str:
    """What was tried, in words: "conv1[3], +conv1[0]", "all of conv1", or "" for the network as it is."""
    if tried.bypassed:
        return f"all of {tried.bypassed}"
    back = {f"+{name}": numbers for name, numbers in tried.regrown.items()}
    return ", ".join(filter(None, (name_masks(tried.chosen), name_masks(back))))


class Rival(NamedTuple):
    """A candidate that another one of its round surpassed.

    Attributes:
        chosen: Masks it tried, `{group: [numbers]}`.
        bypassed: The layer it tried to do without, or "".
        score: Its last score; of a training that failed that of the state before.
        steps: Gradient steps it was given.
        regrown: Masks it brought back.
        trouble: What was not finite, or "".
    """

    chosen: dict[str, list[int]]
    bypassed: str
    score: float
    steps: int
    regrown: dict[str, list[int]] = {}  # noqa: RUF012  (a NamedTuple's default is never written to)
    trouble: str = ""


class Round(NamedTuple):
    """One select, train and judge cycle. Round 0 judges the network as given.

    Attributes:
        number: From 0.
        chosen: Masks tried, `{group: [numbers]}`; empty in round 0.
        accepted: Whether the candidate was kept.
        reason: The verdict in words.
        score: Of the candidate; higher is better.
        held_score: Of the network held after the verdict, `state`, when it was judged.
        reference: The score it was compared with.
        required: The score it had to reach.
        metrics: Everything `evaluate` said of the candidate.
        state: The state held after the verdict; after a refusal the very same object as before the round.
        judged: The network that was judged, kept or not.
        steps: Gradient steps this round spent, those of the control and of rivals included.
        seconds: Wall time of the round.
        left: Masks, or moves, that may still be tried before the search gives up; an acceptance may bring more.
        stop: Why the search ends after this round, or "" if it goes on.
        bypassed: The layer this round tried to do without, or "".
        rivals: Candidates that were tried beside it and did worse.
        regrown: Masks that this round brought back, `{group: [numbers]}`.
    """

    number: int
    chosen: dict[str, list[int]]
    accepted: bool
    reason: str
    score: float
    held_score: float
    reference: float
    required: float
    metrics: dict[str, float]
    state: TrainState
    judged: Network
    steps: int
    seconds: float
    left: int
    stop: str
    bypassed: str = ""
    rivals: tuple[Rival, ...] = ()
    regrown: dict[str, list[int]] = {}  # noqa: RUF012  (a NamedTuple's default is never written to)
