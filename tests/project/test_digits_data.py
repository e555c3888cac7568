"""The data module of MNIST and its look-alikes: splits, files, downloads, augmentation, resumes."""

import atexit
import gzip
import http.server
import pickle
import struct
import threading
import time
from functools import partial
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn
from torch.distributed import destroy_process_group
from torchvision import datasets

from anneal import UserError
from anneal import testing as photos
from project.data.augment import random_affine, random_shift
from project.data.digits import MNISTDataModule
from project.models.digits import SoftmaxRegression

NAMES = [f"{p}-{k}-ubyte" for p in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def idx(array: Tensor) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.numpy().tobytes()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small complete MNIST: 60 + 20 images with their number in the first pixel."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, n, first in (("train", 60, 0), ("t10k", 20, 100)):
        images = torch.zeros(n, 28, 28, dtype=torch.uint8)
        images[:, 0, 0] = torch.arange(first, first + n)
        labels = (torch.arange(n) % 10).to(torch.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return folder


def mnist(raw: Path, **kwargs) -> MNISTDataModule:
    data = MNISTDataModule(dataset="MNIST", root=str(raw.parents[1]), **kwargs)
    data.prepare_data()
    data.setup()
    return data


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def digits() -> MNISTDataModule:
    data = MNISTDataModule()
    data.prepare_data()
    data.setup()
    return data


# What is trained, validated and tested on


def test_digits_are_split_by_class_without_overlap(digits: MNISTDataModule) -> None:
    sizes = {name: len(labels) for name, (_, labels) in digits.splits.items()}
    assert sizes == {"train": 3600, "val": 400, "test": 1000}
    for name, (images, labels) in digits.splits.items():
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (1, 28, 28)
        assert labels.bincount().tolist() == [sizes[name] // 10] * 10
    rows = torch.cat([images.flatten(1) for images, _ in digits.splits.values()])
    assert len(rows.unique(dim=0)) == 5000


def test_the_split_follows_the_seed_and_nothing_else(digits: MNISTDataModule) -> None:
    torch.manual_seed(99)
    same, other = MNISTDataModule(), MNISTDataModule(seed=1)
    for data in (same, other):
        data.setup()
    for name, (images, _) in digits.splits.items():
        assert torch.equal(images, same.splits[name][0])
        assert torch.equal(images, other.splits[name][0]) == (name == "test")


def test_the_official_test_images_are_only_for_testing(raw: Path) -> None:
    data = mnist(raw, val_size=20)
    first = {name: set(images[:, 0, 0, 0].tolist()) for name, (images, _) in data.splits.items()}
    assert first["test"] == set(range(100, 120))
    assert first["train"] | first["val"] == set(range(60))
    assert len(first["val"]) == 20
    assert not first["train"] & first["val"]


@pytest.mark.parametrize("val_size", [0, 0.0, 60, 1.0, 0.001, -5])
def test_a_split_without_training_or_validation_is_refused(raw: Path, val_size: float) -> None:
    with pytest.raises(UserError, match="val_size"):
        mnist(raw, val_size=val_size)


def test_class_names_are_those_of_the_data_set() -> None:
    assert MNISTDataModule("MNIST").class_names == list("0123456789")
    assert MNISTDataModule("FashionMNIST").class_names[9] == "Ankle boot"
    assert MNISTDataModule("KMNIST").class_names[0] == "o"


# Files


def test_only_gz_files_are_read_and_nothing_is_written(raw: Path) -> None:
    plain = mnist(raw)
    for name in NAMES:
        (raw / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
        (raw / name).unlink()
    before = listing(raw.parents[1])
    packed = mnist(raw)
    assert listing(raw.parents[1]) == before
    for name, (images, labels) in plain.splits.items():
        assert torch.equal(images, packed.splits[name][0])
        assert torch.equal(labels, packed.splits[name][1])


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def lie(count: int, content: bytes) -> bytes:
    return content[:4] + struct.pack(">I", count) + content[8:]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda content: b"",
        lambda content: content[:6],
        lambda content: content + b"\0",
        lambda content: b"<!DOCTYPE html><html>404 not found</html>",
        partial(lie, 0),
        partial(lie, 2**32 - 1),
        lambda content: content[:3] + b"\xff" + content[4:],
    ],
    ids=["cut", "empty", "header only", "longer", "html", "claims 0", "claims 2^32", "255-d"],
)
def test_a_damaged_file_is_named(raw: Path, name: str, damage) -> None:
    path = raw / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        mnist(raw)
    assert f"{path} is damaged or cut" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_gz_is_named(raw: Path) -> None:
    path = raw / f"{NAMES[0]}.gz"
    packed = gzip.compress((raw / NAMES[0]).read_bytes())
    (raw / NAMES[0]).unlink()
    middle = len(packed) // 2
    for content in (cut(packed), packed[:middle] + b"\xff\xff" + packed[middle + 2 :], b"html"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path.name} is damaged or cut"):
            mnist(raw)


def test_labels_that_do_not_fit_are_named(raw: Path) -> None:
    path = raw / NAMES[1]
    for labels in (torch.zeros(59), torch.full((60,), 10)):
        path.write_bytes(idx(labels.to(torch.uint8)))
        with pytest.raises(UserError, match="train-labels-idx1-ubyte is damaged"):
            mnist(raw)


def test_images_of_another_size_are_named(raw: Path) -> None:
    (raw / NAMES[0]).write_bytes(idx(torch.zeros(60, 20, 20, dtype=torch.uint8)))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is damaged"):
        mnist(raw)


@pytest.mark.parametrize("download", [True, False])
def test_missing_files_without_a_network_say_what_to_put_where(
    raw: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    for name in NAMES[2:]:
        (raw / name).unlink()
    with pytest.raises(UserError) as error:
        mnist(raw, download=download)
    message = str(error.value)
    for part in (*NAMES[2:], str(raw), "http://127.0.0.1:9/", "--data.dataset=digits"):
        assert part in message
    assert NAMES[0] not in message
    assert "\n" not in message


class Site:
    """A mirror that has the files of `raw`, and takes them away from there."""

    def __init__(self, raw: Path, folder: Path, delay: float = 0.0) -> None:
        folder.mkdir()
        for name in NAMES:
            (folder / f"{name}.gz").write_bytes(gzip.compress((raw / name).read_bytes()))
            (raw / name).unlink()
        self.sums = [(f"{n}.gz", md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in NAMES]
        requests = self.requests = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                requests.append(self.path)
                time.sleep(delay)
                super().do_GET()

            def log_message(self, *args) -> None:
                pass

        handler = partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> "Site":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args) -> None:
        self.server.shutdown()
        self.server.server_close()

    def check(self) -> None:
        """Each file was fetched once; torchvision may look for a redirection first."""
        assert set(self.requests) == {f"/{name}.gz" for name in NAMES}
        assert len(self.requests) <= 2 * len(NAMES)


def test_missing_files_are_downloaded_once(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mnist(raw)
    with Site(raw, tmp_path / "site") as site:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [site.url])
        monkeypatch.setattr(datasets.MNIST, "resources", site.sums)
        first, second = mnist(raw), mnist(raw)
        site.check()
    for data in (first, second):
        assert torch.equal(data.splits["test"][0], expected.splits["test"][0])


class Mirrored(MNISTDataModule):
    """MNIST from a mirror, whatever its files hold, in whatever process."""

    def __init__(self, url: str, **kwargs) -> None:
        super().__init__("MNIST", **kwargs)
        self.url = url

    def prepare_data(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.MNIST, "mirrors", [self.url])
            resources = [(name, None) for name, _ in datasets.MNIST.resources]
            patch.setattr(datasets.MNIST, "resources", resources)
            super().prepare_data()

    def setup(self, stage: str) -> None:
        super().setup(stage)
        atexit.register(destroy_process_group)  # as `main` does for the processes of a command


def test_two_processes_download_once_however_slow_the_mirror_is(raw: Path, tmp_path: Path) -> None:
    with Site(raw, tmp_path / "site", delay=0.2) as site:
        data = Mirrored(site.url, root=str(tmp_path), batch_size=4, val_size=8)
        options = QUIET | {"enable_checkpointing": False, "max_epochs": 1}
        trainer = Trainer(**options, devices=2, strategy="ddp_fork")
        trainer.fit(SoftmaxRegression(optimizer=partial(torch.optim.SGD, lr=0.1)), data)
        site.check()
    assert "val/acc" in trainer.callback_metrics
    assert {path.name for path in raw.iterdir()} >= set(NAMES)


# Batches


def test_fewer_samples_than_processes_are_refused(raw: Path) -> None:
    data = mnist(raw, val_size=1)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, overfit_batches=0)  # type: ignore
    with pytest.raises(UserError, match="1 val images"):
        data.val_dataloader()


def test_data_and_batches_are_picklable(digits: MNISTDataModule) -> None:
    data = pickle.loads(pickle.dumps(digits))
    batches = pickle.loads(pickle.dumps(digits.train_dataloader()))
    assert len(batches) == len(data.train_dataloader()) == 29  # 3600 / 128, rounded up


# Augmentation


def test_no_augmentation_is_the_identity(digits: MNISTDataModule) -> None:
    images = digits.splits["train"][0][:16]
    same = random_affine(images, 0, 0, 0, torch.Generator())
    assert torch.allclose(same, images.float(), atol=1e-2)
    assert torch.equal(random_shift(images, 0, torch.Generator()), images)


def test_shifts_are_whole_pixels_in_all_directions() -> None:
    images = torch.zeros(500, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 10, 15] = 255
    moved = random_shift(images, 2, torch.Generator().manual_seed(0))
    assert moved.dtype == torch.uint8
    assert moved.sum((1, 2, 3), dtype=torch.int64).eq(255).all()
    places = {(r - 10, c - 15) for _, _, r, c in moved.nonzero().tolist()}
    assert places == {(r, c) for r in range(-2, 3) for c in range(-2, 3)}


@pytest.mark.parametrize(
    ("shift", "rotation", "scale"),
    [(3, 0, 0), (0, 20, 0), (0, 0, 0.3)],
    ids=["shift", "turn", "grow"],
)
def test_affine_amounts_are_the_largest_ones(shift: float, rotation: float, scale: float) -> None:
    images = torch.zeros(400, 1, 28, 28)
    images[:, :, 13:15, 20:22] = 100.0  # 7 pixels right of the middle
    moved = random_affine(images, shift, rotation, scale, torch.Generator().manual_seed(0))
    weight = moved.sum((1, 2, 3))
    x = (moved.sum((1, 2)) * torch.arange(28)).sum(1) / weight - 13.5
    y = (moved.sum((1, 3)) * torch.arange(28)).sum(1) / weight - 13.5
    angle = torch.atan2(y, x).rad2deg().abs().max() if rotation else torch.tensor(0.0)
    radius = torch.hypot(x, y)
    assert angle == pytest.approx(rotation, abs=1)
    if scale:
        assert radius.min() == pytest.approx(7 * (1 - scale), abs=0.2)
        assert radius.max() == pytest.approx(7 * (1 + scale), abs=0.2)
    if shift:
        assert (x - 7).abs().max() == pytest.approx(shift, abs=0.1)
        assert y.abs().max() == pytest.approx(shift, abs=0.1)


# In a trainer


class Recorder(LightningModule):
    """Trains one number and records the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int], list[float]]] = []
        self.validated: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, ids = batch
        pixels = images.flatten(1).float() @ torch.arange(784).float()
        self.seen.append((self.current_epoch, ids.tolist(), pixels.tolist()))
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.validated.append(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def numbered(digits: MNISTDataModule, **kwargs) -> MNISTDataModule:
    """40 training and 8 validation images, 10 batches an epoch; labels are their numbers."""
    data = MNISTDataModule(batch_size=4, **kwargs)
    images = digits.splits["train"][0]
    data.splits = {"train": (images[:40], torch.arange(40)), "val": (images[:8], torch.arange(8))}
    return data


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("until", ["max_epochs", "max_steps"])
@pytest.mark.parametrize("stop", [9, 10, 11, 19, 20])
def test_resume_continues_at_the_next_sample(
    digits: MNISTDataModule, tmp_path: Path, stop: int, until: str
) -> None:
    limit = {"max_epochs": {"max_epochs": 3}, "max_steps": {"max_epochs": -1, "max_steps": 30}}
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)

    def train(**kwargs) -> Recorder:
        seed_everything(3, verbose=False)
        module = Recorder()
        options = QUIET | limit[until] | kwargs.pop("options")
        Trainer(**options).fit(module, numbered(digits, shift=2), **kwargs)
        return module

    whole = train(options={"callbacks": [save]})
    rest = train(options={"enable_checkpointing": False}, ckpt_path=tmp_path / f"step={stop}.ckpt")
    assert len(whole.seen) == 30
    assert rest.seen == whole.seen[stop:]


@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path")
@pytest.mark.parametrize("epoch", [0, 1])
def test_resume_at_the_end_of_an_epoch_starts_the_next(
    digits: MNISTDataModule, tmp_path: Path, epoch: int
) -> None:
    save = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    seed_everything(3, verbose=False)
    whole, rest = Recorder(), Recorder()
    Trainer(**QUIET, max_epochs=3, callbacks=[save]).fit(whole, numbered(digits))
    Trainer(**QUIET, max_epochs=3, enable_checkpointing=False).fit(
        rest, numbered(digits), ckpt_path=tmp_path / f"epoch={epoch}.ckpt"
    )
    assert rest.seen == whole.seen[10 * (epoch + 1) :]


def test_only_training_batches_are_augmented_each_time_differently(
    digits: MNISTDataModule,
) -> None:
    seed_everything(3, verbose=False)
    module, data = Recorder(), numbered(digits, rotation=20)
    Trainer(**QUIET, max_epochs=2, enable_checkpointing=False).fit(module, data)
    for images in module.validated:
        assert images.dtype == torch.uint8
        assert any(torch.equal(images, data.splits["val"][0][i : i + 4]) for i in (0, 4))
    first, second = {}, {}
    for epoch, ids, pixels in module.seen:
        (second if epoch else first).update(zip(ids, pixels, strict=True))
    assert first.keys() == second.keys() == set(range(40))
    assert all(first[i] != second[i] for i in first)


def test_overfit_batches_repeats_one_batch(digits: MNISTDataModule) -> None:
    module = Recorder()
    trainer = Trainer(**QUIET, max_epochs=3, overfit_batches=1, enable_checkpointing=False)
    trainer.fit(module, numbered(digits))
    assert [ids for _, ids, _ in module.seen] == [[0, 1, 2, 3]] * 3


# Pictures of one's own


def as_file(kind: str, image: Tensor) -> Image.Image:
    """A digit as people draw and store them."""
    light, clear = image.numpy(), np.zeros((28, 28, 4), np.uint8)
    clear[..., 3] = light
    if kind == "white on transparent":
        clear[..., :3] = 255
    return {
        "light on dark": Image.fromarray(light),
        "inverted": Image.fromarray(255 - light),
        "on grey paper": Image.fromarray((200 - 0.7 * light).astype(np.uint8)).resize((200, 200)),
        "empty": Image.fromarray(0 * light),
    }.get(kind, Image.fromarray(clear))


ALIKE = {"light on dark": True, "white on transparent": True, "black on transparent": False}
ALIKE |= {"inverted": False, "on grey paper": False, "empty": False}


def test_digits_unlike_those_of_the_training_are_said_to_be(
    digits: MNISTDataModule, run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model=MLP", "--data=MNISTDataModule", "--trainer.max_epochs=1"]
    flags += [
        "--trainer.logger=false",
        "--trainer.accelerator=cpu",
        "--trainer.limit_train_batches=20",
    ]
    (tmp_path / "empty.yaml").write_text("seed_everything: 0\n")
    run("fit", "--config=empty.yaml", *flags, "--run_name=a")
    run("export", "--ckpt_path=last", "--format=torch_export")
    images = digits.splits["test"][0][::250, 0]
    for kind, alike in ALIKE.items():
        for i, image in enumerate(images):
            photos.save(as_file(kind, image), tmp_path / kind / f"{i}.png", format="PNG")
        for weights in ("last", "runs/a/model.pt2"):
            capsys.readouterr()
            run("predict", f"--ckpt_path={weights}", f"--data.predict_path={kind}", "--run=a")
            said = [s for s in capsys.readouterr().err.splitlines() if "do not look like" in s]
            assert len(said) == (not alike), kind
            assert all(s.startswith("4 of 4 pictures") and "light on dark" in s for s in said)
