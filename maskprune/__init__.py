"""maskprune finds the smallest convolutional network that still does the job, and hands it back.

Public functions compare their arguments with their annotations, and raise TypeError for another kind of value and
ValueError for a number out of range or an unknown word. What else they raise is told under "Raises:"; what a function
that you pass raises passes through.
"""

import ast as _ast
import importlib as _importlib
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any


# These are the public names. Each is imported when it is first asked for, so that the command line answers before JAX
# is loaded: `__getattr__` below reads from this very list where it comes from.
if TYPE_CHECKING:
    # isort: off
    # Masks: find them, choose among them, switch them
    from maskprune.masks.tracing import trace as trace
    from maskprune.masks.groups import Groups as Groups
    from maskprune.masks.groups import Group as Group
    from maskprune.masks.groups import Slice as Slice
    from maskprune.masks.network import init_network as init_network
    from maskprune.masks.network import Network as Network
    from maskprune.masks.network import choose as choose
    from maskprune.masks.alterations import disable as disable
    from maskprune.masks.alterations import enable as enable
    from maskprune.masks.alterations import freeze as freeze
    from maskprune.masks.alterations import thaw as thaw
    from maskprune.masks.alterations import reinitialize as reinitialize
    from maskprune.masks.alterations import zero_weights as zero_weights
    from maskprune.masks.alterations import bypass as bypass
    from maskprune.masks.alterations import why_no_bypass as why_no_bypass
    from maskprune.masks.network import effective_params as effective_params
    from maskprune.masks.network import count_enabled as count_enabled
    from maskprune.masks.network import list_masks as list_masks
    from maskprune.masks.network import trainable as trainable
    from maskprune.masks.model_state import select_statistics as select_statistics
    from maskprune.masks.transfer import take_over as take_over

    # Training
    from maskprune.train.step import init_state as init_state
    from maskprune.train.step import TrainState as TrainState
    from maskprune.train.step import make_train_step as make_train_step
    from maskprune.train.step import StepInfo as StepInfo
    from maskprune.train.session import make_session as make_session
    from maskprune.train.session import SessionReport as SessionReport
    from maskprune.train.session import of_length as of_length
    from maskprune.train.session import stagnation as stagnation
    from maskprune.train.session import train_alone as train_alone
    from maskprune.train.first_session import train_start as train_start
    from maskprune.train.first_session import NothingLearned as NothingLearned
    from maskprune.train.population import make_population as make_population
    from maskprune.train.population import Population as Population
    from maskprune.train.population import PopulationReport as PopulationReport
    from maskprune.train.population import stack as stack
    from maskprune.train.population import unstack as unstack
    from maskprune.train.population import train_many as train_many
    from maskprune.train import optim as optim
    from maskprune.train import curvature as curvature

    # Which masks go: the search
    from maskprune.app.whole_search import search as search
    from maskprune.app.whole_search import Lengths as Lengths
    from maskprune.minimizer.loop import minimize as minimize
    from maskprune.minimizer.rounds import Rules as Rules
    from maskprune.minimizer.rounds import Limits as Limits
    from maskprune.minimizer.rounds import Round as Round
    from maskprune.minimizer.loop import NoReference as NoReference
    from maskprune import select as select
    from maskprune.select import repair as repair
    from maskprune.minimizer import strategies as strategies
    from maskprune.minimizer.lockstep import run_together as run_together
    from maskprune.minimizer.answers import Memory as Memory
    from maskprune.base.ledger import Ledger as Ledger
    from maskprune.minimizer.interrupt import Interrupt as Interrupt

    # The smaller network: cut it, count it, hand it on
    from maskprune.removal.compaction import compact as compact
    from maskprune.removal.carry_over import compact_network as compact_network
    from maskprune.removal.carry_over import compact_state as compact_state
    from maskprune.removal.rerun import shrink as shrink
    from maskprune.removal.plan import make_plan as make_plan
    from maskprune.removal.plan import Plan as Plan
    from maskprune.removal.plan import Cut as Cut
    from maskprune.removal.compaction import check_same as check_same
    from maskprune.removal.compaction import judged as judged
    from maskprune.removal.compaction import CompactionError as CompactionError
    from maskprune.removal.rerun import ShrinkError as ShrinkError
    from maskprune.removal.costs import cost as cost
    from maskprune.removal.costs import Cost as Cost
    from maskprune.removal.costs import Latency as Latency
    from maskprune.removal.costs import time_calls as time_calls
    from maskprune.removal.compaction import count_params as count_params
    from maskprune.removal.export import export as export
    from maskprune.tasks.models.exporting import export_saved as export_saved
    from maskprune.removal.export import load_program as load_program
    from maskprune.removal.export import load_arrays as load_arrays
    from maskprune.removal.export import Exported as Exported
    from maskprune.removal.export import Arrays as Arrays
    from maskprune.removal.export import ExportError as ExportError

    # What a network is for
    from maskprune.tasks.pictures import picture_task as picture_task
    from maskprune.tasks.pictures import PictureTask as PictureTask
    from maskprune.tasks import data as data
    from maskprune.tasks import models as models
    from maskprune.tasks import losses as losses
    from maskprune.tasks import metrics as metrics
    from maskprune import conv as conv
    from maskprune.conv import conv2d as conv2d
    from maskprune.masks.jaxpr import rules as rules

    # What came of it, and studies
    from maskprune.app.outcome import Outcome as Outcome
    from maskprune.app.outcome import summarize as summarize
    from maskprune.app.outcome import write_outcome as write_outcome
    from maskprune.app import record as record
    from maskprune import lab as lab
    from maskprune.lab import testing as testing
    # isort: on

(_names,) = [node for node in _ast.parse(_Path(__file__).read_text("utf-8")).body if isinstance(node, _ast.If)]
_PLACES = {
    alias.name: str(node.module) for node in _names.body if isinstance(node, _ast.ImportFrom) for alias in node.names
}
__all__ = list(_PLACES)  # pyright: ignore[reportUnsupportedDunderAll]

try:
    __version__ = _version("maskprune")
except _PackageNotFoundError:  # run from a checkout that was not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> _Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'maskprune' has no attribute {name!r}")
    module = _PLACES[name]
    try:
        found = _importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{module}.{name}":
            raise
        found = getattr(_importlib.import_module(module), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*_PLACES, "__version__"]
