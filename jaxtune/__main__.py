"""`python -m jaxtune`: the command line."""

import sys

from jaxtune.cli import main

if __name__ == "__main__":
    sys.exit(main())
