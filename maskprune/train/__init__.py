"""Training one network or many of them: steps, sessions, populations.

A `step` is one update that leaves frozen and disabled entries alone (`freezing`). A `session` is many steps, a
`population` many networks side by side (`batching`), `halving` a race of candidates, `first_session` the one that must
learn something. Also the optimizers, schedules and curvature they use. Imports `masks` and `base`; must not know which
masks go, pictures, or any module library.
"""
