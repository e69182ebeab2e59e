"""A function read as its jaxpr: which positions along which axes must go together, and why some must stay.

`internals` is all that is known of JAX's own inside. `reader` runs a jaxpr by one rule for each primitive (`rules`), on
`labels`, which `union_find` joins; `origins`, `reasons` and `lines` turn what was found into words. Must not know
parameters, groups or networks.
"""
