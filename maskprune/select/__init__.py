"""Selectors: pure functions `(key, network, batch) -> {group: float[C]}` that score masks; the lowest score goes first.

One family a file. Factories take the settings; what they return has one signature, and a user's own function needs
nothing more. Which masks may go at all is the loop's business, not a selector's.
"""

from maskprune.select.ablation import ablation as ablation
from maskprune.select.activation import activation as activation
from maskprune.select.base import Remove as Remove
from maskprune.select.base import Selector as Selector
from maskprune.select.base import equal_shares as equal_shares
from maskprune.select.base import mask_sums as mask_sums
from maskprune.select.base import mask_vectors as mask_vectors
from maskprune.select.base import outgoing_norms as outgoing_norms
from maskprune.select.base import rank as rank
from maskprune.select.base import reverse as reverse
from maskprune.select.base import standardize as standardize
from maskprune.select.base import unscored as unscored
from maskprune.select.base import without as without
from maskprune.select.cosine import cosine as cosine
from maskprune.select.ensemble import ensemble as ensemble
from maskprune.select.gate import fisher as fisher
from maskprune.select.gate import taylor as taylor
from maskprune.select.information import information as information
from maskprune.select.magnitude import magnitude as magnitude
from maskprune.select.median import geometric_median as geometric_median
from maskprune.select.plain import random as random
from maskprune.select.plain import sequential as sequential
from maskprune.select.probe import probe as probe
from maskprune.select.redundancy import redundancy as redundancy
from maskprune.select.surgeon import surgeon as surgeon
from maskprune.select.twin import twin as twin
from maskprune.select.weigh import weigh as weigh
