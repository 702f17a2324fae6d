"""``python -m pofx``: the command line, as ``torchrun -m pofx`` starts it, too."""

import sys

from pofx.cli import main

if __name__ == "__main__":
    sys.exit(main())
