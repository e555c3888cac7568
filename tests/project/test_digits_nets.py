"""The networks for digits: sizes, and that each can learn."""

import re
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from anneal import UserError
from project.data.digits import MNISTDataModule
from project.models.classifier import Classifier
from project.models.digits import MLP, MNISTConvNet, SoftmaxRegression


@pytest.mark.parametrize("network", [SoftmaxRegression, MLP, MNISTConvNet])
def test_the_docstring_gives_the_number_of_parameters(network: type[Classifier]) -> None:
    stated = re.search(r"([\d,]+) parameters", network.__doc__ or "")
    assert stated
    count = sum(p.numel() for p in network().parameters())
    assert f"{count:,}" == stated[1]


def test_the_docstring_gives_the_size_of_other_convolutional_nets() -> None:
    doc = " ".join((MNISTConvNet.__doc__ or "").split())
    for sizes, text in (
        ({"width": 24}, "(24: {:,} parameters)"),
        ({"depth": 1}, "(1: {:,} parameters;"),
        ({"width": 12, "depth": 1}, "with width 12: {:,})"),
    ):
        count = sum(p.numel() for p in MNISTConvNet(**sizes).parameters())
        assert text.format(count) in doc


@pytest.mark.parametrize(
    "build",
    [
        SoftmaxRegression,
        MLP,
        partial(MLP, depth=0),
        partial(MLP, depth=3, width=32, activation="Tanh"),
        MNISTConvNet,
        partial(MNISTConvNet, width=8, depth=1),
        partial(MNISTConvNet, width=8, stride=2),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_each_network_overfits_one_batch(build, precision: str) -> None:
    seed_everything(0, verbose=False)
    module = build(optimizer=partial(torch.optim.Adam, lr=0.01))
    trainer = Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=60,
        overfit_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, MNISTDataModule(batch_size=32))
    assert trainer.callback_metrics["train/acc"] == 1
    assert trainer.callback_metrics["train/loss"] < 0.1


@pytest.mark.parametrize(
    ("network", "sizes"),
    [(MLP, {"width": 0}), (MLP, {"depth": -1}), (MNISTConvNet, {"depth": 0})],
)
def test_sizes_that_make_no_network_are_refused(network, sizes):
    with pytest.raises(UserError, match="at least"):
        network(**sizes)
