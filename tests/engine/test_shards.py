import io
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import boto3
import numpy as np
import pytest
import torch
from helpers import idle_time
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from anneal import testing as photos
from anneal.data.sampler import EpochSampler, make_generator
from anneal.errors import UserError
from anneal.testing import wait_for
from anneal.vision import bucket, shards
from anneal.vision import streaming as sharded
from anneal.vision.index import ImageFolder
from anneal.vision.streaming import ImageShards

CHUNK = 4000  # bytes: about three pictures
SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos.image_folder(tmp_path_factory.mktemp("photos"), train=40, val=3)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "CHUNK", CHUNK)
        assert shards.main([str(folder), str(out), "--num_workers=0"]) == 0
    return out


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/anneal/shards"


@pytest.fixture(scope="module")
def server():
    """An S3 server with empty buckets `data` and `empty`."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


@pytest.fixture
def s3(server, monkeypatch):
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "what",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    client.create_bucket(Bucket="empty")
    return client


@pytest.fixture
def root(s3, made):
    for path in made.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "data", f"photos/v1/{path.relative_to(made)}")
    return "s3://data/photos/v1"


class Read(Dataset):
    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return index, self.pictures.path(index), self.pictures.read(index)


def as_it_is(sample):
    return sample


def check_all(pictures, folder, order, num_workers):
    """Reads in an order, and compares with the folder."""
    loader = DataLoader(
        Read(pictures), None, sampler=order, num_workers=num_workers, collate_fn=as_it_is
    )
    for index, path, data in loader:
        file = folder / path.split("#")[1]
        assert data == file.read_bytes()
        assert file.parent.name == pictures.class_names[pictures.labels[index]]


def order_of(pictures, seed=0):
    return pictures.order(make_generator(seed)).tolist()


def in_process(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def size_of(home):
    total = 0
    for path in home.rglob("*"):
        with suppress(FileNotFoundError):  # the thread that fetches ahead is at work
            total += path.stat().st_size if path.suffix in (".bin", ".part") else 0
    return total


# ---- making them


def test_shards_hold_the_files_as_they_are(folder, made):
    splits = ImageShards.splits(str(made))
    assert {k: len(p) for k, p in splits.items()} == {"train": 120, "val": 9}
    assert len(splits["train"].files) > 30
    for split, pictures in splits.items():
        assert pictures.class_names == ImageFolder.splits(folder)[split].class_names
        assert pictures.labels.dtype == np.int64
        assert len({pictures.path(i) for i in range(len(pictures))}) == len(pictures)
        check_all(pictures, folder, range(len(pictures)), num_workers=0)


def test_validation_keeps_its_order_and_training_is_mixed(made):
    splits = ImageShards.splits(str(made))
    assert splits["val"].labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert set(Counter(splits["train"].labels[:30].tolist())) == {0, 1, 2}


def test_pictures_are_scaled_down_and_made_jpegs_of_a_quality(tmp_path):
    root = photos.image_folder(tmp_path / "in", train=1, val=1)
    photos.save(photos.picture(size=(300, 150)), root / "train/n01/wide.png", format="PNG")
    photos.save(photos.picture(size=(20, 90)).convert("L"), root / "train/n01/small.JPEG")
    out = tmp_path / "out"
    options = ["--short_side=50", "--quality=60", "--num_workers=2"]
    assert shards.main([str(root), str(out), *options]) == 0
    pictures = ImageShards.splits(str(out))["train"]
    sizes = {}
    for i in range(len(pictures)):
        image = Image.open(io.BytesIO(pictures.read(i)))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        wanted = Image.open(io.BytesIO(photos.encoded(photos.picture(), quality=60)))
        assert image.quantization == wanted.quantization
        sizes[pictures.path(i).split("/")[-1]] = image.size
    assert sizes["wide.png"] == (100, 50)
    assert sizes["small.JPEG"] == (20, 90)
    assert sizes["n02_000.JPEG"] == (40, 32)


def test_broken_pictures_are_named_and_the_others_converted(tmp_path, capsys):
    root = photos.image_folder(tmp_path / "in", train=3, val=1)
    bad = root / "train/n02/n02_001.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    assert shards.main([str(root), str(tmp_path / "out"), "--num_workers=1"]) == 1
    printed = capsys.readouterr()
    assert f"broken  {bad}: " in printed.err
    assert "11 pictures in" in printed.out
    pictures = ImageShards.splits(str(tmp_path / "out"))["train"]
    assert sorted(pictures.labels.tolist()) == [0] * 3 + [1] * 2 + [2] * 3
    check_all(pictures, root, range(8), num_workers=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda root, out: (out.mkdir(), (out / "x").touch()), "is not an empty folder"),
        (lambda root, out: out.touch(), "is not an empty folder"),
        (lambda root, out: (root / "train").rename(root / "other"), "there are no class folders"),
        (lambda root, out: [p.write_bytes(b"x") for p in (root / "val").rglob("*.JPEG")], "no pic"),
        (["--quality=0"], "--quality=0: must be 1 to 100"),
        (["--short_side=0"], "--short_side=0: must be"),
        (["s3"], "aws s3 sync"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(tmp_path, capsys, change, told):
    root, out = photos.image_folder(tmp_path / "in", train=1, val=1), tmp_path / "deep" / "out"
    out.parent.mkdir()
    args = [str(root), str(out), "--num_workers=0"]
    if change == ["s3"]:
        args[1] = "s3://data/out"
    elif isinstance(change, list):
        args += change
    else:
        change(root, out)
    before = set(tmp_path.rglob("*"))
    assert shards.main(args) in (1, 2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert told in last
    assert {p for p in set(tmp_path.rglob("*")) - before if "cache" not in p.parts} == set()


def test_without_litdata_a_line_says_what_to_install(folder, made, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[stream\]'"):
        ImageShards.splits(str(made))
    assert shards.main([str(folder), str(tmp_path / "out")]) == 2
    assert "pip install -e '.[stream]'" in capsys.readouterr().err


# ---- the order


def test_an_order_has_every_picture_once_and_follows_from_the_generator(made):
    pictures, again = (ImageShards.splits(str(made))["train"] for _ in range(2))
    order = order_of(pictures)
    assert sorted(order) == list(range(120))
    assert order_of(again, 1) != order
    assert order_of(again) == order


def test_an_order_needs_few_chunks_at_a_time(made, monkeypatch):
    monkeypatch.setattr(sharded, "WINDOW", 4)
    pictures = ImageShards.splits(str(made))["train"]
    chunks = np.searchsorted(pictures.starts, order_of(pictures), "right") - 1
    first = {c: i for i, c in reversed(list(enumerate(chunks)))}
    last = {c: i for i, c in enumerate(chunks)}
    open_at = [sum(first[c] <= i <= last[c] for c in first) for i in range(120)]
    assert max(open_at) <= 4 + 1
    appeared = sorted(first, key=first.get)
    assert appeared != sorted(first)
    place = pictures.sequence.argsort()
    assert all(abs(place[c] - n) < 4 for n, c in enumerate(appeared))


def test_an_epoch_goes_on_in_its_middle(made):
    pictures = ImageShards.splits(str(made))["train"]
    whole = EpochSampler(120, 8, seed=3, position=lambda: (2, 0, 0), shuffle=pictures.order)
    rest = EpochSampler(120, 8, seed=3, position=lambda: (2, 6, 0), shuffle=pictures.order)
    wanted = [i.tolist() for _, _, i in whole.batches()][6:]
    assert [i.tolist() for _, _, i in rest.batches()] == wanted


# ---- from a bucket


def test_workers_read_from_a_bucket_what_is_in_the_folder(root, folder, home):
    splits = ImageShards.splits(root)
    assert list(splits) == ["train", "val"]
    assert not list(home.rglob("*.bin"))
    for pictures in splits.values():
        pictures = pickle.loads(pickle.dumps(pictures))
        check_all(pictures, folder, order_of(pictures), num_workers=2)
    assert not list(home.rglob("*.part"))


def test_the_cache_stays_in_its_bound(root, folder, home, monkeypatch):
    monkeypatch.setattr(sharded, "HELD", 4)
    monkeypatch.setattr(sharded, "WINDOW", 2)
    total = sum(size for _, size in ImageShards.splits(root)["train"].files)
    bound = total // 3
    sizes = []
    take = bucket.Cached._reserve

    def reserve(self, *args):
        file = take(self, *args)
        sizes.append(size_of(home))
        return file

    monkeypatch.setattr(bucket.Cached, "_reserve", reserve)
    monkeypatch.setattr(sharded, "MAX_CACHE", bound)
    for seed in (1, 2):
        pictures = ImageShards.splits(root)["train"]
        check_all(pictures, folder, order_of(pictures, seed), num_workers=0)
    assert len(sizes) > len(pictures.files)  # some came twice
    assert bound / 2 < max(sizes) <= bound


def test_chunks_come_before_they_are_needed(root):
    pictures = ImageShards.splits(root)["train"]
    order_of(pictures)
    sequence = pictures.sequence.tolist()
    pictures.read(pictures.starts[sequence[0]])
    wanted = [pictures.folder / pictures.files[c][0] for c in sequence[1:5]]
    wait_for(lambda: all(p.exists() for p in wanted))


def test_a_killed_run_goes_on_with_the_cache_it_left(root, folder, home, monkeypatch):
    monkeypatch.setattr(sharded, "HELD", 4)
    monkeypatch.setattr(sharded, "WINDOW", 2)
    bound = sum(size for _, size in ImageShards.splits(root)["train"].files) // 2
    monkeypatch.setattr(sharded, "MAX_CACHE", bound)
    pictures = ImageShards.splits(root)["train"]
    for seed in range(3):
        child = in_process(check_all, pictures, folder, order_of(pictures, seed), 0)
        time.sleep(0.2 + 0.2 * seed)
        os.kill(child.pid, signal.SIGKILL)
        child.join()

    def hang(self, name, file):
        file.write(b"half of it")
        file.flush()
        time.sleep(6000)

    with monkeypatch.context() as patch:
        patch.setattr(bucket.Bucket, "download", hang)
        for path in home.rglob("*.bin"):
            path.unlink()
        child = in_process(check_all, pictures, folder, order_of(pictures), 0)
        wait_for(lambda: any(home.rglob("*.part")))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    # Two ranks with two workers each, at once.
    ranks = [
        in_process(check_all, pictures, folder, order_of(pictures)[rank::2], 2) for rank in (0, 1)
    ]
    for rank in ranks:
        rank.join(600)
        assert rank.exitcode == 0
    assert size_of(home) <= bound
    assert not list(home.rglob("*.part"))


def test_new_data_at_the_same_address_is_not_mixed_with_the_old(root, s3, tmp_path):
    pictures = ImageShards.splits(root)["val"]
    check = pictures.read(0)
    other = photos.image_folder(tmp_path / "in", train=1, val=1)
    assert shards.main([str(other), str(tmp_path / "out"), "--quality=20"]) == 0
    for path in (tmp_path / "out").rglob("*.*"):
        s3.upload_file(str(path), "data", f"photos/v1/{path.relative_to(tmp_path / 'out')}")
    new = ImageShards.splits(root)["val"]
    assert new.folder != pictures.folder
    assert new.read(0) != check
    assert len(new) == 3


@pytest.mark.parametrize(
    ("root", "environment", "told"),
    [
        ("s3://empty", {}, "train/pictures.npz is not there"),
        ("s3://data/wrong/prefix", {}, "python train.py shards FOLDER OUT makes some"),
        ("s3://nobody-has-this", {}, "there is no such bucket"),
        ("s3://no_bucket!", {}, "Invalid bucket name"),
        ("s3://data", {"AWS_ACCESS_KEY_ID": ""}, "no credentials: set AWS_ACCESS_KEY_ID"),
        ("s3://data", {"AWS_PROFILE": "nobody"}, "profile (nobody) could not be found"),
        ("s3://data", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"),
        ("s3://data", {"AWS_ENDPOINT_URL": "nowhere"}, "Invalid endpoint: nowhere"),
    ],
)
def test_a_bucket_that_cannot_be_read_is_one_line_in_seconds(
    s3, monkeypatch, root, environment, told
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start = idle_time()
    with pytest.raises(UserError) as caught:
        ImageShards.splits(root)
    assert told in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert idle_time() - start < 20


def test_a_chunk_that_is_missing_or_cut_is_told(root, s3, made, tmp_path):
    name = ImageShards.splits(root)["train"].files[0][0]
    s3.delete_object(Bucket="data", Key=f"photos/v1/train/{name}")
    with pytest.raises(UserError, match=f"{name}: there is no such file"):
        ImageShards.splits(root)["train"].read(0)
    s3.put_object(Bucket="data", Key=f"photos/v1/train/{name}", Body=b"half")
    with pytest.raises(UserError, match=f"{name}: 4 bytes, not .*: upload it again"):
        ImageShards.splits(root)["train"].read(0)


def test_shards_of_a_folder_that_are_not_whole_are_told(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    pictures = ImageShards.splits(str(copy))["train"]
    (copy / "train" / pictures.files[0][0]).write_bytes(b"half")
    with pytest.raises(UserError, match="copy it again"):
        pictures.read(0)
    (copy / "train/pictures.npz").write_bytes((copy / "val/pictures.npz").read_bytes())
    with pytest.raises(UserError, match="of different conversions"):
        ImageShards.splits(str(copy))
    (copy / "train/index.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        ImageShards.splits(str(copy))
    with pytest.raises(UserError, match="is not there"):
        ImageShards.splits(str(tmp_path))
    assert torch.equal(pictures.sequence, torch.arange(len(pictures.files)))
