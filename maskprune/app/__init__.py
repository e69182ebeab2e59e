"""The whole job: a search from start to report, and the command line.

`whole_search` joins first session, loop and last session; `outcome` writes what came of it (`record`); `repeats`
compares two runs. `commands` is the command `maskprune`, `minimizing` its first word; they and the `studies` read their
`options`, find what to train in `protocol` and work in the folders of `runs`. No room imports this one.
"""
