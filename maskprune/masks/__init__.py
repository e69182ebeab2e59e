"""What a mask is, and how the masks of any JAX function are found.

`groups` and `network` are the data: which slices of which arrays belong to a mask, and a network with its masks
enabled, disabled or frozen. `alterations` make one network from another. `tracing` finds the groups of a function by
running its jaxpr on labels (`jaxpr`). Imports `base` and `conv`; must not know optimizers, selection or cutting.
"""
