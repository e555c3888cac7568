"""Folders of images, ImageNet's among them, decoded by worker processes."""

import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchvision.transforms import v2

from anneal.data.in_memory import check_split_size, share_of
from anneal.data.sampler import EpochSampler, balanced, derive_seed, global_seed
from anneal.errors import UserError
from anneal.progress import resume_position
from anneal.system import cores
from anneal.vision import transforms
from anneal.vision.files import ImageFiles, ImageSource, missing
from anneal.vision.index import ImageFolder
from anneal.vision.layouts import Layout
from anneal.vision.loader import CPU, DecodedDataset, ImageLoader, UnreadableImage
from anneal.vision.raw import PIXELS, CroppedDataset, RawImages
from anneal.vision.splits import strata


class ImageFolderDataModule(Layout, LightningDataModule):
    """Photos in class folders or in a table: ImageNet, or any others.

    A batch is a pair of images, (N, 3, H, W) with values from 0 to 255, and targets: labels, (N,)
    int64, or (N, outputs) float32, which are shares of the classes with MixUp or CutMix, 0 and 1 of
    several labels, or numbers. Classes are in the order of the alphabet.

    Args:
        root: Folder with a folder for each class, or with such in `train` and `val` (and `test`,
            for the test after a training), or with the images of `labels` or `label_pattern`, or
            ImageNet's archives as they unpack, or what `python train.py shards` made: shards, also
            as s3://bucket/prefix, or plain pixels.
        batch_size: Images in a batch of one process.
        num_workers: Processes that decode, for each training process; 0: the training process
            itself; None: one for each core that there is for it, at most 16.
        train_size: Side of training images, in pixels.
        progressive: Smaller images in the first epochs.
        val_resize: Short side that images are resized to for validation, test and prediction.
        val_size: Side of the square that is cut from the centre of these.
        scale: Least and greatest part of an image's area that is cut out for training.
        interpolation: How images are resized.
        antialias: Whether they are smoothed where they shrink, as in Pillow.
        flip: Probability of a mirror image in training.
        augment: A transform of torchvision.transforms.v2 for training images, uint8, such as
            TrivialAugmentWide or RandAugment.
        erasing: Probability that a rectangle of a training image is erased.
        mixup: alpha of MixUp in training, 0: none.
        cutmix: alpha of CutMix in training, 0: none. With both, either is drawn for each batch.
        repeats: How often each image comes in an epoch of unchanged length (repeated
            augmentation, Hoffer et al. 2020, arXiv 1901.09335).
        sampler: `balanced`: each class comes equally often in an epoch of unchanged length; an
            image with several labels counts for the rarest of them.
        broken: Whether an image that can't be read ends the run or is skipped.
        max_broken: How many may be skipped.
        in_memory: Whether the pixels of `shards --raw` are kept in the device's memory and cropped
            there, without workers; not with `augment`, `erasing` or bicubic interpolation.
        predict_path: What to predict: a file, a folder or a pattern such as 'photos/*.jpg'.
        **kwargs: Those of `Layout`.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        batch_size: int = 32,
        num_workers: int | None = None,
        train_size: int = 224,
        progressive: transforms.ProgressiveResizing | None = None,
        val_resize: int = 256,
        val_size: int = 224,
        scale: tuple[float, float] = (0.08, 1.0),
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
        antialias: bool = True,
        flip: float = 0.5,
        augment: v2.Transform | None = None,
        erasing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        repeats: int = 1,
        sampler: Literal["balanced"] | None = None,
        broken: Literal["raise", "skip"] = "raise",
        max_broken: int = 100,
        in_memory: bool = False,
        predict_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        LightningDataModule.__init__(self)
        super().__init__(**kwargs)
        at_least(1, batch_size=batch_size, repeats=repeats)
        at_least(8, train_size=train_size, val_size=val_size)
        at_least(0, num_workers=num_workers or 0, mixup=mixup, cutmix=cutmix)
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_size = train_size
        self.progressive = progressive
        self.mixup = mixup
        self.cutmix = cutmix
        self.repeats = repeats
        self.sampler = sampler
        self.broken = broken
        self.max_broken = max_broken
        self.in_memory = in_memory
        self.predict_path = predict_path
        resized = interpolation, antialias
        self._train_transform = transforms.TrainTransform(scale, *resized, flip, augment, erasing)
        self.image_shape = (3, val_size, val_size)
        self.input_description = (
            f"RGB, the short side resized to {val_resize} ({interpolation}, "
            f"antialias={str(antialias).lower()}), then the centre of {val_size}x{val_size}"
        )
        self.val_transform = transforms.ValTransform(val_resize, val_size, *resized)
        self.class_names: list[str] | None = None
        self.splits: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}
        self.mix: transforms.MixUpCutMix | None = None

    def prepare_data(self) -> None:
        """Make the list of files; Lightning calls this in one process of each machine."""
        if self.predict_path:
            return
        splits = self.splits or self.find_splits()
        if self.trainer and self.trainer.state.fn == "test" and "test" not in splits:
            how = "use validate, or train with data.test_split"
            raise UserError(f"data.root: {self.root} has no folder test: {how}")

    def setup(self, stage: str | None = None) -> None:
        """Find the images, once."""
        if self.splits or (stage == "predict" and self.predict_path):
            return
        self.splits = self.find_splits()
        train = self.splits["train"]
        names, self.task = train.class_names, train.task
        self.class_names, self.train_targets = names, torch.tensor(train.labels)
        if self.task == "regression" and (self.mixup or self.cutmix or self.sampler):
            raise UserError("data: mixup, cutmix and sampler are for classes, not for regression")
        if self.sampler and type(train).order is not ImageSource.order:
            raise UserError("data.sampler: shards are read in their order; see model.class_weight")
        if self.in_memory and not isinstance(train, RawImages):
            raise UserError(f"data.in_memory: {self.wait_advice}")
        for split, pictures in self.splits.items():
            for note in getattr(pictures, "notes", ()):
                rank_zero_info(f"{self.root}, {split}: {note}")
            if self.task != "regression" and (none := missing(pictures.labels, names)):
                shown = ", ".join(none[:3]) + (", ..." if len(none) > 3 else "")
                rank_zero_warn(f"{self.root}: {split} has none of {len(none)} classes: {shown}")
        if self.mixup or self.cutmix:
            self.mix = transforms.MixUpCutMix(self.mixup, self.cutmix, len(names))

    @property
    def has_test(self) -> bool:
        """Whether there are test images, apart from those for validation."""
        return "test" in self.splits

    @property
    def wait_advice(self) -> str:
        """What to do where a training waits for these images."""
        if isinstance(self.splits.get("train"), RawImages):
            return "more --data.num_workers, a smaller --short_side or --data.in_memory=true"
        return f"pixels need no decoding: python train.py shards {self.root} OUT --raw"

    def train_transform(self) -> transforms.Transform:
        """Return what makes a training image: a function of (3, H, W) uint8 and a size in pixels.

        A subclass may return another one. Its random numbers are torch's.
        """
        return self._train_transform

    def train_dataloader(self) -> ImageLoader:
        """Return the training images, in an order of its own for each epoch."""
        pictures, transform = self.splits["train"], self.train_transform()
        order = pictures.order
        if self.sampler:
            order = partial(balanced, torch.tensor(strata(pictures.labels, pictures.task)))
        return self._batches(pictures, transform, "train", shuffle=order, repeats=self.repeats)

    def val_dataloader(self) -> ImageLoader:
        """Return the validation images, in the order of their names."""
        return self._batches(self.splits["val"], self.val_transform, "val")

    def test_dataloader(self) -> ImageLoader:
        """Return the test images, if `has_test`."""
        return self._batches(self.splits["test"], self.val_transform, "test")

    def predict_dataloader(self) -> ImageLoader:
        """Return the images of `predict_path`, or the validation images."""
        own = ImageFiles.find(self.predict_path) if self.predict_path else self.splits["val"]
        self.predicted: ImageSource = own
        return self._batches(own, self.val_transform, "predict")

    def on_after_batch_transfer(
        self, batch: tuple[Tensor, Tensor], dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a training batch, on the device."""
        if self.mix is None or self.trainer is None or not self.trainer.training:
            return batch
        with torch.random.fork_rng(devices=[]):
            rank = self.trainer.global_rank
            torch.manual_seed(derive_seed(global_seed(), *resume_position(self.trainer)[:2], rank))
            return self.mix(*batch)

    def size_of(self, epoch: int) -> int:
        """Return the side of the training images of an epoch."""
        sizes = self.progressive
        return sizes.size(self.train_size, epoch) if sizes else self.train_size

    def find_splits(self) -> dict[str, Any]:
        """Return an `ImageSource` for each split, by name; a subclass may find them elsewhere."""
        if self.root.startswith("s3://") or list(Path(self.root).glob("train/index.json")):
            from anneal.vision.streaming import ImageShards

            return ImageShards.splits(self.root)
        if list(Path(self.root).glob(f"*/{PIXELS}")):
            return RawImages.splits(Path(self.root))
        return ImageFolder.splits(Path(self.root), Layout.of(self))

    def _batches(
        self, pictures: ImageSource, transform: Any, split: str, **share: Any
    ) -> ImageLoader:
        share |= share_of(self.trainer, split == "train")
        world = share["world_size"]
        check_split_size(self.root, split, len(pictures), self.batch_size, world)
        device = self.trainer.strategy.root_device if self.trainer else CPU
        dataset: DecodedDataset = DecodedDataset(pictures, transform, self.size_of, global_seed())
        workers = self.num_workers
        crops = type(transform) is transforms.TrainTransform and transform.only_crops
        if crops and isinstance(pictures, RawImages):
            on_device = self.in_memory and self._train_transform.interpolation == "bilinear"
            where, workers = (device, 0) if on_device else (CPU, workers)
            dataset = CroppedDataset(**vars(dataset) | {"device": where})
        return ImageLoader(
            dataset,
            EpochSampler(len(pictures), self.batch_size, **share),
            min(16, math.ceil(cores() / world)) if workers is None else workers,
            give_way=bool(self.trainer and device.type == "cpu"),
            on_unreadable=partial(self._on_unreadable, predicts=split == "predict"),
        )

    def _on_unreadable(self, image: UnreadableImage, predicts: bool) -> None:
        """End the run or count, as `broken` says."""
        if not (predicts or self.broken == "skip"):
            raise UserError(
                f"{image.path} can't be read: {image.reason}. Mend or remove it, or leave out "
                f"such pictures with --data.broken=skip; python train.py check {self.root} "
                "lists them all",
                status=1,
            )
        if image.path in self.skipped:
            return
        self.skipped[image.path] = image.reason
        n = len(self.skipped)
        if predicts:
            return
        rank_zero_warn(f"left out, {n} so far: {image.path}: {image.reason}")
        if n > self.max_broken:
            more = f"more than data.max_broken={self.max_broken}"
            raise UserError(f"{n} pictures can't be read, {more}", status=1)


def at_least(least: int, **values: float) -> None:
    """Raise UserError for a value below `least`."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"data.{name}={value}: must be at least {least}")
