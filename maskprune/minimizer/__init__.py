"""The loop: select, train, judge, keep or step back.

`loop` yields one `rounds.Round` after another; `strategies` propose what to try; `answers` remembers what was computed,
so that an interrupted search goes on, `progress` what is under way; `lockstep` runs searches side by side. Imports
`select`, `train` and what is below; must not know pictures or other tasks, removal, files of results or reports.
"""
