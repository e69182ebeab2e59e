"""What a network is for: pictures and the filters to imitate, the networks for them, losses and metrics.

`pictures` makes a task of a dataset (`data`); `models` holds the fully convolutional network and its saved form.
Imports `removal`, `train` and what is below; must not know the loop.
"""
