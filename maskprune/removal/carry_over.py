"""Going on with the small network: everything that training needs, cut by the same plan.

`compact_network` gives the small network its own masks, so it can be pruned again without tracing; `compact_state` cuts
the optimizer's memory and the model state along, so the next step is the one the masked network would have taken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskprune.base.checks import strict
from maskprune.masks.groups import Group, Slice, leaf_path, leaves_by_path
from maskprune.masks.network import Network, effective_arrays
from maskprune.removal.plan import Plan, make_plan
from maskprune.train.step import TrainState


@strict
def compact_network(network: Network) -> Network:
    """The small network with the masks that are left, all enabled. Groups that lost every mask are gone.

    Returns:
        A `Network` whose `params` are those of `compact`. Numbers of masks count anew from 0.
    """
    plan = make_plan(network.groups, network.enabled)
    flags = {name: np.asarray(values) for name, values in network.enabled.items()}
    groups = tuple(_cut_group(group, flags[group.name], plan) for group in network.groups if flags[group.name].any())
    return dataclasses.replace(
        network,
        params=plan.cut(effective_arrays(network)),
        enabled={group.name: jnp.ones(group.size, bool) for group in groups},
        frozen={group.name: jnp.asarray(np.asarray(network.frozen[group.name])[flags[group.name]]) for group in groups},
        groups=dataclasses.replace(network.groups, groups=groups),
    )


@strict
def compact_state(state: TrainState) -> TrainState:
    """A training state for the small network: parameters, optimizer memory and model state, cut alike.

    The optimizer's arrays are recognised by their place: one that stands where a parameter stands in a tree like the
    parameters, and has its shape, is cut like it (Adam's moments, momentum). Numbers and counters stay.

    The next step is then the one that the masked network would have taken, to rounding, if the optimizer looks at
    entries one by one, or at sums, norms and maxima of leaves, which zeros do not change (`lamb`, `lars`, clipping,
    `polyak_sgd`, `prodigy`, line searches). Until they are cut, though, disabled masks are entries that count. So it is
    another step with means and root mean squares (`adafactor`, `scale_by_param_block_rms`, `clip_by_block_rms`,
    `centralize`), with factors that follow the shape of a leaf (`contrib.muon`, `contrib.galore`), and with noise drawn
    for every entry (`add_noise`, `noisy_sgd`, `contrib.sophia`).

    Raises:
        ValueError: The optimizer keeps arrays that follow no parameter (such as SOAP's or Shampoo's matrices): start
            afresh with `init_state(compact_network(network), optimizer)`.
    """
    network, plan = state.network, make_plan(state.network.groups, state.network.enabled)
    model_state = None if state.model_state is None else plan.cut(state.model_state, state=True)
    return TrainState(
        network=compact_network(network),
        opt_state=_cut_memory(plan, leaves_by_path(network.params), state.opt_state),
        model_state=model_state,
        step=state.step,
    )


def _cut_group(group: Group, flags: np.ndarray, plan: Plan) -> Group:
    kept = {(cut.leaf, cut.axis, cut.state): cut.kept for cut in plan.cuts}
    numbers = np.append(np.cumsum(flags) - 1, -1)  # the new number of every mask; -1 stays -1

    def cut(piece: Slice) -> Slice:
        labels = np.asarray(piece.labels)
        stays = kept.get((piece.leaf, piece.axis, piece.role == "state"), range(len(labels)))
        return dataclasses.replace(piece, labels=tuple(numbers[labels[list(stays)]].tolist()))

    return dataclasses.replace(group, size=int(flags.sum()), slices=tuple(map(cut, group.slices)))


def _cut_memory(plan: Plan, params: Mapping[str, Any], memory: Any) -> Any:
    cuts = {cut.leaf for cut in plan.cuts if not cut.state}

    def cut(path: Any, leaf: Any) -> Any:
        here = leaf_path(path)
        owners = [name for name in params if here == name or here.endswith(f"/{name}")]
        owner = max(owners, key=len, default=None)
        if owner is not None and params[owner].shape == np.shape(leaf):
            return plan.cut_leaf(owner, leaf)
        if np.ndim(leaf) > 0 and (owner is None or owner in cuts):
            raise ValueError(
                f"The optimizer keeps `{here}` of shape {np.shape(leaf)}, which follows no parameter's shape, so it "
                "cannot be cut. Start afresh: `init_state(compact_network(network), optimizer)`."
            )
        return leaf

    return jax.tree_util.tree_map_with_path(cut, memory)
