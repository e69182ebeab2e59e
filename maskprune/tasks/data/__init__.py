"""Pictures, targets and batches: everything between a folder of files and arrays on the device.

Floor 1 of the library: it knows nothing of networks, masks or training. The names here need neither jax nor
scikit-image to import, so that a command line starts at once; `maskprune.data.batches`, the only file that needs jax,
is therefore imported by its own name.
"""

from maskprune.tasks.data.dataset import Dataset as Dataset
from maskprune.tasks.data.dataset import Split as Split
from maskprune.tasks.data.dataset import make_dataset as make_dataset
from maskprune.tasks.data.dataset import make_pairs as make_pairs
from maskprune.tasks.data.pictures import Skipped as Skipped
from maskprune.tasks.data.pictures import bundled_pictures as bundled_pictures
from maskprune.tasks.data.pictures import find_pictures as find_pictures
from maskprune.tasks.data.pictures import read_picture as read_picture
from maskprune.tasks.data.targets import Target as Target
from maskprune.tasks.data.targets import adaptive as adaptive
from maskprune.tasks.data.targets import canny as canny
from maskprune.tasks.data.targets import local_mean as local_mean
from maskprune.tasks.data.targets import otsu as otsu
from maskprune.tasks.data.targets import sobel as sobel
from maskprune.tasks.data.targets import threshold as threshold
