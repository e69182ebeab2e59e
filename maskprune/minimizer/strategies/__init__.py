"""Plans of search: what is tried next. See `base.py` for what a plan is."""

from maskprune.minimizer.strategies.auto import auto as auto
from maskprune.minimizer.strategies.base import Move as Move
from maskprune.minimizer.strategies.base import Plan as Plan
from maskprune.minimizer.strategies.base import Proposal as Proposal
from maskprune.minimizer.strategies.base import Verdict as Verdict
from maskprune.minimizer.strategies.base import View as View
from maskprune.minimizer.strategies.base import chain as chain
from maskprune.minimizer.strategies.beam import beam as beam
from maskprune.minimizer.strategies.grow import grow as grow
from maskprune.minimizer.strategies.grow import regrow as regrow
from maskprune.minimizer.strategies.many import bisect as bisect
from maskprune.minimizer.strategies.single import one_by_one as one_by_one
