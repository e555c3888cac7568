"""`pytest -m gpu`: precisions, layouts, compilation and speed on a CUDA device; some on any."""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from yours import ImageClassifier

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from gpu_loop import images_per_second, plain_loop

STEPS = 4  # with 16-mixed the first ones only find the scale of the loss
ON_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
# Of the weights, and of what a convolution gives.
TYPES = {
    "32-true": (torch.float32, torch.float32),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, torch.bfloat16),
}


class OneBatch:
    """The same batch again and again, on its device.

    Args:
        device: Where.
        batches: How often.
        batch_size: Images in it.
        size: Their height and width, in pixels.
        classes: Number of classes.
    """

    def __init__(
        self, device: str, batches: int, batch_size: int = 8, size: int = 64, classes: int = 10
    ) -> None:
        rng = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, size, size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=rng)
        labels = torch.randint(classes, (batch_size,), generator=rng)
        layout = torch.channels_last
        self.batch = images.to(device, memory_format=layout), labels.to(device)
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([self.batch] * self.batches)


def train(
    device: str, model: LightningModule, data: OneBatch, precision: Any, *callbacks: Callback
) -> Trainer:
    trainer = Trainer(
        limit_val_batches=0,
        accelerator=device,
        devices=1,
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(model, data, data)
    return trainer


def resnet18(**kwargs: Any) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(arch="resnet18", num_classes=10, optimizer=SGD, **kwargs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", TYPES)
def test_each_precision_trains_with_its_types_and_its_channels_last(device, precision):
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("fp16 with a scaled loss is for GPUs; Lightning takes bf16-mixed on a CPU")
    model, seen = resnet18(), set()

    def watch(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        tensors = (*inputs, module.weight, output)
        # Of 1x1 weights and images every layout is the same one.
        last = all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
        seen.add((module.weight.dtype, output.dtype, last))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(watch)
    before = {name: p.detach().clone().float() for name, p in model.named_parameters()}
    trainer = train(device, model, OneBatch(device, STEPS), precision)
    assert trainer.global_step == STEPS
    assert seen == {(*TYPES[precision], True)}
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
    changed = [not torch.equal(p.float().cpu(), before[n]) for n, p in model.named_parameters()]
    # In bf16 a small step can be less than half a digit of a weight.
    assert all(changed) if precision != "bf16-true" else any(changed)


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_follows_full_precision(device):
    losses = {}
    for precision in ("32-true", "bf16-mixed", *(["16-mixed"] if device == "cuda" else [])):
        trainer = train(device, resnet18(), OneBatch(device, 1), precision)
        losses[precision] = float(trainer.callback_metrics["train/loss"])
    for precision, loss in losses.items():
        assert loss == pytest.approx(losses["32-true"], rel=0.02), precision


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_compiled_network_takes_the_same_steps():
    losses = []
    for compiled in (False, True):
        model = resnet18(compile=compiled)
        trainer = train("cuda", model, OneBatch("cuda", STEPS), "bf16-mixed")
        losses.append(float(trainer.callback_metrics["train/loss"]))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("how", ["--trainer.sync_batchnorm=true", "--trainer.strategy=fsdp2"])
def test_two_devices_train_together(tmp_path, how):
    train_py = Path(__file__).parents[2] / "train.py"
    few = [f"--trainer.limit_{part}_batches=4" for part in ("train", "val", "test")]
    command = [sys.executable, train_py, "--trainer.devices=2", "--trainer.max_epochs=1", *few, how]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


class Stopwatch(Callback):
    """Images per second from a step on, to the end of the epoch.

    Args:
        data: What is trained on.
        after: Steps that choose kernels and fill caches.
    """

    def __init__(self, data: OneBatch, after: int) -> None:
        self.data = data
        self.after = after
        self.images_per_second = 0.0

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.after:
            _wait()
            self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        _wait()
        seconds = time.perf_counter() - self.started
        images = len(self.data.batch[1]) * (len(self.data) - self.after)
        self.images_per_second = images / seconds


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def speeds(device: str, arch: str, size: int, batch_size: int, steps: int) -> tuple[float, float]:
    """Images per second of `ImageClassifier` and of the plain loop: bf16, channels last."""
    warm = max(2, steps // 5)
    data = OneBatch(device, warm + steps, batch_size, size, classes=1000)
    stopwatch = Stopwatch(data, warm)
    model = ImageClassifier(arch=arch, num_classes=1000, optimizer=SGD)
    train(device, model, data, "bf16-mixed", stopwatch)
    plain = plain_loop(arch, size, batch_size, channels_last=True, device=device)
    return stopwatch.images_per_second, images_per_second(plain, batch_size, steps)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resnet50_is_as_fast_as_a_plain_loop(capsys):
    pairs = [speeds("cuda", "resnet50", 224, 128, 50) for _ in range(3)]
    ours, plain = (max(values) for values in zip(*pairs, strict=True))
    with capsys.disabled():
        name = torch.cuda.get_device_name()
        print(f"\nResNet-50, bf16, channels last, {name}: {ours:.0f} images/s, plain {plain:.0f}")
    assert ours > 0.9 * plain


def test_the_speeds_are_measured_on_a_cpu_too():
    ours, plain = speeds("cpu", "resnet18", size=32, batch_size=4, steps=2)
    assert ours > 0
    assert plain > 0
