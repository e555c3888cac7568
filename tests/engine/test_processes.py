"""Runs in processes of their own: two of them, killed ones, and what W&B then holds."""

import csv
import re
from pathlib import Path

import pytest
import torch
from launch import NEW_INTERPRETER, Training, train
from wandb_reader import read

from anneal.testing import logged, wait_for

OFFLINE = {"WANDB_MODE": "offline"}


def column(folder: Path, name: str) -> dict[int, float]:
    with (folder / "metrics.csv").open() as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}


def test_two_processes_are_one_run_with_exact_metrics_and_the_same_rates(tmp_path):
    fit = (
        "fit",
        "--config=small.yaml",
        "--run_name=two",
        "--model.schedule.scheduler=PolynomialLR",
    )
    whole = [f"--trainer.limit_{part}_batches=1.0" for part in ("train", "val", "test")]
    # 400 validation samples in batches of 2 x 150: the last one is short.
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=150")
    at_exit = "--trainer.callbacks=ranks.Connected"
    env = OFFLINE | NEW_INTERPRETER
    train(tmp_path, *fit, *whole, *two, at_exit, **env)
    # A thread of gloo's that holds a tensor while the interpreter ends would abort the process.
    assert (tmp_path / "connected-1").read_text() == "False"
    folder = tmp_path / "runs" / "two"
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["two"]
    (recorded,) = read(folder)
    steps = 3600 // 300
    expected = {s: pytest.approx(0.1 * (1 - s / (2 * steps))) for s in range(2 * steps)}
    assert column(folder, "lr") == expected
    assert column(folder, "samples")[2 * steps - 1] == 7200
    assert str(recorded.config["trainer"]["devices"]) == "2"
    # The same weights in one process, other batches: the same numbers.
    one = ("--trainer.devices=1", "--trainer.strategy=auto", "--data.batch_size=64")
    output = train(tmp_path, "validate", "--ckpt_path=last", *one, **OFFLINE)
    for name, digits in (("val/acc", 6), ("val/loss", 4)):
        # Lightning's table has lines around its cells where rich is installed.
        seen = re.search(rf"{name}[\s│]+([\d.e-]+)", output)
        assert seen, output
        assert float(seen[1]) == pytest.approx(column(folder, name)[2 * steps - 1], abs=10**-digits)


def test_a_killed_run_goes_on_bit_for_bit_and_w_and_b_counts_nothing_twice(tmp_path):
    fit = (
        "fit",
        "--config=small.yaml",
        "--trainer.max_epochs=8",
        "--trainer.limit_train_batches=8",
    )
    train(tmp_path, *fit, "--run_name=whole", **OFFLINE)
    killed = Training.held_at(35, tmp_path, *fit, "--run_name=killed", **OFFLINE)
    folder = tmp_path / "runs" / "killed"
    (recording,) = folder.glob("wandb/*run-*/run-*.wandb")
    # W&B writes what run it is some time later.
    wait_for(lambda: recording.stem.removeprefix("run-").encode() in recording.read_bytes())
    killed.kill()
    done = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert done == 32
    train(tmp_path, "fit", "--ckpt_path=last", "--run=killed", **OFFLINE)
    whole = tmp_path / "runs" / "whole"
    states = [
        torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for f in (whole, folder)
    ]
    assert all(torch.equal(a, states[1][k]) for k, a in states[0].items())
    assert logged(folder) == logged(whole)
    parts = read(folder)
    assert len({p.run["run_id"] for p in parts}) == 1
    # A kill can take the last second away from W&B's recording, never from metrics.csv.
    for name in ("train/loss", "val/acc", "lr"):
        points = [
            (r["trainer/global_step"], r[name]) for p in parts for r in p.history if name in r
        ]
        truth = column(whole, name)
        assert [step for step, _ in points] == sorted({step for step, _ in points})
        assert points == [(step, truth[step]) for step, _ in points]
        assert points[-1][0] == max(truth)


def test_not_logged_in_trains_offline_without_asking(tmp_path):
    environment = {"WANDB_MODE": "", "WANDB_API_KEY": ""}
    output = train(tmp_path, "fit", "--config=small.yaml", "--run_name=r", **environment)
    (line,) = [line for line in output.splitlines() if line.startswith("W&B:")]
    for part in ("offline", "wandb leet", "wandb sync"):
        assert part in line
    assert len(read(tmp_path / "runs" / "r")) == 1


@pytest.mark.parametrize("words", [["tset"], ["fit", "--trainer.max_epoch=2"], ["test"]])
def test_mistakes_are_a_line_on_stderr_and_status_2(tmp_path, words):
    status, output = Training(tmp_path, *words).end()
    assert status == 2
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) <= 4
