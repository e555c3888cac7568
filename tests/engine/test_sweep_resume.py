"""A sweep that was ended goes on: with Ctrl-C, and in the middle of a training."""

import signal

from helpers import SMALL, is_alive
from test_sweep import ROOT, calls, folder, goes_on, half_of_it, main, start, table, write

from anneal.system import lock
from anneal.testing import logged, wait_for

__all__ = ["folder"]  # a fixture


def test_ctrl_c_ends_the_trials_and_the_same_command_goes_on(folder):
    sweep, file = half_of_it(folder)
    sweep.send_signal(signal.SIGINT)
    sweep.send_signal(signal.SIGINT)  # an impatient person
    output = sweep.communicate(timeout=600)[0]
    assert sweep.returncode == 130, output
    assert "interrupted: the same command goes on" in output
    assert [r["status"] for r in table(folder)] == ["finished"] * 2 + ["interrupted, run again"] * 2
    assert not any(is_alive(c["pid"]) for c in calls(folder))
    goes_on(folder, file)


def test_a_training_that_is_killed_with_its_sweep_goes_on_from_its_checkpoint(folder):
    text = SMALL.replace(
        "trainer:", "trainer:\n  callbacks: [{class_path: ranks.Hold, init_args: {step: 6}}]"
    )
    (folder / "small.yaml").write_text(text.replace("logger: false", "logger: true"))
    (folder / "hold").touch()
    file = write(
        folder,
        {"wandb.notes": {"values": ["killed", "not killed"]}},  # the same training twice
        program=str(ROOT / "train.py"),
        command=["${env}", "${interpreter}", "${program}", "--config=small.yaml", "${args}"],
        metric={"name": "val/acc", "goal": "maximize"},
    )
    sweep = start(folder, str(file))
    first = folder / "runs/sweeps/try/try-000"
    wait_for((folder / "held").exists)
    sweep.kill()
    sweep.communicate(timeout=600)
    wait_for(lambda: lock(first) is not None)  # its process is gone
    (folder / "hold").unlink()
    assert main([str(file)]) == 0
    rows = {(r["wandb.notes"], r["status"]): r for r in table(folder)}
    assert sorted(rows) == [
        ("killed", "finished"),
        ("killed", "interrupted, run again"),
        ("not killed", "finished"),
    ]
    assert folder / rows["killed", "finished"]["folder"] == first
    assert (first / "log.txt").read_text().count("Restored all states") == 1
    assert logged(first) == logged(folder / rows["not killed", "finished"]["folder"])
