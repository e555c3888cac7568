"""Small data modules of the three tasks, as a user would write them."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from anneal import InMemoryBatches


class Data(LightningDataModule):
    """Images of noise, 28x28, in which a few squares are as bright as the targets say.

    Args:
        names: Names of the outputs.
        n: Samples of training; a third of them validate, another third tests.
        batch_size: Samples in a batch.
    """

    def __init__(self, names: list[str], n: int = 120, batch_size: int = 16) -> None:
        super().__init__()
        self.class_names = list(names)
        self.batch_size = batch_size
        self.image_shape = (1, 28, 28)
        generator = torch.Generator().manual_seed(0)
        self.bright = torch.rand(n * 5 // 3, len(names), generator=generator)
        self.images = 40 * torch.rand(len(self.bright), 1, 28, 28, generator=generator)
        for i in range(len(names)):
            row, column = divmod(i, 10)
            place = self.images[:, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            place += 200 * self.told()[:, i, None, None]
        self.splits = {
            "train": slice(n),
            "val": slice(n, n * 4 // 3),
            "test": slice(n * 4 // 3, None),
        }
        self.train_targets = self.targets()[:n]

    def told(self) -> Tensor:
        """What the squares show, (N, K) from 0 to 1."""
        return self.bright

    def targets(self) -> Tensor:
        """The targets of all samples."""
        return self.bright

    def train_dataloader(self) -> InMemoryBatches:
        return self._batches("train", True)

    def val_dataloader(self) -> InMemoryBatches:
        return self._batches("val")

    def test_dataloader(self) -> InMemoryBatches:
        return self._batches("test")

    predict_dataloader = test_dataloader

    def _batches(self, split: str, shuffle: bool = False) -> InMemoryBatches:
        part: Any = self.splits[split]
        data = self.images[part].byte(), self.targets()[part]
        return InMemoryBatches.in_run(self.trainer, *data, self.batch_size, shuffle)


class OneOf(Data):
    """One class: that of the brightest square. It does not say its task."""

    def told(self) -> Tensor:
        return torch.nn.functional.one_hot(self.targets(), len(self.class_names)).float()

    def targets(self) -> Tensor:
        return self.bright.argmax(1)


class Labels(Data):
    """The labels whose squares are bright."""

    task = "multilabel"

    def told(self) -> Tensor:
        return self.targets()

    def targets(self) -> Tensor:
        return (self.bright > 0.7).float()


class Values(Data):
    """Numbers around 2000: how bright the squares are."""

    task = "regression"

    def targets(self) -> Tensor:
        return 2000 + 10 * self.bright
