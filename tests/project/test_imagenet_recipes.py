"""Every ImageNet recipe against its source: what is in force at each optimizer step of a whole run.

What a source says is written here as plain arithmetic, without torch's schedulers and the engine's.
The recipe is read by the command line as it stands in configs/; nothing is trained.
"""

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, wraps
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models
from torchvision import transforms as T
from torchvision.transforms import v2

from anneal import EMA, MixUpCutMix, RunSchedule, parameter_groups
from anneal.testing import main
from project.models.resnet import ImageClassifier

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGES = 1_281_167  # in ImageNet's training set

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*:UserWarning"),  # nothing is trained
    pytest.mark.filterwarnings("ignore:.*self.log.*:UserWarning"),  # without a trainer
]


@dataclass
class Source:
    """What the source of a recipe says.

    Args:
        batch: Images in an optimizer step, all processes together.
        epochs: Length of the run.
        rate: The learning rate by epoch and by part of the epoch that is done, 0 to below 1.
        decay: Weight decay of each group of parameters, and how many tensors are in it.
        one: What makes the same run on one GPU.
        eight: What makes the same run on eight.
    """

    batch: int
    epochs: int
    rate: Callable[[np.ndarray, np.ndarray], np.ndarray]
    decay: dict[str, tuple[float, int]]
    one: tuple[str, ...] = ("--trainer.accumulate_grad_batches=8",)
    eight: tuple[str, ...] = ()


def stairs(epoch: np.ndarray, part: np.ndarray) -> np.ndarray:
    """pytorch/examples: a tenth every 30 epochs."""
    return 0.1 * 0.1 ** (epoch // 30)


def torchvision_2021(epoch: np.ndarray, part: np.ndarray) -> np.ndarray:
    """LinearLR from 0.01 over 5 epochs, then CosineAnnealingLR over 595, both once an epoch."""
    rising = 0.5 * (0.01 + 0.99 * epoch / 5)
    return np.where(epoch < 5, rising, 0.5 * (1 + np.cos(np.pi * (epoch - 5) / 595)) / 2)


def ffcv(peak: float, epochs: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A line from peak / 10,000 to the peak at epoch 2 and one to 0, cut into steps by epoch."""

    def rate(epoch: np.ndarray, part: np.ndarray) -> np.ndarray:
        start, end = (
            np.interp(e, [0, 2, epochs], [1e-4 * peak, peak, 0]) for e in (epoch, epoch + 1)
        )
        return start + part * (end - start)

    return rate


SOURCES = {
    "imagenet_resnet50_2015": Source(256, 90, stairs, {"": (1e-4, 161)}),
    "imagenet_resnet18_2015": Source(256, 90, stairs, {"": (1e-4, 62)}),
    "imagenet_resnet50_modern": Source(
        1024, 600, torchvision_2021, {"decay": (2e-5, 55), "no_decay": (0.0, 106)}
    ),
    "imagenet_resnet50_fast": Source(
        4096, 24, ffcv(1.7, 24), {"decay": (1e-4, 55), "no_decay": (0.0, 106)}
    ),
    "imagenet_resnet18_fast": Source(
        1024,
        24,
        ffcv(0.5, 24),
        {"decay": (5e-5, 22), "no_decay": (0.0, 40)},
        one=(),
        eight=("--data.batch_size=128",),
    ),
}


class Photos:
    """As many pictures as ImageNet has, without the pictures."""

    class_names = [str(i) for i in range(1000)]  # noqa: RUF012

    def __len__(self) -> int:
        return IMAGES

    def order(self, generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(IMAGES, generator=generator)


class Planned(Exception):
    """Ends a command where its training would begin, with what would be trained."""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the command line makes of a recipe: its trainer and its schedule, begun."""
    build = ImageClassifier.build

    def build_without_weights(module: ImageClassifier) -> None:
        with torch.device("meta"):
            build(module)

    @wraps(pl.Trainer.fit)
    def stop(trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        given = [*args, *kwargs.values()]
        (module,) = (value for value in given if isinstance(value, pl.LightningModule))
        (data,) = (value for value in given if isinstance(value, pl.LightningDataModule))
        raise Planned(trainer, module, data)

    @cache
    def planned(recipe: str, *args: str) -> tuple[pl.Trainer, RunSchedule]:
        quick = "--trainer.accelerator=cpu", "--model.num_classes=1000"
        with pytest.raises(Planned) as e:
            main(["fit", f"--config={CONFIGS / recipe}.yaml", *quick, *args])
        trainer, module, data = e.value.args
        trainer.strategy.connect(module)
        module.trainer = data.trainer = trainer
        trainer.datamodule = data
        data.splits = {"train": Photos()}
        trainer.fit_loop.max_batches = len(data.train_dataloader())
        schedule = module.configure_optimizers()["lr_scheduler"]["scheduler"]
        for callback in trainer.callbacks[:2]:  # the clock, and what tells the schedule the length
            callback.on_train_start(trainer, module)
        return trainer, schedule

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageClassifier, "build", build_without_weights)
        patch.setattr(pl.Trainer, "fit", stop)
        patch.chdir(tmp_path_factory.mktemp("run"))
        yield planned


def in_force(schedule: RunSchedule, accuracies: Sequence[float] = ()) -> np.ndarray:
    """Rate, momentum and weight decay of each group at each optimizer step, (steps, groups, 3)."""
    groups, read = schedule.optimizer.param_groups, itemgetter("lr", "momentum", "weight_decay")

    def run() -> Iterator[tuple[float, ...]]:
        for epoch in range(schedule.total_steps // schedule.steps_per_epoch):
            for _ in range(schedule.steps_per_epoch):
                yield from map(read, groups)
                schedule.step()
            if accuracies:
                schedule.step_metric(accuracies[epoch])

    return np.fromiter(run(), np.dtype((float, 3))).reshape(-1, len(groups), 3)


def expected(source: Source) -> np.ndarray:
    per_epoch = math.ceil(IMAGES / source.batch)
    step = np.arange(source.epochs * per_epoch)
    rates = source.rate(step // per_epoch, step % per_epoch / per_epoch)
    decay = [weight_decay for weight_decay, _ in source.decay.values()]
    return np.stack(np.broadcast_arrays(rates[:, None], 0.9, decay), axis=-1)


@pytest.mark.parametrize("gpus", [1, 8])
@pytest.mark.parametrize("recipe", SOURCES)
def test_each_step_has_the_rate_momentum_and_decay_of_the_source(planned, recipe, gpus):
    source = SOURCES[recipe]
    more = source.one if gpus == 1 else source.eight
    _, schedule = planned(recipe, f"--trainer.devices={gpus}", *more)
    assert np.abs(in_force(schedule) - expected(source)).max() <= 1e-12
    groups = schedule.optimizer.param_groups
    assert {g.get("name", ""): len(g["params"]) for g in groups} == {
        name: tensors for name, (_, tensors) in source.decay.items()
    }


@pytest.mark.parametrize("gpus", [1, 8])
def test_plateau_cuts_three_times_to_a_tenth_when_the_accuracy_stalls(planned, gpus):
    noise = np.random.default_rng(0).normal(0, 0.002, 120)
    level = np.repeat([0.55, 0.70, 0.75], [40, 35, 45])
    accuracies = (level - 0.1 * 0.8 ** (np.arange(120) % 40) + noise).tolist()
    rates, best, bad = [0.1], 0.0, 0
    for accuracy in accuracies:
        better = accuracy > best + 0.001
        best, bad = (accuracy, 0) if better else (best, bad + 1)
        rates.append(max(rates[-1] / 10, 1e-4) if bad > 5 else rates[-1])
        bad %= 6
    assert rates[-1] == 1e-4
    source = Source(256, 120, lambda epoch, part: np.array(rates)[epoch], {"": (1e-4, 161)})
    more = source.one if gpus == 1 else source.eight
    _, schedule = planned("imagenet_resnet50_plateau", f"--trainer.devices={gpus}", *more)
    assert np.abs(in_force(schedule, accuracies) - expected(source)).max() <= 1e-12


def lengths(recipe: str) -> list[tuple[int, int, int]]:
    """The lines of the table in a recipe's header: max_epochs, start_epoch, end_epoch."""
    line = r"^#     (\d+)(?: \(this file\))? +(\d+) +(\d+) +0\.\d+ "
    found = re.findall(line, (CONFIGS / f"{recipe}.yaml").read_text(), re.MULTILINE)
    return [tuple(map(int, numbers)) for numbers in found]


@pytest.mark.parametrize("length", lengths("imagenet_resnet50_fast"), ids=lambda n: str(n[0]))
@pytest.mark.parametrize("recipe", ["imagenet_resnet50_fast", "imagenet_resnet18_fast"])
def test_rates_and_sizes_of_all_lengths_of_the_fast_recipes_are_the_source_s(
    planned, recipe, length
):
    assert length in lengths(recipe)
    epochs, start, end = length
    trainer, schedule = planned(
        recipe,
        *SOURCES[recipe].one,
        f"--trainer.max_epochs={epochs}",
        f"--data.progressive.start_epoch={start}",
        f"--data.progressive.end_epoch={end}",
    )
    peak = {"imagenet_resnet50_fast": 1.7, "imagenet_resnet18_fast": 0.5}[recipe]
    source = replace(SOURCES[recipe], epochs=epochs, rate=ffcv(peak, epochs))
    assert np.abs(in_force(schedule) - expected(source)).max() <= 1e-12
    sizes = [trainer.datamodule.size_of(epoch) for epoch in range(epochs)]
    line = np.interp(np.arange(epochs), [start, end], [160, 192])
    assert sizes == [32 * round(size / 32) for size in line]
    assert set(sizes) == {160, 192}


def test_average_of_the_modern_recipe_decays_as_in_the_source_at_each_step(planned):
    trainer, schedule = planned("imagenet_resnet50_modern", "--trainer.devices=8")
    (ema,) = (c for c in trainer.callbacks if isinstance(c, EMA))
    module = pl.LightningModule()
    module.weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    ema.setup(trainer, module, "fit")
    (average,) = ema._average_model.parameters()
    decay = 1 - min(1, (1 - 0.99998) * (8 * 128 * 32 / 600))
    copies = True
    for step in range(schedule.total_steps):
        is_due = step % 32 == 0
        assert ema.should_update(step_idx=step) == is_due
        if step >= 8 * schedule.steps_per_epoch:
            continue
        epoch = step // schedule.steps_per_epoch
        average.data.fill_(1.0)
        run = SimpleNamespace(global_step=step + 1, current_epoch=epoch)
        ema.on_train_batch_end(run, module, None, None, step)
        # Of an average of 1 and a weight of 0, the decay is left.
        expected = (0 if copies else decay) if is_due else 1
        assert abs(average.item() - expected) <= 1e-12
        copies = epoch < 5 if is_due else copies


@pytest.mark.parametrize(
    ("decay_bias", "counts"),
    [(True, {"decay": 55, "no_decay": 106}), (False, {"decay": 54, "no_decay": 107})],
)
def test_resnet50_without_decay_of_norms_and_biases(decay_bias, counts):
    with torch.device("meta"):
        groups = parameter_groups(models.resnet50(), decay_norm=False, decay_bias=decay_bias)
    assert {g["name"]: len(g["params"]) for g in groups} == counts


# ---- the loss


class Fixed(torch.nn.Module):
    """Gives the same logits for everything."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["labels", "shares"])
def test_training_loss_is_the_formula_of_the_source(smoothing, kind):
    """-sum q log p with q = (1 - s) t + s / K, of labels t or of MixUp's shares t."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator) * 4
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    t = np.eye(5)[labels]
    if kind == "shares":
        t = 0.3 * t + 0.7 * np.roll(t, 1, 0)
    module = ImageClassifier("resnet18", num_classes=5, label_smoothing=smoothing)
    module.net = Fixed(logits)
    target = torch.tensor(t, dtype=torch.float32) if kind == "shares" else labels
    loss = module.training_step((torch.zeros(6, 3, 8, 8), target), 0)
    z = logits.double().numpy()
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    q = (1 - smoothing) * t + smoothing / 5
    assert float(loss) == pytest.approx(-(q * log_p).sum(1).mean(), rel=1e-6)


# ---- the pictures


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Something smooth with edges, 500 x 375."""
    noise = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)


def pixels(photo: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1)


@pytest.mark.parametrize("recipe", ["imagenet_resnet50_2015", "imagenet_resnet50_modern"])
def test_training_pictures_are_those_of_the_reference_for_the_same_random_numbers(
    planned, photo, recipe
):
    """torchvision's references: crop, flip, (augment,) normalise, erase, on Pillow's images."""
    data = planned(recipe)[0].datamodule
    ours, size = copy.deepcopy(data.train_transform()), data.train_size
    ours.augment = None  # draws its signs in another way than the reference's
    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    steps = [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ToTensor(), normalise]
    if recipe.endswith("modern"):
        assert ours.erase.p == 0.1
        ours.erase.p = 0.5
        steps.append(T.RandomErasing(0.5))
    reference = T.Compose(steps)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = reference(photo)
        torch.manual_seed(seed)
        image = normalise(ours(pixels(photo), size) / 255)
        torch.testing.assert_close(image, expected, rtol=0, atol=1.5 / 255 / 0.224)


@pytest.mark.parametrize(
    ("recipe", "resize", "crop"),
    [
        ("imagenet_resnet50_2015", 256, 224),
        ("imagenet_resnet18_2015", 256, 224),
        ("imagenet_resnet50_plateau", 256, 224),
        ("imagenet_resnet50_modern", 232, 224),
    ],
)
def test_validation_pictures_are_those_of_the_reference(planned, photo, recipe, resize, crop):
    data = planned(recipe)[0].datamodule
    expected = T.Compose([T.Resize(resize), T.CenterCrop(crop)])(photo)
    image = data.val_transform(pixels(photo))
    difference = image.int() - pixels(expected).int()
    assert difference.shape == (3, crop, crop)
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("recipe", ["imagenet_resnet50_fast", "imagenet_resnet18_fast"])
def test_fast_recipes_validate_on_seven_eighths_of_the_short_side_at_256_pixels(planned, recipe):
    data = planned(recipe)[0].datamodule
    across, down = np.meshgrid(np.linspace(0, 255, 512), np.linspace(0, 255, 512))
    image = torch.from_numpy(np.stack([across, down, down]).round().astype(np.uint8))
    image = data.val_transform(image).float()
    edge = 255 / 16
    assert image.shape == (3, 256, 256)
    for line in (image[0, 0], image[1, :, 0]):
        expected = torch.linspace(edge, 255 - edge, 256)
        torch.testing.assert_close(line, expected, rtol=0, atol=1.5)


def test_modern_recipe_mixes_each_batch_with_its_neighbours_one_way_or_the_other(planned):
    data = planned("imagenet_resnet50_modern")[0].datamodule
    assert (data.mixup, data.cutmix, data.repeats) == (0.2, 1.0, 4)
    mix = MixUpCutMix(data.mixup, data.cutmix, 8)
    values = torch.arange(8.0) * 32
    flat = values.view(8, 1, 1, 1).expand(8, 3, 32, 32)
    shares_of_first, is_cut = [], []
    torch.manual_seed(0)
    for _ in range(400):
        images, shares = mix(flat, torch.arange(8))
        # Each pixel is a mean of the two (MixUp), or the mean over all pixels is (CutMix).
        torch.testing.assert_close(images.mean((1, 2, 3)), shares @ values, rtol=0, atol=1e-2)
        first = shares[1, 1].item()
        torch.testing.assert_close(shares[1, [0, 1]], torch.tensor([1 - first, first]))
        is_cut.append(images[1].unique().numel() == 2)
        shares_of_first.append(first)
    assert 0.4 < np.mean(is_cut) < 0.6
    mixed = np.array(shares_of_first)[~np.array(is_cut)]
    # Beta(a, a) has the variance 1 / (4 (2 a + 1)).
    assert mixed.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.1)


def test_modern_recipe_augments_with_trivial_augment_bilinearly(planned, photo):
    augment = planned("imagenet_resnet50_modern")[0].datamodule.train_transform().augment
    expected = v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR)
    for seed in range(50):
        torch.manual_seed(seed)
        image = augment(pixels(photo))
        torch.manual_seed(seed)
        assert image.equal(expected(pixels(photo)))
