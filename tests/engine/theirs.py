"""Modules and callbacks as users write them, without a word of ours."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from anneal import Schedule, configure_optimizers


class Plain(pl.LightningModule):
    """Lightning's hello world, with what it logs over an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
        self.train_acc = MulticlassAccuracy(10)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.net(batch[0].float() / 255)
        loss = F.cross_entropy(logits, batch[1])
        self.train_acc(logits, batch[1])
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = F.cross_entropy(self.net(batch[0].float() / 255), batch[1])
        self.log_dict({"val/loss": loss, "val/acc": -loss})


class Plateau(Plain):
    """With Lightning's own handling of a plateau."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-2, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.05)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"},
        }


class Schedulers(Plain):
    """One optimizer and two schedulers of torch, of a step and of an epoch."""

    def configure_optimizers(self) -> Any:
        o = torch.optim.SGD(self.parameters(), lr=0.1)
        rise = {"scheduler": torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 5), "interval": "step"}
        return [o], [rise, torch.optim.lr_scheduler.ExponentialLR(o, 0.5)]


class Two(Plain):
    """Two optimizers and no automatic optimization, as in a GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(10, 10)

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (self.net, self.other)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(optimizers[0], 1, 0.5)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            logits = self.other(self.net(batch[0].float() / 255))
            loss = F.cross_entropy(logits, batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss)

    def on_train_epoch_end(self) -> None:
        self.lr_schedulers().step()


class KeepsInGroups(torch.optim.SGD):
    """An optimizer with state in its parameter groups, from the start and from its first step."""

    def __init__(self, params: Any, lr: float = 0.1, d0: float = 1e-3) -> None:
        super().__init__(params, lr)
        self.defaults |= {"d": d0}
        for group in self.param_groups:
            group["d"] = d0

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["d"] *= 1.1
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"] * group["d"] * group["k"])
        return loss


class Adaptive(Plain):
    """That optimizer, with a schedule of ours."""

    def configure_optimizers(self) -> Any:
        return configure_optimizers(
            self, KeepsInGroups, Schedule(lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
        )


class Frozen(Plain):
    """A schedule of ours over groups of which one comes later."""

    def configure_optimizers(self) -> Any:
        return configure_optimizers(self, torch.optim.Adam, Schedule(warmup_steps=3))


class Unfreeze(BaseFinetuning):
    """Trains the last layer alone for an epoch."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.net[1])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[1], optimizer, lr=1e-4)


class Loaders(pl.LightningDataModule):
    """torch's own DataLoader, whose order and noise follow from torch's random numbers."""

    class_names = tuple("0123456789")

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (96, 1, 28, 28), generator=generator, dtype=torch.uint8)
        return DataLoader(
            TensorDataset(images, images[:, 0, 5, 5].long() % 10),
            batch_size=12,
            shuffle=True,
            collate_fn=_noisy,
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataloader().dataset, batch_size=32)


def _noisy(samples: list[Any]) -> list[Tensor]:
    images = torch.stack([image for image, _ in samples]) // 2
    images += torch.randint(0, 2, images.shape, dtype=torch.uint8)
    return [images, torch.stack([label for _, label in samples])]
