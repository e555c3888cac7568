"""Data of the lab: empty batches for a surface, points of Runge's curve for a polynomial."""

from functools import partial

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from anneal import InMemoryBatches, UserError, resume_position

LIMIT = 2.0
SPACING = 0.1


class Steps(LightningDataModule):
    """An epoch of empty batches, for a loss that takes no samples.

    Args:
        steps: Batches in an epoch.
    """

    def __init__(self, steps: int = 100) -> None:
        super().__init__()
        if steps < 1:
            raise UserError(f"data.steps={steps}: must be at least 1")
        self.steps = steps

    def batch(self, train: bool) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 0), torch.zeros(1, 0)

    def train_dataloader(self) -> InMemoryBatches:
        x, y = (t.expand(self.steps, -1) for t in self.batch(train=True))
        return InMemoryBatches(x, y, 1, position=partial(resume_position, self.trainer))

    def val_dataloader(self) -> InMemoryBatches:
        return InMemoryBatches(*self.batch(train=False), 1)


class CurvePoints(Steps):
    """Points of Runge's curve y = 1 / (1 + 25 x²), without noise (Runge 1901).

    The training points are x = 0, ±0.1, ±0.2, ... ±2; those for validation and test lie halfway
    between, at ±0.05, ±0.15, ... ±1.95. A batch is all of them, x and y (1, points) each. There are
    41 training points, so that a polynomial of degree 38 can nearly pass through all of them and
    take almost any value in between.
    """

    def batch(self, train: bool) -> tuple[Tensor, Tensor]:
        return train_points() if train else test_points()

    def test_dataloader(self) -> InMemoryBatches:
        return self.val_dataloader()


def runge(x: Tensor) -> Tensor:
    """Return y = 1 / (1 + 25 x²)."""
    return 1 / (1 + 25 * x**2)


def train_points() -> tuple[Tensor, Tensor]:
    """Return x and y of the training points, (1, 41) each, float64."""
    n = round(LIMIT / SPACING)
    x = SPACING * torch.arange(-n, n + 1, dtype=torch.float64)[None]
    return x, runge(x)


def test_points() -> tuple[Tensor, Tensor]:
    """Return x and y of the points halfway between, (1, 40) each, float64."""
    x = train_points()[0][:, :-1] + SPACING / 2
    return x, runge(x)
