"""Networks whose masks are known: the fully convolutional one of the main program, with its saved form."""

from maskprune.models.fcn import FCN as FCN
from maskprune.models.fcn import drop_identities as drop_identities
from maskprune.models.fcn import fcn as fcn
from maskprune.models.fcn import multiply_adds as multiply_adds
from maskprune.models.saved import load as load
from maskprune.models.saved import save as save
