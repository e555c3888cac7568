"""What the fork server imports for the tests: all that trainings import, with blank figures."""

import sys
from pathlib import Path

import launch  # noqa: F401
import pytest
import requests  # noqa: F401  (by jsonargparse)

from anneal.cli.main import import_packages
from anneal.testing import draw_nothing

sys.path.insert(0, str(Path(__file__).parents[2]))
import train

import_packages(train.PACKAGES)
draw_nothing(pytest.MonkeyPatch())
