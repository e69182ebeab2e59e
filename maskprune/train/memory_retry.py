"""What is done when the memory of a device is too small: the same in smaller parts, a few times, and the user is told.

Knows JAX's error and nothing of what is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import jax


TRIES = 3  # so often smaller parts are tried after memory ran out

Result = TypeVar("Result")


def with_less_memory(compute: Callable[[], Result], lessen: Callable[[], str]) -> Result:
    """`compute()`, and when the memory of a device is too small for it, the same again after `lessen()`.

    Args:
        compute: What may run out of memory. Called again it goes on, or begins anew, as it likes.
        lessen: Makes the next call need less, and says in words what it did; "" if there is nothing to lessen.

    Raises:
        jax.errors.JaxRuntimeError: Memory ran out `TRIES` + 1 times, or nothing could be lessened; or any other error.

    Warns:
        RuntimeWarning: Memory ran out, and what is done about it.
    """
    for tried in range(TRIES + 1):
        try:
            return compute()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if tried == TRIES or not (said := lessen()):
                error.add_note(f"The memory of the device is too small; smaller parts were tried {tried} times.")
                raise
        warnings.warn(f"The memory of the device is too small: {said}.", RuntimeWarning, stacklevel=3)
    raise AssertionError  # the last turn returns or raises
