"""`python -m tinygmf` is the command `tinygmf`."""

import sys

from tinygmf.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
