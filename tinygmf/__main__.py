"""`python -m tinygmf` is the command `tinygmf`."""

import sys

from tinygmf.commands.main import run

if __name__ == "__main__":
    sys.exit(run())
