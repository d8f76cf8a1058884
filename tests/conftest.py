"""Tests run on the CPU unless DEV says otherwise: the same device everywhere, and no surprise."""

import os

os.environ.setdefault("DEV", "CPU")
