"""One run writes into a folder, and whatever reads finds what was written, and where."""

import errno
import os
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from launch import Training, train
from lightning.pytorch.callbacks import EarlyStopping
from test_fit import SHORT, objects

import anneal
from anneal.report.card import main as card
from anneal.report.page import main as report
from anneal.runs.folder import OWNER, checkpoints_of, owner_of, run_of
from anneal.sweep.file import read as read_sweep
from anneal.sweep.process import can_resume
from anneal.system import lock
from anneal.testing import logged, wait_for

TINY = ("--config=small.yaml", "--trainer.limit_train_batches=2")
FIT = ("fit", *TINY, "--trainer.max_epochs=1", "--trainer.limit_test_batches=1")
ELSEWHERE = "--checkpoint.dirpath=elsewhere"
AUTO = ("--resume=auto", "--run_name=d")
STOP = (
    *("--trainer.max_epochs=9", "--trainer.callbacks+=EarlyStopping"),
    *("--trainer.callbacks.monitor=val/loss", "--trainer.callbacks.min_delta=9"),
)


def steps(folder: str = "runs/d/checkpoints") -> int:
    return torch.load(Path(folder, "last.ckpt"), weights_only=True)["global_step"]


def refused(run, capsys, *args: str) -> str:
    """The line that a command is refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run(*args)
    assert e.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    return line


def die(run, monkeypatch, where: str, *args: str) -> None:
    """Run a command that ends as if killed where a method is called."""

    def crash(*_, **__):
        raise OSError("crash")

    with monkeypatch.context() as patch:
        patch.setattr(where, crash)
        with pytest.raises(OSError, match="crash"):
            run(*args)


# ---- where the checkpoints are


def test_checkpoints_are_found_where_the_run_has_put_them(run, capsys):
    run(*FIT, *AUTO, ELSEWHERE, "--trainer.logger=true")
    run(*FIT, *AUTO, ELSEWHERE, "--trainer.logger=true", "--trainer.max_epochs=2")
    assert steps("elsewhere") == 4
    assert [r["epoch"] for r in logged(Path("runs/d")) if r["val/loss"]] == ["0", "1"]
    run("fit", "--ckpt_path=last", "--run=d", "--trainer.max_epochs=3")
    run("fit", "--ckpt_path=elsewhere/last.ckpt", "--trainer.max_epochs=4")
    assert steps("elsewhere") == 8
    for command in ("test", "predict"):
        run(command, "--ckpt_path=best", "--run=d")
    run("export", "--ckpt_path=last", "--format=torch_export")
    assert can_resume(Path("runs/d"))  # as a sweep asks
    assert card(["d"]) == 0
    assert report(["d"]) == 0
    assert os.listdir("runs") == ["d"]
    assert Path("runs/d/predictions.csv").exists()
    assert Path("runs/d/model.pt2").exists()
    anneal.fit(*objects(), run_name="d", resume=True, **{**SHORT, "max_epochs": 4})
    assert "has done 4 of 4 epochs: nothing is left" in capsys.readouterr().out


def test_a_resume_may_put_them_elsewhere(run):
    run(*FIT, *AUTO)
    run(*FIT, *AUTO, ELSEWHERE, "--trainer.max_epochs=2")
    assert (steps(), steps("elsewhere")) == (2, 4)
    assert checkpoints_of(Path("runs/d")) == Path("elsewhere")
    Path("elsewhere/last.ckpt").unlink()  # as if the resume had ended before it saved
    assert checkpoints_of(Path("runs/d")) == Path("runs/d/checkpoints")


def test_a_folder_of_checkpoints_is_one_runs(run, capsys, monkeypatch):
    die(run, monkeypatch, "anneal.cli.run.Run.test", *FIT, ELSEWHERE, *AUTO)
    before = Path("elsewhere/last.ckpt").read_bytes()
    for more in (
        ["--run_name=b"],
        ["--run_name=b", "--resume=auto"],
        ["--run_name=b", "--ckpt_path=best"],
    ):
        line = refused(run, capsys, *FIT, ELSEWHERE, *more)
        assert "checkpoint.dirpath=elsewhere: holds checkpoints of runs/d" in line
    Path("elsewhere/lock").unlink()  # of a release that did not write it
    assert "holds checkpoints of another run" in refused(run, capsys, *FIT, ELSEWHERE)
    assert Path("elsewhere/last.ckpt").read_bytes() == before
    assert os.listdir("runs") == ["d"]
    run("fit", *AUTO, "--trainer.max_epochs=2")
    assert steps("elsewhere") == 4
    Path("elsewhere/last.ckpt").unlink()  # not even before the first one
    for file in Path("elsewhere").glob("best-*"):
        file.unlink()
    assert "holds checkpoints of runs/d" in refused(run, capsys, *FIT, ELSEWHERE)


@pytest.mark.parametrize("folder", ["/proc/nope", "small.yaml", "small.yaml/below"])
def test_a_folder_that_cant_be_written_is_said_before_the_training(run, capsys, folder):
    line = refused(run, capsys, *FIT, f"--checkpoint.dirpath={folder}")
    assert f"checkpoint.dirpath={folder}: " in line
    assert not list(Path("runs").glob("*"))


def test_the_folder_of_runs_is_the_one_that_the_files_name(run):
    text = Path("small.yaml").read_text()
    Path("small.yaml").write_text(text.replace("trainer:", "trainer:\n  default_root_dir: mine"))
    Path("auto.yaml").write_text("resume: auto\nrun_name: d\n")
    run(*FIT, "--config=auto.yaml")
    run(*FIT, "--config=auto.yaml", "--trainer.max_epochs=2")
    assert steps("mine/d/checkpoints") == 4
    assert not Path("runs").exists()


# ---- what was there before


def test_a_run_without_a_checkpoint_starts_with_what_was_typed_then(run, monkeypatch):
    where = "anneal.callbacks.checkpoint.Checkpoint.on_train_epoch_end"
    die(run, monkeypatch, where, *FIT, *AUTO, "--model.width=9", "--seed_everything=3")
    run("fit", *AUTO, "--seed_everything=4")
    assert steps() == 2
    config = yaml.safe_load(Path("runs/d/config-2.yaml").read_text())
    assert config["model"]["init_args"]["width"] == 9
    assert config["trainer"]["limit_train_batches"] == 2
    assert config["seed_everything"] == 4


def test_a_run_that_starts_from_another_ones_weights_resumes_from_its_own(run):
    run(*FIT, "--run_name=first")
    start = ("--ckpt_path=runs/first/checkpoints/last.ckpt", *AUTO, "--trainer.max_epochs=2")
    run("fit", *start)
    run("fit", *start, "--trainer.max_epochs=3")
    assert (steps(), steps("runs/first/checkpoints")) == (6, 2)


def test_a_run_that_has_lost_its_checkpoint_is_not_begun_anew(run, capsys):
    run(*FIT, *AUTO, "--trainer.logger=true", "--trainer.max_epochs=2")
    before = logged(Path("runs/d"))
    Path("runs/d/checkpoints/last.ckpt").unlink()
    line = refused(run, capsys, *FIT, *AUTO)
    assert "has trained 1 epochs, and there is no runs/d/checkpoints/last.ckpt" in line
    assert logged(Path("runs/d")) == before


# ---- one training at a time


def test_a_run_that_trains_is_not_resumed_beside(run, capsys):
    run(*FIT, *AUTO)
    held = lock(Path("runs/d"))
    for how in (AUTO, ["--ckpt_path=last"], ["--ckpt_path=runs/d/checkpoints/last.ckpt"]):
        assert "runs/d is in use by a training" in refused(run, capsys, "fit", *how)
    with pytest.raises(anneal.UserError, match="in use"):
        anneal.fit(*objects(), run_name="d", resume=True, **SHORT)
    run("test", "--ckpt_path=last", "--run=d")  # reads only
    with pytest.raises(SystemExit):
        run("fit", *AUTO, "--print_config")
    run("fit", "--ckpt_path=last", "--run_name=e", "--trainer.max_epochs=2")
    assert steps("runs/e/checkpoints") == 4
    held.close()
    run("fit", *AUTO, "--trainer.max_epochs=2")
    assert steps() == 4
    lock(Path("runs/d")).close()  # nothing is held after the end


def test_a_folder_is_free_when_its_process_is_gone_however(tmp_path):
    first = Training.held_at(2, tmp_path, *FIT, *AUTO, "--trainer.max_epochs=2")  # an epoch
    status, output = Training(tmp_path, *FIT, *AUTO, "--trainer.max_epochs=2").end()
    assert status == 2
    assert "runs/d is in use by a training that still runs" in output
    first.kill()
    assert "Restored all states" in train(tmp_path, "fit", *AUTO, "--trainer.max_epochs=3")


def test_a_worker_that_outlives_its_process_does_not_hold_the_folder(tmp_path):
    held = lock(tmp_path)
    if (child := os.fork()) == 0:
        time.sleep(6000)
        os._exit(0)
    try:
        assert lock(tmp_path) is None
        held.close()
        wait_for(lambda: lock(tmp_path) is not None)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_a_folder_is_free_when_the_lock_is_dropped(tmp_path):
    held = lock(tmp_path)
    assert lock(tmp_path) is None
    del held
    assert lock(tmp_path) is not None


def test_a_file_system_without_locks_is_a_warning(run, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(UserWarning, match=r"can't be locked \(.*No locks available\)"):
        run(*FIT, *AUTO)
    assert steps() == 2


def test_a_file_belongs_to_the_run_that_it_lies_in_or_beside_whose_checkpoints(tmp_path):
    home = tmp_path / "runs/a"
    (home / "checkpoints/old").mkdir(parents=True)
    (home / "config.yaml").write_text("{}")
    for file in (home / "a.pt2", home / "checkpoints/last.ckpt"):
        assert run_of(file).resolve() == home
    assert run_of(home / "checkpoints/old/last.ckpt") is None
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert owner_of(elsewhere) is None
    for written, owner in (("../runs/a", home), ("../runs/b", None), ("", None), ("\udcff", None)):
        (elsewhere / OWNER).write_bytes(written.encode(errors="surrogateescape"))
        assert (run_of(elsewhere / "last.ckpt") or Path()).resolve() == (owner or Path()).resolve()


def test_checkpoints_lie_where_the_newest_last_one_lies_or_the_newest_configuration_says(tmp_path):
    configs = ("{}", "checkpoint: {dirpath: %s/a}", "checkpoint: {dirpath: %s/b}")
    for name, text in zip(("config", "config-2", "config-10"), configs, strict=True):
        (tmp_path / f"{name}.yaml").write_text(text.replace("%s", str(tmp_path)))
    assert checkpoints_of(tmp_path) == tmp_path / "b"
    for second, folder in ((5, "checkpoints"), (9, "a")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "last.ckpt").touch()
        os.utime(tmp_path / folder / "last.ckpt", (second, second))
        assert checkpoints_of(tmp_path) == tmp_path / folder


# ---- a run that was stopped early


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_run_that_stopped_early_is_tested_and_trains_no_more(run, monkeypatch, capsys):
    fit = (*FIT, *STOP, "--trainer.callbacks.patience=1", "--trainer.logger=true", *AUTO)
    die(run, monkeypatch, "anneal.cli.run.Run.test", *fit)
    assert steps() == 4
    capsys.readouterr()
    run(*fit)
    output = capsys.readouterr().out
    assert "runs/d stopped early at epoch 1 (Monitored metric val/loss did not improve" in output
    assert "nothing is left. To train on, change --trainer.callbacks" in output
    assert "test/acc" in output
    assert "samples/s" not in output
    rows = logged(Path("runs/d"))
    assert [r["step"] for r in rows if r["test/acc"]] == ["3"]
    run("fit", *AUTO, "--trainer.max_epochs=20")
    output = capsys.readouterr().out
    assert "stopped early at epoch 1" in output
    assert "test/acc" not in output
    assert (steps(), logged(Path("runs/d"))) == (4, rows)
    run("fit", *AUTO, "--trainer.callbacks.patience=3")
    assert steps() == 8
    run("fit", *AUTO, "--trainer.callbacks=null", "--trainer.max_epochs=5")
    assert steps() == 10


def test_another_callback_may_stop_a_run_and_min_epochs_is_kept(run, monkeypatch, capsys):
    stop = ("--trainer.max_epochs=9", "--trainer.callbacks=tiny.Stop", "--trainer.min_epochs=3")
    crash = ("--trainer.callbacks+=tiny.Crash", "--trainer.callbacks.step=4")
    with pytest.raises(OSError, match="crash"):
        run(*FIT, *AUTO, *stop, *crash)
    monkeypatch.setattr(tiny.Crash, "on_train_batch_start", tiny.Stop.on_train_batch_start)
    run("fit", *AUTO)
    assert steps() == 6
    run("fit", *AUTO)
    assert "stopped early at epoch 2 (a callback or the module has set" in capsys.readouterr().out
    run("fit", *AUTO, "--trainer.min_epochs=4")
    assert steps() == 8


def test_a_clock_that_has_run_out_is_no_early_stop(run, monkeypatch):
    elapsed = count()
    monkeypatch.setattr("lightning.pytorch.callbacks.Timer.time_elapsed", lambda *_: next(elapsed))
    run(*FIT, *AUTO, "--trainer.max_time=00:00:00:12", "--trainer.max_epochs=99")
    assert steps() < 99
    assert "stopped" not in torch.load("runs/d/checkpoints/last.ckpt", weights_only=True)


def test_a_run_killed_in_its_test_is_tested_when_it_resumes(run, monkeypatch, capsys):
    fit = (*FIT, *AUTO, "--trainer.logger=true")
    die(run, monkeypatch, "lightning.pytorch.Trainer.test", *fit)
    run(*fit)
    assert "has done 1 of 1 epochs: nothing is left" in capsys.readouterr().out
    assert [r["step"] for r in logged(Path("runs/d")) if r["test/acc"]] == ["1"]


def test_a_run_from_python_that_stopped_early_trains_no_more(run, capsys):
    make = partial(EarlyStopping, "val/loss", min_delta=9)
    for patience, taken in ((1, 8), (1, 8), (3, 16)):
        settings = {**SHORT, "max_epochs": 9, "callbacks": [make(patience=patience)]}
        anneal.fit(*objects(), run_name="d", resume=True, **settings)
        assert steps() == taken
    assert capsys.readouterr().out.count("stopped early") == 1


# ---- names


def test_a_sweep_needs_a_name_too(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("name: ..\nmethod: grid\nparameters: {x: {values: [1]}}\nprogram: a.py\n")
    with pytest.raises(anneal.UserError, match="no folder can be called that"):
        read_sweep(file)


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "a/b", "/tmp/a", "a\\b", "C:a", " ", "a\nb", "NUL", "con.txt", "x" * 300],
)
def test_a_run_is_called_by_a_name_that_a_folder_can_have(run, capsys, name):
    for more in ((), ("--resume=auto",)):
        assert "--run_name" in refused(run, capsys, *FIT, f"--run_name={name}", *more)
    for resume in (False, True):
        with pytest.raises(anneal.UserError, match="--run_name"):
            anneal.fit(*objects(), run_name=name, resume=resume, **SHORT)
    assert not Path("runs").exists()
