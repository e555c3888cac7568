"""How many processes `make test` runs the tests in."""

import pytest

from anneal.system import cores


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Return one and a half workers a core: many tests wait for processes that they start."""
    return max(2, 3 * cores() // 2)
