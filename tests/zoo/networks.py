"""All networks of the zoo."""

from __future__ import annotations

from . import (
    attention_linen,
    attention_more,
    attention_plain,
    attention_vision,
    control_flow,
    equinox_nets,
    five,
    haiku_nets,
    linen_convnets,
    linen_convnets2,
    nnx_nets,
    plain_convnets,
    plain_convnets2,
)
from .entry import Entry


MODULES = (
    plain_convnets,
    plain_convnets2,
    linen_convnets,
    linen_convnets2,
    nnx_nets,
    equinox_nets,
    haiku_nets,
    five,
    control_flow,
    attention_plain,
    attention_more,
    attention_vision,
    attention_linen,
)
ALL: list[Entry] = [entry for module in MODULES for entry in module.NETWORKS]
BY_ID: dict[str, Entry] = {entry.id: entry for entry in ALL}
