"""What a run says in a terminal: the time that is left, the summary; and to scripts, as JSON."""

import json
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from launch import Training
from pages import ROOT
from tiny import Tiny, fit

from anneal.callbacks import progress_bar
from anneal.callbacks.progress_bar import ProgressBar, RichProgressBar, WholeRun
from anneal.cli.run import significant
from anneal.progress import Clock
from anneal.testing import main

RUNS = ROOT / "docs/runs.md"
FIT = ("fit", "--config=small.yaml", "--run_name=r")


class Slow(Tiny):
    """A training batch takes a second of the clock that bars look at, a validation batch ten."""

    clock = 0.0

    def training_step(self, batch, batch_idx):
        Slow.clock += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        Slow.clock += 10
        super().validation_step(batch, batch_idx)


class Bar(WholeRun):
    """Notes what it would show, by step."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.shown = getattr(self, "shown", {})
        self.shown[trainer.global_step] = self.get_metrics(trainer, pl_module).get("eta")


@pytest.fixture
def etas(monkeypatch):
    """Returns what the bar of a training shows: of 3 epochs, 8 batches and a validation each."""
    time = SimpleNamespace(monotonic=lambda: Slow.clock)
    monkeypatch.setattr(progress_bar, "time", time)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", time)

    def etas(**settings):
        fit(Slow(), callbacks=[Clock(), bar := Bar()], enable_progress_bar=True, **settings)
        return bar.shown

    return etas


@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 24}])
def test_the_bar_has_the_time_that_is_left_of_the_whole_run(etas, length):
    shown = etas(**length)
    assert shown[4] == "00:20"  # it has not seen a validation yet
    assert shown[12] == "00:32"  # 12 batches took 32 seconds, and 12 are left
    assert shown[20] == "00:12"
    assert shown[24] is None


def test_the_time_that_is_left_is_right_after_a_resume(etas, tmp_path):
    etas(max_epochs=1, save=tmp_path / "last.ckpt")
    shown = etas(max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert min(shown) == 9
    assert shown[12] == "00:12"
    assert shown[20] == "00:11"


def test_the_time_that_is_left_is_no_more_than_max_time(etas):
    shown = etas(max_epochs=3, max_time={"seconds": 50})
    assert shown[4] == "00:20"
    assert shown[12] == "00:18"


@pytest.mark.parametrize("bar", [ProgressBar, RichProgressBar])
def test_a_bar_leaves_a_line_with_metrics_for_each_epoch(run, capsys, monkeypatch, bar):
    monkeypatch.setenv("COLUMNS", "150")
    on = "--trainer.enable_progress_bar=true"
    main([*FIT, f"--trainer.callbacks+={bar.__name__}", on])
    printed = re.split(r"[\r\n]", re.sub(r"\x1b\[[\d;?]*\w", "", capsys.readouterr().out))
    for epoch in (0, 1):
        (last,) = [line for line in printed if line.startswith(f"Epoch {epoch}")][-1:]
        assert re.search(r"val/acc[:=] ?0\.\d{3}", last)
        assert "v_num" not in last


# ---- the summary


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9925, "0.9925"), (0.5, "0.5000"), (6.5123e-06, "6.512e-06"), (0.012345, "0.01235"),
     (0, "0"), (-0.25, "-0.2500"), (123.456789, "123.4568"), (1.5e9, "1.5e+09"),
     (float("nan"), "nan"), (float("inf"), "inf")],
)  # fmt: skip
def test_a_number_of_the_summary_has_digits_that_say_something(value, text):
    assert significant(value) == text


def test_the_summary_has_all_metrics_of_the_test(run, capsys):
    run(*FIT)
    (line,) = re.findall("^test/.*", capsys.readouterr().out, re.MULTILINE)
    names = ["ece", "loss", "acc_macro", "acc_top3", "f1_macro"]
    others = ", ".join(rf"{name} [.\d]+" for name in names)
    assert re.fullmatch(rf"test/acc       [.\d]+   {others}", line)


@pytest.mark.parametrize(("color", "colored"), [("", True), ("1", False)])
def test_the_summary_has_colours_in_a_terminal_alone(run, capsys, monkeypatch, color, colored):
    run(*FIT)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", color)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich: as if it were a terminal
    monkeypatch.setenv("TERM", "xterm")
    run(*FIT, "--run_name=s")
    assert ("\x1b" in capsys.readouterr().out) == colored


# ---- for scripts


def result(capfd):
    """The line on stdout, on which nothing else stands."""
    (line,) = capfd.readouterr().out.splitlines()
    return json.loads(line, parse_constant=pytest.fail)


def test_json_has_what_a_training_and_its_test_have_come_to(run, capfd):
    run(*FIT, "--json")
    found = result(capfd)
    assert [found[key] for key in ("command", "status", "error")] == ["fit", 0, None]
    assert (found["folder"], found["monitor"]) == ("runs/r", "val/acc")
    assert Path(found["best_checkpoint"]).is_file()
    assert found["last_checkpoint"] == "runs/r/checkpoints/last.ckpt"
    assert found["best"] >= found["metrics"]["val/acc"]
    assert {"test/loss", "test/acc", "train/loss"} <= found["metrics"].keys()
    assert found["seconds"] > 0
    assert found["samples_per_second"] > 0
    for command, name in (("test", "test/acc"), ("validate", "val/acc")):
        run(command, "--ckpt_path=last", "--json")
        again = result(capfd)
        assert (again["command"], again["status"]) == (command, 0)
        assert again["metrics"][name] == found["metrics"][name]


@pytest.mark.parametrize(
    ("words", "command", "status", "error"),
    [
        (["--trainer.max_epoch=3"], "fit", 2,
         r"--trainer.max_epoch: no such option; did you mean --trainer.max_epochs\?"),
        (["--trainer.max_epochs=x", "--seed_everything=y"], "fit", 2,
         "--trainer.max_epochs: expected an int, got 'x'\n"
         "--seed_everything: expected an int, got 'y'"),
        (["trian"], "trian", 2, "'trian' is neither a command .*"),
        (["card", "nothing"], "card", 2, "nothing: no such run, .*"),
        (["test", "--ckpt_path=last"], "test", 2, ".*"),
        ([*FIT, "--data.batch_size=1000000", "--data.drop_last=true"], "fit", 2, ".*"),
        ([*FIT, "--trainer.callbacks+=tiny.Crash", "--trainer.callbacks.step=3"], "fit", 1,
         "OSError: crash\nto repeat this step: python train.py replay runs/r/failure-3.json"),
    ],
)  # fmt: skip
def test_json_has_the_error_and_the_exit_status(run, capfd, words, command, status, error):
    with pytest.raises((SystemExit, OSError)):
        main([*words, "--json"])
    found = result(capfd)
    assert [found["command"], found["status"]] == [command, status]
    assert re.fullmatch(error, found["error"])


def test_json_has_no_number_that_json_has_not(run, capfd):
    with pytest.raises(SystemExit):
        run(*FIT, "--model.optimizer.lr=1e30", "--health.skip=0", "--json")
    assert result(capfd)["status"] == 1


def test_json_says_that_a_run_was_interrupted_and_where_it_resumes(run, capfd):
    crash = ("--trainer.callbacks+=tiny.Interrupt", "--trainer.callbacks.step=3")
    with pytest.raises(SystemExit):
        run(*FIT, *crash, "--json")
    found = result(capfd)
    assert found["status"] == 128 + signal.SIGINT
    assert Path(found["last_checkpoint"]).is_file()


def test_json_is_one_line_of_several_processes_with_the_error_of_one(tmp_path):
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    crash = ("--trainer.callbacks+=tiny.Crash", "--trainer.callbacks.step=3")
    output = Training(tmp_path, *FIT, *two, *crash, "--json").end()[1]
    (line,) = [line for line in output.splitlines() if line.startswith("{")]
    found = json.loads(line)
    assert (found["folder"], found["status"]) == ("runs/r", 1)
    assert found["error"].startswith("OSError: crash\nto repeat this step: ")


def test_the_page_shows_json_as_it_is(run, capfd):
    (words, shown), *_ = re.findall(r"\$ python train.py (.*--json)\n(.*)", RUNS.read_text())
    with pytest.raises(SystemExit):
        main(shlex.split(words))
    assert capfd.readouterr().out.strip() == shown
    keys = set(re.findall(r"`(\w+)`", RUNS.read_text().partition("| key | |")[2]))
    run(*FIT, "--trainer.max_steps=6", "--json")
    assert result(capfd).keys() == keys
