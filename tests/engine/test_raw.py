"""Raw copies of photos: what is in them, crops of a batch, damage, resumption."""

import pickle

import numpy as np
import pytest
import torch
from test_photos import data_module, same, train
from torchvision.transforms import v2

from anneal import testing as photos
from anneal.data.sampler import EpochSampler
from anneal.errors import UserError
from anneal.vision import shards
from anneal.vision.decode import decode
from anneal.vision.index import ImageFolder
from anneal.vision.loader import DecodedDataset
from anneal.vision.raw import CroppedDataset, RawImages, crop_batch, crop_one_by_one, draw
from anneal.vision.transforms import TrainTransform


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = photos.image_folder(tmp_path_factory.mktemp("photos"), train=7, val=3)
    photos.save(photos.picture(size=(90, 30)), folder / "train/n01/wide.JPEG")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(folder, out, *options):
    assert shards.main([str(folder), str(out), "--raw", "--num_workers=0", *options]) == 0
    return out


@pytest.fixture
def root(folder, tmp_path):
    return make(folder, tmp_path / "raw")


def dataset(root, transform=None, device="cpu", seed=3):
    pictures = RawImages.splits(root)["train"]
    transform = transform or TrainTransform()
    return CroppedDataset(pictures, transform, lambda epoch: 24, seed, torch.device(device))


def test_a_raw_copy_has_the_pixels_labels_and_names_of_the_folder(folder, root):
    splits = RawImages.splits(root)
    assert {name: len(pictures) for name, pictures in splits.items()} == {"train": 22, "val": 9}
    for split, pictures in splits.items():
        assert pictures.class_names == ImageFolder.splits(folder)[split].class_names
        for i in range(len(pictures)):
            file = folder / pictures.path(i).split("#")[1]
            assert file.parent.name == pictures.class_names[pictures.labels[i]]
            assert torch.equal(pictures.image(i), decode(file.read_bytes()))
    assert len({splits["train"].path(i) for i in range(22)}) == 22


def test_larger_pictures_are_scaled_down(folder, tmp_path):
    pictures = RawImages.splits(make(folder, tmp_path / "small", "--short_side=16"))["train"]
    assert {tuple(shape) for shape in pictures.shapes.tolist()} == {(16, 20), (16, 48)}
    assert pictures.file.stat().st_size == 3 * 16 * (21 * 20 + 48)


def test_a_quality_of_pixels_is_refused(folder, tmp_path, capsys):
    assert shards.main([str(folder), str(tmp_path / "out"), "--raw", "--quality=90"]) == 2
    assert "--quality is of JPEGs" in capsys.readouterr().err


def test_what_is_changed_in_a_picture_stays_with_who_changed_it(root):
    pictures = RawImages.splits(root)["train"]
    before = pictures.image(3).clone()
    pictures.image(3).zero_()
    assert torch.equal(pictures.image(3), before)


def test_a_crop_follows_from_seed_epoch_and_place(root):
    keys = [(2, place, (5 * place) % 22) for place in range(22)]
    whole, labels, _ = dataset(root).__getitems__(keys)
    assert labels.tolist() == [int(dataset(root).pictures.labels[k[2]]) for k in keys]
    alone = torch.cat([dataset(root).__getitems__([key])[0] for key in keys])
    shares = [dataset(root).__getitems__(keys[rank::3])[0] for rank in range(3)]
    assert torch.equal(whole, alone)
    assert all(torch.equal(whole[rank::3], shares[rank]) for rank in range(3))
    for other in ([(3, *key[1:]) for key in keys], [(2, key[1] + 1, key[2]) for key in keys]):
        assert not torch.equal(whole, dataset(root).__getitems__(other)[0])
    assert not torch.equal(whole, dataset(root, seed=4).__getitems__(keys)[0])


def test_boxes_are_distributed_as_torchvisions():
    shapes = np.tile([60, 100], (4000, 1))
    places = np.arange(4000)
    boxes, flips = draw(TrainTransform(flip=0.25), (0, 0), places, shapes)
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(1)
    image = torch.empty(3, 60, 100)
    drawn = [theirs.make_params([image]) for _ in places]
    names = ("top", "left", "height", "width")
    for ours, name in zip(boxes, names, strict=True):
        other = np.array([box[name] for box in drawn])
        spread = np.sqrt((ours.var() + other.var()) / 4000)
        assert abs(ours.mean() - other.mean()) < 4 * spread
        assert abs(ours.std() / other.std() - 1) < 0.06
    assert flips.mean() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3), (30, 400), (224, 224)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (1.0, 1.0)])
def test_boxes_lie_in_the_picture(shape, scale):
    shapes = np.tile(shape, (200, 1))
    boxes, _ = draw(TrainTransform(scale), (1, 1), np.arange(200), shapes)
    assert (boxes[:2] >= 0).all()
    assert (boxes[2:] > 0).all()
    assert (boxes[:2] + boxes[2:] <= shapes.T).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [8, 32, 100])
def test_crops_of_a_batch_are_those_of_torchvision(antialias, size, interpolation):
    transform = TrainTransform(antialias=antialias, interpolation=interpolation)
    images = [
        torch.from_numpy(np.array(photos.picture(seed=i, size=side)))
        for i, side in enumerate([(40, 32), (90, 70), (17, 60), (64, 64)])
    ]
    shapes = np.array([image.shape[:2] for image in images])
    (top, left, *sides), _ = draw(transform, (0, 0), np.arange(4), shapes)
    first = np.cumsum([0, *shapes.prod(1)[:-1]]) + top * shapes[:, 1] + left
    flips = [True, False, True, False]
    boxes = torch.from_numpy(np.stack([first, shapes[:, 1], *sides, flips]))
    pixels = torch.cat([image.view(-1, 3) for image in images])
    one_by_one = crop_one_by_one(transform, pixels, boxes, size)
    assert one_by_one.shape == (4, size, size, 3)
    if interpolation == "bilinear":
        batch = crop_batch(transform, pixels, boxes, size)
        assert (one_by_one.int() - batch.int()).abs().max() <= 1  # torch rounds twice
    mode = v2.InterpolationMode(interpolation)
    for i in range(4):
        h, w = sides[0][i], sides[1][i]
        image = images[i][top[i] : top[i] + h, left[i] : left[i] + w].permute(2, 0, 1)
        theirs = v2.functional.resize(image, [size, size], mode, antialias=antialias)
        theirs = (theirs.flip(-1) if flips[i] else theirs).permute(1, 2, 0)
        assert (theirs.int() - one_by_one[i].int()).abs().max() <= 1


@pytest.mark.parametrize("options", [{}, {"in_memory": True}, {"erasing": 0.5}, {"mixup": 0.2}])
def test_a_resumed_run_gets_the_same_pictures(root, tmp_path, options):
    whole = train(root, **options)
    save = tmp_path / "stopped.ckpt"
    before = train(root, save=save, stop_at=3, num_workers=2, **options)
    after = train(root, ckpt_path=save, **options)
    flat = [batch for epochs in (before, after) for e in sorted(epochs) for batch in epochs[e]]
    assert same(flat, [batch for e in sorted(whole) for batch in whole[e]])
    assert not same(whole[0], whole[1])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_several_processes_share_what_one_would_have(root, world):
    data = data_module(root, batch_size=6 // world)
    data.setup("fit")
    loader = data.train_dataloader()
    assert isinstance(loader.loader.dataset, CroppedDataset)
    sampler = loader.batch_sampler
    shares = []
    for sampler.rank in range(world):
        sampler.world_size = world
        shares.append([images for images, _ in loader][:2])  # the last takes in a rest
    together = [torch.stack(batches, 1).flatten(0, 1) for batches in zip(*shares, strict=True)]
    data = data_module(root, batch_size=6)
    data.setup("fit")
    one = [images for images, _ in data.train_dataloader()]
    assert same([together], [one[:2]])


def test_only_plain_crops_are_made_as_batches(root):
    for options in ({"augment": v2.RandomInvert()}, {"erasing": 0.1}):
        data = data_module(root, **options)
        data.setup("fit")
        assert type(data.train_dataloader().loader.dataset) is DecodedDataset
        assert type(data.val_dataloader().loader.dataset) is DecodedDataset


def test_pixels_in_memory_need_a_raw_copy(folder):
    with pytest.raises(UserError, match=r"data\.in_memory: .* shards .* OUT --raw"):
        data_module(folder, in_memory=True).setup("fit")


def damage(file, change):
    data = bytearray(file.read_bytes())
    file.write_bytes(change(data))


def flip_one(data):
    data[len(data) // 2] ^= 1
    return data


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("train/pictures.raw", flip_one, "damaged at"),
        ("train/pictures.raw", lambda data: data[:-1], "bytes, not"),
        ("val/pictures.raw", lambda data: data + b"x", "bytes, not"),
        ("train/pictures.raw", lambda data: b"", "bytes, not"),
        ("train/pictures.npz", lambda data: data[:300], "damaged"),
        ("train/pictures.npz", flip_one, "damaged"),
        ("train/pictures.npz", lambda data: b"", "damaged"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_told_in_a_line_that_names_the_file(root, name, change, told, workers):
    damage(root / name, change)
    with pytest.raises(UserError) as e:
        train(root, epochs=1, num_workers=workers)
    assert str(root / name) in str(e.value)
    assert told in str(e.value)
    assert "\n" not in str(e.value)


def test_a_split_that_is_missing_is_named(root):
    (root / "val/pictures.npz").unlink()
    with pytest.raises(UserError, match=r"val/pictures\.npz: No such file"):
        data_module(root).setup("fit")


def test_processes_map_one_file_and_each_image_is_checked_once(root):
    pictures = RawImages.splits(root)["train"]
    pictures.image(0)
    other = pickle.loads(pickle.dumps(pictures))
    assert "flat" not in vars(other)  # it maps the file anew
    assert torch.equal(other.image(0), pictures.image(0))
    assert pictures.checked.tolist() == [True] + [False] * 21
    damage(pictures.file, flip_one)  # by another process, while this one reads
    middle = int(np.searchsorted(3 * pictures.stops, pictures.file.stat().st_size // 2, "right"))
    with pytest.raises(UserError, match=r"damaged at .*#train/"):
        pictures.image(middle)


def test_an_epoch_has_every_picture_once(root):
    labels = torch.cat([labels for _, labels in train(root, epochs=1, num_workers=2)[0]])
    assert sorted(labels.tolist()) == [0] * 8 + [1] * 7 + [2] * 7
    assert len(EpochSampler(22, 4)) == 6
