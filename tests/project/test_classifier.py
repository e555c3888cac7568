"""The classifiers' metrics, loss, normalisation and checkpoints."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from torch import Tensor, nn

from anneal import InMemoryBatches, Schedule, UserError
from project.data.digits import MNISTDataModule
from project.models.classifier import Classifier
from project.models.digits import MLP, MNISTConvNet, SoftmaxRegression

RECIPE = """
trainer: {max_epochs: 1, limit_train_batches: 3, accelerator: cpu, logger: false}
model:
  class_path: MNISTConvNet
  init_args:
    width: 8
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.1}}
    schedule: {warmup_steps: 2}
data: MNISTDataModule
"""
SGD = partial(torch.optim.SGD, lr=0.1)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_epochs": 1,
}


class Shift(nn.Flatten):
    """Adds a number to all logits, which changes nothing but can be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.number


class Fixed(Classifier):
    """A classifier whose logits are its pixels."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mean=[0.0], std=[1 / 255], **kwargs)
        self.net = Shift()


class Samples(LightningDataModule):
    """The same few samples for everything."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int = 8) -> None:
        super().__init__()
        self.batches = InMemoryBatches(images, labels, batch_size)

    def train_dataloader(self) -> InMemoryBatches:
        return self.batches

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def random_samples(n: int = 203, classes: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 1, 1, classes, generator=generator)
    return images, torch.randint(0, classes, (n,), generator=generator)


def hand_count(images: Tensor, labels: Tensor) -> dict[str, float]:
    logits = images.flatten(1)
    hits = logits.argmax(1) == labels
    ranked = logits.argsort(1, descending=True)[:, :3]
    return {
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "acc": hits.double().mean().item(),
        "acc_macro": sum(hits[labels == c].double().mean().item() for c in range(10)) / 10,
        "f1_macro": sum(
            2
            * (hits & (labels == c)).sum().item()
            / ((labels == c).sum() + (logits.argmax(1) == c).sum()).item()
            for c in range(10)
        )
        / 10,
        "acc_top3": (ranked == labels[:, None]).any(1).double().mean().item(),
    }


def test_the_metrics_of_all_samples_are_those_counted_by_hand() -> None:
    images, labels = random_samples()
    module, data, trainer = Fixed(), Samples(images, labels), Trainer(**QUIET)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        result = run(module, data, verbose=False)[0]
        expected = {f"{stage}/{k}": v for k, v in hand_count(images, labels).items()}
        assert result == pytest.approx(expected, abs=1e-6)


def test_acc_is_right_over_all_and_macro_has_its_own_name() -> None:
    labels = torch.tensor([0] * 90 + [1] * 6 + [2] * 4)
    images = F.one_hot(torch.zeros_like(labels), 10).float()[:, None, None]  # always says 0
    result = Trainer(**QUIET).validate(Fixed(), Samples(images, labels), verbose=False)[0]
    assert result["val/acc"] == pytest.approx(0.9)
    assert result["val/acc_macro"] == pytest.approx(1 / 3)


def test_top3_is_left_out_with_three_classes() -> None:
    data = Samples(*random_samples(classes=3))
    result = Trainer(**QUIET).validate(Fixed(num_classes=3), data, verbose=False)[0]
    assert set(result) == {"val/loss", "val/acc", "val/acc_macro", "val/f1_macro"}


def test_label_smoothing_is_for_training_only() -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET | {"num_sanity_val_steps": 0})
    trainer.fit(Fixed(optimizer=SGD, label_smoothing=0.5), Samples(images, labels, 203))
    smooth = F.cross_entropy(images.flatten(1), labels, label_smoothing=0.5)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(smooth.item(), abs=1e-6)
    plain = hand_count(images, labels)["loss"]
    assert trainer.callback_metrics["val/loss"] == pytest.approx(plain, abs=1e-6)


# Preprocessing


def test_images_may_be_bytes_or_floats() -> None:
    module = MNISTConvNet().eval()
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(module(images), module(images.float()))


def test_normalisation_travels_with_the_checkpoint(tmp_path: Path) -> None:
    module = SoftmaxRegression(mean=[0.4], std=[0.2], optimizer=SGD)
    trainer = Trainer(**QUIET | {"limit_train_batches": 1})
    trainer.fit(module, MNISTDataModule())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    loaded = SoftmaxRegression.load_from_checkpoint(tmp_path / "x.ckpt")
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(loaded(images), module(images))
    black = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    linear = module.net[1]  # type: ignore[index]
    assert torch.allclose(module(black), linear(torch.full((1, 784), -2.0)))


# Class names and checkpoints


def test_another_number_of_classes_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="10 classes in the data, 12 in the model"):
        Trainer(**QUIET).fit(MLP(num_classes=12), MNISTDataModule())


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The checkpoint of a module made in Python, with an optimizer that is a function."""
    seed_everything(0, verbose=False)
    module = MNISTConvNet(
        width=8,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        schedule=Schedule(warmup_steps=2),
    )
    trainer = Trainer(**QUIET | {"limit_train_batches": 3})
    trainer.fit(module, MNISTDataModule())
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    return tmp_path / "trained.ckpt"


def test_a_checkpoint_loads_without_the_command_line(trained: Path) -> None:
    module = MNISTConvNet.load_from_checkpoint(trained)
    assert module.class_names == list("0123456789")
    assert module.hparams["width"] == 8
    checkpoint = torch.load(trained, weights_only=True)
    assert checkpoint["class_names"] == list("0123456789")
    assert not any("_orig_mod" in key for key in checkpoint["state_dict"])


def test_a_checkpoint_from_the_command_line_loads_without_it(run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    trained = run("fit", "--config=recipe.yaml", "--run_name=it").model
    path = tmp_path / "runs/it/checkpoints/last.ckpt"
    torch.load(path, weights_only=True)
    module = MNISTConvNet.load_from_checkpoint(path)
    assert module.hparams["width"] == 8
    assert module.schedule.warmup_steps == 2
    assert module.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.1
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.allclose(module.eval()(images), trained.eval()(images), atol=1e-5)


def test_balanced_class_weights_are_those_of_the_digits() -> None:
    model, data = MLP(width=8, depth=1, optimizer=SGD, class_weight="balanced"), MNISTDataModule()
    Trainer(**QUIET | {"limit_train_batches": 1, "limit_val_batches": 1}).fit(model, data)
    counts = data.splits["train"][1].bincount()
    assert model.task.weight is not None
    torch.testing.assert_close(model.task.weight, counts.sum() / (10 * counts))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"top_k": 0}, "model: top_k=0 must be at least 1"),
        ({"mean": []}, r"model: mean=\[\] and std=\[0.*\] need a number for each channel"),
        ({"mean": [0.1, 0.2]}, r"model: mean=\[0.1, 0.2\] and std=\[0.*\] need a number"),
        ({"std": [-1.0]}, r"model: std=\[-1.0\] must be more than 0"),
    ],
)
def test_a_wrong_option_is_named_without_the_right_ones(option, message) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        MLP(optimizer=SGD, **option)
