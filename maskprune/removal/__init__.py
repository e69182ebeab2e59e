"""Handing back the smaller network: what is cut, what it costs, and whether it computes the same.

`plan` says what goes, `rerun` runs the function on what is left, `compaction` does both and compares (`agreement`);
`carry_over` cuts a training state; `costs` counts; `export` writes programs and weights; `frameworks` holds what the
adapters of module libraries share. Imports `train` and what is below; must not know why a mask goes, or pictures.
"""
