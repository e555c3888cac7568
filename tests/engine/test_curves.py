"""Every training leaves a figure of its curves in its folder, and none is ended by it."""

import errno
import signal

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from anneal.report import curves

FIT = ("fit", "--config=small.yaml", "--trainer.logger=true", "--run_name=one")
LAST = ("fit", "--run=one", "--ckpt_path=last")


def added(name: str, **options: object) -> list[str]:
    flag = "--trainer.callbacks"
    return [f"{flag}={name}", *(f"{flag}.{key}={value}" for key, value in options.items())]


@pytest.fixture
def drawn(monkeypatch) -> list[list[str]]:
    """The panels of each figure that is drawn; the figures themselves are blank."""
    found: list[list[str]] = []

    def still(runs, lines) -> Figure:
        found.append(curves.panels_of(lines))
        return Figure()

    monkeypatch.setattr(curves, "still", still)
    return found


def test_a_training_leaves_its_curves(trained_runs):
    pixels = imread(trained_runs / "digits/curves.png")[..., :3]
    assert (np.abs(pixels - pixels.mean(axis=-1, keepdims=True)).max(axis=-1) > 0.2).sum() > 1000


def test_a_resume_draws_them_again_and_a_run_that_is_done_does_not(run, drawn):
    run(*FIT)
    assert drawn == [["loss", "acc", "acc_macro", "acc_top3", "f1_macro", "lr"]]
    run(*LAST)  # nothing is left
    assert len(drawn) == 1
    run(*LAST, "--trainer.max_epochs=3")
    assert len(drawn) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_they_are_there_after_a_signal(run, drawn, tmp_path, number):
    with pytest.raises(SystemExit) as end:
        run(*FIT, *added("tiny.Signal", step=3, number=int(number)))
    assert end.value.code == 128 + number
    assert len(drawn) == 1
    assert (tmp_path / "runs/one/curves.png").is_file()


def test_they_are_there_after_a_failure(run, drawn, tmp_path):
    with pytest.raises(OSError, match="crash"):
        run(*FIT, *added("tiny.Crash", step=3))
    assert len(drawn) == 1
    assert (tmp_path / "runs/one/curves.png").is_file()


@pytest.mark.parametrize("option", ["fast_dev_run=true", "barebones=true", "logger=false"])
def test_a_run_that_logs_nothing_leaves_none(run, drawn, tmp_path, option):
    run(
        *FIT[:2], "--trainer.logger=null", "--trainer.log_every_n_steps=null", f"--trainer.{option}"
    )
    assert drawn == []
    assert not [*tmp_path.glob("runs/*/curves.png")]


def test_a_full_disk_is_a_line_and_the_training_ends_well(run, monkeypatch, tmp_path, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    run(*FIT, "--trainer.limit_test_batches=0")
    printed = capsys.readouterr()
    [line] = [line for line in printed.err.splitlines() if "curves.png" in line]
    assert line == "runs/one/curves.png is not drawn: [Errno 28] No space left on device"
    assert "last val/acc" in printed.out
    assert not [*tmp_path.glob("runs/one/*curves*")]


@pytest.mark.parametrize(
    ("metrics", "panels"),
    [
        (["val/mae", "train/loss", "val/loss", "lr"], ["loss", "mae", "lr"]),
        (["train/loss", "norms/a/weight", "lr"], ["loss", "lr"]),  # no validation
        (["x", "val/x"], ["x"]),
        (["temperature"], ["temperature"]),
        ([f"val/m{i}" for i in range(9)] + ["lr"], [f"m{i}" for i in range(5)] + ["lr"]),
    ],
)
def test_they_show_loss_metrics_and_learning_rate(tmp_path, drawn, metrics, panels):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    rows = [["step", *metrics], *([i, *[i] * len(metrics)] for i in range(1, 4))]
    text = "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "metrics.csv").write_text(f"{text}\n")
    curves.draw_curves(tmp_path)
    assert drawn == [panels]
