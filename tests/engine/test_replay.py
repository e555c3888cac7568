"""A step that fails is repeated bit for bit, and its layer, tensor and sample are named."""

import json
import re

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from anneal import InMemoryBatches, Schedule, configure_optimizers

SAMPLES, BAD = 24, 13  # of which one is bad


class Points(Dataset):
    """Samples of 4 numbers and a label, one of them as a fault has it."""

    def __init__(self, fault: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.fault = fault
        self.x = torch.rand(SAMPLES, 4, generator=generator) + 0.5
        self.y = torch.arange(SAMPLES) % 3
        if fault == "pixel":
            self.x[BAD, 2] = float("nan")

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i):
        return self.x[i], self.y[i]


class Data(pl.LightningDataModule):
    def __init__(self, fault: str = "", torchs: bool = False, batch_size: int = 4) -> None:
        super().__init__()
        self.points = Points(fault)
        self.torchs = torchs
        self.batch_size = batch_size

    def train_dataloader(self):
        p = self.points
        if self.torchs:
            return DataLoader(p, self.batch_size, shuffle=True)
        return InMemoryBatches.in_run(self.trainer, p.x, p.y, self.batch_size, shuffle=True)


class Net(pl.LightningModule):
    def __init__(self, fault: str = "", at: int = 9, optimizer=None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        with torch.no_grad(): print("STEP", self.global_step, float(x.sum()), loss.item(), [p.sum().item() for p in self.parameters()])
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


RECIPE = """
trainer: {max_epochs: 3, accelerator: cpu, logger: false, log_every_n_steps: 1}
checkpoint: {monitor: train/loss, save_top_k: 0}
model: {class_path: test_replay.Net}
data: {class_path: test_replay.Data}
"""


@pytest.mark.parametrize("torchs", ["true", "false"])
def test_it(run, tmp_path, capsys, torchs):
    (tmp_path / "points.yaml").write_text(RECIPE)
    with pytest.raises(SystemExit):
        run("fit", "--config=points.yaml", "--run_name=r", "--data.fault=pixel", f"--data.torchs={torchs}")
    out = capsys.readouterr()
    print(out.out[-1500:], out.err)
    f = next((tmp_path / "runs/r").glob("failure*"))
    print(f.read_text())
    run("replay", str(f))
