"""The smallest module and data that go through the real optimizer, schedule and Trainer."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from anneal.optim.configure import Schedule, configure_optimizers


class Tiny(pl.LightningModule):
    """A linear fit whose `val/loss` and `val/acc` follow a list, one value for each validation."""

    def __init__(
        self, optimizer=None, schedule=None, decay_norm=True, decay_bias=True, values=(), net=None
    ):
        super().__init__()
        self.net = net or nn.Linear(2, 1)
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=1.0)
        self.schedule = schedule or Schedule()
        self.decay_norm, self.decay_bias = decay_norm, decay_bias
        self.values = list(values)
        self.validations = 0
        self.lrs: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def on_before_optimizer_step(self, optimizer) -> None:
        self.lrs.append([g["lr"] for g in optimizer.param_groups])

    def validation_step(self, batch, batch_idx) -> None:
        value = self.values[self.validations] if self.validations < len(self.values) else 1.0
        self.log_dict({"val/loss": value, "val/acc": value}, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        self.validations += not self.trainer.sanity_checking

    def on_save_checkpoint(self, checkpoint) -> None:
        checkpoint["validations"] = self.validations

    def on_load_checkpoint(self, checkpoint) -> None:
        self.validations = checkpoint["validations"]

    def configure_optimizers(self) -> Any:
        return configure_optimizers(
            self, self.optimizer, self.schedule, self.decay_norm, self.decay_bias
        )


def loader(batches: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(batches, 2, generator=generator)), batch_size=1)


def fit(module: Tiny, batches: int = 8, ckpt_path: Any = None, save: Any = None, **kwargs: Any):
    """Trains `module` and returns the learning rate of its first group at each optimizer step."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**settings | kwargs)
    trainer.fit(module, loader(batches), loader(2), ckpt_path=ckpt_path, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return [lrs[0] for lrs in module.lrs]


class Few(pl.LightningDataModule):
    """Fewer samples than a batch, in a loader that drops what does not fill one."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(3, 2)), batch_size=4, drop_last=True)


class Points(pl.LightningDataModule):
    """Samples that are no images, with targets."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(4, 2), torch.zeros(4)), batch_size=4)


class Own(pl.LightningDataModule):
    """Noise in two classes, as a data module of a user's that says no more than it has to."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names = [str(i) for i in range(10)]

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        images = 255 * torch.rand(64, 1, 28, 28, generator=generator)
        return DataLoader(TensorDataset(images, torch.arange(64) % 2), batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class NoPrediction(Own):
    """The same, with nothing to predict."""

    predict_dataloader = pl.LightningDataModule.predict_dataloader


class Crash(pl.Callback):
    """Ends a training without warning.

    Args:
        step: Optimizer steps that are still taken.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError("crash")


class Signal(pl.Callback):
    """Sends this process a signal.

    Args:
        step: Optimizer steps before it.
        number: Of the signal.
    """

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_train_batch_start(self, trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(self.number)


class Interrupt(Crash):
    """Ends a training as Ctrl-C does."""

    def on_train_batch_start(self, trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


class BusError(v2.Transform):
    """An augmentation that ends the worker as a full /dev/shm does."""

    def forward(self, image):
        os.kill(os.getpid(), signal.SIGBUS)


class Refuses(pl.Callback):
    """Raises an error of its own where it is told to.

    Args:
        where: Name of a hook, or `init`.
    """

    def __init__(self, where: str = "init") -> None:
        self.where = where
        self.refuse("init")

    def refuse(self, where: str) -> None:
        if where == self.where:
            raise KeyError(f"in {where}")

    def setup(self, *args: Any, **kwargs: Any) -> None:
        self.refuse("setup")

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.refuse("on_train_batch_end")


class Stop(pl.Callback):
    """Asks once, in the first epoch, that the training ends."""

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 0:
            trainer.should_stop = True


class Choice(Tiny):
    """A module whose optimizer is its own affair.

    Args:
        lr: Learning rate of SGD; 0: there is no optimizer.
    """

    def __init__(self, lr: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))
        self.lr = lr

    def training_step(self, batch, batch_idx):
        return super().training_step([batch[0].float()], batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr) if self.lr else None


class CrashIfNamed(pl.Callback):
    """Ends a training in its second epoch if the file `crash` has the name of its run."""

    def on_train_batch_start(self, trainer, *args: Any) -> None:
        told = Path("crash").read_text() if Path("crash").exists() else ""
        if trainer.current_epoch == 1 and Path(trainer.default_root_dir).name in told:
            raise OSError("crash")


class KillIfFirst(pl.Callback):
    """Kills all processes of a training at this step, before which a checkpoint was saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.ckpt_path:
            os.killpg(0, signal.SIGKILL)
