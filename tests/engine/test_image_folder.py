import codecs
import os
import shutil
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from anneal import testing as photos
from anneal.errors import UserError
from anneal.vision import check, layouts
from anneal.vision.datamodule import ImageFolderDataModule
from anneal.vision.files import ImageFiles
from anneal.vision.index import ARRAYS, ImageFolder, _store


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anneal"


@pytest.fixture
def root(tmp_path):
    return photos.image_folder(tmp_path / "data", train=3, val=2)


def listed(pictures):
    return [(pictures.path(i), int(pictures.labels[i])) for i in range(len(pictures))]


def flat_val(root, base):
    """Takes the class folders of val away; returns the class of each picture."""
    classes = {}
    for i, path in enumerate(sorted((base / "val").rglob("*.JPEG"))):
        new = base / "val" / f"ILSVRC2012_val_{7 - i:08d}.JPEG"
        classes[new.stem] = path.parent.name
        path.rename(new)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    return classes


def test_classes_are_the_folders_of_train_in_order(root):
    splits = ImageFolder.splits(root)
    assert list(splits) == ["train", "val"]
    assert splits["train"].class_names == ["n01", "n02", "n03"]
    assert splits["train"].labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    for pictures in splits.values():
        for i in range(len(pictures)):
            assert f"/{pictures.class_names[pictures.labels[i]]}/" in pictures.path(i)
            assert pictures.read(i).startswith(b"\xff\xd8")


def test_hidden_folders_and_files_are_no_classes_and_no_pictures(root):
    before = [listed(p) for p in ImageFolder.splits(root).values()]
    photos.save(photos.picture(), root / "train/.ipynb_checkpoints/x.JPEG")
    photos.save(photos.picture(), root / "val/.hidden/x.JPEG")
    (root / "train/n01/._n01_000.JPEG").write_bytes(b"\0\5\x16\7")
    for place in (root, root / "train", root / "train/n01", root / "val"):
        (place / ".DS_Store").write_bytes(b"Bud1")
    (root / "train/n01/notes.txt").write_text("no picture")
    assert [listed(p) for p in ImageFolder.splits(root).values()] == before


def test_names_of_any_kind_are_pictures(root):
    for name in ("a b c.JPG", "Grün_élan.Jpeg", "日本.jpeg", "sub/deeper.png"):
        photos.save(photos.picture(), root / "train/n02" / name)
    pictures = ImageFolder.splits(root)["train"]
    assert pictures.labels.tolist() == [0] * 3 + [1] * 7 + [2] * 3
    assert all(pictures.read(i) for i in range(len(pictures)))


ENDINGS = {
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".JP2": "JPEG2000",
    ".avif": "AVIF",
    ".tga": "TGA",
    ".pbm": "PPM",
    ".apng": "PNG",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_pillow_reads_is_read(root, ending):
    if ENDINGS[ending] not in Image.SAVE and not Image.init():
        pytest.skip(f"this Pillow writes no {ENDINGS[ending]}")
    photos.save(photos.picture(), root / f"train/n01/x{ending}", format=ENDINGS[ending])
    assert len(ImageFolder.splits(root)["train"]) == 10
    assert len(ImageFiles.find(str(root / "train"))) == 10


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_a_file_without_an_ending_is_judged_by_its_content(root, image_format):
    photos.save(photos.picture(), root / "train/n01/x", format=image_format)
    (root / "train/n01/LICENSE").write_text("Pictures by BMW, II")
    (root / "train/n01/empty").touch()
    os.mkfifo(root / "train/n01/pipe")
    pictures = ImageFolder.splits(root)["train"]
    assert f"{root}/train/n01/x" in [path for path, _ in listed(pictures)]
    assert pictures.notes == ["left out as no pictures: without an ending 3"]


def test_what_is_left_out_is_counted_in_one_line_for_each_split(root, caplog):
    for name in ("train/n01/a.heic", "train/n02/b.HEIC", "train/n02/labels.txt", "val/n01/c.mp4"):
        (root / name).write_bytes(b"no picture")
    photos.save(photos.picture(), root / "val/loose.jpg")
    for _ in ("read anew", "from the index on disk"):
        caplog.clear()
        with caplog.at_level("INFO"):
            ImageFolderDataModule(str(root)).setup()
        assert [line for line in caplog.messages if "left out" in line] == [
            f"{root}, train: left out as no pictures: .heic 2, .txt 1"
            " (pip install pillow-heif reads them)",
            f"{root}, val: left out as no pictures: .mp4 1, in no class folder 1",
        ]
    shutil.rmtree(root / "train/n01")
    (root / "train/n01").mkdir()
    (root / "train/n01/a.heic").touch()
    with pytest.raises(UserError, match=r"in the class folder n01: .*\.heic 2"):
        ImageFolder.splits(root)


@pytest.mark.parametrize("name", ["@eaDir", ".thumbnails", "__MACOSX", "#recycle", "$RECYCLE.BIN"])
def test_folders_of_the_system_hold_no_pictures_of_the_data(root, name):
    before = [listed(p) for p in ImageFolder.splits(root).values()]
    found = len(ImageFiles.find(str(root)))
    for place in ("", "train", "train/n01", "val/n02"):
        photos.save(photos.picture(), root / place / name / "x.JPEG/SYNOPHOTO_THUMB_M.jpg")
    (root / "train/n01/Thumbs.db").touch()
    assert [listed(p) for p in ImageFolder.splits(root).values()] == before
    for pattern in ("", "/**", "/**/*", "/*/*/*.JPEG", "/*/*/*/*/*"):
        there = f"{root}{pattern}"
        if pattern.endswith("/*/*/*"):
            with pytest.raises(UserError, match="no picture"):
                ImageFiles.find(there)
        else:
            assert len(ImageFiles.find(there)) == found
    assert len(ImageFiles.find(f"{root}/{name}/*/*.jpg")) == 1  # typed


def test_links_are_followed_the_same_way_everywhere_and_no_circle_is(root, tmp_path, capsys):
    inside = listed(ImageFolder.splits(root)["train"])
    linked = tmp_path / "linked"
    linked.mkdir()
    for split in ("train", "val"):
        (linked / split).mkdir()
        for name in photos.COLORS:
            (linked / split / name).symlink_to(root / split / name)
    for name, target in (("a", ".."), ("b", ".."), ("itself", "itself"), ("gone", "nowhere")):
        (root / "train/n01" / name).symlink_to(target)
    (root / "train/n02/c").symlink_to(linked)
    splits = ImageFolder.splits(linked)
    assert [p for p, _ in listed(splits["train"])] == [
        path.replace(str(root), str(linked)) for path, _ in inside
    ]
    assert splits["train"].notes == [
        "left out as no pictures: links in a circle 3, without an ending 2"
    ]
    paths = {path for split in splits.values() for path, _ in listed(split)}
    for where in (f"{linked}", f"{linked}/**/*.JPEG", f"{linked}/*/*/*.JPEG"):
        pictures = ImageFiles.find(where)
        assert {pictures.path(i) for i in range(len(pictures))} == paths
    assert check.main([str(linked)]) == 0
    assert "15 pictures read, 0 broken" in capsys.readouterr().out


def test_a_validation_class_missing_keeps_the_numbers(root):
    shutil.rmtree(root / "val/n01")
    for _ in ("read anew", "from the index on disk"):
        data = ImageFolderDataModule(str(root))
        with pytest.warns(UserWarning, match="val has none of 1 classes: n01"):
            data.setup()
        assert data.splits["val"].labels.tolist() == [1, 1, 2, 2]


KAGGLE = "LOC_val_solution.csv"


def kaggle(classes):
    rows = [f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for name, wnid in classes.items()]
    return KAGGLE, "\n".join(["ImageId,PredictionString", *rows])


def lines(classes):
    return "val.txt", "\n".join(f"{name}.JPEG {wnid}" for name, wnid in classes.items())


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("write", [kaggle, lines])
def test_a_flat_val_takes_its_classes_from_a_file(root, write, mark):
    classes = flat_val(root, root)
    name, text = write(classes)
    (root / name).write_bytes(mark + text.replace("\n", "\r\n").encode())
    pictures = ImageFolder.splits(root)["val"]
    assert len(pictures) == 6
    for path, label in listed(pictures):
        assert pictures.class_names[label] == classes[os.path.basename(path)[:-5]]


def test_the_development_kits_numbers_are_not_those_of_the_sorted_classes(root):
    classes = flat_val(root, root)
    kit = root / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    numbers = {"n03": 1, "n01": 2, "n02": 3}
    kind = [("ILSVRC2012_ID", float), ("WNID", object)]
    synsets = np.array([(i, wnid) for wnid, i in numbers.items()], dtype=kind)
    savemat(kit / "meta.mat", {"synsets": synsets})
    truth = "\n".join(str(numbers[classes[name]]) for name in sorted(classes))
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    pictures = ImageFolder.splits(root)["val"]
    for path, label in listed(pictures):
        assert pictures.class_names[label] == classes[os.path.basename(path)[:-5]]


def test_kaggles_archive_is_read_as_it_unpacks(root, tmp_path):
    base = tmp_path / "kaggle/ILSVRC/Data/CLS-LOC"
    base.parent.mkdir(parents=True)
    root.rename(base)
    top = tmp_path / "kaggle"
    name, text = kaggle(flat_val(top, base))
    (top / name).write_text(text)
    (top / "LOC_synset_mapping.txt").write_text("n01 tench, Tinca tinca\nn02 crane\nn03 crane\n")
    splits = ImageFolder.splits(top)
    assert splits["val"].class_names == ["n01 tench", "n02 crane", "n03 crane"]
    assert sorted(splits["val"].labels) == [0, 0, 1, 1, 2, 2]


def breakages():
    def empty_class(root):
        (root / "train/n99").mkdir()

    def no_train(root):
        shutil.rmtree(root / "train")

    def no_classes(root):
        shutil.rmtree(root / "train")
        (root / "train").mkdir()

    def flat(root):
        flat_val(root, root)

    def deeper(root):
        for split in ("train", "val"):
            (root / "archive").mkdir(exist_ok=True)
            (root / split).rename(root / "archive" / split)

    def unknown_class(root):
        photos.save(photos.picture(), root / "val/n77/x.JPEG")

    def not_in_the_file(root):
        name, text = kaggle(flat_val(root, root))
        (root / name).write_text("\n".join(text.splitlines()[:-1]))

    def wrong_class_in_the_file(root):
        name, text = kaggle(flat_val(root, root))
        (root / name).write_text(text.replace("n03", "n88"))

    def link_to_nowhere(root):
        shutil.rmtree(root / "val")
        (root / "val").symlink_to("/nowhere")

    def decomposed(root):
        (root / "train/n01").rename(root / "train" / normalize("NFD", "Käse"))
        (root / "val/n01").rename(root / "val" / normalize("NFC", "Käse"))

    def other_case(root):
        (root / "val/n01").rename(root / "val/N01")

    def listed_in_a_table(root):
        for path in (root / "train").rglob("*.JPEG"):
            path.rename(root / "train" / path.name)
        for folder in photos.COLORS:
            (root / "train" / folder).rmdir()
        (root / "train.csv").touch()

    def list_of_utf_16(root):
        flat_val(root, root)
        (root / "val.txt").write_text("a b\n", encoding="utf-16")

    def wrong_number_of_lines(root):
        flat_val(root, root)
        savemat(
            root / "meta.mat",
            {"synsets": np.array([(1, "n01")], [("ILSVRC2012_ID", float), ("WNID", object)])},
        )
        (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1\n")

    def not_a_list(root):
        flat_val(root, root)
        (root / KAGGLE).write_bytes(b"ImageId,PredictionString\n\xff\xfe\n")

    def words_for_numbers(root):
        wrong_number_of_lines(root)
        (root / "ILSVRC2012_validation_ground_truth.txt").write_text("one\n" * 6)

    return {
        empty_class: ("n99", "remove"),
        no_train: ("data/train", "train/CLASS/"),
        no_classes: ("no class folders", "data/train"),
        flat: ("data/val has no class folders", KAGGLE),
        deeper: ("it lies deeper", "data/archive"),
        link_to_nowhere: ("data/val", "a link that leads nowhere"),
        decomposed: ("'K\\xe4se'", "'Ka\\u0308se'", "rename one"),
        other_case: ("did you mean n01?",),
        listed_in_a_table: ("data/train.csv", "--data.labels"),
        list_of_utf_16: ("UTF-16", "save it as UTF-8"),
        unknown_class: ("n77", "no class of that name"),
        not_in_the_file: (KAGGLE, "ILSVRC2012_val_"),
        wrong_class_in_the_file: ("n88", "not in train"),
        not_a_list: (KAGGLE, "can't be read"),
        words_for_numbers: ("ground_truth.txt", "can't be read"),
        wrong_number_of_lines: ("2 lines", "6 pictures"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "words"), breakages().items(), ids=lambda x: getattr(x, "__name__", "")
)
def test_a_wrong_layout_is_refused_by_name(root, damage, words):
    damage(root)
    with pytest.raises(UserError) as e:
        ImageFolder.splits(root)
    assert "\n" not in str(e.value)
    for word in words:
        assert word in str(e.value)


def test_the_index_is_made_once_and_anew_when_a_folder_changes(root, cache, monkeypatch):
    scans = []
    scan = layouts.scan
    monkeypatch.setattr(layouts, "scan", lambda *a: scans.append(1) or scan(*a))

    def count():
        splits = ImageFolder.splits(root)
        return len(scans), {k: len(p) for k, p in splits.items()}

    assert count() == (1, {"train": 9, "val": 6})
    assert count() == (1, {"train": 9, "val": 6})
    assert isinstance(ImageFolder.splits(root)["train"].labels, np.memmap)
    photos.save(photos.picture(), root / "train/n02/new.JPEG")
    assert count() == (2, {"train": 10, "val": 6})
    (root / "val/n03/n03_000.JPEG").unlink()
    assert count() == (3, {"train": 10, "val": 5})
    shutil.copytree(root / "val", root / "test")
    assert count() == (4, {"train": 10, "val": 5, "test": 5})
    assert count()[0] == 4


def test_an_index_is_made_anew_whatever_times_the_folders_have(root):
    def freeze():
        for path in (root, *root.rglob("*")):
            os.utime(path, (1e9, 1e9))

    (root / "val.txt").write_text("a")
    freeze()
    assert len(ImageFolder.splits(root)["train"]) == 9
    inode = os.stat(root / "train/n01").st_ino
    for i in range(20):
        photos.save(photos.picture(), root / f"train/n01/new{i}.JPEG")
    freeze()
    assert os.stat(root / "train/n01").st_ino == inode
    assert len(ImageFolder.splits(root)["train"]) == 29
    (root / "train/n01/new1.JPEG").rename(root / "train/n01/new0.JPEG")
    (root / "train/n01/new2.JPEG").rename(root / "train/n02/new2.JPEG")
    freeze()
    assert ImageFolder.splits(root)["train"].labels.tolist().count(1) == 4


def test_a_damaged_or_unwritable_cache_costs_only_time(root, cache, tmp_path, monkeypatch):
    before = listed(ImageFolder.splits(root)["train"])
    (index,) = cache.glob("*/index.json")
    index.write_text("{")
    assert listed(ImageFolder.splits(root)["train"]) == before
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert listed(ImageFolder.splits(root)["train"]) == before


def test_nothing_is_written_into_the_data(root):
    before = sorted(root.rglob("*"))
    ImageFolder.splits(root)
    assert sorted(root.rglob("*")) == before


def test_the_order_is_a_permutation_of_the_generator(root):
    pictures = ImageFolder.splits(root)["train"]
    order = pictures.order(torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(9))
    assert torch.equal(order, pictures.order(torch.Generator().manual_seed(1)))


def test_a_full_disk_leaves_nothing_of_an_index(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anneal.vision.index.np.save", full)
    index = dict.fromkeys(("base", "classes", "sources", "task"), "") | {"splits": ["train"]}
    _store(tmp_path / "index", index | {f"train_{name}": [] for name in ARRAYS})
    assert not [*tmp_path.iterdir()]
