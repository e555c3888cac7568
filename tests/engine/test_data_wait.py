"""The share of a training that goes by without a batch."""

import gc
import multiprocessing
import time
from multiprocessing import active_children
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import SimpleProfiler
from tiny import Tiny, loader
from torch.utils.data import DataLoader, Dataset

from anneal import progress
from anneal.callbacks import data_wait
from anneal.callbacks.data_wait import DataWait
from anneal.cli import run as cli_run
from anneal.loggers.csv import CSVLogger
from anneal.progress import Clock
from anneal.testing import wait_for


class Watch:
    """A time that goes by only when somebody says so."""

    now = 0.0

    def pass_by(self, seconds):
        self.now += seconds


@pytest.fixture
def watch(monkeypatch):
    watch = Watch()
    fake = SimpleNamespace(perf_counter=lambda: watch.now)
    monkeypatch.setattr(progress, "time", fake)
    monkeypatch.setattr(data_wait, "time", fake)
    return watch


class Batches:
    """Four batches that take a time each; without a length they are fetched ahead."""

    def __init__(self, watch, seconds):
        self.watch, self.seconds = watch, seconds

    def __iter__(self):
        for _ in range(4):
            self.watch.pass_by(self.seconds)
            yield (torch.ones(1, 2),)


class Sized(Batches):
    def __len__(self):
        return 4

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Timed(Tiny):
    """A training step takes 3 seconds, a validation step 100."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def training_step(self, batch, batch_idx):
        self.watch.pass_by(3)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.watch.pass_by(100)

    def on_save_checkpoint(self, checkpoint):
        self.watch.pass_by(50)
        super().on_save_checkpoint(checkpoint)


def fit(module, train, folder, val, ckpt_path=None, save=None, **options):
    waited = DataWait()
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[Clock(), waited],
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "log_every_n_steps": 1, **options},
    )
    trainer.fit(module, train, val, ckpt_path=ckpt_path, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    rows = (folder / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("data/wait")
    return waited.share, [float(r.split(",")[column]) for r in rows[1:] if r.split(",")[column]]


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"profiler": "simple"}])
@pytest.mark.parametrize("seconds", [0, 1, 9])
def test_the_share_is_that_of_the_time_without_a_batch(watch, tmp_path, options, seconds):
    val = Sized(watch, 1000)  # a validation counts on neither side
    share, epochs = fit(Timed(watch), Sized(watch, seconds), tmp_path, val, **options)
    assert share == pytest.approx(seconds / (seconds + 3))
    assert epochs == pytest.approx([share, share], abs=1e-6)


def test_a_validation_within_an_epoch_counts_on_neither_side(watch, tmp_path):
    val = Sized(watch, 1000)
    share, _ = fit(Timed(watch), Sized(watch, 1), tmp_path, val, val_check_interval=2)
    assert share == pytest.approx(1 / 4)


def test_batches_that_are_fetched_ahead_count(watch, tmp_path):
    share, _ = fit(Timed(watch), Batches(watch, 1), tmp_path, loader(2))
    # The first one comes before the training begins.
    assert share == pytest.approx(7 / (7 + 24))


def test_a_resumed_run_counts_what_it_has_waited_itself(watch, tmp_path):
    save = tmp_path / "a.ckpt"
    fit(Timed(watch), Sized(watch, 9), tmp_path / "a", loader(2), save=save, max_steps=3)
    options = {"ckpt_path": save, "max_epochs": 3}
    share, epochs = fit(Timed(watch), Sized(watch, 1), tmp_path / "b", loader(2), **options)
    assert share == pytest.approx(1 / 4)
    assert epochs == pytest.approx([share] * 3)


def test_a_profiler_of_ones_own_still_tells(watch, tmp_path):
    profiler = SimpleProfiler(dirpath=tmp_path, filename="profile")
    share, _ = fit(Timed(watch), Sized(watch, 1), tmp_path, loader(2), profiler=profiler)
    assert share == pytest.approx(1 / 4)
    assert len(profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]) == 8


class Slow(Dataset):
    def __init__(self, seconds):
        self.seconds = seconds
        self.made = multiprocessing.Value("i")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(self.seconds)
        with self.made.get_lock():
            self.made.value += 1
        return (torch.ones(2),)


class Sleeps(Tiny):
    """Takes a tenth of a second for a step, and as long as the workers need for the next batch."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.1)
        data = self.trainer.train_dataloader.dataset
        taken = 8 * self.trainer.current_epoch + min(batch_idx + 2, 8)
        wait_for(lambda: data.made.value >= taken)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("module", "seconds", "waits"), [(Tiny, 0.4, True), (Sleeps, 0, False)])
def test_what_workers_do_beside_the_training_is_no_wait(tmp_path, module, seconds, waits):
    train = DataLoader(Slow(seconds), num_workers=2, persistent_workers=True)
    _, epochs = fit(module(), train, tmp_path, loader(2))
    assert (epochs[-1] > 0.5) == waits
    del train
    gc.collect()
    assert not active_children()  # the workers have ended


def test_the_summary_says_how_long_and_what_to_do(run, capsys, monkeypatch):
    run("fit", "--config=small.yaml", "--run_name=quick")
    printed = capsys.readouterr().out
    assert " % of it waiting for data\n" in printed
    monkeypatch.setattr(cli_run, "MOST_WAIT", -1.0)
    run("fit", "--config=small.yaml", "--run_name=slow")
    assert f"waiting        {cli_run.WAIT_ADVICE}\n" in capsys.readouterr().out
