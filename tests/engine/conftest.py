"""What all tests of the engine share: a small recipe, and pictures of a test left blank."""

from pathlib import Path

import pytest
from helpers import SMALL
from matplotlib.figure import Figure

from anneal.testing import QUIET, main


@pytest.fixture
def run(run, tmp_path, monkeypatch):
    """Runs a command in this process, in an empty folder, on a small and fast recipe.

    Its figures are blank: to draw them takes longer than the training.
    """
    for what in (
        "figures.draw_confusion",
        "figures.draw_calibration",
        "test_report.draw_top_losses",
    ):
        monkeypatch.setattr(f"anneal.tasks.{what}", lambda *_: Figure())
    monkeypatch.setattr("anneal.report.curves.still", lambda *_: Figure())
    (tmp_path / "small.yaml").write_text(SMALL)
    return run


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory) -> Path:
    """A folder of runs with `digits`, the last weights tested: to be copied, not changed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: null"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config=small.yaml", "--run_name=digits", *QUIET])
    return folder / "runs"
