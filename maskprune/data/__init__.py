"""Pictures, targets and batches: everything between a folder of files and arrays on the device.

Floor 1 of the library: it knows nothing of networks, masks or training. The names here need neither jax nor
scikit-image to import, so that a command line starts at once; `maskprune.data.batches`, the only file that needs jax,
is therefore imported by its own name.
"""

from maskprune.data.dataset import Dataset as Dataset
from maskprune.data.dataset import Split as Split
from maskprune.data.dataset import make_dataset as make_dataset
from maskprune.data.dataset import make_pairs as make_pairs
from maskprune.data.pictures import Skipped as Skipped
from maskprune.data.pictures import bundled_pictures as bundled_pictures
from maskprune.data.pictures import find_pictures as find_pictures
from maskprune.data.pictures import read_picture as read_picture
from maskprune.data.targets import Target as Target
from maskprune.data.targets import adaptive as adaptive
from maskprune.data.targets import canny as canny
from maskprune.data.targets import local_mean as local_mean
from maskprune.data.targets import otsu as otsu
from maskprune.data.targets import sobel as sobel
from maskprune.data.targets import threshold as threshold
