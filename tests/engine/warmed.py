"""What the fork server has for the tests: what trainings import, the digits, blank figures."""

import sys
from pathlib import Path

import launch  # noqa: F401
import pytest
import requests  # noqa: F401  (by jsonargparse)

from anneal.cli.main import import_packages
from anneal.testing import draw_nothing

sys.path.insert(0, str(Path(__file__).parents[2]))
import yours

import train

import_packages(train.PACKAGES)
read_digits = getattr(yours, "read_digits", None)
if read_digits:
    read_digits()
draw_nothing(pytest.MonkeyPatch())
