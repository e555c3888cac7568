"""An exported file computes what its checkpoint does, and says what it takes and gives."""

import csv
import io
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from yours import MLP, ImageClassifier

from anneal import testing as photos
from anneal.commands import export as exporting
from anneal.errors import UserError
from anneal.runs import exported

FORMATS = list(exported.ENDINGS.items())
PHOTOS = """
trainer: {max_epochs: 2, accelerator: cpu, logger: false, log_every_n_steps: 1}
model:
  class_path: test_export.Small
  init_args:
    flip_tta: true
    zoom_tta: 1.5
    optimizer: {class_path: SGD, init_args: {lr: 0.05}}
data:
  class_path: ImageFolderDataModule
  init_args:
    {root: data, batch_size: 8, num_workers: 0, train_size: 24, val_resize: 28, val_size: 24}
"""


class Small(ImageClassifier):
    """A few layers in place of a ResNet, which takes torch.onnx a quarter of a minute."""

    def build(self) -> None:
        conv = nn.Conv2d(3, 4, 3, stride=2, bias=False)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, self.num_classes)]
        self.net = nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), *head)


class Flow(MLP):
    """A network that computes one way or another: by the pixels, or by the number of images."""

    def __init__(self, by: str = "pixels", **kwargs) -> None:
        super().__init__(**kwargs)
        self.by = by

    def forward(self, images):
        if self.by == "pixels":
            return super().forward(images) if images.float().mean() > 9 else self.net(images / 255)
        return torch.cat([self.net(image[None] / 255) for image in images])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def digits(run, trained_runs, tmp_path) -> None:
    """A run on digits, of this test's own."""
    shutil.copytree(trained_runs, tmp_path / "runs")


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_predictions(path, other) -> None:
    """The same samples and classes, and probabilities to the rounding of the last digit."""
    first, second = rows(path), rows(other)
    assert first
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name, value in a.items():
            if name.startswith("probability"):
                assert float(b[name]) == pytest.approx(float(value), abs=2e-6)
            else:
                assert b[name] == value


@pytest.mark.parametrize(("form", "ending"), FORMATS)
def test_digits_predict_the_same_from_the_file(digits, run, tmp_path, capsys, form, ending):
    run("predict", "--ckpt_path=last")
    run("export", "--ckpt_path=last", f"--format={form}", "--output=deep/digits" + ending)
    said = capsys.readouterr().out
    assert "size" in said
    assert "ms for one sample" in said
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["digits" + ending]  # in one file
    first = tmp_path / "runs/digits/predictions.csv"
    assert len(rows(first)) == 1000
    for precision in ("32-true", "bf16-mixed"):  # the trainer's, which is not the file's
        where = (f"--run_name={precision}", f"--trainer.precision={precision}")
        run("predict", f"--ckpt_path=deep/digits{ending}", *where)
        assert_same_predictions(first, tmp_path / f"runs/{precision}/predictions.csv")
    with pytest.raises(SystemExit) as e:
        run("test", f"--ckpt_path=deep/digits{ending}")
    assert e.value.code == 2
    line = f"error: test needs a checkpoint; deep/digits{ending} is for predict"
    assert line in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_photos_predict_the_same_with_averaged_weights(run, tmp_path):
    photos.image_folder(tmp_path / "data")
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    ema = ["--trainer.callbacks=EMA", "--trainer.callbacks.decay=0.5"]
    run("fit", "--config=photos.yaml", "--run_name=photos", *ema)
    run("predict", "--ckpt_path=last")
    folder = tmp_path / "runs/photos"
    checkpoint = folder / "checkpoints/last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    model = Small.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    pixels = torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8)
    for form, ending in FORMATS:
        run("export", "--ckpt_path=last", f"--format={form}")
        file = exported.read(folder / f"model{ending}")
        assert json.loads(file.about["class_names"]) == list(photos.COLORS)
        assert json.loads(file.about["shape"]) == [3, 24, 24]
        assert "resized to 28 (bilinear, antialias=true)" in file.about["input"]
        assert file.about["run"] == "photos"
        assert file.about["config"] == (folder / "config.yaml").read_text()
        for weights, same in (("state_dict", True), ("current_model_state", False)):
            model.load_state_dict(stored[weights])
            expected = model.predict_logits(pixels).softmax(1).detach()
            assert torch.allclose(file(pixels), expected, atol=1e-5) == same
    # In the folder of its run, where a checkpoint's predictions lie too.
    run("predict", f"--ckpt_path=runs/photos/model{FORMATS[0][1]}")
    assert_same_predictions(folder / "predictions.csv", folder / "predictions-2.csv")
    (tmp_path / "data").rename(tmp_path / "gone")  # what was trained on is not needed
    run("predict", "--ckpt_path=runs/photos/model.pt2", "--data.predict_path=gone/val/n02")
    some = [row for row in rows(folder / "predictions.csv") if "/n02/" in row["path"]]
    others = rows(folder / "predictions-3.csv")
    assert [r["class_1"] for r in some] == [r["class_1"] for r in others]
    assert len(others) == 4


@pytest.mark.parametrize(("form", "ending"), FORMATS)
@pytest.mark.parametrize(
    ("by", "reason"),
    [
        ("pixels", r"depends on the values of the pixels.*torch.where \(\S+test_export.py:\d+\)$"),
        ("images", "it computes something else for each number of images$"),
    ],
)
def test_why_a_network_can_not_be_exported_is_one_line(
    digits, run, capsys, tmp_path, by, reason, form, ending
):
    flow = ("--model=test_export.Flow", f"--model.by={by}", f"--output=flow{ending}")
    with pytest.raises(SystemExit) as e:
        run("export", "--ckpt_path=last", f"--format={form}", *flow)
    assert e.value.code == 1
    *before, line = capsys.readouterr().err.strip().splitlines()
    assert re.match(f"error: torch .* can't make {form} of this network: .*{reason}", line)
    assert all(said.startswith("note: ") for said in before)
    assert not list(tmp_path.glob("*flow*"))


def test_nothing_is_overwritten_but_what_is_named(digits, run, tmp_path):
    folder = tmp_path / "runs/digits"
    for path in (folder / "model.pt2", tmp_path / "mine.pt2"):
        path.write_text("before")
    run("export", "--ckpt_path=best", "--format=torch_export")
    run("export", "--ckpt_path=best", "--format=torch_export", "--output=mine.pt2")
    assert (folder / "model.pt2").read_text() == "before"
    assert exported.read(folder / "model-2.pt2").about["checkpoint"].startswith("best-epoch=")
    assert exported.read(tmp_path / "mine.pt2").about["run"] == "digits"


def test_a_file_that_computes_something_else_is_refused(digits, run, tmp_path, capsys, monkeypatch):
    write = exporting._write_file

    def wrongly(form, network, *args) -> None:
        write(form, network, *args)
        network.model.mean += 5

    monkeypatch.setattr(exporting, "_write_file", wrongly)
    with pytest.raises(SystemExit) as e:
        run("export", "--ckpt_path=last", "--format=torch_export")
    assert e.value.code == 1
    assert "differs from the model by up to" in capsys.readouterr().err
    assert not [p for p in (tmp_path / "runs/digits").iterdir() if "model" in p.name]


def test_a_nan_in_one_batch_is_refused(digits, run, capsys, monkeypatch):
    values = iter([0.0, float("nan"), 0.0])
    monkeypatch.setattr(exporting, "_difference", lambda *args: next(values))
    with pytest.raises(SystemExit):
        run("export", "--ckpt_path=last", "--format=torch_export")
    assert "by up to nan" in capsys.readouterr().err


class Code:
    """Writes a file where it is unpickled."""

    def __reduce__(self):
        return Path.write_text, (Path("ran"), "")


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def replaced(node: Any, key: str, value: Any) -> Any:
    """A tree with another value wherever a key stands."""
    if isinstance(node, list):
        return [replaced(part, key, value) for part in node]
    if not isinstance(node, dict):
        return node
    return {k: value if k == key else replaced(v, key, value) for k, v in node.items()}


RUNS = "__import__('pathlib').Path('ran').touch()"
PLANTED = {
    "sample_inputs/model.pt": [pickled(Code()), pickle.dumps(Code())],
    "weights/weight_0": [pickled(Code()), pickle.dumps(Code())],
    "weights_config.json": [("use_pickle", True)],
    "models/model.json": [
        ("target", "torch.os.system"),
        ("target", "torch.ops.load_library"),
        ("expr_str", RUNS),
        ("expr_str", "eval(chr(49))"),
        ("guards_code", [RUNS]),
    ],
    "constants/opaque_obj_0": [pickle.dumps(Code())],
}


def test_no_code_in_an_exported_file_is_run(digits, run, capsys):
    """Wherever torch.export would run what it finds: pickles, operators, sizes, guards."""
    run("export", "--ckpt_path=last", "--format=torch_export", "--output=a.pt2")
    with ZipFile("a.pt2") as file:
        whole = {name: file.read(name) for name in file.namelist()}
    assert any(name.endswith("models/model.json") for name in whole), "written in another way"
    for place, plants in PLANTED.items():
        names = [name for name in whole if name.endswith(place)]
        for plant in plants:
            changed = dict(whole)
            for name in names or [f"{min(whole).partition('/')[0]}/data/{place}"]:
                tree = isinstance(plant, tuple) and replaced(json.loads(whole[name]), *plant)
                changed[name] = json.dumps(tree).encode() if tree else plant
            if place == "weights/weight_0":
                (config,) = [name for name in whole if name.endswith("weights_config.json")]
                tree = replaced(json.loads(whole[config]), "use_pickle", True)
                changed[config] = json.dumps(tree).encode()
            with ZipFile("stranger.pt2", "w") as file:
                for name, content in changed.items():
                    file.writestr(name, content)
            with pytest.raises(UserError, match=r"stranger.pt2 is damaged, or no exported"):
                exported.read(Path("stranger.pt2"))
            assert not Path("ran").exists(), (place, plant)


@pytest.mark.parametrize(("form", "ending"), FORMATS)
def test_a_flipped_bit_of_a_weight_is_found(digits, run, form, ending):
    run("export", "--ckpt_path=last", f"--format={form}", f"--output=a{ending}")
    path = Path(f"a{ending}")
    exported.read(path)
    weight = torch.load("runs/digits/checkpoints/last.ckpt")["state_dict"]["net.1.weight"]
    content = bytearray(path.read_bytes())
    content[content.index(weight.numpy().tobytes()) + 100] ^= 64
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a{ending} is damaged"):
        exported.read(path)


def test_mistakes_are_one_line(digits, run, tmp_path, capsys, monkeypatch):
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as e:
            run(*words)
        assert e.value.code
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        return line

    assert "needs trained weights" in refused("export")
    assert "ends in .onnx" in refused("export", "--ckpt_path=last", "--output=a.pt2")
    assert "'onx'" in refused("export", "--ckpt_path=last", "--format=onx")
    (tmp_path / "file").write_text("")
    assert "can't write file/a.onnx" in refused(
        "export", "--ckpt_path=last", "--output=file/a.onnx"
    )
    for ending in exported.ENDINGS.values():
        (tmp_path / f"bad{ending}").write_bytes(b"nothing")
        assert "is damaged, or no exported" in refused("predict", f"--ckpt_path=bad{ending}")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnx" else name)
    line = refused("export", "--ckpt_path=last")
    assert line == "error: --format=onnx needs onnx: pip install -e '.[export]'"


def test_what_has_no_shape_is_refused(tmp_path):
    path = tmp_path / "a.onnx"
    checkpoint = tmp_path / "a.ckpt"
    for module in (LightningModule(), MLP()):
        torch.save({"state_dict": module.state_dict(), "class_names": None}, checkpoint)
        with pytest.raises(UserError, match="give LightningDataModule an image_shape"):
            exporting.export(module, LightningDataModule(), checkpoint, "onnx", path)


def test_other_pixels_than_it_takes_are_refused():
    file = exported.Exported("a.onnx", {"shape": "[1, 28, 28]"}, lambda pixels: pixels)
    taken = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert file(taken).shape == taken.shape
    for pixels in (taken.float(), taken[..., 1:]):
        with pytest.raises(UserError, match=r"a.onnx takes inputs of shape \[1, 28, 28\]"):
            file(pixels)
