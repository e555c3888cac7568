import io
import multiprocessing
import os
import pickle
import posix
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import nn
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from anneal import testing as photos
from anneal.errors import UserError
from anneal.progress import Clock
from anneal.testing import wait_for
from anneal.vision.datamodule import ImageFolderDataModule
from anneal.vision.decode import decode
from anneal.vision.transforms import MixUpCutMix, ProgressiveResizing, TrainTransform, ValTransform


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path):
    return photos.image_folder(tmp_path / "data", train=7, val=3)  # 21 and 9 pictures


def data_module(root, **options):
    small = {"batch_size": 4, "num_workers": 0, "train_size": 16, "val_resize": 20, "val_size": 16}
    return ImageFolderDataModule(root=str(root), **small | options)


class Seen(LightningModule):
    """Keeps every training batch, by epoch."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.epochs: dict[int, list] = {}

    def training_step(self, batch, batch_idx):
        self.epochs.setdefault(self.current_epoch, []).append(batch)
        return self.net(torch.zeros(1, 1)).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def train(root, epochs=2, ckpt_path=None, save=None, stop_at=None, callbacks=(), **options):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == stop_at:
                trainer.save_checkpoint(save)
                trainer.should_stop = True

    module = Seen()
    callbacks = [*callbacks, Stop()]
    trainer = Trainer(**QUIET, max_epochs=epochs, min_epochs=0, callbacks=callbacks)
    trainer.fit(module, data_module(root, **options), ckpt_path=ckpt_path)
    assert not active_children()  # the workers have ended
    return module.epochs


def same(a, b):
    return all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


AUGMENTED = {"augment": v2.TrivialAugmentWide(), "erasing": 0.5, "mixup": 0.2, "cutmix": 1.0}


@pytest.mark.parametrize("preset", [(256, 224), (232, 224), (40, 32)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(500, 375), (333, 500), (64, 48), (100, 700)])
def test_validation_pixels_are_those_of_torchvisions_preset(preset, interpolation, size):
    resize, crop = preset
    mode = v2.InterpolationMode(interpolation)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs = ImageClassification(
        crop_size=crop, resize_size=resize, mean=mean, std=std, interpolation=mode
    )
    smooth = photos.picture(size=(size[0] // 8, size[1] // 8)).resize(size, Image.BICUBIC)
    data = photos.encoded(smooth, quality=95)
    expected = theirs(Image.open(io.BytesIO(data)).convert("RGB"))
    ours = ValTransform(resize, crop, interpolation, antialias=True)(decode(data)) / 255
    pixels = expected * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    difference = 255 * (ours - pixels).abs()
    assert difference.max() < (1.5 if interpolation == "bilinear" else 2.5)
    assert difference.mean() < 0.2


def test_a_line_of_pixels_is_no_blow_up():
    for shape in ((3, 3, 20_000), (3, 20_000, 3), (3, 1, 1)):
        assert ValTransform(256, 224, "bilinear", True)(
            torch.zeros(shape, dtype=torch.uint8)
        ).shape == (3, 224, 224)
        assert TrainTransform()(torch.zeros(shape, dtype=torch.uint8), 32).shape == (3, 32, 32)


def test_training_crops_are_those_of_torchvision():
    image = decode(photos.encoded(photos.picture(size=(160, 120)), quality=95))
    for seed in range(20):
        torch.manual_seed(seed)
        ours = TrainTransform(flip=0)(image, 64).float()
        torch.manual_seed(seed)
        theirs = v2.RandomResizedCrop(64)(Image.fromarray(image.permute(1, 2, 0).numpy()))
        theirs = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float()
        assert (ours - theirs).abs().max() <= 2


@pytest.mark.parametrize("batch_size", [1, 4, 20, 21])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_picture_comes_once_in_one_process(root, batch_size, world):
    data = data_module(root, batch_size=batch_size, flip=0.0)
    data.setup("fit")
    for name in ("train", "val"):
        loaders = []
        for rank in range(world):
            loader = getattr(data, f"{name}_dataloader")()
            loader.batch_sampler.rank, loader.batch_sampler.world_size = rank, world
            loaders.append(loader)
        seen = [k[2] for loader in loaders for batch in loader.loader.batch_sampler for k in batch]
        assert sorted(seen) == list(range(len(data.splits[name])))
        assert len({len(loader) for loader in loaders}) == 1


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_repeated_pictures_never_meet_in_a_batch(root, world):
    data = data_module(root, repeats=3, batch_size=2)
    data.setup("fit")
    sampler = data.train_dataloader().loader.batch_sampler
    sampler.world_size = world
    seen = []
    for sampler.rank in range(world):
        batches = [[index for _, _, index in batch] for batch in sampler]
        for indices in batches[:-1]:  # the last one takes a short rest in
            assert len(set(indices)) == len(indices)
        seen += [index for indices in batches for index in indices]
    assert len(seen) == 21
    assert len(set(seen)) <= 12
    assert max(seen.count(i) for i in seen) == 3


def test_repeated_pictures_are_augmented_each_time_anew(root):
    data = data_module(root, repeats=3, batch_size=7, scale=(0.1, 0.5))
    data.setup("fit")
    first, second, third = (images for images, _ in data.train_dataloader())
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(second[0], third[0])


@pytest.fixture
def spawned():
    """Start processes as on macOS, where all that a worker gets is pickled."""
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(None, force=True)


def test_epochs_have_other_orders_and_other_crops_and_repeat_by_seed(root, spawned):
    first = train(root)
    again = train(root, num_workers=2)
    assert same(first[0], again[0])
    assert same(first[1], again[1])
    orders = [torch.cat([labels for _, labels in first[e]]).tolist() for e in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [0] * 7 + [1] * 7 + [2] * 7


@pytest.mark.parametrize(("workers", "stop_at"), [(0, 3), (2, 1), (2, 5), (0, 6)])
def test_a_resumed_run_gets_the_same_pictures(root, tmp_path, workers, stop_at):
    options = AUGMENTED | {"num_workers": workers}
    whole = train(root, **options)
    save = tmp_path / "stopped.ckpt"
    before = train(root, save=save, stop_at=stop_at, **options)
    after = train(root, ckpt_path=save, **options)
    flat = [batch for epochs in (before, after) for e in sorted(epochs) for batch in epochs[e]]
    assert same(flat, [batch for e in sorted(whole) for batch in whole[e]])


def test_a_resumed_run_of_another_batch_size_gets_the_pictures_that_are_left(root, tmp_path):
    def epoch(**options):
        (batches,) = train(root, epochs=1, callbacks=[Clock()], **options).values()
        return batches

    save = tmp_path / "stopped.ckpt"
    whole = epoch()
    before = epoch(save=save, stop_at=2)
    after = epoch(ckpt_path=save, batch_size=3, num_workers=2)
    assert [len(labels) for _, labels in after] == [3, 3, 3, 4]
    images = torch.cat([images for images, _ in [*before, *after]])
    assert torch.equal(images, torch.cat([images for images, _ in whole]))


class Grey(ImageFolderDataModule):
    """Trains on images of one value, which is their size."""

    def train_transform(self):
        return lambda image, size: torch.full((3, size, size), size, dtype=torch.uint8)


def test_a_subclass_may_transform_training_images_in_its_own_way(root):
    data = Grey(str(root), batch_size=4, num_workers=0, train_size=16)
    data.setup("fit")
    values = torch.cat([images for images, _ in data.train_dataloader()]).unique()
    assert values.tolist() == [16]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files as Linux does")
def test_as_many_files_are_open_after_each_epoch(root):
    def count():
        return len(os.listdir("/proc/self/fd"))

    class Count(Callback):
        def on_train_epoch_end(self, trainer, module):
            module.epochs.clear()  # what it has seen lies in shared memory
            if trainer.current_epoch == 2:
                self.first = count()
            elif trainer.current_epoch > 2:  # some are closed a moment later
                wait_for(lambda: count() <= self.first, 60)

    trainer = Trainer(**QUIET, max_epochs=7, callbacks=[Count()])
    trainer.fit(Seen(), data_module(root, num_workers=2))


class Policy(v2.Transform):
    """Paints a picture with the number of the scheduling policy of who decodes it."""

    def transform(self, image, params):
        return torch.full_like(image, os.sched_getscheduler(0))


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="of Linux alone")
@pytest.mark.parametrize(("workers", "policy"), [(2, "SCHED_IDLE"), (0, "SCHED_OTHER")])
def test_workers_leave_the_cores_to_a_training_on_them(root, monkeypatch, workers, policy):
    monkeypatch.setattr(
        os, "sched_setscheduler", posix.sched_setscheduler
    )  # the tests' does nothing
    for images, _ in train(root, epochs=1, num_workers=workers, augment=Policy())[0]:
        assert images.unique().tolist() == [getattr(os, policy)]


def test_progressive_sizes_follow_the_epoch(root):
    progressive = ProgressiveResizing(start_size=16, start_epoch=1, end_epoch=3, multiple=8)
    epochs = train(root, epochs=4, train_size=32, progressive=progressive)
    assert [epochs[e][0][0].shape[-1] for e in range(4)] == [16, 16, 24, 32]


def test_progressive_sizes_of_ffcv():
    # ffcv-imagenet, rn50_88_epochs: 160 up to epoch 65, 192 from 76 on, in multiples of 32.
    progressive = ProgressiveResizing(160, 65, 76)
    sizes = [progressive.size(192, epoch) for epoch in range(88)]
    theirs = [round(np.interp(e, [65, 76], [160, 192]) / 32) * 32 for e in range(88)]
    assert sizes == theirs


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixed_labels_are_the_shares_of_the_pixels(mixup, cutmix):
    # Every picture is of one value, its class: a share of the pixels is a share of the value.
    labels = torch.tensor([0, 1, 2, 3])
    images = labels.view(4, 1, 1, 1).expand(4, 3, 64, 64).to(torch.uint8)
    mix = MixUpCutMix(mixup, cutmix, 4)
    for seed in range(10):
        torch.manual_seed(seed)
        mixed, shares = mix(images, labels)
        torch.testing.assert_close(shares.sum(1), torch.ones(4))
        value = (shares * torch.arange(4)).sum(1)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), value, atol=1e-4, rtol=1e-4)


def test_only_training_batches_are_mixed(root):
    class Soft(Seen):
        def validation_step(self, batch, batch_idx):
            assert batch[1].ndim == 1
            assert batch[0].dtype == torch.uint8

    module = Soft()
    Trainer(**QUIET, max_epochs=1).fit(module, data_module(root, mixup=0.2))
    for images, shares in module.epochs[0]:
        assert shares.shape == (len(images), 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_broken_picture_is_named(root, workers, split):
    bad = root / split / "n02" / "n02_x.JPEG"
    bad.write_bytes(photos.encoded(photos.picture(size=(320, 240)))[:2000])
    with pytest.raises(UserError, match=r"n02_x\.JPEG can't be read: image file is truncated") as e:
        train(root, num_workers=workers)
    assert e.value.status == 1


@pytest.mark.filterwarnings("ignore:left out, ")
@pytest.mark.parametrize("workers", [0, 2])
def test_broken_pictures_are_left_out_and_counted_up_to_a_limit(root, workers):
    for i in range(3):
        (root / "train/n01" / f"bad{i}.JPEG").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"left out, 3 so far: .*bad\d\.JPEG: cannot identify"):
        epochs = train(root, num_workers=workers, broken="skip", max_broken=3)
    assert sum(len(labels) for _, labels in epochs[1]) == 21
    with pytest.raises(UserError, match=r"3 pictures can't be read, more than data\.max_broken=2"):
        train(root, num_workers=workers, broken="skip", max_broken=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"val_resize": 8}, "val_resize=8 is less than"),
        ({"scale": (0.5, 0.2)}, "data.scale"),
        ({"scale": (0.0, 1.0)}, "data.scale"),
        ({"flip": 2.0}, "probabilities"),
        ({"mixup": -1.0}, "data.mixup"),
        ({"repeats": 0}, "data.repeats"),
    ],
)
def test_options_that_make_no_sense_are_refused(root, options, words):
    with pytest.raises(UserError, match=words):
        data_module(root, **options)


def test_sizes_that_never_grow_are_refused():
    with pytest.raises(UserError, match="end_epoch must come after"):
        ProgressiveResizing(8, start_epoch=3, end_epoch=3)


def test_memory_of_an_index_is_arrays(root):
    data = data_module(root)
    data.setup("fit")
    pictures = data.splits["train"]
    per_file = sum(a.nbytes for a in (pictures.names, pictures.ends, pictures.labels)) / 21
    assert per_file < 40
    assert len(pickle.dumps(data.train_dataloader().loader.dataset)) < 10_000
    assert Path(pictures.path(20)).is_file()
