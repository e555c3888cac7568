"""Transforms of one decoded image (in a worker) and of a batch (on the device)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from anneal.errors import UserError

Transform = Callable[[Tensor, int], Tensor]  # an image (3, H, W) uint8 and a size in pixels

LONGEST = 4  # times the short side; more of an image is never in its central crop


@dataclass
class ProgressiveResizing:
    """Smaller training images in the first epochs, which cost less (Howard 2018, DAWNBench).

    Args:
        start_size: Side of the first epochs' images, in pixels.
        start_epoch: The epoch from which on the size grows linearly.
        end_epoch: The epoch in which it has reached `train_size`.
        multiple: Sizes are rounded to multiples of this.
    """

    start_size: int
    start_epoch: int
    end_epoch: int
    multiple: int = 32

    def __post_init__(self) -> None:
        if self.start_epoch >= self.end_epoch:
            raise UserError("data.progressive: end_epoch must come after start_epoch")

    def size(self, train_size: int, epoch: int) -> int:
        """Return the side of the images of an epoch."""
        if epoch < self.start_epoch:
            return self.start_size
        if epoch >= self.end_epoch:
            return train_size
        part = (epoch - self.start_epoch) / (self.end_epoch - self.start_epoch)
        size = self.start_size + part * (train_size - self.start_size)
        return round(size / self.multiple) * self.multiple


@dataclass(eq=False)
class TrainTransform:
    """Random part of an image, resized, flipped and augmented, with torch's random numbers.

    The arguments are those of `ImageFolderDataModule`; a rectangle that is erased (Zhong et al.
    2017, arXiv 1708.04896) has the colour `fill`, 0 to 255 for each channel.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    interpolation: str = "bilinear"
    antialias: bool = True
    flip: float = 0.5
    augment: torch.nn.Module | None = None
    erasing: float = 0.0
    fill: tuple[float, ...] = (124.0, 116.0, 104.0)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            parts = list(self.scale)
            raise UserError(f"data.scale={parts}: must be two parts of the area, up to 1")
        if not (0 <= self.flip <= 1 and 0 <= self.erasing <= 1):
            raise UserError("data: flip and erasing are probabilities, 0 to 1")
        self.crop = v2.RandomResizedCrop(1, self.scale)
        self.only_crops = not (self.augment or self.erasing)
        self.erase = v2.RandomErasing(self.erasing, value=self.fill) if self.erasing else None

    def __call__(self, image: Tensor, size: int) -> Tensor:
        """Return an image (3, size, size) uint8 of one (3, H, W) uint8."""
        part = self.crop.make_params([image])
        top, left = part["top"], part["left"]
        image = image[:, top : top + part["height"], left : left + part["width"]]
        image = resize(image, [size, size], self.interpolation, self.antialias)
        if self.flip and torch.rand(()) < self.flip:
            image = image.flip(-1)
        if self.augment:
            image = self.augment(image)
        return self.erase(image) if self.erase else image


class ValTransform:
    """Centre of an image: the short side is resized, then a square is cut out."""

    def __init__(self, resize: int, crop: int, interpolation: str, antialias: bool) -> None:
        if resize < crop:
            raise UserError(f"data.val_resize={resize} is less than val_size={crop}")
        self.resize = resize
        self.crop = crop
        self.interpolation = interpolation
        self.antialias = antialias

    def __call__(self, image: Tensor, size: int = 0) -> Tensor:
        """Return an image (3, crop, crop) uint8 of one (3, H, W) uint8."""
        height, width = image.shape[-2:]
        most = LONGEST * min(height, width)
        if max(height, width) > most:  # a line of pixels would be resized to gigabytes
            image = F.center_crop(image, [min(height, most), min(width, most)])
        image = resize(image, [self.resize], self.interpolation, self.antialias)
        cropped: Tensor = F.center_crop(image, [self.crop, self.crop])
        return cropped


class MixUpCutMix:
    """MixUp or CutMix, drawn for each batch if both are asked for.

    Args:
        mixup: alpha of MixUp's Beta distribution (Zhang et al. 2018, arXiv 1710.09412); 0: none.
        cutmix: The same of CutMix (Yun et al. 2019, arXiv 1905.04899).
        num_classes: Number of classes.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int) -> None:
        ways = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.ways = [way(alpha=alpha, num_classes=num_classes) for way, alpha in ways if alpha]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (N, 3, H, W) as float and the shares of all classes, (N, num_classes).

        Labels are (N,), or (N, num_classes) of 0 and 1.
        """
        way = self.ways[int(torch.randint(len(self.ways), ()))]
        mixed, shares = way(images.float(), labels)
        return mixed, shares


def resize(image: Tensor, size: list[int], interpolation: str, antialias: bool) -> Tensor:
    """Resize with torchvision, in half the time: the image in one piece, channels last."""
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    mode = v2.InterpolationMode(interpolation)
    resized: Tensor = F.resize(image, size, interpolation=mode, antialias=antialias)
    return resized
