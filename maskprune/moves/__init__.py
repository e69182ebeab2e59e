"""Plans of search: what is tried next. See `base.py` for what a plan is."""

from maskprune.moves.auto import auto as auto
from maskprune.moves.base import Move as Move
from maskprune.moves.base import Plan as Plan
from maskprune.moves.base import Proposal as Proposal
from maskprune.moves.base import Verdict as Verdict
from maskprune.moves.base import View as View
from maskprune.moves.base import chain as chain
from maskprune.moves.beam import beam as beam
from maskprune.moves.grow import grow as grow
from maskprune.moves.grow import regrow as regrow
from maskprune.moves.many import bisect as bisect
from maskprune.moves.single import one_by_one as one_by_one
