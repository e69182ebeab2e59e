"""Networks whose masks are known: the fully convolutional one of the main program, with its saved form."""

from maskprune.tasks.models.fcn import FCN as FCN
from maskprune.tasks.models.fcn import drop_identities as drop_identities
from maskprune.tasks.models.fcn import fcn as fcn
from maskprune.tasks.models.fcn import multiply_adds as multiply_adds
from maskprune.tasks.models.saved import load as load
from maskprune.tasks.models.saved import save as save
