"""Data as people have it: without splits, in tables, named by a pattern; each task's targets."""

import os
import re
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from test_photos import QUIET, data_module, same, train
from tiny import Few, Points, Tiny
from yours import PACKAGE

from anneal import image_grid
from anneal import testing as photos
from anneal.commands import show_batch
from anneal.data.sampler import EpochSampler, balanced, make_generator
from anneal.errors import UserError
from anneal.vision import check, layouts, shards
from anneal.vision.datamodule import ImageFolderDataModule
from anneal.vision.files import ImageFiles
from anneal.vision.index import ImageFolder
from anneal.vision.layouts import Layout
from anneal.vision.splits import hold_out, strata

NAMES = [f"{color}_{i:03}" for color in ("blue", "green", "red") for i in range(10)]
ROWS = [[name, name.partition("_")[0]] for name in NAMES]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 images in one folder, named by their class."""
    folder = tmp_path_factory.mktemp("flat")
    colors = dict(zip(("red", "green", "blue"), photos.COLORS.values(), strict=True))
    for i, (name, color) in enumerate(ROWS):
        photos.save(photos.picture(colors[color], i, (20, 16)), folder / f"{name}.jpg")
    return folder


@pytest.fixture
def flat(images, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(images, tmp_path / "data")


@pytest.fixture
def read(images, tmp_path):
    """Reads a table of these images, written from rows."""

    def read(head, rows, root=images, file="labels.csv", mark=",", **options):
        text = "\n".join(mark.join(map(str, row)) for row in [head, *rows])
        (tmp_path / file).write_text(text)
        return ImageFolder.splits(root, layout=Layout(labels=str(tmp_path / file), **options))

    return read


def classes_of(pictures):
    return {pictures.path(i): pictures.class_names[k] for i, k in enumerate(pictures.labels)}


def paths_of(pictures):
    return [pictures.path(i) for i in range(len(pictures))]


def in_folders(images, root, *splits):
    """Moves images into class folders, below each of some splits."""
    for name, color in ROWS:
        for split in splits or [""]:
            (root / split / color).mkdir(parents=True, exist_ok=True)
            shutil.copy(images / f"{name}.jpg", root / split / color)
    return root


# ---- folders of classes


def test_a_folder_of_classes_is_split_the_same_of_each_class(images, tmp_path):
    root = in_folders(images, tmp_path / "data")
    splits = ImageFolder.splits(root, layout=Layout(test_split=0.1, validation_split=0.3))
    counts = {split: np.bincount(pictures.labels).tolist() for split, pictures in splits.items()}
    assert counts == {"train": [6] * 3, "val": [3] * 3, "test": [1] * 3}
    every = [path for pictures in splits.values() for path in paths_of(pictures)]
    assert len({*every}) == 30
    for pictures in splits.values():
        assert all(f"/{name}/" in path for path, name in classes_of(pictures).items())
    assert splits["val"].notes == [
        "9 of 30 images, taken out of train (data.validation_split=0.3, data.split_seed=0)"
    ]


def test_train_without_val_gives_some_to_it_and_says_so_in_a_line(images, tmp_path, caplog):
    root = in_folders(images, tmp_path / "data", "train", "test")
    with caplog.at_level("INFO"):
        data = ImageFolderDataModule(str(root))
        data.setup()
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 24, "val": 6, "test": 30}
    (line,) = [line for line in caplog.messages if "taken out" in line]
    assert line.startswith(
        f"{root}, val: 6 of 30 images, taken out of train (data.validation_split"
    )


def test_a_split_is_the_same_whatever_draws_random_numbers_and_however_files_are_listed(
    images, tmp_path, monkeypatch
):
    root = in_folders(images, tmp_path / "data")
    first = paths_of(ImageFolder.splits(root)["val"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    np.random.seed(3)
    listed = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Reversed(listed(path)))
    other = ImageFolder.splits(root, Layout(split_seed=1))["val"]
    assert paths_of(other) != first
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))  # it is listed once more
    assert paths_of(ImageFolder.splits(root)["val"]) == first
    assert [os.path.basename(path) for path in first] == [  # the same in every release
        *("blue_002.jpg", "blue_005.jpg", "green_000.jpg", "green_003.jpg"),
        *("red_006.jpg", "red_008.jpg"),
    ]


class Reversed(list):
    def __init__(self, found):
        super().__init__(reversed(list(found)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize(
    "names",
    [
        ("training", "valid", "testing"),
        ("Train", "VAL", "Test"),
        ("TRAINING", "Validation", "test"),
        ("train", "dev", "test"),
    ],
)
def test_splits_are_known_in_any_spelling(images, tmp_path, names):
    root = in_folders(images, tmp_path / "data", *names)
    splits = ImageFolder.splits(root)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        assert len(splits[split]) == 30
        assert all(path.startswith(f"{root}/{name}/") for path in paths_of(splits[split]))
    rows = [[*row, names[i % 3]] for i, row in enumerate(ROWS)]
    table = "\n".join(",".join(row) for row in [["path", "label", "split"], *rows])
    (tmp_path / "t.csv").write_text(table)
    splits = ImageFolder.splits(images, layout=Layout(labels=str(tmp_path / "t.csv")))
    assert {split: len(pictures) for split, pictures in splits.items()} == dict.fromkeys(splits, 10)


def test_two_folders_of_one_split_are_refused(images, tmp_path):
    root = in_folders(images, tmp_path / "data", "train", "val", "Valid")
    with pytest.raises(UserError, match=r"data/Valid and \S+data/val are both val: rename"):
        ImageFolder.splits(root)


def test_a_class_of_two_images_is_in_both_splits_and_one_of_one_is_refused(images, tmp_path):
    root = in_folders(images, tmp_path / "data")
    (root / "few").mkdir()
    for i in range(2):
        shutil.copy(images / f"red_00{i}.jpg", root / "few")
    splits = ImageFolder.splits(root)
    assert [list(pictures.labels).count(1) for pictures in splits.values()] == [1, 1]
    (root / "few/red_000.jpg").unlink()
    with pytest.raises(UserError, match=r"class few is too small for train and val .* 1 images"):
        ImageFolder.splits(root)


# ---- tables


WRITTEN = {
    "a comma": "path,label\n{}",
    "a semicolon": "path;label\n{}",
    "a tab": "path\tlabel\n{}",
    "a mark of byte order": "\ufeffpath,label\n{}",
    "lines of Windows": "path,label\r\n{}\r\n",
    "quotes, white space and empty lines": ' "path" , "label"\n\n{}\n\n',
}


@pytest.mark.parametrize("form", WRITTEN)
def test_a_table_is_read_however_it_is_written(images, tmp_path, form):
    mark = next((mark for mark in ";\t" if mark in WRITTEN[form]), ",")
    end = "\r\n" if "\r" in WRITTEN[form] else "\n"
    lines = end.join(mark.join((f"{name}.jpg", color)) for name, color in ROWS)
    (tmp_path / "t.csv").write_bytes(WRITTEN[form].format(lines).encode())
    splits = ImageFolder.splits(images, layout=Layout(labels=str(tmp_path / "t.csv")))
    assert [len(pictures) for pictures in splits.values()] == [24, 6]
    for path, name in classes_of(splits["train"]).items():
        assert os.path.basename(path).startswith(name)


@pytest.mark.parametrize(
    "head", [("image_id", "label"), ("File", "CLASS"), ("id", "breed"), ("filename", "target")]
)
def test_usual_columns_need_no_option_and_ids_no_ending(read, head):
    assert read(head, ROWS)["train"].class_names == ["blue", "green", "red"]


def test_the_same_line_twice_is_one_image(read):
    assert sum(map(len, read(["path", "label"], [*ROWS, ROWS[0]]).values())) == 30


@pytest.mark.parametrize("where", ["below root", "beside the table", "deeper", "absolute"])
def test_paths_are_relative_to_root_or_to_the_table(images, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(images, "photos/train_images")
    places = {
        "below root": ("photos", "train_images/{}.jpg"),
        "beside the table": ("elsewhere", "photos/train_images/{}.jpg"),
        "deeper": ("photos", "{}"),
        "absolute": ("elsewhere", f"{images}/{{}}.jpg"),
    }
    root, path = places[where]
    frame = pd.DataFrame([[path.format(name), color] for name, color in ROWS], columns=["id", "x"])
    frame.to_csv("labels.csv", index=False)
    data = data_module(root, labels="labels.csv")
    data.setup()
    assert len(data.splits["train"]) == 24
    assert all(os.path.isfile(path) for path in paths_of(data.splits["train"]))
    monkeypatch.chdir("/")  # the index stays right
    assert all(map(os.path.isfile, paths_of(data.splits["train"]))) or where in (
        "below root",
        "deeper",
    )


def test_a_column_of_true_and_false_says_what_is_for_validation(images, tmp_path):
    rows = [[name, color, name.endswith(("2", "5"))] for name, color in ROWS]
    table = pd.DataFrame(rows, columns=["path", "label", "is_valid"])
    table.to_csv(tmp_path / "t.csv", index=False)
    layout = Layout(labels=str(tmp_path / "t.csv"), split_column="is_valid")
    splits = ImageFolder.splits(images, layout=layout)
    valid = [os.path.basename(path) for path in paths_of(splits["val"])]
    assert valid == [f"{name}.jpg" for name, _, is_valid in sorted(rows) if is_valid]
    assert len(splits["train"]) == len(rows) - len(valid)


def test_a_table_of_parquet_has_numbers_as_they_are(images, tmp_path, monkeypatch):
    frame = pd.DataFrame({"id": NAMES, "a": [0, 1] * 15, "b": [True, False] * 15})
    monkeypatch.setattr(pd, "read_parquet", lambda file: frame)
    (tmp_path / "t.parquet").touch()
    layout = Layout(labels=str(tmp_path / "t.parquet"))
    train = ImageFolder.splits(images, layout=layout)["train"]
    assert (train.task, train.class_names) == ("multilabel", ["a", "b"])
    assert (train.labels.sum(1) == 1).all()
    frame = pd.DataFrame({"id": NAMES, "label": [np.array(list("ab")), np.array(["b"]), None] * 10})
    (tmp_path / "t.parquet").write_text("another one")
    train = ImageFolder.splits(images, layout=layout)["train"]
    assert (train.task, train.class_names) == ("multilabel", ["a", "b"])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))

    def none(file):
        raise ImportError("Missing optional dependency 'pyarrow'")

    monkeypatch.setattr(pd, "read_parquet", none)
    with pytest.raises(UserError, match=r"t\.parquet: pyarrow reads Parquet: pip install pyarrow$"):
        ImageFolder.splits(images, layout=layout)


def refusals():
    double = [*ROWS, ["red_000", "blue"]]
    return {
        "no column": (ROWS, {"label_column": "lable"}, "only path, label; did"),
        "no such group": (ROWS, {"group_column": "patient"}, "data.group_column=patient"),
        "a missing image": (
            [*ROWS, ["red_777", "red"]],
            {},
            "1 of 31 images are not in .*flat[0-9]+, or .*red_777",
        ),
        "an empty label": ([*ROWS[1:], [NAMES[0], " "]], {}, "empty labels: 1, at blue_000.jpg"),
        "two labels": (double, {}, "several lines that differ: 1, at red_000.jpg"),
        "a class of one": ([[NAMES[0], "x"], *ROWS[1:]], {}, "class x is too small .* 1 images"),
        "no number": (ROWS, {"task": "regression"}, "no finite number: 30, label is 'blue'"),
        "no 0 or 1": (
            [[name, i, 1] for i, name in enumerate(NAMES)],
            {"task": "multilabel", "label_column": ["label", "b"]},
            "neither 0 nor 1: 28, label is '2', at blue_002.jpg",
        ),
        "NaN": (
            [[name, i / 3 if i else "NaN"] for i, name in enumerate(NAMES)],
            {},
            "no finite number: 1, label is 'NaN', at blue_000.jpg",
        ),
        "a number beyond float32": (
            [[name, 1.5 if i else 1e39] for i, name in enumerate(NAMES)],
            {},
            r"no finite number: 1, label is '1e\+39', at blue_000.jpg",
        ),
        "a single label": (
            [[name, i % 2] for i, name in enumerate(NAMES)],
            {"task": "multilabel"},
            "label is 0 or 1, two classes: data.task=classification",
        ),
        "a label that is the path": (ROWS, {"label_column": "path"}, "path can't stand for two"),
        "a label as a split": (ROWS, {"split_column": "label"}, "label can't stand for two"),
        "a group that is a class": (
            [[*row, row[1]] for row in ROWS],
            {"group_column": "b"},
            "class blue is too small for train and val .* 10 images in 1 groups",
        ),
        "numbers for classes": (
            [[name, i] for i, name in enumerate(NAMES)],
            {},
            "class 0 is too small .* for numbers, data.task=regression",
        ),
        "an unknown split": (
            [[*row, "fold1"] for row in ROWS],
            {"split_column": "b"},
            "b is 'fold1': neither train, val nor test, at blue_000.jpg",
        ),
        "only one split": (
            [[*row, "val"] for row in ROWS],
            {"split_column": "b"},
            "no images for train",
        ),
        "columns of several kinds": (
            [[name, i / 3, "x"] for i, name in enumerate(NAMES)],
            {"path_column": "path", "label_column": ["label", "b"]},
            "no finite number: 30, b is 'x'",
        ),
        "a cell too many": ([*ROWS, ["red", "x", "y"]], {}, "3 cells, not 2, .* red,x,y"),
        "no lines": ([], {}, "no lines below"),
    }  # fmt: skip


@pytest.mark.parametrize("name", refusals())
def test_what_is_wrong_with_a_table_is_one_line(read, name):
    rows, options, words = refusals()[name]
    head = ["path", "label", "b"][: max(2, min(3, len(rows[0]) if rows else 2))]
    with pytest.raises(UserError, match=words) as e:
        read(head, rows, **options)
    assert "\n" not in str(e.value)
    assert e.value.status == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no lines"),
        (b"a,b\n1,2", "set data.path_column to one of a, b"),
        (b"path,label\n\xff\xfe", "save it as UTF-8"),
        ("path,label".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_table_that_is_none_is_one_line(images, tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=words) as e:
        ImageFolder.splits(images, layout=Layout(labels=str(tmp_path / "t.csv")))
    assert "\n" not in str(e.value)


def test_options_that_contradict_are_refused(images):
    for options, words in (
        ({"labels": "a.csv", "label_pattern": "b"}, "give one of them"),
        ({"validation_split": 0.5, "test_split": 0.5}, "parts of 1"),
        ({"validation_split": -0.1}, "parts of 1"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"label_separator": ""}, "at least one character"),
    ):
        with pytest.raises(UserError, match=words):
            Layout(**options)
    with pytest.raises(UserError, match="no such file, nor in"):
        ImageFolder.splits(images, layout=Layout(labels="nothing.csv"))


# ---- targets


def test_several_columns_of_0_and_1_are_labels(read):
    rows = [[name, i % 2, int(i % 3 == 0), 0] for i, name in enumerate(NAMES)]
    train = read(["image", "sharp", "old", "torn"], rows)["train"]
    assert (train.task, train.class_names) == ("multilabel", ["sharp", "old", "torn"])
    assert (train.labels.dtype, train.labels.shape) == (np.float32, (24, 3))
    for path, target in zip(paths_of(train), train.labels, strict=True):
        assert target.tolist() == rows[NAMES.index(os.path.basename(path)[:-4])][1:]


@pytest.mark.parametrize(("separator", "option"), [("|", {}), (" | ", {}), (" ", {"task": 1})])
def test_a_column_of_lists_is_labels(read, separator, option):
    of = [["a", "b"], ["c"], [], ["b", "c"], ["a"]]
    rows = [[name, separator.join(of[i % 5])] for i, name in enumerate(NAMES)]
    option = {"task": "multilabel", "label_separator": separator} if option else {}
    train = read(["path", "tags"], rows, **option)["train"]
    assert (train.task, train.class_names) == ("multilabel", ["a", "b", "c"])
    for path, target in zip(paths_of(train), train.labels, strict=True):
        i = NAMES.index(os.path.basename(path)[:-4])
        assert target.tolist() == [float(name in of[i % 5]) for name in "abc"]


def test_numbers_with_a_point_are_regression_and_whole_ones_classes_unless_said(read):
    rows = [[name, i / 4, i % 12] for i, name in enumerate(NAMES)]
    train = read(["path", "weight", "age"], rows, label_column="weight")["train"]
    assert (train.task, train.class_names) == ("regression", ["weight"])
    assert (train.labels.dtype, train.labels.shape) == (np.float32, (24, 1))
    train = read(["path", "weight", "age"], rows, label_column="age")["train"]
    assert train.class_names == [str(i) for i in range(12)]  # in the order of numbers
    assert train.labels.dtype == np.int64
    train = read(["path", "weight", "age"], rows, label_column="age", task="regression")["train"]
    assert train.labels.max() > 9
    both = read(["path", "weight", "age"], rows, label_column=["weight", "age"])["train"]
    assert (both.task, both.class_names, both.labels.shape) == (
        *("regression", ["weight", "age"]),
        (24, 2),
    )
    comma = [[name, f"{i},5"] for i, name in enumerate(NAMES)]
    train = read(["path", "weight"], comma, mark=";", file="c.csv")["train"]
    assert train.task == "regression"
    assert (train.labels % 1 == 0.5).all()


# ---- names of files


def test_labels_stand_in_the_names_of_files(flat):
    (flat / "notes.txt").touch()
    train = ImageFolder.splits(flat, layout=Layout(label_pattern=r"(?P<label>[a-z]+)_\d+"))["train"]
    assert train.class_names == ["blue", "green", "red"]
    for path, name in classes_of(train).items():
        assert os.path.basename(path).startswith(name)
    layout = Layout(label_pattern=r"[a-z]+_(?P<label>\d+)", task="regression")
    assert ImageFolder.splits(flat, layout=layout)["train"].labels.max() == 9
    layout = Layout(label_pattern=r"(?P<label>[a-z]+)_\d(?P<group>\d)\d")
    with pytest.raises(UserError, match="10 images in 1 groups"):
        ImageFolder.splits(flat, layout=layout)
    for split in ("train", "Val"):
        shutil.copytree(flat, flat.parent / "split" / split)
    layout = Layout(label_pattern=r"(?P<label>[a-z]+)_\d+")
    splits = ImageFolder.splits(flat.parent / "split", layout=layout)
    assert [len(pictures) for pictures in splits.values()] == [30, 30]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(?P<label>[a-z]+)", "fits 0 of 30 names .*, not blue_000.jpg"),
        (r"(?P<label>red)_\d+", "fits 10 of 30 names .*, not blue_000.jpg"),
        ("red_.*", "no capture groups"),
        ("(?P<label>", "missing"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(images, pattern, words):
    with pytest.raises(UserError, match=words) as e:
        ImageFolder.splits(images, layout=Layout(label_pattern=pattern))
    assert "\n" not in str(e.value)


# ---- groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together_and_each_class_is_on_both_sides(read, seed):
    rows = [[name, color, f"{color}{i // 3}"] for i, (name, color) in enumerate(ROWS)]
    options = {"group_column": "patient", "label_column": "label", "split_seed": seed}
    splits = read(["path", "label", "patient"], rows, test_split=0.2, **options)
    of = dict(zip(NAMES, (row[2] for row in rows), strict=True))
    groups = [{of[os.path.basename(p)[:-4]] for p in paths_of(s)} for s in splits.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert all({*pictures.labels} == {0, 1, 2} for pictures in splits.values())


def test_the_rarest_label_is_split_in_its_proportion():
    generator = np.random.default_rng(0)
    targets = (generator.random((1000, 4)) < [0.6, 0.3, 0.1, 0.02]).astype(np.float32)
    listing = layouts.Listing(None, [], targets, np.full(1000, "train"), list("abcd"), "multilabel")
    hold_out(listing, Layout())
    val = targets[listing.splits == "val"].sum(0)
    assert np.abs(val - 0.2 * targets.sum(0))[2:].max() <= 1


# ---- the index


def test_the_index_is_made_anew_when_the_table_or_an_option_or_a_folder_changes(
    flat, tmp_path, monkeypatch
):
    scans = []
    scan = layouts.scan
    monkeypatch.setattr(layouts, "scan", lambda *a: scans.append(1) or scan(*a))
    file = tmp_path / "t.csv"

    def counted(**options):
        splits = ImageFolder.splits(flat, layout=Layout(labels=str(file), **options))
        return len(scans), sum(map(len, splits.values()))

    def write(rows):
        file.write_text("\n".join(",".join(row) for row in [["path", "label"], *rows]))

    write(ROWS)
    assert [counted(), counted()] == [(1, 30)] * 2
    write(ROWS[:-1])
    assert [counted(), counted()] == [(2, 29)] * 2
    assert counted(split_seed=1)[0] == 3
    assert counted(validation_split=0.4)[0] == 4
    assert counted(label_column="label")[0] == 5
    assert counted() == (5, 29)
    photos.save(photos.picture(), flat / "more.jpg")
    assert counted() == (6, 29)
    (flat / "red_000.jpg").unlink()
    with pytest.raises(UserError, match="1 of 29 images are not in"):
        counted()


# ---- batches


TASKS = ("classification", "multilabel", "regression")


@pytest.fixture
def options(images, tmp_path, request):
    """The options of a data module for a task."""
    rng = np.random.default_rng(0)
    columns = {
        "classification": {"label": [color for _, color in ROWS]},
        "multilabel": {"a": rng.integers(0, 2, 30), "b": rng.integers(0, 2, 30)},
        "regression": {"x": rng.random(30), "y": rng.random(30)},
    }[request.param]
    file = tmp_path / f"{request.param}.csv"
    pd.DataFrame({"path": NAMES, **columns}).to_csv(file, index=False)
    return {"labels": str(file), "label_column": list(columns)}


@pytest.mark.parametrize("options", TASKS, indirect=True)
def test_a_model_is_told_the_task_the_names_and_the_targets(images, options, request):
    task = request.node.callspec.params["options"]
    data = data_module(images, batch_size=7, **options)
    data.setup()
    assert data.task == task
    names = {"classification": ["blue", "green", "red"], "multilabel": ["a", "b"]}
    assert data.class_names == names.get(task, ["x", "y"])
    kind = torch.int64 if task == "classification" else torch.float32
    shape = () if task == "classification" else (2,)
    assert (data.train_targets.dtype, data.train_targets.shape) == (kind, (24, *shape))
    batches = [*data.train_dataloader(), *data.val_dataloader()]
    assert [len(target) for _, target in batches] == [7, 7, 7, 3, 6]
    for batch, target in batches:
        assert batch.dtype == torch.uint8
        assert (target.dtype, target.shape) == (kind, (len(batch), *shape))
    seen = torch.cat([target for _, target in batches[:4]])
    assert torch.equal(seen.sort(0).values, data.train_targets.sort(0).values)


@pytest.mark.parametrize("options", TASKS, indirect=True)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_within_an_epoch_gets_the_same_batches(images, options, workers, tmp_path):
    mixed = {"mixup": 0.2, "cutmix": 1.0, "sampler": "balanced"}
    if "regression" in options["labels"]:
        mixed = {"repeats": 2}
    more = {**options, **mixed, "num_workers": workers}
    whole = train(images, **more)
    save = tmp_path / "stopped.ckpt"
    before = train(images, save=save, stop_at=3, **more)
    after = train(images, ckpt_path=save, **more)
    flat = [batch for epochs in (before, after) for e in sorted(epochs) for batch in epochs[e]]
    assert same(flat, [batch for e in sorted(whole) for batch in whole[e]])
    assert all(target.is_floating_point() for _, target in flat)


@pytest.mark.parametrize("options", ["multilabel"], indirect=True)
def test_mixed_labels_are_shares_of_each(images, options):
    first = train(images, epochs=1, mixup=0.4, **options)[0]
    targets = torch.cat([target for _, target in first])
    assert ((targets > 0) & (targets < 1)).any()
    assert targets.max() <= 1


@pytest.mark.parametrize("options", ["regression"], indirect=True)
@pytest.mark.parametrize("more", [{"mixup": 0.2}, {"cutmix": 1.0}, {"sampler": "balanced"}])
def test_numbers_are_not_mixed_or_balanced(images, options, more):
    with pytest.raises(UserError, match="are for classes, not for regression") as e:
        train(images, **options, **more)
    assert "\n" not in str(e.value)


@pytest.mark.filterwarnings("ignore:left out, ")
@pytest.mark.parametrize("options", TASKS, indirect=True)
def test_what_can_not_be_read_is_skipped_with_its_target(flat, options):
    for name in ("blue_003", "red_004"):
        (flat / f"{name}.jpg").write_bytes(b"no picture")
    more = {"validation_split": 0.1, "num_workers": 2, "broken": "skip"}
    batches = train(flat, epochs=1, **options, **more)[0]
    assert sum(len(target) for _, target in batches) == 25
    assert all(len(images) == len(target) for images, target in batches)


class Own(ImageFolderDataModule):
    """Finds its images by itself."""

    def find_splits(self):
        splits = {}
        for split, names in (("train", NAMES[::2]), ("val", NAMES[1::2])):
            splits[split] = ImageFiles([f"{self.root}/{name}.jpg" for name in names])
            splits[split].class_names = ["odd", "even"]
            splits[split].labels = np.arange(15) % 2
        return splits


def test_a_data_module_of_ones_own_may_find_its_images_elsewhere(images):
    data = Own(str(images), batch_size=5, num_workers=0)
    data.setup()
    assert (data.task, data.class_names) == ("classification", ["odd", "even"])
    assert [target.dtype for _, target in data.train_dataloader()] == [torch.int64] * 3


# ---- balanced


@pytest.mark.parametrize("counts", [[90, 9, 1], [5, 5], [1, 2, 3, 4], [7], [50, 0, 3]])
def test_each_class_comes_as_often_in_an_epoch_of_the_same_length(counts):
    classes = torch.tensor(counts).repeat_interleave(torch.tensor(counts))
    classes = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    epochs = [balanced(classes, make_generator(0, epoch)) for epoch in range(3)]
    there = sum(n > 0 for n in counts)
    for order in epochs:
        assert len(order) == len(classes)
        often = classes[order].bincount(minlength=len(counts))[torch.tensor(counts) > 0]
        assert often.max() - often.min() <= 1
        for label in range(len(counts)):
            times = order[classes[order] == label].bincount(minlength=len(classes))
            own = times[classes == label]
            assert not len(own) or own.max() - own.min() <= 1  # none twice before all came once
    assert there == 1 or not torch.equal(*epochs[:2])
    assert torch.equal(epochs[0], balanced(classes, make_generator(0, 0)))


def test_processes_share_a_balanced_epoch():
    classes = torch.tensor([0] * 40 + [1] * 7)
    order = balanced(classes, make_generator(3, 0))
    both = [
        list(EpochSampler(47, 4, rank, 2, seed=3, shuffle=partial(balanced, classes)))
        for rank in range(2)
    ]
    assert len(both[0]) == len(both[1])
    placed = {p: i for batches in both for batch in batches for _, p, i in batch}
    assert [placed[p] for p in range(47)] == order.tolist()


def test_a_balanced_training_sees_rare_classes_as_often(flat):
    for i in range(8):
        (flat / f"red_00{i}.jpg").unlink()
    options = {"label_pattern": r"(?P<label>[a-z]+)_\d+", "sampler": "balanced", "batch_size": 3}
    epochs = train(flat, **options)
    for batches in epochs.values():
        counts = torch.cat([labels for _, labels in batches]).bincount()
        assert counts.tolist() in ([6, 6, 5], [6, 5, 6], [5, 6, 6])


def test_of_several_labels_the_rarest_is_balanced():
    targets = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32)
    assert strata(targets, "multilabel").tolist() == [1, 0, 2, 3, 1]


# ---- commands


def words_of(path):
    return ["--data=ImageFolderDataModule", f"--data.root={path}", "--data.num_workers=0"]


TINY = (
    *("--model=ImageClassifier", "--model.arch=resnet18", "--model.width=8", "--model.top_k=1"),
    "--model.schedule.warmup_epochs=0",
    *("--data.batch_size=4", "--data.train_size=32", "--data.val_resize=32", "--data.val_size=32"),
)


@pytest.fixture
def drawn(monkeypatch):
    """Keeps title and captions of the figures that are drawn."""
    kept = []

    def plot(title, images, columns, fontsize=8):
        kept.append((title, [caption for _, caption in images], [i for i, _ in images]))
        return original(title, images[:1], columns, fontsize)

    original = image_grid.plot_image_grid
    for module in (check, show_batch):
        monkeypatch.setattr(module, "plot_image_grid", plot)
    return kept


def test_show_batch_draws_what_the_training_gets(run, flat, drawn, capsys, monkeypatch):
    mix = ImageFolderDataModule.on_after_batch_transfer

    def lighter(self, batch, i):  # with numbers that nothing of it seeds
        images, targets = mix(self, batch, i)
        return images + torch.rand(()), targets

    monkeypatch.setattr(ImageFolderDataModule, "on_after_batch_transfer", lighter)
    pattern = r"--data.label_pattern=(?P<label>[a-z]+)_\d+"
    more = ("--data.mixup=0.4", "--data.progressive.start_size=16", "--seed_everything=5")
    size = ("--data.progressive.start_epoch=1", "--data.progressive.end_epoch=2")
    words = [*words_of(flat), pattern, *TINY, *more, *size, "--data.progressive.multiple=8"]
    run("show-batch", "--batches=3", *words)
    ((title, captions, images),) = drawn
    assert "3 x 16 x 16" in title
    assert capsys.readouterr().out.splitlines()[-1] == "runs/show-batch.png"
    assert os.path.isfile("runs/show-batch.png")
    seen = []
    keep = lambda self, batch, i: seen.append(batch) or self.net(batch[0].float()).sum()  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{PACKAGE}.models.classifier.Classifier.training_step", keep)
        limits = [f"--trainer.limit_{x}_batches={n}" for x, n in (("train", 3), ("val", 1))]
        run("fit", *words, *limits, "--trainer.max_epochs=1", "--trainer.logger=false")
    own = [(i, c) for i, c in zip(images, captions, strict=True) if c]
    assert len(own) == 12
    for image, expected in zip((i for i, _ in own), torch.cat([b for b, _ in seen]), strict=True):
        assert torch.equal(image, expected.cpu())
    assert any(re.fullmatch(r"0\.\d+ [a-z]+ \+\n0\.\d+ [a-z]+", caption) for _, caption in own)
    run("show-batch", *words)
    assert os.path.isfile("runs/show-batch-2.png")


def test_show_batch_of_digits(run, drawn):
    run("show-batch", "--config=small.yaml")
    assert {*drawn[0][1]} <= {*"0123456789", ""}
    assert len(drawn[0][1]) == 48


@pytest.mark.parametrize(
    ("target", "task", "words"),
    [
        (torch.tensor(1), "classification", "dog"),
        (torch.tensor([0.7, 0.3, 0.0]), None, "0.7 cat +\n0.3 dog"),
        (torch.tensor([0.0, 1.0, 0.0]), None, "dog"),
        (torch.tensor([1.0, 0.0, 1.0]), "multilabel", "cat\nowl"),
        (torch.tensor([0.0, 0.0, 0.0]), "multilabel", "(none)"),
        (torch.tensor([0.25, 1e6, -3.0]), "regression", "cat 0.25\ndog 1e+06\nowl -3"),
    ],
)
def test_a_target_in_words(target, task, words):
    assert show_batch.in_words(target, ["cat", "dog", "owl"], task) == words


def test_numbers_of_one_column_are_shown_without_its_name():
    assert show_batch.in_words(torch.tensor([2.5]), ["age"], "regression") == "2.5"
    assert show_batch.in_words(torch.tensor(2.5), ["age"], "regression") == "2.5"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--trainer.devices=2", "--trainer.accelerator=cpu"], "--trainer.devices=1"),
        (["--batches=0"], "a batch or more"),
        (["--trainer.fast_dev_run=1"], "show-batch: leave out"),
    ],
)
def test_show_batch_refuses_in_a_line(run, capsys, words, told):
    with pytest.raises(SystemExit) as e:
        run("show-batch", "--config=small.yaml", *words)
    assert e.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert told in line


@pytest.mark.parametrize(
    ("data", "told"), [(Points, "batches of Points are not images"), (Few, "there is no batch")]
)
@pytest.mark.filterwarnings("ignore:You defined a .validation_step", "ignore:Total length of")
def test_show_batch_takes_images_with_targets(data, told):
    trainer = Trainer(**QUIET, max_epochs=1)
    with pytest.raises(UserError, match=told):
        show_batch.first_batches(trainer, Tiny(), data(), 1)


def test_check_counts_and_draws_each_layout(images, tmp_path, monkeypatch, capsys, drawn):
    monkeypatch.chdir(tmp_path)
    root = in_folders(images, tmp_path / "data")
    (root / "blue/broken.jpg").write_bytes(b"no picture")
    assert check.main([str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-7:] == [
        "31 pictures read, 1 broken, 30 odd",
        "        train  val",
        "images     25    6",
        "blue        9    2",
        "green       8    2",
        "red         8    2",
        "runs/check.png",
    ]
    assert os.path.isfile("runs/check.png")
    assert check.main([str(images), r"--label_pattern=(?P<label>[a-z]+)_\d+"]) == 0
    assert "runs/check-2.png" in capsys.readouterr().out
    _, captions, _ = drawn[-1]
    assert captions[0] == "blue\n8 train, 2 val"
    assert len(captions) == 24
    pd.DataFrame({"id": NAMES, "age": np.arange(30) / 7}).to_csv("t.csv", index=False)
    assert check.main([str(images), "--labels=t.csv", "--split_seed=2"]) == 0
    assert re.search(r"\nage +0(\.\d+)? to ", capsys.readouterr().out)
    labels = pd.DataFrame({"id": NAMES, "a": [0, 1] * 15, "b": 0})
    labels.to_csv("t.csv", index=False)
    assert check.main([str(images), "--labels=t.csv"]) == 0
    assert drawn[-1][1][8] == "b\n0 train, 0 val"
    assert check.main([str(images)]) == 0
    assert "not to train on as it is: data.root: there are no class" in capsys.readouterr().out
    assert check.main([str(images), "--labels=t.csv", "--label_column=c"]) == 2


@pytest.mark.parametrize("options", ["multilabel", "regression"], indirect=True)
def test_shards_hold_targets_of_any_task(images, options, tmp_path):
    pytest.importorskip("litdata")
    words = [f"--{key}={value}" for key, value in options.items()]
    words[1] = words[1].replace("'", "").replace(" ", "")
    assert shards.main([str(images), str(tmp_path / "out"), "--num_workers=0", *words]) == 0
    ours, theirs = (data_module(r, **o) for r, o in ((images, options), (tmp_path / "out", {})))
    for data in (ours, theirs):
        data.setup()
    assert (ours.task, ours.class_names) == (theirs.task, theirs.class_names)

    def targets(data):
        for pictures in data.splits.values():
            names = [re.split("[#/]", path)[-1] for path in paths_of(pictures)]
            yield dict(zip(names, pictures.labels.tolist(), strict=True))

    assert [*targets(ours)] == [*targets(theirs)]
    if ours.task == "regression":
        return
    with pytest.raises(UserError, match="shards are read in their order"):
        data_module(tmp_path / "out", sampler="balanced").setup()
