"""How small can a network be and still do its job? `maskprune minimize`, from a checkout.

python experiments/minimize.py --task sobel
"""

import sys

from maskprune.app.commands import console


if __name__ == "__main__":
    console(["minimize", *sys.argv[1:]])
