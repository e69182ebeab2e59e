"""What functions of the user's gave back, compared where it is taken with what they are to give.

So a mistake is told by the name of the function it was made in, and not from deep inside. Knows no training and no
search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import show


NOT_KEPT = "OcmM"  # kinds of arrays that JSON cannot hold: objects, complex numbers, times


def refuse(name: str, found: Any, wanted: str) -> NoReturn:
    """Raises TypeError: what the function gave, and what it should give."""
    raise TypeError(f"`{name}` returned {_show(found)}: it must return {wanted}.")


def loss_value(found: Any, name: str = "loss") -> Any:
    """A loss as it is, if it is one real number, float[]."""
    if not (_is_one(found) and jnp.issubdtype(jnp.result_type(found), jnp.floating)):
        refuse(name, found, "one number, float[], such as a mean over the batch")
    return found


def pair(found: Any) -> tuple[Any, Any]:
    """What a stateful loss gave, if it is a pair."""
    if not (isinstance(found, tuple | list) and len(found) == 2):
        refuse("loss", found, "a pair (float[], model_state), as `stateful=True` asks for")
    return found[0], found[1]


def loss_and_state(found: tuple[Any, Any], before: Any) -> tuple[Any, Any]:
    """What a stateful loss gave, if it is a number and a model state of the form of the one before."""
    value, after = found
    if jax.tree.structure(before) != jax.tree.structure(after) or _shapes(before) != _shapes(after):
        refuse("loss", found, f"a model state of the form it was given, {_form(before)}, and gave {_form(after)}")
    return loss_value(value), after


def measured(found: Any, name: str = "evaluate") -> dict[str, Any]:
    """What `evaluate` gave: a mapping with a real number as its score."""
    if not isinstance(found, Mapping) or "score" not in found:
        refuse(name, found, 'a mapping such as {"score": 0.93}, where a higher score is better')
    score = found["score"]
    kinds = (jnp.floating, jnp.integer)
    if not _is_one(score) or not any(jnp.issubdtype(np.asarray(score).dtype, kind) for kind in kinds):
        refuse(name, score, 'one real number as its "score"')
    return dict(found)


def named_arrays(found: Any, name: str) -> dict[str, Any]:
    """A mapping, such as the scores of masks by their group."""
    if not isinstance(found, Mapping):
        refuse(name, found, "a mapping {group: float[C]}")
    return dict(found)


def named_numbers(found: Any, name: str) -> dict[str, Any]:
    """A mapping of numbers or arrays by name, as JSON can keep them."""
    if not isinstance(found, Mapping):
        refuse(name, found, "a mapping of names to numbers or arrays; a training loop goes to `Memory.training`")
    for key, value in found.items():
        if value is not None and np.asarray(jax.device_get(value)).dtype.kind in NOT_KEPT:
            refuse(name, value, f"a number or an array as its {key!r}")
    return dict(found)


def same_form(after: Any, before: Any, name: str) -> None:
    """Whether a state has the leaves that it had before: as many, of the same shapes and dtypes."""
    old, new = (jax.tree_util.tree_leaves_with_path(tree) for tree in (before, after))
    if jax.tree.structure(before) != jax.tree.structure(after):
        refuse(name, after, f"a state of the form it was given, with {len(old)} arrays, and not {len(new)} or others")
    for (path, one), (_, other) in zip(old, new, strict=True):
        was, now = ((jnp.result_type(leaf), jnp.shape(leaf)) for leaf in (one, other))
        if was != now:
            where, wanted = jax.tree_util.keystr(path).lstrip("."), f"{was[0].name}{list(was[1])}"
            refuse(name, other, f"a state of the form it was given, whose `{where}` is {wanted}")


def words(found: Any, name: str) -> str:
    """A reason in words, "" for none; None counts as none."""
    if not isinstance(found, str | None):
        refuse(name, found, 'a text, or "" for none')
    return found or ""


def _is_one(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (hasattr(value, "dtype") and np.shape(value) == ())


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _form(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    return f"{len(leaves)} arrays {', '.join(str(jnp.shape(leaf)) for leaf in leaves[:4])}" if leaves else "none"


def _show(found: Any) -> str:
    if isinstance(found, tuple | list) and 0 < len(found) < 8 and not all(map(_is_one, found)):
        return f"a {type(found).__name__} of {', '.join(map(show, found))}"
    return "nothing (None)" if found is None else show(found)
