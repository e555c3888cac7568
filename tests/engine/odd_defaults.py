# ruff: noqa: B006, B008 (what a person writes)
"""Classes whose defaults a configuration file can or can't hold."""

import datetime
import enum
import signal
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from yours import MLP


class Colour(enum.Enum):
    """What a person may choose."""

    RED = 1
    BLUE = 2


class Part:
    """Some class."""

    def __init__(self, size: int = 3) -> None:
        self.size = size


def double(x: Any) -> Any:
    """Return twice of it."""
    return 2 * x


half = partial(double, 0.25)


class Held(pl.Callback):
    """Takes what can be written."""

    def __init__(
        self,
        act: Callable[[], nn.Module] = nn.ReLU,
        cls: type[nn.Module] = nn.ReLU,
        colour: Colour = Colour.RED,
        dtype: torch.dtype = torch.float32,
        exact: Decimal = Decimal("1.5"),
        path: Path = Path("x"),
        some: Callable = double,
        step: datetime.timedelta = datetime.timedelta(seconds=3),
        text: str = "on",
    ) -> None:
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class NotHeld(pl.Callback):
    """Takes what can't."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = partial(nn.BatchNorm1d, eps=1e-3),
        scale: Callable[[torch.Tensor], torch.Tensor] = lambda x: x * 2,
        inner: nn.Module = nn.Linear(1, 1),
        inners: Any = (nn.ReLU(), 1),
        part: Part = Part(),
        device: torch.device = torch.device("cpu"),
        device_or_name: torch.device | str | None = torch.device("cpu"),
        weights: torch.Tensor = torch.ones(2),
        number: float = np.float64(0.1),
        named={"a": nn.ReLU(), 2: (1, 2)},
        untyped="1e-3",
    ) -> None:
        vars(self).update({k: v for k, v in locals().items() if k != "self"})


class Net(MLP):
    """Network as a person writes it, with a norm and an activation as torchvision has them."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = partial(nn.BatchNorm1d, eps=1e-3),
        scale: Callable[[torch.Tensor], torch.Tensor] = lambda x: x * 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.net.append(norm(self.num_classes))
        self.scale = scale


class PlainNet(pl.LightningModule):
    """Lightning's hello world, with a hyperparameter that is no plain value."""

    def __init__(self, width: int = 8, act: Callable[[], nn.Module] = partial(nn.ELU, alpha=0.5)):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, width), act(), nn.Linear(width, 10))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0].float() / 255), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.training_step(batch, batch_idx))


class Keeps(pl.Callback):
    """Saves an object."""

    def state_dict(self) -> dict[str, Any]:
        return {"part": Part()}


class Stops(pl.Callback):
    """Ends the process, or asks it to end, at the start of a step."""

    def __init__(self, step: int, asks: bool = False) -> None:
        self.step, self.asks = step, asks

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            if not self.asks:
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
