"""What a mask is: positions along axes of parameter leaves.

A *mask* is one channel that can be switched off; a *group* is the set of masks that stand side by side in one
channel dimension. `Groups` says, for every leaf and axis it touches, which position belongs to which mask. It is
static and hashable, so it can ride along in a pytree without being traced. This file knows no arrays of weights, no
network and no framework: whoever builds a `Groups` (a model, or a tracer) decides what belongs together.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax

from maskprune.base.checks import Natural, check_fields


Role = Literal["out", "in", "state"]


@dataclasses.dataclass(frozen=True)
class Slice:
    """The positions along one axis of one leaf that belong to the masks of a group.

    Attributes:
        leaf: Path of the leaf, its keys joined by slashes, as in `"conv1/kernel"`.
        axis: The axis of the leaf, counted from 0.
        labels: For every position along the axis the number of its mask, or -1 where it belongs to none.
        role: `"out"` for the mask's own numbers (kernel, bias, norm scale), `"in"` for those that read its output,
            `"state"` for its non-trained variables (batch statistics), whose leaf is found in the model state.
    """

    leaf: str
    axis: Natural
    labels: tuple[int, ...]
    role: Role

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class Group:
    """`size` masks that share one channel dimension, and every slice that belongs to them.

    Attributes:
        name: Unique in its network.
        size: How many masks.
        slices: What belongs to them.
        inexact: Why removing a mask changes more than disabling it does, or "" where the two are the same.
    """

    name: str
    size: Natural
    slices: tuple[Slice, ...]
    inexact: str = ""

    def __post_init__(self) -> None:
        check_fields(self)

    def with_role(self, role: Role) -> tuple[Slice, ...]:
        return tuple(piece for piece in self.slices if piece.role == role)


@dataclasses.dataclass(frozen=True)
class Groups:
    """All groups of a network, in network order, and what was left out of them.

    Attributes:
        groups: The groups, first layer first. Their names are unique.
        protected: Pairs `(what, why)`: channels that must stay, and the reason. The table shows them.
        fixed: The same for axes that go without saying: windows of kernels, and what reads channels that stay.
    """

    groups: tuple[Group, ...]
    protected: tuple[tuple[str, str], ...] = ()
    fixed: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        for group in self.groups:
            _check_group(group)
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"`groups` has the names {names}: give every group its own name.")

    def __hash__(self) -> int:
        """Computed once: compiled functions ask for it at every call, and a large network has many labels."""
        known = self.__dict__.get("_hash")
        if known is None:
            known = hash((self.groups, self.protected, self.fixed))
            object.__setattr__(self, "_hash", known)
        return known

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> Group:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(f"There is no group `{name}`{_hint(name, self.names)}. The groups are {', '.join(self.names)}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.groups)

    @property
    def refused(self) -> Mapping[str, str]:
        """Whatever is in no group, mapped to the reason.

        The keys are `"leaf[axis]"`, or `"leaf"` where the reason is that of the leaf as a whole. After `trace` every
        axis of every leaf of the parameters is here or in a group, in both where some of its positions stay; axes of
        size 1 are in none. A leaf or a layer may be asked for as well: `refused["head"]` gives all reasons of its axes.
        """
        return _Refused(self.protected + self.fixed)

    def of_leaf(self, path: str) -> list[tuple[Group, Slice]]:
        """Every slice that touches the leaf at `path`, with its group."""
        return [(group, piece) for group in self.groups for piece in group.slices if piece.leaf == path]

    def __str__(self) -> str:
        rows = [("group", "masks", "touches")]
        rows += [(g.name, str(g.size), ", ".join(f"{s.leaf}[axis {s.axis}, {s.role}]" for s in g.slices)) for g in self]
        rows += [(what, "kept", why) for what, why in _by_layer(self.protected, self.names)]
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        return "\n".join(f"{a:<{first}}  {b:>{second}}  {c}" for a, b, c in rows)


class _Refused(dict[str, str]):
    """Reasons by leaf axis, which a leaf or a layer finds as well."""

    def __missing__(self, name: str) -> str:
        inside = [why for what, why in self.items() if name in (_leaf_of(what), _leaf_of(what).rpartition("/")[0])]
        if not inside:
            raise KeyError(f"Nothing is refused of `{name}`{_hint(name, self)}.")
        return "; ".join(dict.fromkeys(inside))


def _leaf_of(what: str) -> str:
    """The leaf of `leaf[axis]`."""
    return re.sub(r"\[\d+\]$", "", what)


def _by_layer(pairs: Iterable[tuple[str, str]], taken: Sequence[str]) -> list[tuple[str, str]]:
    """One pair for all axes of a layer that stay for the same reason, named by the layer where that is no group."""
    found: dict[tuple[str, str], list[str]] = {}
    for what, why in pairs:
        leaf = _leaf_of(what)
        found.setdefault((leaf.rpartition("/")[0] or leaf, why), []).append(what)
    layers = [layer for layer, _ in found]
    alone = lambda layer: layer not in taken and layers.count(layer) == 1
    return [(layer if alone(layer) else ", ".join(what), why) for (layer, why), what in found.items()]


def leaf_path(key_path: tuple[Any, ...]) -> str:
    """The slash form of a key path from `jax.tree_util`, such as `"conv1/kernel"`."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree, by path, in pytree order."""
    return {leaf_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def check_groups(groups: Groups, params: Any) -> None:
    """Raises a `ValueError` naming the first slice that does not fit `params`; those of a state are not looked at."""
    leaves = leaves_by_path(params)
    for group in groups:
        for piece in (piece for piece in group.slices if piece.role != "state"):
            _check_slice(group, piece, leaves)


def _check_group(group: Group) -> None:
    if group.size < 1:
        raise ValueError(f"Group `{group.name}` has size {group.size}: a group holds at least one mask.")
    for piece in group.slices:
        if piece.role not in ("out", "in", "state"):
            raise ValueError(
                f"Group `{group.name}` gives its slice of `{piece.leaf}` the role {piece.role!r}: "
                'use "out", "in" or "state".'
            )
    if not group.with_role("out"):
        raise ValueError(f"Group `{group.name}` has no `out` slice: say which numbers make up its masks.")
    for piece in group.slices:
        if piece.labels and not -1 <= min(piece.labels) <= max(piece.labels) < group.size:
            raise ValueError(
                f"Group `{group.name}` has {group.size} masks, but its slice of `{piece.leaf}` holds labels outside "
                f"-1 to {group.size - 1}."
            )


def _check_slice(group: Group, piece: Slice, leaves: Mapping[str, Any]) -> None:
    if piece.leaf not in leaves:
        raise ValueError(
            f"Group `{group.name}` names the leaf `{piece.leaf}`, which `params` lacks{_hint(piece.leaf, leaves)}. "
            f"The leaves are {', '.join(leaves)}."
        )
    shape = tuple(leaves[piece.leaf].shape)
    if not 0 <= piece.axis < len(shape) or shape[piece.axis] != len(piece.labels):
        raise ValueError(
            f"Group `{group.name}` labels {len(piece.labels)} positions along axis {piece.axis} of `{piece.leaf}`, "
            f"whose shape is {shape}."
        )


def _hint(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""
