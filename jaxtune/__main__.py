"""`python -m jaxtune`: the command line."""

import sys

from jaxtune.cli import entry

if __name__ == "__main__":
    sys.exit(entry())
