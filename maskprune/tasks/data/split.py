"""What a data set is: two sides of integer arrays, and how it is written to and read from a cache.

Plain numpy and plain facts. How a data set is made from pictures is for the rooms above; it must know nothing of files,
targets or devices.
"""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """One side of a data set.

    Attributes:
        inputs: uint8[N, S, S, 1], grey.
        targets: [N, S, S, 1], uint8 or, where 8 bits would be too coarse, uint16. As in `inputs`, the value in [0, 1]
            is the stored one divided by the largest of its type.
        names: for each crop the name of its picture; crops of one picture share it.
    """

    inputs: np.ndarray
    targets: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Pictures to learn from and pictures to judge by.

    Attributes:
        train: the crops to learn from.
        evaluation: the crops to judge by; no picture is on both sides.
        target_name: what is to be learned.
        binary: True if all targets are 0 or 1.
        source: where the pictures came from, in words.
        skipped: how many pictures could not serve, by reason.
        notes: what else the user should know, such as a cache that could not be written.
        checksum: 12 hexadecimal digits that follow from all arrays and names.
    """

    train: Split
    evaluation: Split
    target_name: str
    binary: bool
    source: str
    skipped: dict[str, int]
    notes: tuple[str, ...]
    checksum: str

    @property
    def size(self) -> int:
        """The side of a crop, in pixels."""
        return self.train.inputs.shape[1]

    def summary(self) -> str:
        """One line: crops, pictures, split, target, what was skipped, checksum."""
        train, evaluation = len(set(self.train.names)), len(set(self.evaluation.names))
        crops = len(self.train.names) + len(self.evaluation.names)
        return (
            f"{crops} crops of {self.size}x{self.size} from {train + evaluation} pictures; "
            f"{train} train / {evaluation} evaluation; target {self.target_name}; "
            f"{describe_skips(self.skipped)}; checksum {self.checksum}"
        )


def describe_skips(skipped: dict[str, int]) -> str:
    """How many pictures were skipped, in all and for each reason, in words."""
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items()))
    return f"skipped {sum(skipped.values())}" + (f": {reasons}" if reasons else "")


def checksum(train: Split, evaluation: Split) -> str:
    """12 hexadecimal digits that follow from the arrays, their types, shapes and names of both sides."""
    digest = hashlib.sha256()
    for split in (train, evaluation):
        for array in (split.inputs, split.targets):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        digest.update("\n".join(split.names).encode(errors="surrogateescape"))
    return digest.hexdigest()[:12]


def pack(dataset: Dataset) -> tuple[dict[str, np.ndarray], dict]:
    """A data set as arrays and a dictionary for JSON; `unpack` is the way back."""
    arrays = {
        "train_inputs": dataset.train.inputs,
        "train_targets": dataset.train.targets,
        "evaluation_inputs": dataset.evaluation.inputs,
        "evaluation_targets": dataset.evaluation.targets,
    }
    facts = {
        "train_names": dataset.train.names,
        "evaluation_names": dataset.evaluation.names,
        "binary": dataset.binary,
        "skipped": dataset.skipped,
        "checksum": dataset.checksum,
    }
    return arrays, facts


def unpack(arrays: dict[str, np.ndarray], facts: dict, *, source: str) -> Dataset:
    """The data set that `pack` was given; what it came from is told anew, as equal files may lie elsewhere."""

    def side(name: str) -> Split:
        return Split(arrays[f"{name}_inputs"], arrays[f"{name}_targets"], tuple(facts[f"{name}_names"]))

    return Dataset(
        train=side("train"),
        evaluation=side("evaluation"),
        target_name="",
        binary=facts["binary"],
        source=source,
        skipped=facts["skipped"],
        notes=(),
        checksum=facts["checksum"],
    )
