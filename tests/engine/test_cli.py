"""Whole commands: the run's folder, checkpoints by name, resume, and what is refused."""

import csv
import hashlib
import re
import shutil
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from yours import MLP

from anneal.testing import logged

FIT = ("fit", "--config=small.yaml")


def only_run() -> Path:
    (folder,) = Path("runs").iterdir()
    return folder


def weights(folder: Path, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]


def column(folder: Path, name: str) -> dict[int, float]:
    return {int(r["step"]): float(r[name]) for r in logged(folder) if r.get(name)}


def content(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def fails(run, capsys, *args: str, status: int = 2) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run(*args)
    assert e.value.code == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    return lines[0]


# ---- one run, one folder


def test_a_run_is_one_folder_with_flat_names(run, capsys):
    run(*FIT, "--trainer.logger=true")
    folder = only_run()
    assert re.fullmatch(r"small-\d{8}-\d{6}-[0-9a-f]{6}", folder.name)
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "metrics.csv", "checkpoints", "test-confusion.png"} <= names
    checkpoints = sorted(p.name for p in (folder / "checkpoints").rglob("*"))
    assert len(checkpoints) == 2
    assert re.fullmatch(r"best-epoch=0\d-val_acc=[01]\.\d{4}\.ckpt", checkpoints[0])
    assert checkpoints[1] == "last.ckpt"
    summary = capsys.readouterr().out
    for word in ("best val/acc", "last val/acc", "test/acc", "samples/s", str(folder)):
        assert word in summary


def test_a_validation_logs_nothing_even_if_the_trainings_did(run):
    run(*FIT, "--trainer.logger=true")
    before = content(only_run())
    run("validate", "--ckpt_path=last", "--trainer.logger=true")
    assert content(only_run()) == before


def test_same_command_twice_makes_two_runs(run):
    run(*FIT)
    first = content(Path("runs"))
    run(*FIT)
    assert len(list(Path("runs").iterdir())) == 2
    assert first.items() <= content(Path("runs")).items()


def test_run_name_is_the_folder_and_is_never_taken_twice(run, capsys):
    run(*FIT, "--run_name=mine")
    assert only_run().name == "mine"
    before = content(Path("runs"))
    assert "is there already" in fails(run, capsys, *FIT, "--run_name=mine")
    assert content(Path("runs")) == before
    Path("runs/a file").touch()
    assert "is there already" in fails(run, capsys, *FIT, "--run_name=a file")


def test_the_name_of_a_run_that_failed_before_it_began_can_be_taken_again(run, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    again = (*FIT, "--run_name=mine", "--trainer.logger=true")
    fails(run, capsys, *again, "--data.val_size=100000")
    Path("runs/mine/wandb").mkdir(parents=True, exist_ok=True)  # W&B may not have come so far
    run(*again)
    assert (only_run() / "checkpoints/last.ckpt").is_file()


def test_metrics_stand_at_optimizer_steps_with_epoch_and_samples(run):
    run(*FIT, "--trainer.logger=true", "--trainer.accumulate_grad_batches=2")
    folder = only_run()
    assert column(folder, "lr") == {0: 0.1, 2: 0.1}  # at each change and each logging point
    assert column(folder, "samples") == {1: 128, 3: 256}
    assert set(column(folder, "val/acc")) == {1, 3}
    assert {r["epoch"] for r in logged(folder)} == {"0", "1"}
    assert set(column(folder, "test/acc")) == {3}


def test_rate_of_each_step_is_logged_and_groups_are_named(run):
    run(
        *FIT,
        "--trainer.logger=true",
        "--model.decay_norm=false",
        "--model.decay_bias=false",
        "--model.schedule.scheduler=PolynomialLR",
    )
    expected = {s: pytest.approx(0.1 * (1 - s / 8)) for s in range(8)}
    assert column(only_run(), "lr/decay") == expected
    assert column(only_run(), "lr/no_decay") == expected


def test_saved_configuration_runs_again_and_gives_the_same(run):
    run(*FIT, "--trainer.logger=true", "--model.width=9", "--data.batch_size=16")
    first = only_run()
    run("fit", f"--config={first}/config.yaml")
    (second,) = set(Path("runs").iterdir()) - {first}
    assert second.name.startswith("small-")
    assert (second / "config.yaml").read_text() == (first / "config.yaml").read_text()
    assert logged(second) == logged(first)
    assert all(torch.equal(a, weights(second)[k]) for k, a in weights(first).items())


def test_saved_configuration_is_whole(run):
    run(*FIT, "--seed_everything=7", "--trainer.precision=bf16-mixed")
    config = yaml.safe_load((only_run() / "config.yaml").read_text())
    assert config["seed_everything"] == 7
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.SGD"
    assert config["checkpoint"]["monitor"] is None  # it follows from the task
    assert "ckpt_path" not in config


def test_everything_works_without_a_logger_and_fast_dev_run_leaves_nothing(run):
    run(*FIT, "--trainer.logger=false")
    assert not (only_run() / "metrics.csv").exists()
    shutil.rmtree("runs")
    run(*FIT, "--trainer.fast_dev_run=true")
    assert not Path("runs").exists()


def test_a_file_in_the_way_of_the_runs_is_one_line(run, capsys):
    Path("taken").write_text("")
    args = ("--trainer.default_root_dir=taken", "--trainer.logger=true")
    assert "can't write" in fails(run, capsys, *FIT, *args)


# ---- callbacks


@pytest.mark.parametrize("operator", ["=", "+="])
def test_callbacks_of_ones_own_are_added_and_drop_none(run, operator):
    cli = run(
        *FIT, f"--trainer.callbacks{operator}EarlyStopping", "--trainer.callbacks.monitor=val/loss"
    )
    kinds = {type(c).__name__ for c in cli.trainer.callbacks}
    assert {"EarlyStopping", "Checkpoint", "LearningRateMonitor", "ScheduleCallback"} <= kinds
    assert [c.monitor for c in cli.trainer.callbacks if isinstance(c, EarlyStopping)] == [
        "val/loss"
    ]
    assert (only_run() / "checkpoints" / "last.ckpt").exists()


def test_callbacks_can_be_set_by_their_names(run):
    run(
        *FIT, "--trainer.max_epochs=3", "--checkpoint.save_top_k=3", "--checkpoint.monitor=val/loss"
    )
    names = sorted(p.name for p in (only_run() / "checkpoints").glob("best-*"))
    assert len(names) == 3
    assert all("val_loss=" in n for n in names)


# ---- checkpoints by name, from a new command


@pytest.mark.parametrize("which", ["best", "last", "path"])
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_checkpoints_are_found_by_name_for_the_newest_run(run, command, which):
    run(*FIT)
    before = content(Path("runs"))
    path = str(only_run() / "checkpoints" / "last.ckpt") if which == "path" else which
    cli = run(command, f"--ckpt_path={path}")
    assert before.items() <= content(Path("runs")).items()
    stem = Path(cli.config.ckpt_path).name
    assert stem.startswith("best-" if which == "best" else "last")
    assert cli.model.net is not None
    assert cli.config.model.init_args.width == 8


def test_run_picks_an_older_run_by_name(run):
    run(*FIT, "--run_name=old", "--model.width=5")
    run(*FIT)
    cli = run("validate", "--ckpt_path=last", "--run=old")
    assert cli.config.model.init_args.width == 5


def test_best_is_found_among_several(run):
    cli = run(*FIT, "--trainer.max_epochs=4", "--checkpoint.save_top_k=-1")
    best = cli.trainer.checkpoint_callback.best_model_path
    assert Path(run("validate", "--ckpt_path=best").config.ckpt_path).samefile(best)


def test_validation_of_the_last_checkpoint_repeats_the_last_validation(run):
    fitted = run(*FIT, "--trainer.limit_val_batches=1.0")
    seen = fitted.trainer.checkpoint_callback.current_score
    for batch_size in (1, 7, 41, 400):
        cli = run("validate", "--ckpt_path=best", f"--data.batch_size={batch_size}")
        best = fitted.trainer.checkpoint_callback.best_model_score
        assert float(cli.trainer.callback_metrics["val/acc"]) == pytest.approx(
            float(best), abs=1e-6
        )
    assert seen is not None


def test_test_accuracy_is_a_hand_count_of_the_predictions(run):
    run(*FIT, "--trainer.limit_test_batches=1.0")
    tested = run("test", "--ckpt_path=last")
    cli = run("predict", "--ckpt_path=last", "--data.batch_size=33")
    with (only_run() / "predictions.csv").open() as file:
        predictions = [int(r["class_1"]) for r in csv.DictReader(file)]
    labels = [int(y) for _, ys in cli.data.predict_dataloader() for y in ys]
    right = sum(p == y for p, y in zip(predictions, labels, strict=True))
    assert float(tested.trainer.callback_metrics["test/acc"]) == pytest.approx(right / len(labels))


def test_commands_that_need_weights_refuse_to_use_random_ones(run, capsys):
    run(*FIT)
    for command in ("validate", "test", "predict"):
        assert f"{command} needs trained weights" in fails(
            run, capsys, command, "--config=small.yaml"
        )


@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoints_that_are_not_there_are_refused(run, capsys, command):
    assert "no run in runs/" in fails(run, capsys, command, "--ckpt_path=last")
    assert "no such file" in fails(run, capsys, command, "--ckpt_path=nowhere.ckpt")
    run(*FIT, "--trainer.enable_checkpointing=false", "--run_name=bare")
    assert "no checkpoint" in fails(run, capsys, command, "--ckpt_path=last")
    assert "newest are: bare" in fails(run, capsys, command, "--ckpt_path=last", "--run=other")


def test_a_checkpoint_loads_outside_the_command_line_and_is_plain(run):
    run(*FIT, "--model.width=9")
    path = only_run() / "checkpoints" / "last.ckpt"
    module = MLP.load_from_checkpoint(path)
    assert module.hparams["width"] == 9
    assert module.class_names == [str(i) for i in range(10)]
    assert isinstance(torch.load(path, weights_only=True), dict)


def with_a_flipped_bit(path: Path, entry: str) -> bytes:
    """The bytes of an archive, one of those of an entry's content with another bit."""
    content = bytearray(path.read_bytes())
    with ZipFile(path) as file:
        info = next(i for i in file.infolist() if i.filename.endswith(entry))
        found = content.find(file.read(info), info.header_offset)
    content[found + info.file_size // 2] ^= 64
    return bytes(content)


@pytest.mark.parametrize("damage", ["half", "tail", "head", "empty", "text", "flipped", "weight"])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_a_damaged_checkpoint_is_named_with_a_good_one(run, capsys, command, damage):
    run(*FIT)
    folder = only_run() / "checkpoints"
    whole = (folder / "last.ckpt").read_bytes()
    middle = len(whole) // 2
    broken = {
        "half": whole[:middle],
        "tail": whole[:-1024],
        "head": whole[:2000],
        "empty": b"",
        "text": b"hello\n",
        "flipped": whole[:2] + bytes(255 - x for x in whole[2:400]) + whole[400:],
        "weight": with_a_flipped_bit(folder / "last.ckpt", "data/0"),
    }[damage]
    (folder / "last.ckpt").write_bytes(broken)
    line = fails(run, capsys, command, "--ckpt_path=last")
    assert "last.ckpt is damaged, cut or no checkpoint" in line
    assert "a good one is" in line
    assert "best-epoch" in line


def test_a_checkpoint_that_unpacks_to_any_size_or_is_not_lightnings_is_refused(run, capsys):
    run(*FIT)
    path = only_run() / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    with ZipFile(path) as stored:
        files = {name: stored.read(name) for name in stored.namelist()}
    with ZipFile(path, "w", ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    assert "it is compressed" in fails(run, capsys, "test", "--ckpt_path=last")
    del checkpoint["optimizer_states"]
    torch.save(checkpoint, path)
    assert "holds weights, but no optimizer_states" in fails(run, capsys, "fit", "--ckpt_path=last")
    run("test", "--ckpt_path=last")


@pytest.mark.parametrize("part", ["train", "val", "test", "predict"])
def test_a_limit_of_1_is_one_batch_and_1_0_the_whole_split(run, capsys, part):
    for typed, meant in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("null", None)):
        with pytest.raises(SystemExit):
            run("fit", *FIT[1:], f"--trainer.limit_{part}_batches={typed}", "--print_config")
        found = yaml.safe_load(capsys.readouterr().out)["trainer"][f"limit_{part}_batches"]
        assert (found, type(found)) == (meant, type(meant))


class Code:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "")


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize("name", ["last", "best"])
def test_code_in_a_checkpoint_is_not_run(run, capsys, command, name):
    run(*FIT)
    for path in (only_run() / "checkpoints").glob("*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        torch.save(checkpoint | {"callbacks": {"x": Code()}}, path)
    assert "is damaged, cut or no checkpoint" in fails(run, capsys, command, f"--ckpt_path={name}")
    assert not Path("ran").exists()


def test_a_configuration_that_is_no_text_is_named(run, capsys, tmp_path):
    (tmp_path / "other.yaml").write_bytes(b"trainer: {max_epochs: 1}  # caf\xe9\n")
    assert "other.yaml" in fails(run, capsys, "fit", "--config=other.yaml")


# ---- resume

SCHEDULES = {
    "none": (),
    "cosine": ("--model.schedule.scheduler=CosineAnnealingLR", "--model.schedule.warmup_steps=3"),
    "step": ("--model.schedule.scheduler=StepLR", "--model.schedule.scheduler.step_size=1"),
    "plateau": (
        "--model.schedule.scheduler=ReduceLROnPlateau",
        "--model.schedule.scheduler.patience=0",
        "--model.schedule.scheduler.threshold=0.5",
    ),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_continues_bit_for_bit_in_the_same_folder(run, schedule):
    settings = (*FIT, *SCHEDULES[schedule], "--trainer.logger=true")
    run(*settings, "--trainer.max_epochs=4", "--run_name=whole")
    run(*settings, "--trainer.max_epochs=2", "--run_name=parts")
    run("fit", "--ckpt_path=last", "--run=parts", "--trainer.max_epochs=4")
    whole, parts = Path("runs/whole"), Path("runs/parts")
    if schedule != "cosine":  # whose first half followed the shorter plan
        assert all(torch.equal(a, weights(parts)[k]) for k, a in weights(whole).items())
        tested = [r for r in logged(parts) if r["step"] == "7" and r["test/acc"]]
        assert len(tested) == 1  # at the end of the first part
        assert [r for r in logged(parts) if r not in tested] == logged(whole)
    tail = {s: lr for s, lr in column(whole, "lr").items() if s >= 8}
    assert {s: lr for s, lr in column(parts, "lr").items() if s >= 8} == tail
    assert (parts / "config-2.yaml").exists()
    assert "max_epochs: 2" in (parts / "config.yaml").read_text()


RESTARTS = (
    "--model.schedule.scheduler=CosineAnnealingWarmRestarts",
    "--model.schedule.scheduler.T_0=2",
)
JUMP = re.compile(r"lr (\S+) -> (\S+) with this resume: (.*)\. To stay at (\S+): (.*)")


def jump_of(printed: str) -> list[str]:
    """What is said of a jump of the learning rate: old, new, why, old again, the flags."""
    return next((list(found.groups()) for found in JUMP.finditer(printed)), [])


@pytest.mark.parametrize(
    ("schedule", "jumps"),
    [
        (SCHEDULES["none"], False),
        (SCHEDULES["step"], False),
        (SCHEDULES["plateau"], False),
        (RESTARTS, False),  # it rises by itself
        (SCHEDULES["cosine"], True),
        (("--model.schedule.scheduler=WSD",), True),
        (("--model.schedule.scheduler=LinearLR", "--model.schedule.scheduler.end_factor=0"), True),
    ],
)
def test_a_resume_that_makes_the_learning_rate_jump_says_so(run, caplog, capsys, schedule, jumps):
    run(*FIT, *schedule, "--trainer.logger=true", "--run_name=one")
    assert not jump_of(caplog.text)
    shutil.copytree("runs/one", "runs/two")
    last = list(column(Path("runs/one"), "lr").values())[-1]
    caplog.clear()
    run("fit", "--ckpt_path=last", "--run=one", "--trainer.max_epochs=4")
    found = jump_of(caplog.text)
    assert bool(found) == jumps
    if jumps:
        old, new, why, again, flags = found
        assert old == again == f"{float(last):.3g}"
        assert float(new) == pytest.approx(column(Path("runs/one"), "lr")[8], rel=0.2)
        assert why.endswith(" has 16 steps now, and had 8")
        run("fit", "--ckpt_path=last", "--run=two", "--trainer.max_epochs=4", *flags.split())
        assert {float(lr) for s, lr in column(Path("runs/two"), "lr").items() if s >= 8} == {
            float(old)
        }
    capsys.readouterr()


def test_a_resume_that_changes_no_learning_rate_says_nothing(run, caplog):
    settings = (*FIT, *SCHEDULES["cosine"], "--trainer.max_epochs=3", "--run_name=one")
    with pytest.raises(OSError, match="crash"):
        run(
            *settings,
            "--checkpoint.every_n_train_steps=1",
            "--trainer.callbacks=tiny.Crash",
            "--trainer.callbacks.step=5",
        )
    run(
        "fit",
        "--ckpt_path=last",
        "--run=one",
        "--trainer.callbacks=null",
        "--model.optimizer.lr=0.1",
    )
    assert "CosineAnnealingLR" in caplog.text
    assert not jump_of(caplog.text)


def test_a_resume_with_another_rate_says_so(run, caplog):
    run(*FIT, *SCHEDULES["cosine"], "--trainer.max_epochs=3", "--run_name=one")
    caplog.clear()
    run(
        "fit", "--ckpt_path=last", "--run=one", "--trainer.max_epochs=4", "--model.optimizer.lr=0.3"
    )
    assert jump_of(caplog.text)


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7, 8, 11])
def test_resume_in_the_middle_of_an_epoch_goes_on_with_the_next_sample(run, stop):
    settings = (*FIT, "--trainer.logger=true", "--trainer.max_epochs=3")
    run(*settings, "--run_name=whole")
    crash = ("--trainer.callbacks=tiny.Crash", f"--trainer.callbacks.step={stop}")
    with pytest.raises(OSError, match="crash"):
        run(*settings, "--run_name=parts", "--checkpoint.every_n_train_steps=1", *crash)
    run("fit", "--ckpt_path=last", "--run=parts", "--trainer.callbacks=null")
    whole, parts = Path("runs/whole"), Path("runs/parts")
    assert all(torch.equal(a, weights(parts)[k]) for k, a in weights(whole).items())
    for name in ("lr", "samples", "val/acc", "val/loss", "train/loss", "train/acc"):
        assert column(parts, name) == column(whole, name)
    assert len(logged(parts)) == len(logged(whole))


def test_resuming_a_finished_run_says_that_nothing_is_left(run, capsys):
    run(*FIT)
    before = content(Path("runs"))
    run("fit", "--ckpt_path=last")
    assert "has done 2 of 2 epochs: nothing is left" in capsys.readouterr().out
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=9", "--trainer.max_steps=8")
    assert "has done 8 of 8 steps" in capsys.readouterr().out
    assert content(Path("runs")) == before


def test_going_on_from_the_best_makes_a_new_run_and_leaves_the_old_one(run):
    run(*FIT)
    old = only_run()
    before = content(old)
    run("fit", "--ckpt_path=best", "--trainer.max_epochs=4")
    assert content(old) == before
    (new,) = set(Path("runs").iterdir()) - {old}
    assert new.name.startswith("small-")
    assert (new / "checkpoints" / "last.ckpt").exists()


@pytest.mark.filterwarnings("ignore:the learning rate is 0")
def test_a_run_that_was_moved_goes_on_with_its_best(run):
    run(*FIT, "--run_name=first")
    best = next(Path("runs/first/checkpoints").glob("best-*")).name
    Path("runs/first").rename("runs/second")
    cli = run(
        "fit",
        "--ckpt_path=last",
        "--run=second",
        "--trainer.max_epochs=3",
        "--model.optimizer.lr=0.0",
    )
    assert list(Path("runs").iterdir()) == [Path("runs/second")]
    assert Path(cli.trainer.checkpoint_callback.best_model_path).name == best


def test_what_is_typed_wins_over_the_checkpoint(run):
    run(*FIT, "--trainer.logger=true")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimizer.lr=0.05")
    assert column(only_run(), "lr")[8] == 0.05
    assert "lr: 0.05" in (only_run() / "config-2.yaml").read_text()


def test_what_a_checkpoint_can_not_follow_is_refused_by_name(run, capsys):
    run(*FIT)
    more = ("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    line = fails(run, capsys, *more, "--model.width=16")
    assert "model.width: 8 there, 16 now" in line
    line = fails(run, capsys, "test", "--ckpt_path=last", "--model=SoftmaxRegression")
    assert "don't fit the model" in line
    assert "class_path" in line
    line = fails(run, capsys, *more, "--model.optimizer=AdamW")
    assert "optimizer.class_path: torch.optim.SGD in the checkpoint, torch.optim.AdamW now" in line
    line = fails(run, capsys, *more, "--model.decay_norm=false")
    assert "decay_norm" in line


# ---- what best and last mean


def test_last_is_the_last_epoch_whatever_the_metric_did(run):
    # The rate grows until the net is ruined: the best epoch is an early one.
    run(
        *FIT,
        "--trainer.max_epochs=5",
        "--model.schedule.scheduler=ExponentialLR",
        "--model.schedule.scheduler.gamma=8",
        "--model.optimizer.lr=0.01",
        "--model.optimizer.momentum=0",
    )
    last = torch.load(only_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (4, 20)
    (best,) = (only_run() / "checkpoints").glob("best-*")
    assert "epoch=04" not in best.name


@pytest.mark.parametrize("metric", ["val/acc", "val/loss"])
def test_best_follows_the_metric_in_its_direction(run, metric):
    run(*FIT, "--trainer.max_epochs=4", "--trainer.logger=true", f"--checkpoint.monitor={metric}")
    values = column(only_run(), metric)
    best = (max if metric == "val/acc" else min)(values.values())
    (name,) = (p.name for p in (only_run() / "checkpoints").glob("best-*"))
    assert name.endswith(f"={best:.4f}.ckpt")


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_best_does_not_remember_the_sanity_check(run, sanity_steps):
    cli = run(
        *FIT, f"--trainer.num_sanity_val_steps={sanity_steps}", "--trainer.limit_val_batches=1.0"
    )
    (best,) = (only_run() / "checkpoints").glob("best-*")
    score = float(re.search(r"val_acc=([\d.]+)\.ckpt", best.name)[1])
    assert score == pytest.approx(float(cli.trainer.checkpoint_callback.best_model_score), abs=5e-5)
    assert score < 1  # which the first validation batches, all of one class, soon reach


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.monitor='val/acc'.. could not find")
def test_a_run_without_validation_still_leaves_a_checkpoint(run):
    run(*FIT, "--trainer.limit_val_batches=0")
    assert [p.name for p in (only_run() / "checkpoints").iterdir()] == ["last.ckpt"]


def test_max_steps_within_an_epoch_still_leaves_a_checkpoint(run):
    run(*FIT, "--trainer.max_steps=3")
    last = torch.load(only_run() / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 3


def test_a_monitor_that_is_no_metric_is_refused_before_training(run, capsys):
    line = fails(run, capsys, *FIT, "--checkpoint.monitor=val_acc")
    assert "no metric 'val_acc'; there are: val/loss, val/acc" in line
    assert not list(Path("runs").rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:the gradient's norm was ")
def test_a_loss_that_is_no_number_ends_the_run_and_spares_the_checkpoints(run, capsys):
    line = fails(
        run,
        capsys,
        *FIT,
        "--trainer.max_epochs=6",
        "--model.schedule.scheduler=ExponentialLR",
        "--model.schedule.scheduler.gamma=1e12",
        status=1,
    )
    where = r"at optimizer step \d+ \(epoch \d, batch \d, after \d+ samples, lr 1e\+"
    assert re.search(f"NaN or infinite {where}", line)
    checkpoints = list((only_run() / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for path in checkpoints:
        assert all(t.isfinite().all() for t in weights(only_run(), path.name).values())


# ---- plateau, endless runs


def test_schedule_mistakes_are_one_line_and_nothing_is_trained(run, capsys):
    line = fails(
        run,
        capsys,
        *FIT,
        "--model.schedule.scheduler=CosineAnnealingLR",
        "--trainer.max_epochs=-1",
    )
    assert "this run has no end" in line
    line = fails(
        run,
        capsys,
        *FIT,
        "--model.schedule.scheduler=ReduceLROnPlateau",
        "--model.schedule.monitor=x",
    )
    assert "give `mode`" in line or "no metric 'x'" in line


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
@pytest.mark.filterwarnings("ignore:Total length of ")
@pytest.mark.parametrize(
    ("limit", "number"),
    [
        ("--trainer.limit_train_batches=0", "limit_train_batches=0"),
        ("--trainer.max_epochs=0", "max_epochs=0"),
        ("--data=tiny.Few", "the training data gives 0 batches"),
    ],
)
def test_a_training_without_a_step_is_no_success(run, capsys, limit, number):
    line = fails(run, capsys, *FIT, limit, status=1)
    assert "nothing was trained" in line
    assert number in line


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data.batch_size=0", "data.batch_size=0: must be at least 1"),
        ("--data.batch_size=3601", "has 3600 train images, fewer than a batch of 3601"),
        ("--data.shift=-1", "shift and rotation must be 0 or more"),
        ("--data.val_size=2.0", "leaves nothing to train on"),
        ("--model.width=0", "width=0 must be at least 1"),
        ("--model.label_smoothing=3", "must lie between 0 and 1"),
        ("--model.num_classes=12", "10 classes in the data, 12 in the model"),
        ("--model.optimizer.lr=-1", "Invalid learning rate: -1.0"),
        ("--model.schedule.warmup_epochs=-1", "a warmup can't be shorter than 0"),
        ("--model.schedule=StepLR", "got 'StepLR'; did you mean --model.schedule.scheduler?"),
        ("--trainer.accumulate_grad_batches=0", "must be at least 1"),
        ("--trainer.gradient_clip_val=-1", "must be at least 0"),
        ("--trainer.max_epochs=-5", "non-negative integer or -1"),
        ("--trainer.accelerator=tpu", "trainer: "),
        ("--checkpoint.save_top_k=-3", "save_top_k=-3"),
        ("--trainer.log_every_n_steps=-3", "must be at least 0"),
        ("--trainer.val_check_interval=1000", "`val_check_interval` (1000)"),
        ("--checkpoint.every_n_train_steps=-7", "below 0"),
        ("--seed_everything=-3", "must be 0 to 4294967295"),
        ("--run=other", "give both"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(run, capsys, flag, message):
    assert message in fails(run, capsys, *FIT, flag)
    assert not list(Path().rglob("*.ckpt"))


def test_the_folder_of_runs_may_stand_in_a_file(run):
    Path("root.yaml").write_text("trainer: {default_root_dir: elsewhere}")
    run(*FIT, "--config=root.yaml")
    cli = run("validate", "--ckpt_path=last", "--config=root.yaml")
    assert not Path("runs").exists()
    assert cli.folder.parent.name == "elsewhere"


def test_no_optimizer_and_adamw_are_the_same_on_resume(run):
    run(*FIT, "--model.optimizer=null")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3", "--model.optimizer=AdamW")


def test_early_stopping_on_no_metric_is_one_line(run, capsys):
    stop = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/los")
    stop += ("--trainer.callbacks.mode=min",)
    assert "metric `val/los` which is not available" in fails(run, capsys, *FIT, *stop)


def test_run_name_is_no_path(run, capsys):
    assert "a name, not a path" in fails(run, capsys, *FIT, "--run_name=a/b")


def test_logging_can_be_left_out(run):
    run(*FIT, "--trainer.log_every_n_steps=0", "--trainer.logger=true")
    assert set(column(only_run(), "val/acc")) == {3, 7}


def test_prefixes_are_no_options(run, capsys):
    assert "max_epochs" in fails(run, capsys, *FIT, "--trainer.max_epoch=2")
