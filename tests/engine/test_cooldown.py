"""Shorter runs, as decays of one stable run: each is the run that was planned at its length."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SMALL

from anneal.testing import logged, main

WSD = ["--model.schedule.scheduler=WSD", "--model.schedule.warmup_steps=2"]
BRANCHES = "--model.schedule.scheduler.branches=3"


@pytest.fixture
def cooldown(run, capsys):
    """Run the command in a folder with a configuration; return its status and its output."""
    text = SMALL.replace("logger: false", "logger: true").replace("steps: 2", "steps: 1")
    Path("small.yaml").write_text(text.replace("max_epochs: 2", "max_epochs: 10"))

    def cooldown(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["cooldown", *words])
        printed = capsys.readouterr()
        return end.value.code or 0, printed.err + printed.out

    return cooldown


def test_each_branch_is_the_run_that_was_planned_at_its_length(run, cooldown):
    run("fit", "--config=small.yaml", "--run_name=long", *WSD, BRANCHES)  # 40 steps
    assert cooldown("--run=long", "--budgets=3", "-j2")[0] == 0
    killed = Path("runs/cooldown/long/long-20")  # as if before its first checkpoint
    shutil.rmtree(killed / "checkpoints")
    lines = (killed / "metrics.csv").read_text().splitlines(True)
    (killed / "metrics.csv").write_text("".join(lines[:3]))
    (killed.parent / "finished.txt").write_text("long-10\n")
    status, output = cooldown("--run=long", "--budgets=3")
    assert status == 0, output
    for budget, trained in ((20, 4), (10, 2)):
        branch, planned = Path(f"runs/cooldown/long/long-{budget}"), Path(f"runs/planned-{budget}")
        words = [f"--run_name={planned.name}", f"--trainer.max_steps={budget}"]
        run("fit", "--config=small.yaml", *WSD, *words)
        ends = [
            torch.load(f / "checkpoints/last.ckpt", weights_only=True) for f in (branch, planned)
        ]
        weights = [end["state_dict"] for end in ends]
        assert all(torch.equal(tensor, weights[1][key]) for key, tensor in weights[0].items())
        assert repr(ends[0]["optimizer_states"]) == repr(ends[1]["optimizer_states"])
        rows = [{k: v for k, v in row.items() if v} for row in logged(branch)]
        assert (
            rows == [{k: v for k, v in row.items() if v} for row in logged(planned)][-len(rows) :]
        )
        assert {row["step"] for row in rows} == {str(n) for n in range(budget - trained, budget)}
        accuracy = f"{float(rows[-1]['test/acc']):.4f}"
        assert re.search(rf"(?m)^{budget} +{trained} .* {accuracy} +{branch}$", output), output
    assert re.search(r"(?m)^40 +40 .* runs/long$", output), output
    assert "46 steps, 1.15 times the longest run; trained separately 70, 1.75 times" in output
    assert "train.py report runs/long runs/cooldown/long" in output

    files = {file: file.stat().st_mtime_ns for file in Path("runs/cooldown").rglob("metrics.csv")}
    status, again = cooldown("--run=long", "--budgets=3")  # nothing is left
    assert (status, again) == (0, output[output.index("\nbudget") :])
    assert all(file.stat().st_mtime_ns == at for file, at in files.items())
    os.utime("runs/long/checkpoints/step=16.ckpt")  # trained anew under its name
    status, output = cooldown("--run=long", "--budgets=3")
    assert status == 2
    assert output.startswith("error: runs/cooldown/long/long-20 is of an earlier runs/long: remove")


def test_a_run_without_what_it_takes_is_refused_in_a_line(run, cooldown):
    run("fit", "--config=small.yaml", "--run_name=constant", "--trainer.max_epochs=1")
    run("fit", "--config=small.yaml", "--run_name=few", "--trainer.max_epochs=1", *WSD)
    with pytest.warns(UserWarning, match="only 2 of branches=3 begin to decay after it"):
        run(
            "fit", "--config=small.yaml", "--run_name=wsd", "--trainer.max_epochs=2", *WSD, BRANCHES
        )
    shutil.copytree("runs/wsd", "runs/cut")
    csv = Path("runs/cut/metrics.csv")
    csv.write_text("".join(csv.read_text().splitlines(True)[:5]))
    train = "train with --model.schedule.scheduler=WSD --model.schedule.scheduler.branches="
    for words, message in {
        "--run=no": "--run=no: no such run in runs/; the newest are: ",
        "--run=constant": f"runs/constant has no decay that could begin earlier: {train}5",
        "--run=few": f"runs/few was trained with branches=0: {train}5",
        "--run=wsd": f"runs/wsd was trained with branches=3: {train}5",
        "--run=wsd --budgets=3": "no runs/wsd/checkpoints/step=1.ckpt, where a run of 2 steps",
        "--run=cut --budgets=3": "runs/cut is not at its end: fit --ckpt_path=last --run=runs/cut",
        "--run=wsd --budgets=1": "--budgets=1: at least 2, one is the run's own",
        "--run=wsd --budgets=2 -j0": "-j 0: must be at least 1",
    }.items():
        status, output = cooldown(*words.split())
        assert status == 2
        assert output.startswith(f"error: {message}")
        assert output.count("\n") == 1
