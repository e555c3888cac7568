"""What all tests of the engine share: a small recipe, and a run of it."""

import os
from pathlib import Path

import pytest
from helpers import SMALL

from anneal.report import curves
from anneal.sweep.process import WARM
from anneal.testing import QUIET, draw_nothing, main

# Other processes import what lies here, such as the callbacks of ranks.py.
_OTHERS = os.environ.get("PYTHONPATH")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), _OTHERS)))
WARM.append("warmed")


@pytest.fixture
def run(run, tmp_path):
    """Runs a command in this process, in an empty folder, on a small and fast recipe."""
    (tmp_path / "small.yaml").write_text(SMALL)
    return run


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory) -> Path:
    """A folder of runs with `digits`, the last weights tested: to be copied, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: null"))
    with pytest.MonkeyPatch.context() as patch:
        still = curves.still
        draw_nothing(patch)
        patch.setattr(curves, "still", still)
        patch.chdir(folder)
        main(["fit", "--config=small.yaml", "--run_name=digits", *QUIET])
    return folder / "runs"
