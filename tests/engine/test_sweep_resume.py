"""A sweep that was ended goes on: with Ctrl-C, and in the middle of a training."""

import signal

from helpers import SMALL
from test_sweep import ROOT, calls, folder, is_alive, start, table, write

from anneal.testing import logged, wait_for

__all__ = ["folder"]  # a fixture


def test_ctrl_c_ends_the_trials_and_the_same_command_goes_on(folder):
    file = write(folder, {"x": {"min": 0, "max": 3}, "sleep": {"value": 1.0}})
    sweep = start(folder, str(file), "-j", "2")
    wait_for(lambda: (folder / "calls.txt").exists() and len(calls(folder)) >= 3)
    sweep.send_signal(signal.SIGINT)
    sweep.send_signal(signal.SIGINT)  # an impatient person
    output = sweep.communicate(timeout=60)[0]
    assert sweep.returncode == 130, output
    assert "interrupted: the same command goes on" in output
    assert {r["status"] for r in table(folder)} == {"finished", "interrupted, run again"}
    assert not any(is_alive(c["pid"]) for c in calls(folder))
    done = [r["x"] for r in table(folder) if r["status"] == "finished"]
    output = start(folder, str(file), "-j", "4").communicate(timeout=300)[0]
    finished = sorted(r["x"] for r in table(folder) if r["status"] == "finished")
    assert finished == list("0123"), output
    ran = [c["x"] for c in calls(folder)]
    assert all(ran.count(x) == 1 for x in done)


def test_a_training_that_is_killed_with_its_sweep_goes_on_from_its_checkpoint(folder):
    text = SMALL.replace("max_epochs: 2", "max_epochs: 8").replace("logger: false", "logger: true")
    (folder / "small.yaml").write_text(text)
    file = write(
        folder,
        {"wandb.notes": {"values": ["killed", "not killed"]}},  # the same training twice
        program=str(ROOT / "train.py"),
        command=["${env}", "${interpreter}", "${program}", "--config=small.yaml", "${args}"],
        metric={"name": "val/acc", "goal": "maximize"},
    )
    sweep = start(folder, str(file))
    first = folder / "runs/sweeps/try/try-000"
    wait_for(lambda: (first / "checkpoints/last.ckpt").exists())
    sweep.kill()
    sweep.communicate(timeout=60)
    output = start(folder, str(file)).communicate(timeout=300)[0]
    rows = {(r["wandb.notes"], r["status"]): r for r in table(folder)}
    assert sorted(rows) == [
        ("killed", "finished"),
        ("killed", "interrupted, run again"),
        ("not killed", "finished"),
    ], output
    assert folder / rows["killed", "finished"]["folder"] == first
    assert (first / "log.txt").read_text().count("Restored all states") == 1
    assert logged(first) == logged(folder / rows["not killed", "finished"]["folder"])
