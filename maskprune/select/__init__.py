"""Selectors: pure functions `(key, network, batch) -> {group: float[C]}` that score masks; the lowest score goes first.

One family a file. Factories take the settings; what they return has one signature, and a user's own function needs
nothing more. Which masks may go at all is the loop's business, not a selector's.
"""

from maskprune.select.activation import activation as activation
from maskprune.select.base import Selector as Selector
from maskprune.select.base import mask_sums as mask_sums
from maskprune.select.base import mask_vectors as mask_vectors
from maskprune.select.base import outgoing_norms as outgoing_norms
from maskprune.select.base import rank as rank
from maskprune.select.base import reverse as reverse
from maskprune.select.base import standardize as standardize
from maskprune.select.cosine import cosine as cosine
from maskprune.select.magnitude import magnitude as magnitude
from maskprune.select.median import geometric_median as geometric_median
from maskprune.select.plain import random as random
from maskprune.select.plain import sequential as sequential
from maskprune.select.redundancy import redundancy as redundancy
from maskprune.select.surgeon import surgeon as surgeon
from maskprune.select.taylor import taylor as taylor
from maskprune.select.weigh import weigh as weigh
