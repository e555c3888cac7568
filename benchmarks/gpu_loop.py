"""Training speed of a plain PyTorch loop: what `ImageClassifier` is measured against on a GPU.

The loop is written as torchvision's reference for classification writes it (autocast, SGD with
momentum, channels last if asked for), on images made once on the device, so that neither a disk nor
a decoder counts.

    python benchmarks/gpu_loop.py                                                     # on a GPU
    python benchmarks/gpu_loop.py --arch=resnet18 --size=64 --batch_size=4 --steps=2  # anywhere
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models


def plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Tensor:
    """One step in bf16 of a loop without Lightning; returns the loss."""
    with torch.autocast(images.device.type, torch.bfloat16):
        loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def images_per_second(step: Callable[[], object], batch_size: int, steps: int) -> float:
    """Throughput of `step`, after a few calls that choose kernels and fill caches.

    Args:
        step: Trains on one batch.
        batch_size: Images in it.
        steps: Calls that are timed.
    """
    for _ in range(max(2, steps // 5)):
        step()
    _wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait()
    return batch_size * steps / (time.perf_counter() - start)


def plain_loop(
    arch: str = "resnet50",
    size: int = 224,
    batch_size: int = 256,
    channels_last: bool = True,
    device: str = "cuda",
) -> Callable[[], Tensor]:
    """A network, an optimizer and a batch, and the step that trains on them.

    Args:
        arch: Name of a network in torchvision.models.
        size: Height and width of the images, in pixels.
        batch_size: Images in a step.
        channels_last: The layout in memory that is the faster one in bf16.
        device: Where.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = models.get_model(arch).to(device, memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch_size, 3, size, size, device=device).to(memory_format=layout)
    labels = torch.randint(1000, (batch_size,), device=device)
    return lambda: plain_step(model, optimizer, images, labels)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    for channels_last in (False, True):
        step = plain_loop(args.arch, args.size, args.batch_size, channels_last, device)
        speed = images_per_second(step, args.batch_size, args.steps)
        layout = "channels last" if channels_last else "channels first"
        print(
            f"{args.arch}, {args.size}x{args.size}, batch {args.batch_size}, bf16, {layout}, "
            f"{name}: {speed:.1f} images/s"
        )


if __name__ == "__main__":
    main()
