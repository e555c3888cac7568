import atexit
import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.cli import LightningCLI
from torch import Tensor, nn
from torch.distributed import destroy_process_group

from anneal.data.in_memory import InMemoryBatches
from anneal.errors import UserError
from anneal.optim.configure import Schedule
from project.data.digits import MNISTDataModule
from project.models.classifier import Classifier
from project.models.digits import MLP, MNISTConvNet, SoftmaxRegression

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
    """Its logits are its pixels."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mean=[0.0], std=[1 / 255], **kwargs)
        self.net = Shift()


class Samples(LightningDataModule):
    """The same few samples for everything."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int = 8) -> None:
        super().__init__()
        self.samples = images, labels
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        if self.trainer.world_size > 1:  # what `main` does for the processes of a command
            atexit.register(destroy_process_group)

    def train_dataloader(self) -> InMemoryBatches:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return InMemoryBatches(*self.samples, self.batch_size, rank=rank, world_size=world_size)

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
        "acc_top3": (ranked == labels[:, None]).any(1).double().mean().item(),
    }


@pytest.mark.parametrize("batch_size", [1, 8, 41, 64, 500])
def test_metrics_are_exact_for_every_batch_size(batch_size: int) -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET)
    module, data = Fixed(), Samples(images, labels, batch_size)
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
    assert set(result) == {"val/loss", "val/acc", "val/acc_macro"}


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_the_sanity_check_leaves_nothing_behind(sanity_steps: int) -> None:
    images, labels = random_samples()
    images[:16] = 20 * F.one_hot(labels[:16], 10)[:, None, None]  # the first two batches are easy
    trainer = Trainer(**QUIET | {"num_sanity_val_steps": sanity_steps})
    trainer.fit(Fixed(optimizer=SGD), Samples(images, labels))
    for name, value in hand_count(images, labels).items():
        assert trainer.callback_metrics[f"val/{name}"] == pytest.approx(value, abs=1e-6)


def test_train_acc_counts_every_sample_of_the_epoch() -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET | {"max_epochs": 2})
    trainer.fit(Fixed(optimizer=SGD), Samples(images, labels))
    expected = hand_count(images, labels)["acc"]
    assert trainer.callback_metrics["train/acc"] == pytest.approx(expected, abs=1e-6)


def test_test_step_returns_what_pictures_of_mistakes_need() -> None:
    images, labels = random_samples(8)
    module = Fixed()
    module.trainer = Trainer(**QUIET)
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    out = module.test_step((images, labels), 0)
    assert torch.equal(out["preds"], images.flatten(1).argmax(1))
    assert torch.equal(out["target"], labels)
    assert torch.allclose(out["loss"], F.cross_entropy(images.flatten(1), labels, reduction="none"))


def test_label_smoothing_is_for_training_only() -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET | {"num_sanity_val_steps": 0})
    trainer.fit(Fixed(optimizer=SGD, label_smoothing=0.5), Samples(images, labels, 203))
    smooth = F.cross_entropy(images.flatten(1), labels, label_smoothing=0.5)
    assert trainer.callback_metrics["train/loss"] == pytest.approx(smooth.item(), abs=1e-6)
    plain = hand_count(images, labels)["loss"]
    assert trainer.callback_metrics["val/loss"] == pytest.approx(plain, abs=1e-6)


def test_predict_gives_probabilities_that_agree_with_the_metric() -> None:
    images, labels = random_samples()
    module, data, trainer = Fixed(), Samples(images, labels), Trainer(**QUIET)
    batches = trainer.predict(module, data)
    assert batches
    probabilities = torch.cat([p for p in batches if isinstance(p, Tensor)])
    assert torch.allclose(probabilities.sum(1), torch.ones(203))
    right = (probabilities.argmax(1) == labels).float().mean().item()
    assert trainer.validate(module, data, verbose=False)[0]["val/acc"] == pytest.approx(right)


def test_two_processes_count_each_sample_once() -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET, devices=2, strategy="ddp_spawn")
    trainer.fit(Fixed(optimizer=SGD), Samples(images, labels))
    expected = hand_count(images, labels)
    assert trainer.callback_metrics["train/acc"] == pytest.approx(expected["acc"], abs=1e-6)
    for name, value in expected.items():
        assert trainer.callback_metrics[f"val/{name}"] == pytest.approx(value, abs=1e-6), name


def test_metrics_that_agree_on_the_first_batch_stay_apart() -> None:
    labels = torch.arange(10).repeat(4)
    images = F.one_hot(labels, 10).float()[:, None, None]
    images[20:] = images[20:].roll(1, dims=-1)  # wrong from the third batch on
    images[20:] += F.one_hot(labels[20:], 10)[:, None, None] / 2  # but in second place
    result = Trainer(**QUIET).validate(Fixed(), Samples(images, labels, 10), verbose=False)[0]
    assert result["val/acc"] == 0.5
    assert result["val/acc_top3"] == 1.0


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


def test_a_checkpoint_of_other_classes_is_refused(trained: Path) -> None:
    data = MNISTDataModule()
    data.class_names[3] = "Drei"
    match = "class 3 is '3' in the checkpoint and 'Drei' in the data"
    for run in (Trainer(**QUIET).fit, Trainer(**QUIET).test):
        with pytest.raises(UserError, match=match):
            run(MNISTConvNet(width=8, optimizer=SGD), data, ckpt_path=trained)
    with pytest.raises(UserError, match=match):
        Trainer(**QUIET).test(MNISTConvNet.load_from_checkpoint(trained), data)


def test_the_names_of_a_checkpoint_survive_data_without_names(trained: Path) -> None:
    module = MNISTConvNet.load_from_checkpoint(trained)
    Trainer(**QUIET).predict(module, Samples(torch.zeros(4, 1, 28, 28), torch.zeros(4)))
    assert module.class_names == list("0123456789")


def test_a_checkpoint_from_the_command_line_loads_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    cli = LightningCLI(
        Classifier,
        MNISTDataModule,
        subclass_mode_model=True,
        save_config_callback=None,
        auto_configure_optimizers=False,
        run=False,
        trainer_defaults=copy.deepcopy(QUIET) | {"limit_train_batches": 3},
        args=[
            "--model=MNISTConvNet",
            "--model.width=8",
            "--model.optimizer=torch.optim.SGD",
            "--model.optimizer.lr=0.1",
            "--model.schedule.warmup_steps=2",
        ],
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    path = tmp_path / "x.ckpt"
    cli.trainer.save_checkpoint(path)
    torch.load(path, weights_only=True)
    module = MNISTConvNet.load_from_checkpoint(path)
    assert module.hparams["width"] == 8
    assert module.schedule.warmup_steps == 2
    assert module.optimizer([nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.1
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    assert torch.allclose(module.eval()(images), cli.model.eval()(images), atol=1e-5)
