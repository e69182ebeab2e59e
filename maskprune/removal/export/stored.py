"""What a network computes with, in place of what it stores: the parameters that go into a file.

Stored parameters keep the values of disabled masks. Written by mistake they give another network, and the file cannot
tell. So a network is taken as a whole, and stored parameters are recognized as long as their network is there.
"""

from __future__ import annotations

import gc
import warnings
from typing import Any

import jax
import numpy as np

from maskprune.masks.groups import leaves_by_path
from maskprune.masks.jaxpr.internals import Tracer
from maskprune.masks.network import Network, effective_params


STORED = (
    "`params` are stored by a network with disabled masks, and hold their values: to write the network, give it whole, "
    "or `effective_params(network)`, or what `compact` returned"
)


def to_write(params: Any) -> tuple[Any, str]:
    """The effective parameters of a network; any others as they are, with a note if a network stores them.

    Where the very tree of a network is given, there is a warning too. Arrays alone may be meant: a network whose masks
    are all enabled shares them with those made from it.

    Raises:
        TypeError: A training state was given.
    """
    if isinstance(params, Network):
        return effective_params(params), ""
    if isinstance(getattr(params, "network", None), Network):
        raise TypeError(
            "`params` is a training state: give its network, `state.network`, and `model_state=state.model_state`."
        )
    holders = [network for network in _networks() if _stores(network, params)]
    if any(network.params is params for network in holders):
        warnings.warn(STORED, stacklevel=4)  # the caller of `export`, behind its check of arguments
    return params, STORED if holders else ""


def _networks() -> list[Network]:
    """All that exist; by its type alone, since a proxy may answer for another class."""
    return [each for each in gc.get_objects() if type(each) is Network]


def _stores(network: Network, params: Any) -> bool:
    """Whether `params` hold an array of the network in which a disabled mask has values."""
    leaves = {id(leaf) for leaf in jax.tree.leaves(params)}
    stored = leaves_by_path(network.params)
    if not any(id(leaf) in leaves for leaf in stored.values()) or not _readable(network):
        return False
    effective = leaves_by_path(effective_params(network))
    return any(
        id(leaf) in leaves and not np.array_equal(leaf, effective[path], equal_nan=True)
        for path, leaf in stored.items()
    )


def _readable(network: Network) -> bool:
    """Whether it is one network, of arrays that are there: not traced, donated, or stacked with others."""
    arrays = all(isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) for leaf in jax.tree.leaves(network))
    flat = all(np.ndim(flags) == 1 for flags in network.enabled.values())
    return arrays and flat and not any(leaf.is_deleted() for leaf in jax.tree.leaves(network))
