"""What the engine's base of classifiers promises: exact metrics, class names, checkpoints."""

import atexit
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.distributed import destroy_process_group
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from anneal import ClassificationModule, InMemoryBatches, UserError
from anneal.tasks.try_images import try_images

SMALL = "^Sees can't take images of 1 x 4 x 4: mat1"
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


class Fixed(ClassificationModule):
    """A classifier whose logits are its pixels."""

    def __init__(self, num_classes: int | None = 10, optimizer: Any = SGD) -> None:
        super().__init__(num_classes)
        self.optimizer = optimizer
        if num_classes:
            self.build()

    def build(self) -> None:
        self.net = Shift()

    def metrics(self, num_classes: int) -> dict[str, Metric]:
        kinds = {
            "acc": {"average": "micro"},
            "acc_macro": {"average": "macro"},
            "acc_top3": {"average": "micro", "top_k": 3},
        }
        return {name: MulticlassAccuracy(num_classes, **kind) for name, kind in kinds.items()}

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.count_hits(logits, batch[1])
        return self.loss(logits, batch[1]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


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


class Named(Samples):
    """Samples of classes with names."""

    def __init__(self, *names: str) -> None:
        super().__init__(*random_samples(24, len(names)))
        self.class_names = list(names)


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
        assert module.counts[stage] == 203


@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_the_sanity_check_leaves_nothing_behind(sanity_steps: int) -> None:
    images, labels = random_samples()
    images[:16] = 20 * F.one_hot(labels[:16], 10)[:, None, None]  # the first two batches are easy
    trainer = Trainer(**QUIET | {"num_sanity_val_steps": sanity_steps})
    trainer.fit(Fixed(), Samples(images, labels))
    for name, value in hand_count(images, labels).items():
        assert trainer.callback_metrics[f"val/{name}"] == pytest.approx(value, abs=1e-6)


def test_train_acc_counts_every_sample_of_the_epoch() -> None:
    images, labels = random_samples()
    trainer = Trainer(**QUIET | {"max_epochs": 2})
    trainer.fit(Fixed(), Samples(images, labels))
    expected = hand_count(images, labels)["acc"]
    assert trainer.callback_metrics["train/acc"] == pytest.approx(expected, abs=1e-6)


def test_test_step_returns_what_figures_of_a_test_need() -> None:
    images, labels = random_samples(8)
    module = Fixed()
    module.trainer = Trainer(**QUIET)
    module.configure_model()
    out = module.test_step((images, labels), 0)
    assert torch.equal(out["preds"], images.flatten(1).argmax(1))
    assert torch.equal(out["target"], labels)
    assert torch.allclose(out["loss"], F.cross_entropy(images.flatten(1), labels, reduction="none"))


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
    trainer = Trainer(**QUIET, devices=2, strategy="ddp_fork")
    trainer.fit(Fixed(), Samples(images, labels))
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


# Class names and checkpoints


def test_another_number_of_classes_is_refused_before_training() -> None:
    with pytest.raises(UserError, match="3 classes in the data, 12 in the model"):
        Trainer(**QUIET).fit(Fixed(12), Named("cat", "dog", "owl"))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """The checkpoint of a module that takes the number of its classes from the data."""
    trainer = Trainer(**QUIET)
    trainer.fit(Fixed(None), Named("cat", "dog", "owl"))
    trainer.save_checkpoint(tmp_path / "trained.ckpt")
    return tmp_path / "trained.ckpt"


def test_a_checkpoint_holds_plain_values_and_the_names_of_the_classes(trained: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    assert checkpoint["class_names"] == ["cat", "dog", "owl"]
    assert checkpoint["hyper_parameters"] == {"num_classes": 3}  # an optimizer is no plain value
    module = Fixed.load_from_checkpoint(trained)
    assert module.class_names == ["cat", "dog", "owl"]


def test_a_checkpoint_of_other_classes_is_refused(trained: Path) -> None:
    data = Named("cat", "dog", "Eule")
    match = "class 2 is 'owl' in the checkpoint and 'Eule' in the data"
    for run in (Trainer(**QUIET).fit, Trainer(**QUIET).test):
        with pytest.raises(UserError, match=match):
            run(Fixed(3), data, ckpt_path=trained)
    with pytest.raises(UserError, match=match):
        Trainer(**QUIET).test(Fixed.load_from_checkpoint(trained), data)


def test_the_names_of_a_checkpoint_survive_data_without_names(trained: Path) -> None:
    module = Fixed.load_from_checkpoint(trained)
    Trainer(**QUIET).predict(module, Samples(*random_samples(4, 3)))
    assert module.class_names == ["cat", "dog", "owl"]


def test_a_classifier_has_two_classes_or_more() -> None:
    assert Fixed(2).num_classes == 2
    with pytest.raises(UserError, match=r"model.num_classes=0: must be at least 1"):
        Fixed(0)
    with pytest.raises(UserError, match="classification needs at least 2 classes, not 1"):
        Trainer(**QUIET).fit(Fixed(None), Named("cat"))


def test_what_was_counted_within_an_epoch_is_saved_and_counted_on() -> None:
    module = Fixed(3)
    module.trainer = Trainer(**QUIET)
    module.on_load_checkpoint({"hits_and_seen": [3, 8]})
    module.on_train_start()
    module.count_hits(torch.eye(3), torch.tensor([0, 1, 0]))
    saved: dict[str, Any] = {}
    module.on_save_checkpoint(saved)
    assert saved["hits_and_seen"] == [5, 11]


# The network and the images


class Sees(Fixed):
    """Remembers the images that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.seen: set[tuple[int, ...]] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(tuple(images.shape))
        if images.shape[-1] == 6:
            raise KeyError("one of the user's own: it shows itself in the training")
        return super().forward(images)


@pytest.mark.parametrize("first", [8, 6, 4])
def test_images_of_the_first_and_the_last_size_are_tried(first: int) -> None:
    data = SimpleNamespace(image_shape=(1, 8, 8), size_of=lambda epoch: 8 if epoch else first)
    module = Sees()
    with nullcontext() if first > 4 else pytest.raises(UserError, match=SMALL):
        try_images(module, data)
    assert (2, 1, first, first) in module.seen
    assert all(part.training for part in module.modules())
    module.seen.clear()
    try_images(module, SimpleNamespace(image_shape=(1, 8, 8)))
    assert module.seen == {(2, 1, 8, 8)}


def test_a_prediction_takes_the_number_of_classes_from_the_checkpoint(trained: Path) -> None:
    module = Fixed(None)
    Trainer(**QUIET).predict(module, Samples(*random_samples(4, 3)), ckpt_path=trained)
    assert (module.num_classes, module.class_names) == (3, ["cat", "dog", "owl"])
