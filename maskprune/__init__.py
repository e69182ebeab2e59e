"""maskprune finds the smallest convolutional network that still does the job, and hands it back.

Public functions compare their arguments with their annotations, and raise TypeError for another kind of value and
ValueError for a number out of range or an unknown word. What else they raise is told under "Raises:"; what a function
that you pass raises passes through.
"""

from importlib.metadata import PackageNotFoundError, version

from maskprune import alive as alive
from maskprune import conv as conv
from maskprune import data as data
from maskprune import losses as losses
from maskprune import metrics as metrics
from maskprune import models as models
from maskprune import moves as moves
from maskprune import record as record
from maskprune import regret as regret
from maskprune import repair as repair
from maskprune import replay as replay
from maskprune import rules as rules
from maskprune import select as select
from maskprune import subsets as subsets
from maskprune import testing as testing
from maskprune import worth as worth
from maskprune.accumulate import accumulate as accumulate
from maskprune.accumulate import doubling as doubling
from maskprune.alter import bypass as bypass
from maskprune.alter import disable as disable
from maskprune.alter import enable as enable
from maskprune.alter import freeze as freeze
from maskprune.alter import reinitialize as reinitialize
from maskprune.alter import thaw as thaw
from maskprune.alter import why_no_bypass as why_no_bypass
from maskprune.alter import zero_weights as zero_weights
from maskprune.average import land_on_average as land_on_average
from maskprune.compact import CompactionError as CompactionError
from maskprune.compact import check_same as check_same
from maskprune.compact import compact as compact
from maskprune.compact import count_params as count_params
from maskprune.compact import judged as judged
from maskprune.conv import conv2d as conv2d
from maskprune.cost import Cost as Cost
from maskprune.cost import Latency as Latency
from maskprune.cost import cost as cost
from maskprune.cost import time_calls as time_calls
from maskprune.curvature import flatten as flatten
from maskprune.curvature import gauss_newton as gauss_newton
from maskprune.curvature import hessian as hessian
from maskprune.curvature import jacobian as jacobian
from maskprune.curvature import shift as shift
from maskprune.export import Arrays as Arrays
from maskprune.export import Exported as Exported
from maskprune.export import ExportError as ExportError
from maskprune.export import export as export
from maskprune.export import export_saved as export_saved
from maskprune.export import load_arrays as load_arrays
from maskprune.export import load_program as load_program
from maskprune.groups import Group as Group
from maskprune.groups import Groups as Groups
from maskprune.groups import Slice as Slice
from maskprune.handover import compact_network as compact_network
from maskprune.handover import compact_state as compact_state
from maskprune.hold import cosine as cosine
from maskprune.hold import level as level
from maskprune.hold import plateau as plateau
from maskprune.hold import restarts as restarts
from maskprune.hold import scale_by_progress as scale_by_progress
from maskprune.interrupt import Interrupt as Interrupt
from maskprune.ledger import Ledger as Ledger
from maskprune.levenberg import levenberg as levenberg
from maskprune.levenberg import make_levenberg_step as make_levenberg_step
from maskprune.memory import Memory as Memory
from maskprune.minimize import NoReference as NoReference
from maskprune.minimize import minimize as minimize
from maskprune.model_state import select_statistics as select_statistics
from maskprune.network import Network as Network
from maskprune.network import choose as choose
from maskprune.network import count_enabled as count_enabled
from maskprune.network import effective_params as effective_params
from maskprune.network import init_network as init_network
from maskprune.network import list_masks as list_masks
from maskprune.network import trainable as trainable
from maskprune.outcome import Outcome as Outcome
from maskprune.outcome import summarize as summarize
from maskprune.outcome import write_outcome as write_outcome
from maskprune.plan import Cut as Cut
from maskprune.plan import Plan as Plan
from maskprune.plan import make_plan as make_plan
from maskprune.population import Population as Population
from maskprune.population import PopulationReport as PopulationReport
from maskprune.population import make_population as make_population
from maskprune.population import stack as stack
from maskprune.population import train_many as train_many
from maskprune.population import unstack as unstack
from maskprune.rounds import Limits as Limits
from maskprune.rounds import Round as Round
from maskprune.rounds import Rules as Rules
from maskprune.search import Lengths as Lengths
from maskprune.search import search as search
from maskprune.session import SessionReport as SessionReport
from maskprune.session import make_session as make_session
from maskprune.session import of_length as of_length
from maskprune.session import stagnation as stagnation
from maskprune.session import train_alone as train_alone
from maskprune.shrink import ShrinkError as ShrinkError
from maskprune.shrink import shrink as shrink
from maskprune.soap import scale_by_soap as scale_by_soap
from maskprune.soap import soap as soap
from maskprune.soap import soap_averaged as soap_averaged
from maskprune.start import NothingLearned as NothingLearned
from maskprune.start import train_start as train_start
from maskprune.task import PictureTask as PictureTask
from maskprune.task import picture_task as picture_task
from maskprune.together import run_together as run_together
from maskprune.trace import trace as trace
from maskprune.train import StepInfo as StepInfo
from maskprune.train import TrainState as TrainState
from maskprune.train import init_state as init_state
from maskprune.train import make_train_step as make_train_step
from maskprune.transfer import take_over as take_over


try:
    __version__ = version("maskprune")
except PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"
