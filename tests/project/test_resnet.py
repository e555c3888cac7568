"""The classifier of photos: networks, options, fine-tuning, evaluation and prediction."""

import csv
import os
import re
import shutil
import signal
from pathlib import Path
from unicodedata import normalize

import pytest
import torch
import torchvision
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.optim import SGD

from anneal import EMA, UserError, head_of, load_weights
from anneal import testing as photos
from anneal.testing import main
from project.models.resnet import ImageClassifier, NarrowResNet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


SMALL = """
trainer: {max_epochs: 2, accelerator: cpu, logger: false, log_every_n_steps: 1}
model:
  class_path: ImageClassifier
  init_args:
    arch: resnet18
    width: 4
    small_stem: true
    optimizer: {class_path: SGD, init_args: {lr: 0.05, momentum: 0.9}}
    schedule: {scheduler: CosineAnnealingLR}
data:
  class_path: ImageFolderDataModule
  init_args:
    {root: data, batch_size: 8, num_workers: 0, train_size: 24, val_resize: 28, val_size: 24}
"""


@pytest.fixture
def fit(run, tmp_path):
    """Train on small photos in `data`, in the folder that the test runs in."""
    photos.image_folder(tmp_path / "data")
    (tmp_path / "photos.yaml").write_text(SMALL)
    return lambda *args: run("fit", "--config=photos.yaml", "--run_name=photos", *args)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_a_network_with_auxiliary_outputs_trains_without_them(arch):
    with torch.device("meta"):
        module = ImageClassifier(arch, num_classes=7).train()
        assert module.net(torch.empty(2, 3, 96, 96)).shape == (2, 7)
        assert head_of(module.net)[0].out_features == 7
        assert not module.net.transform_input
        assert ImageClassifier(arch, num_classes=7, weights="DEFAULT").net.transform_input


@pytest.mark.parametrize(
    ("arch", "reason"), [("vit_b_16", "Wrong image height"), ("maxvit_t", "shape .* is invalid")]
)
def test_a_network_for_images_of_another_size_is_refused_before_training(fit, capsys, arch, reason):
    options = ("--model.width=64", "--model.small_stem=false", "--data.val_size=28")
    with pytest.raises(SystemExit) as e:
        fit(f"--model.arch={arch}", *options)
    assert e.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(rf"error: ImageClassifier can't take images of 3 x 2\d x 2\d: {reason}", line)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "mobilenet_v3_small", "vit_b_16"])
def test_networks_of_torchvision_go_by_name_and_have_its_weights_names(arch):
    with torch.device("meta"):
        ours = ImageClassifier(arch, num_classes=7).net.state_dict()
        theirs = torchvision.models.get_model(arch, num_classes=7).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_a_narrow_resnet_of_the_papers_width_is_torchvisions():
    torch.manual_seed(0)
    ours = NarrowResNet((2, 2, 2, 2), 64, False, 10).eval()
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("width", "parameters"), [(16, 703_386), (32, 2_801_450)])
def test_width_scales_every_stage(width, parameters):
    net = ImageClassifier("resnet18", num_classes=10, width=width).net
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert [net.conv1.out_channels, net.layer4[0].conv1.out_channels] == [width, 8 * width]


def test_zero_init_makes_every_residual_branch_start_at_zero():
    net = ImageClassifier("resnet50", num_classes=3, zero_init_residual=True).net
    last = [m.bn3.weight for m in net.modules() if hasattr(m, "bn3")]
    assert len(last) == 16
    assert all((w == 0).all() for w in last)


def test_blurpool_blurs_before_a_convolution_that_skips():
    net = ImageClassifier("resnet18", num_classes=3, blurpool=True).net
    seen = {}
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_pre_hook(lambda m, args: seen.setdefault(m, args[0]))
    checker = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    strided = [net.layer2[0].conv1, net.layer2[0].downsample[0]]  # the first, and the shortcut
    for conv in [*strided, net.layer2[1].conv1, net.conv1]:
        conv(checker.expand(1, conv.in_channels, 32, 32))
    inner = {m: x[..., 1:-1, 1:-1].abs().max() for m, x in seen.items()}
    assert max(inner[conv] for conv in strided) < 1e-5  # the finest pattern vanishes
    assert inner[net.layer2[1].conv1] == inner[net.conv1] == 1
    seen.clear()
    strided[0](torch.ones(1, 64, 8, 8))
    assert (seen[strided[0]][..., 1:-1, 1:-1] == 1).all()  # a constant stays as it is
    step = torch.zeros(1, 64, 8, 8)
    step[..., 3, 3] = 16
    seen.clear()
    strided[0](step)
    assert seen[strided[0]][0, 0, 2:5, 2:5].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_flip_tta_does_not_see_left_and_right():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 32, 32))
    plain = ImageClassifier("resnet18", num_classes=3, width=8).eval()
    assert not torch.allclose(plain.predict_logits(images), plain.predict_logits(images.flip(-1)))
    both = ImageClassifier("resnet18", num_classes=3, width=8, flip_tta=True).eval()
    torch.testing.assert_close(both.predict_logits(images), both.predict_logits(images.flip(-1)))


@pytest.mark.parametrize("flip_tta", [False, True])
def test_zoom_tta_is_the_mean_of_the_whole_and_its_middle(flip_tta):
    torch.manual_seed(0)
    settings = {"arch": "resnet18", "num_classes": 3, "width": 8, "flip_tta": flip_tta}
    plain = ImageClassifier(**settings).eval()
    zoomed = ImageClassifier(**settings, zoom_tta=2).eval()
    zoomed.load_state_dict(plain.state_dict())
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    whole = images.float().unflatten(-1, (32, 2)).unflatten(-3, (32, 2)).mean((-1, -3))
    views = plain.predict_logits(whole), plain.predict_logits(images[..., 16:48, 16:48])
    torch.testing.assert_close(zoomed.predict_logits(images), (views[0] + views[1]) / 2)
    with pytest.raises(UserError, match="zoom_tta=1: must be more than 1"):
        ImageClassifier(zoom_tta=1)


def test_classes_come_from_the_data_and_are_in_the_checkpoint(fit, run, tmp_path, capsys):
    done = fit()
    assert done.model.num_classes == 3
    path = tmp_path / "runs/photos/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["class_names"] == ["n01", "n02", "n03"]
    alone = ImageClassifier.load_from_checkpoint(path, map_location="cpu")
    assert alone.net.fc.out_features == 3
    assert run("validate", "--ckpt_path=last").model.num_classes == 3
    photos.image_folder(
        tmp_path / "other", colors={"n01": (0, 0, 0), "n02": (9, 9, 9), "cat": (0, 9, 0)}
    )
    with pytest.raises(SystemExit):
        run("validate", "--ckpt_path=last", "--data.root=other")
    assert "class 0 is 'n01' in the checkpoint and 'cat' in the data" in capsys.readouterr().err


def test_a_class_name_in_another_unicode_form_is_told_apart(fit, run, tmp_path, capsys):
    for form in ("NFC", "NFD"):
        for split in ("train", "val"):
            (folder,) = (
                p for p in (tmp_path / "data" / split).iterdir() if p.name not in "n02 n03"
            )
            folder.rename(folder.with_name(normalize(form, "Käse")))
        if form == "NFC":
            fit("--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        run("validate", "--ckpt_path=last")
    hint = r"; in Unicode 'Ka\u0308se' is not 'K\xe4se': rename one"
    assert capsys.readouterr().err.rstrip().endswith(hint)


def test_a_wrong_number_of_classes_is_refused_before_training(fit, capsys):
    with pytest.raises(SystemExit):
        fit("--model.num_classes=2")
    assert "3 classes in the data, 2 in the model" in capsys.readouterr().err


def test_it_learns_colours_and_validates_exactly_all_pictures(fit, run, tmp_path):
    done = fit("--trainer.max_epochs=15")
    assert done.trainer.callback_metrics["val/acc"] > 0.9
    for size in (1, 5, 12):
        again = run("validate", "--ckpt_path=last", f"--data.batch_size={size}")
        for name in ("val/acc", "val/loss"):
            expected = done.trainer.callback_metrics[name]
            torch.testing.assert_close(again.trainer.callback_metrics[name], expected)


@pytest.mark.filterwarnings("ignore:left out, ")
def test_a_validation_that_can_read_no_picture_is_one_line(fit, tmp_path, capsys):
    for path in (tmp_path / "data" / "val").rglob("*.JPEG"):
        path.write_bytes(b"")
    with pytest.raises(SystemExit) as e:
        fit("--data.broken=skip")
    assert e.value.code == 1
    assert "error: no val sample could be read" in capsys.readouterr().err


def test_too_few_pictures_for_a_batch_are_refused_with_the_numbers(fit, capsys):
    with pytest.raises(SystemExit):
        fit("--data.batch_size=25")
    assert "data has 24 train images, fewer than a batch of 25" in capsys.readouterr().err


def test_without_a_test_folder_there_is_no_test(fit, run, tmp_path, capsys):
    done = fit()
    assert not any(name.startswith("test/") for name in done.trainer.callback_metrics)
    with pytest.raises(SystemExit):
        run("test", "--ckpt_path=last")
    assert "has no folder test: use validate" in capsys.readouterr().err


def test_predict_writes_paths_and_a_sheet_and_leaves_out_what_is_broken(fit, run, tmp_path, capsys):
    fit("--trainer.max_epochs=15")
    new = tmp_path / "new"
    for name, color in photos.COLORS.items():
        photos.save(photos.picture(color, seed=77), new / f"{name} new.jpg")
    (new / "broken.jpg").write_bytes(b"nothing")
    (new / "notes.txt").write_text("no picture")
    run("predict", "--ckpt_path=last", "--data.predict_path=new", "--data.root=gone")
    with (tmp_path / "runs/photos/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"new/{name} new.jpg" for name in photos.COLORS]
    assert [row["class_1"] for row in rows] == list(photos.COLORS)
    assert list(rows[0]) == [
        "path",
        *(f"{w}_{r}" for r in (1, 2, 3) for w in ("class", "probability")),
    ]
    assert sum(float(rows[0][f"probability_{r}"]) for r in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "runs/photos/predictions.png").stat().st_size > 5000
    said = capsys.readouterr()
    assert "new/broken.jpg: cannot identify image file" in said.err
    one = run("predict", "--ckpt_path=last", "--data.predict_path=new/n02 new.jpg")
    assert len(one.trainer.datamodule.predicted) == 1
    run("predict", "--ckpt_path=last", "--data.predict_path=new/*new.jpg")
    with (tmp_path / "runs/photos/predictions-3.csv").open() as file:
        assert list(csv.DictReader(file)) == rows
    with pytest.raises(SystemExit):
        run("predict", "--ckpt_path=last", "--data.predict_path=new/*.png")
    assert "new/*.png: there is no picture" in capsys.readouterr().err


def read_back(path):
    """Return the cells of a CSV file as they were before they were made safe for spreadsheets."""
    with path.open(newline="", encoding="utf-8") as file:
        written = list(csv.reader(file))
    assert not any(re.match(r"[=+\-@\t\r\n＝]", cell) for row in written for cell in row)  # noqa: RUF001
    return [[cell.removeprefix("'") for cell in row] for row in written]


def test_any_name_is_written_and_none_is_a_formula(fit, run, tmp_path, monkeypatch, capsys):
    names = ["=1+1.jpg", "+1.jpg", "-1.jpg", "@x.jpg", "\tx.jpg", "\rx.jpg", "\nx.jpg", "＝1.jpg"]  # noqa: RUF001
    names += ["'x.jpg", "''x.jpg", "a, b.jpg", "line\nbreak.jpg", "กx.jpg", '"q".jpg', " x.jpg"]
    classes = ["=cmd|' C calc'!A0", "@dog", "'cat"]
    (tmp_path / "data").rename(tmp_path / "old")
    photos.image_folder(tmp_path / "data", colors=dict.fromkeys(classes, (9, 9, 9)))
    shutil.copytree(tmp_path / "data/val", tmp_path / "data/test")
    fit("--trainer.max_epochs=1")
    assert read_back(tmp_path / "runs/photos/test-confusion.csv")[0][1:] == sorted(classes)
    (tmp_path / "new").mkdir()
    for name in names:
        photos.save(photos.picture(), tmp_path / "new" / name)
    monkeypatch.chdir(tmp_path / "new")
    where = "--ckpt_path=../runs/photos/checkpoints/last.ckpt"
    run("predict", where, "--data.predict_path=.")
    rows = read_back(tmp_path / "runs/photos/predictions.csv")[1:]
    assert sorted(row[0] for row in rows) == sorted(names)
    assert {row[i] for row in rows for i in (1, 3, 5)} == set(classes)
    bad = os.fsencode(tmp_path) + b"/new/caf\xe9.jpg"
    os.rename(tmp_path / "new/+1.jpg", bad)
    run("predict", where, "--data.predict_path=.")
    rows = read_back(tmp_path / "runs/photos/predictions-2.csv")[1:]
    assert "caf\\udce9.jpg" in [row[0] for row in rows]
    assert len(rows) == len(names)
    Path(os.fsdecode(bad)).write_bytes(b"broken")
    run("predict", where, "--data.predict_path=.")
    with pytest.raises(SystemExit):
        main(["check", "."])
    assert "broken  caf\\udce9.jpg" in capsys.readouterr().out


def test_a_class_whose_name_is_no_utf_8_is_trained_on_and_resumed(fit, run, tmp_path):
    name = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "n01").rename(tmp_path / "data" / split / name)
    (tmp_path / "data").rename(tmp_path / name)
    fit(f"--data.root={name}", "--trainer.max_epochs=1")
    done = run("fit", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert done.model.class_names == [name, "n02", "n03"]
    run("predict", "--ckpt_path=last", f"--data.predict_path={name}/val")


@pytest.mark.parametrize(
    ("ends", "lines"),
    [("limit=1", 2), ("limit=0.5", 4), ("ctrl-c", 4), ("SIGTERM", 6), ("bug", 4), ("unread", 4)],
)
def test_what_was_predicted_is_written_however_it_ends(
    fit, run, tmp_path, monkeypatch, ends, lines
):
    fit("--trainer.max_epochs=1")
    new = tmp_path / "new"
    photos.save(photos.picture(), new / "7.jpg").write_bytes(b"broken")
    for i in (0, 1, 2, 3, 4, 5, 6, 8):
        photos.save(photos.picture(), new / f"{i}.jpg")
    errors = {
        "ctrl-c": KeyboardInterrupt(),
        "bug": RuntimeError("a bug"),
        "unread": UserError("the disk is gone", status=1),
    }
    predict_step = ImageClassifier.predict_step

    def step(module, batch, index):
        if index == 2 and ends == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        elif index == 2 and ends in errors:
            raise errors[ends]
        return predict_step(module, batch, index)

    monkeypatch.setattr(ImageClassifier, "predict_step", step)
    words = ["predict", "--ckpt_path=last", "--data.predict_path=new", "--data.batch_size=2"]
    if ends.startswith("limit"):
        run(*words, f"--trainer.limit_predict_batches={ends[6:]}")
    else:
        with pytest.raises((SystemExit, RuntimeError)):
            run(*words)
    rows = read_back(tmp_path / "runs/photos/predictions.csv")[1:]
    assert [row[0] for row in rows] == [f"new/{i}.jpg" for i in range(lines)]


def test_no_batch_is_said_to_be_none(fit, run, capsys):
    fit("--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        run("predict", "--ckpt_path=last", "--trainer.limit_predict_batches=0")
    assert "error: nothing was predicted: no batch was read" in capsys.readouterr().err


def test_predictions_of_validation_pictures_count_to_the_logged_accuracy(fit, run, tmp_path):
    done = fit()
    run("predict", "--ckpt_path=last")
    with (tmp_path / "runs/photos/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = [f"/{row['class_1']}/" in row["path"] for row in rows]
    assert len(right) == 12
    assert sum(right) / 12 == pytest.approx(float(done.trainer.callback_metrics["val/acc"]))


@pytest.mark.filterwarnings("ignore:Found 68 module.s. in eval mode")
def test_fine_tuning_takes_the_body_and_starts_a_new_head(fit, run, tmp_path, capsys):
    fit()
    weights = "runs/photos/checkpoints/last.ckpt"
    trained = torch.load(weights, weights_only=True)["state_dict"]
    two = {"cat": (200, 40, 40), "dog": (40, 200, 40)}
    photos.image_folder(tmp_path / "pets", colors=two)
    words = ["fit", "--config=photos.yaml", f"--model.weights={weights}", "--data.root=pets"]
    done = run(*words, "--model.freeze_body=true", "--run_name=frozen")
    assert done.model.net.fc.out_features == 2
    for name, value in done.model.state_dict().items():
        assert torch.equal(value, trained[name]) != name.startswith("net.fc"), name
    constant = "--model.schedule.scheduler=null"
    done = run(*words, "--model.body_lr_factor=0.1", "--run_name=slow", constant)
    groups = {g["name"]: g["lr"] for g in done.trainer.optimizers[0].param_groups}
    assert groups == {"body": pytest.approx(0.005), "head": 0.05}
    with pytest.raises(SystemExit):
        run(*words, "--model.width=8")
    assert "tensors don't fit resnet18, such as conv1.weight" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(
            *words[:2], "--model.weights=IMAGENET1K_V9", "--model.arch=resnet18", "--model.width=64"
        )
    assert "no such file" in capsys.readouterr().err


KINDS = {
    "as torchvision saves": lambda state: state,
    "of several processes": lambda state: {f"module.{k}": v for k, v in state.items()},
    "with more beside it": lambda state: {"model": state, "epoch": 3},
    "of a module": lambda state: {"state_dict": {f"net.{k}": v for k, v in state.items()}},
    "without counts": lambda state: {k: v for k, v in state.items() if "num_b" not in k},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_network_alone_are_read(tmp_path, kind, zipped):
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(KINDS[kind](state), path, _use_new_zipfile_serialization=zipped)
    for classes in (7, 3):
        module = ImageClassifier("resnet18", num_classes=classes)
        load_weights(module.net, "resnet18", str(path))
        same = {k for k, v in module.net.state_dict().items() if torch.equal(v, state[k])}
        assert state.keys() - same == (set() if classes == 7 else {"fc.weight", "fc.bias"})
    with pytest.raises(UserError, match="tensors don't fit resnet34, such as"):
        load_weights(ImageClassifier("resnet34", num_classes=7).net, "resnet34", str(path))


@pytest.mark.parametrize("content", [{}, {"model": 3}, [torch.ones(2)], {"a": "b"}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("x.pth", "text.pth"):
        with pytest.raises(UserError, match=f"{name} is damaged, cut or no checkpoint"):
            load_weights(nn.Linear(1, 7), "resnet18", str(tmp_path / name))


def test_lr_is_scaled_to_the_samples_of_a_step_and_says_so(fit, capsys, caplog):
    with caplog.at_level("INFO"):
        constant = "--model.schedule.scheduler=null"
        done = fit("--model.lr_batch_size=256", "--trainer.accumulate_grad_batches=2", constant)
    lr = done.trainer.optimizers[0].param_groups[0]["lr"]
    assert lr == 0.05 * 16 / 256
    assert "1 device x batch_size 8 x accumulate 2 = 16 samples a step" in caplog.text
    assert "lr 0.05 is for 256: lr 0.003125" in caplog.text


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_averaged_weights_are_validated_saved_and_go_on(fit, run, tmp_path):
    ema = ["--trainer.callbacks=EMA", "--trainer.callbacks.decay=0.5"]
    done = fit(*ema, "--checkpoint.every_n_train_steps=1")
    path = tmp_path / "runs/photos/checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert not torch.equal(average["net.fc.weight"], current["net.fc.weight"])
    torch.testing.assert_close(done.model.net.fc.weight.detach(), average["net.fc.weight"])
    again = run("validate", "--ckpt_path=last")
    expected = done.trainer.callback_metrics["val/loss"]
    torch.testing.assert_close(again.trainer.callback_metrics["val/loss"], expected)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no")
def test_the_average_is_the_geometric_sum_of_the_weights(fit):
    seen = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(pl_module.net.weight.detach().clone())

    class Line(ImageClassifier):
        def __init__(self):
            super().__init__("resnet18", num_classes=2, optimizer=lambda p: SGD(p, lr=1.0))
            self.net = nn.Linear(1, 2, bias=False)

        def training_step(self, batch, batch_idx):
            return self.net.weight.sum() * (batch_idx + 1)

    loader = torch.utils.data.DataLoader(torch.zeros(4, 1))
    ema = EMA(decay=0.9, copy_epochs=1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, callbacks=[Keep(), ema], accelerator="cpu", **quiet)
    module = Line()
    module.on_train_epoch_end = lambda: None
    trainer.fit(module, loader)
    average = seen[3]  # copied in the first epoch
    for weight in seen[4:]:
        average = 0.9 * average + 0.1 * weight
    torch.testing.assert_close(module.net.weight.detach(), average)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "resnet19"}, r"model.arch=resnet19: no such network; did you mean resnet18\?"),
        ({"arch": "resnet50", "width": 32}, "model.width=32 is for resnet18 and resnet34, not"),
        (
            {"arch": "vgg11", "zero_init_residual": True, "small_stem": True, "width": 8},
            "model.width=8, model.small_stem=true, model.zero_init_residual=true are for ResNets, "
            "not vgg11: drop them with --model.width=64 --model.small_stem=false "
            "--model.zero_init_residual=false",
        ),
        ({"arch": "vgg11", "stochastic_depth": 0.1}, "model.stochastic_depth: VGG has no option"),
        ({"arch": "resnet18", "stochastic_depth": 1}, "model.stochastic_depth=1: must be 0 to"),
        ({"arch": "vgg11", "grad_checkpointing": True}, "model.grad_checkpointing: VGG has no"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(UserError, match=words), torch.device("meta"):
        ImageClassifier(num_classes=3, **options)


def test_the_flags_that_drop_options_of_resnets_can_be_copied(fit, capsys):
    with pytest.raises(SystemExit):
        fit("--model.arch=shufflenet_v2_x0_5")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "model.width=4, model.small_stem=true are for ResNets, not shufflenet_v2_x0_5: " in line
    flags = line.partition(": drop them with ")[2].split()
    done = fit("--model.arch=shufflenet_v2_x0_5", *flags, "--trainer.max_epochs=1")
    assert done.model.net.fc.out_features == 3
