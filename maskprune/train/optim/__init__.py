"""Optimizers and schedules that optax lacks; all are ordinary optax transforms.

Schedules follow the share of a session that is done. Must not know networks, but for `levenberg_marquardt`, whose step
is one of its own.
"""

from maskprune.train.optim.accumulation import accumulate as accumulate
from maskprune.train.optim.accumulation import doubling as doubling
from maskprune.train.optim.averaging import land_on_average as land_on_average
from maskprune.train.optim.eigenbasis import scale_by_soap as scale_by_soap
from maskprune.train.optim.eigenbasis import soap as soap
from maskprune.train.optim.eigenbasis import soap_averaged as soap_averaged
from maskprune.train.optim.levenberg_marquardt import levenberg as levenberg
from maskprune.train.optim.levenberg_marquardt import make_levenberg_step as make_levenberg_step
from maskprune.train.optim.schedules import cosine as cosine
from maskprune.train.optim.schedules import level as level
from maskprune.train.optim.schedules import plateau as plateau
from maskprune.train.optim.schedules import restarts as restarts
from maskprune.train.optim.schedules import scale_by_progress as scale_by_progress
