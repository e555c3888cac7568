"""A step that fails is repeated bit for bit, and its layer, tensor and sample are named."""

import json
import math
import re
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from launch import Training
from pages import ROOT, commands
from test_failures import PHOTOS
from torch import nn
from torch.utils.data import DataLoader, Dataset

from anneal import InMemoryBatches
from anneal import testing as photos

SAMPLES, BAD = 24, 13  # of which one is bad, from the second epoch on
RECIPE = """
trainer: {max_epochs: 3, accelerator: cpu, logger: false, log_every_n_steps: 1,
  limit_val_batches: 0}
checkpoint: {monitor: train/loss, save_top_k: 0}
model: {class_path: test_replay.Net}
data: {class_path: test_replay.Points}
"""
NAN, INF = math.nan, math.inf


class Now:
    """Where the training is: a fault is there from the second epoch on."""

    on = False
    bad = torch.zeros(0, dtype=torch.bool)  # the rows of the batch that hold the bad sample
    log: ClassVar[list[Any]] = []


# ---- faults of data


class Points(pl.LightningDataModule):
    """Samples of 4 numbers and one of 3 labels, in memory or in torch's DataLoader."""

    def __init__(self, fault: str = "", batch_size: int = 4, workers: int | None = None) -> None:
        super().__init__()
        self.samples = Samples(fault)
        self.fault = fault
        self.batch_size = batch_size
        self.workers = workers

    def train_dataloader(self):
        if self.workers is None:
            x, y = self.samples.x, self.samples.y
            return InMemoryBatches.in_run(self.trainer, x, y, self.batch_size, shuffle=True)
        return DataLoader(
            self.samples,
            self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            collate_fn=collate,
        )

    def val_dataloader(self):
        return DataLoader(self.samples, self.batch_size)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.fault == "transfer" and Now.on and (batch[0][:, 0] > 50).any():
            raise RuntimeError("can't move")
        if self.fault == "pixel" and Now.on:
            batch[0][batch[0][:, 0] > 50, 2] = NAN
        return batch


class Samples(Dataset):
    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.x = torch.rand(SAMPLES, 4, generator=torch.Generator().manual_seed(0)) + 0.5
        self.x[BAD, 0] = 60
        self.y = torch.arange(SAMPLES) % 3

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i):
        x, y = self.x[i], self.y[i]
        if self.fault == "random" and Now.on and torch.rand(()) < 0.15:
            Now.log.append(i)
            raise ValueError("an augmentation by chance")
        if i == BAD and Now.on:
            if self.fault == "read":
                raise OSError("truncated")
            if self.fault == "augmented":
                x = x * NAN
            if self.fault == "shape":
                x = x[:3]
        return x, y


def collate(samples):
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


# ---- faults of a layer: they take x, and which rows are bad as (N, 1)


class BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bad):
        ctx.save_for_backward(bad)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return torch.where(ctx.saved_tensors[0], NAN, gradient), None


class BadBackward(BadGradient):
    @staticmethod
    def backward(ctx, gradient):
        if ctx.saved_tensors[0].any():
            raise RuntimeError("no backward for this")
        return gradient, None


def raising(x, bad):
    if bad.any():
        raise ValueError("a layer of one's own")
    return x


LAYERS = {
    "exp": lambda x, bad: torch.where(bad, 1000.0, x).exp(),
    "half": lambda x, bad: (torch.where(bad, 1e3, 1.0) * x.clamp(1)).half().mul(100).float(),
    "divide": lambda x, bad: x / torch.where(bad, x - x, 1.0),
    "softmax": lambda x, bad: torch.where(bad, -INF, x).softmax(1),
    "raises": raising,
    "shapes": lambda x, bad: x @ torch.ones(3, 3) if bad.any() else x,
    "sqrt": lambda x, bad: torch.where(bad, x * 0, x.abs() + 1).sqrt(),
    "norm": lambda x, bad: x / torch.where(bad, x * 0, x + 9).pow(2).sum(1, True).pow(0.5).add(1),
    "gradient": BadGradient.apply,
    "backward": BadBackward.apply,
}


class Faulty(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, x):
        bad = (Now.bad & Now.on)[:, None]
        return LAYERS[self.fault](x, bad)


class Scale(nn.Module):
    """Multiplies by a number that is a parameter and one that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))
        self.register_buffer("b", torch.ones(()))

    def forward(self, x):
        return x * self.a * self.b


class RootScale(Scale):
    """The square root of its parameter has no slope at 0."""

    def forward(self, x):
        return x * (self.a.sqrt() if self.a == 0 else self.a)


class Masked(nn.Module):
    """Hides a feature by -inf, as attention does, in all steps."""

    def forward(self, x):
        return torch.cat([x[:, :-1], torch.full_like(x[:, -1:], -INF)], 1)


class LogLoss(nn.Module):
    def forward(self, logits, y):
        p = logits.softmax(1).gather(1, y[:, None])[:, 0]
        return -torch.where(Now.bad & Now.on, p * 0, p).log().mean()


# ---- networks


class Net(pl.LightningModule):
    """A small network with one fault.

    Args:
        net: Which network.
        fault: Of the layer in it that is faulty.
        step: A fault of the step.
    """

    def __init__(self, net: str = "mlp", fault: str = "", step: str = "", lr: float = 0.1) -> None:
        super().__init__()
        own = Faulty(fault) if fault in LAYERS else nn.Identity()
        self.step, self.lr = step, lr
        self.criterion = LogLoss() if step == "logloss" else nn.CrossEntropyLoss()
        self.net = {
            "mlp": lambda: [nn.Linear(4, 8), nn.Dropout(0.3), own, nn.ReLU(), nn.Linear(8, 3)],
            "first": lambda: [own, nn.Linear(4, 8), nn.ReLU(True), nn.Linear(8, 3)],
            "deep": lambda: [
                nn.Linear(4, 8),
                nn.Sequential(nn.LayerNorm(8), nn.Sequential(nn.GELU(), own)),
                nn.Linear(8, 3),
            ],
            "batchnorm": lambda: [nn.Linear(4, 8), nn.BatchNorm1d(8), own, nn.Linear(8, 3)],
            "conv": lambda: [
                nn.Unflatten(1, (1, 4)),
                nn.Conv1d(1, 8, 3),
                nn.BatchNorm1d(8),
                nn.ReLU(inplace=True),
                nn.Flatten(),
                own,
                nn.Linear(16, 3),
            ],
            "masked": lambda: [nn.Linear(4, 8), Masked(), nn.Softmax(1), own, nn.Linear(8, 3)],
            "scale": lambda: [nn.Linear(4, 8), Scale(), nn.Linear(8, 3)],
            "root": lambda: [nn.Linear(4, 8), RootScale(), nn.Linear(8, 3)],
            "embed": lambda: [Indices(), nn.Embedding(8, 4), nn.Flatten(), nn.Linear(16, 3)],
            "attention": lambda: [Attention(), nn.Linear(4, 3)],
            "gru": lambda: [
                nn.Unflatten(1, (4, 1)),
                Last(nn.GRU(1, 8, batch_first=True)),
                own,
                nn.Linear(8, 3),
            ],
        }[net]()
        self.net = nn.Sequential(*self.net)

    def on_load_checkpoint(self, checkpoint) -> None:
        Now.on = checkpoint["position"]["epoch"] > 0  # before a worker is started, or a validation

    def on_train_epoch_start(self) -> None:
        Now.on = self.current_epoch > 0
        Now.log.clear()

    def on_train_batch_start(self, batch, batch_idx) -> None:
        Now.on = self.current_epoch > 0  # also when it has resumed within an epoch
        if Now.on and batch_idx == 2:
            if self.step == "buffer":
                self.net[1].b[...] = NAN
            if self.step == "parameter":
                self.net[1].a.data[...] = NAN
            if self.step == "root":
                self.net[1].a.data[...] = 0

    def training_step(self, batch, batch_idx):
        x, y = batch
        Now.bad = x[:, 0] > 50
        bad = Now.bad & Now.on
        if self.step == "label":
            y = torch.where(bad, 7, y)
        if self.step == "index":
            x = torch.where(bad[:, None], 99, x)
        logits = self.net(x.clamp(max=1.5) if self.step != "index" else x)
        if self.step == "sqrt":
            logits = torch.where(bad[:, None], logits * 0, logits.abs() + 1).sqrt()
        loss = self.criterion(logits, y)
        if self.step == "log":
            loss = loss - torch.where(bad, 0.0, 1.0).log().mean()
        if self.step == "assert" and bad.any():
            raise AssertionError("not with this sample")
        self.log("train/loss", loss)
        Now.log.append([x.tolist(), loss.item()])
        return {"loss": loss} if self.step == "dict" else loss

    def validation_step(self, batch, batch_idx) -> None:
        x = batch[0]
        Now.bad = x[:, 0] > 50
        if self.step == "validation" and (Now.bad & Now.on).any():
            raise KeyError("not in validation")
        self.net(x)

    def on_after_backward(self) -> None:
        if self.step == "hook" and Now.on:
            self.net[0].weight.grad[0] = NAN

    def configure_optimizers(self):
        kind = {"optimizer": BadSGD}.get(self.step, torch.optim.SGD)
        return kind(self.parameters(), lr=self.lr)


class Fails(pl.Callback):
    def on_train_batch_start(self, trainer, *args: Any) -> None:
        if trainer.global_step == 8:
            raise OSError("a callback")


class BadSGD(torch.optim.SGD):
    def step(self, closure=None):
        loss = super().step(closure)
        if Now.on:
            raise RuntimeError("no step")
        return loss


class Indices(nn.Module):
    def forward(self, x):
        return x.clamp(0).long()


class Last(nn.Module):
    def __init__(self, rnn) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0][:, -1]


class Attention(nn.Module):
    """Attends to nothing in the bad sample."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = x[:, None].expand(-1, 3, -1)
        hidden = (Now.bad & Now.on)[:, None].expand(-1, 3)
        return self.attention(tokens, tokens, tokens, key_padding_mask=hidden)[0].mean(1)


def net(name: str, fault: str = "", **more: Any) -> list[str]:
    flags = {"model.net": name, "model.fault": fault} | {
        k.replace("__", "."): v for k, v in more.items()
    }
    return [f"--{key}={value}" for key, value in flags.items() if value != ""]


ANY, ALL, NONE = object(), range(4), ()
TORCH = {"data__workers": 0}
FAULTS = [
    # what is done, then layer, tensor and sample as they are to be named
    (net("mlp", data__fault="pixel"), "batch", "input", BAD),
    (net("conv", data__fault="augmented", **TORCH), "batch", "input", BAD),
    (net("mlp", "exp"), "net.2", "activation", BAD),
    (net("deep", "exp"), "net.1.1.1", "activation", BAD),
    (net("first", "half"), "net.0", "activation", BAD),
    (net("conv", "half"), "net.5", "activation", BAD),
    (net("gru", "divide"), "net.2", "activation", BAD),
    (net("batchnorm", "softmax"), "net.2", "activation", BAD),
    (net("attention"), "net.0.attention", "activation", BAD),
    (net("masked", "exp"), "net.3", "activation", BAD),
    (net("mlp", "raises"), "net.2", "input", BAD),
    (net("deep", "raises", **TORCH), "net.1.1.1", "input", BAD),
    (net("conv", "shapes"), "net.5", "input", BAD),
    (net("mlp", model__step="label"), "criterion", "input", BAD),
    (net("embed", model__step="index"), "net.1", "input", BAD),
    (net("mlp", model__step="assert"), "Net", "input", BAD),
    (net("batchnorm", data__batch_size=1), "net.1", "input", ANY),
    (net("mlp", model__lr=1e38), "net.4", "activation", ALL),
    (net("mlp", model__step="log"), "Net", "loss", BAD),
    (net("conv", model__step="log", model__fault="x"), "Net", "loss", BAD),
    (net("gru", model__step="logloss"), "criterion", "loss", BAD),
    (net("scale", model__step="buffer"), "net.1", "buffer", NONE),
    (net("scale", model__step="parameter"), "net.1", "parameter", NONE),
    (net("root", model__step="root"), "net.1", "gradient", ALL),
    (net("mlp", "sqrt"), "net.2", "gradient", BAD),
    (net("conv", "sqrt"), "net.5", "gradient", BAD),
    (net("conv", "norm"), "net.5", "gradient", BAD),
    (net("deep", "gradient", **TORCH), "net.1.1.1", "gradient", BAD),
    (net("batchnorm", "backward"), "net.2", "gradient", BAD),
    (net("mlp", model__step="sqrt"), "net.4", "gradient", BAD),
    (net("mlp", "sqrt", trainer__detect_anomaly="true"), "net.2", "gradient", BAD),
    (net("mlp", model__step="hook"), "net.0", "gradient", NONE),
    (net("mlp", model__step="optimizer"), "BadSGD", "parameter", NONE),
    (net("mlp", data__fault="read", **TORCH), "Samples", "input", BAD),
    (net("mlp", data__fault="shape", **TORCH), "collate_fn", "input", BAD),
    (net("mlp", data__fault="random", **TORCH), "Samples", "input", ANY),
    (net("mlp", data__fault="transfer", **TORCH), "batch", "input", NONE),
    (net("mlp", trainer__limit_val_batches="1.0", model__step="validation"), "Net", "input", BAD),
    (net("mlp", trainer__callbacks="test_replay.Fails"), "Net", "input", NONE),
    (net("mlp", "raises", trainer__limit_val_batches="1.0"), "net.2", "input", BAD),
]


@pytest.fixture
def failed(run, tmp_path, capsys):
    """Trains until a fault ends it, and returns what is left of that."""
    (tmp_path / "points.yaml").write_text(RECIPE)

    def failed(*args: str):
        Now.on = False
        with pytest.raises((SystemExit, Exception)) as e:
            run("fit", "--config=points.yaml", "--run_name=r", *args)
        file = max((tmp_path / "runs/r").glob("failure-*.json"), key=lambda p: p.stat().st_mtime_ns)
        by = (
            e.value.__notes__
            if hasattr(e.value, "__notes__")
            else [capsys.readouterr().err.strip()]
        )
        assert by[-1].endswith(f"python train.py replay runs/r/{file.name}")
        return file

    return failed


@pytest.fixture
def replayed(run, capsys):
    """Replays what is left of a failure, and returns what that says by its first words."""

    def replayed(file, *args: str) -> dict[str, str]:
        Now.on = False
        run("replay", str(file), *args)
        lines = capsys.readouterr().out.splitlines()
        print(*lines, sep="\n")
        return dict(line.split(maxsplit=1) for line in lines)

    return replayed


def files(folder) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.mark.parametrize(
    ("args", "layer", "tensor", "sample"),
    FAULTS,
    ids=lambda v: "-".join(w.partition("=")[2] for w in v) if isinstance(v, list) else "",
)
def test_a_fault_is_named(args, layer, tensor, sample, failed, replayed, tmp_path):
    file = failed(*args)
    log, before = list(Now.log), files(tmp_path)
    found = replayed(file)
    assert found["replayed"].endswith(", bit for bit")
    assert repr(Now.log[: len(log)]) == repr(log)  # samples, and losses after a dropout
    assert files(tmp_path) == before
    assert found["layer"] == layer
    assert found["tensor"].partition(":")[0] == tensor
    if sample is NONE:
        assert found["sample"].startswith("none")
    elif sample is ALL:
        assert found["sample"].endswith("all of the batch")
    elif sample is not ANY:
        assert found["sample"].startswith(f"{sample} (row ")
    else:
        samples = json.loads(file.read_text())["samples"] or log
        assert int(found["sample"].split()[0]) in samples


def test_a_resumed_run_with_accumulation_is_replayed_from_its_last_checkpoint(
    run, failed, replayed, tmp_path
):
    """Its bad gradient is that of the first batch of two, and is looked at after the second."""
    more = ("--trainer.accumulate_grad_batches=2", "--checkpoint.every_n_train_steps=1")
    first = json.loads(failed(*net("mlp", model__step="assert"), *more).read_text())
    Now.on = False
    with pytest.raises(SystemExit):
        run("fit", "--ckpt_path=last", "--model.step=", "--model.fault=sqrt")
    (file,) = (tmp_path / "runs/r").glob("failure-*.json")
    failure = json.loads(file.read_text())
    assert failure["checkpoint"] == "checkpoints/last.ckpt"
    assert failure["batch"] == first["batch"] + 1
    found = replayed(file)
    assert found["replayed"].endswith(", bit for bit")
    assert (found["layer"], found["sample"][:8]) == ("net.2", f"{BAD} (row ")


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_shuffles_is_replayed_from_within_an_epoch(
    accumulated, workers, failed, replayed
):
    """Running averages are no number after the bad batch, and are not the reason."""
    more = (
        f"--trainer.accumulate_grad_batches={accumulated}",
        "--checkpoint.every_n_train_steps=1",
        f"--data.workers={workers}",
    )
    file = failed(*net("batchnorm", data__fault="pixel"), *more)
    found = replayed(file)
    assert found["replayed"].endswith(", bit for bit")
    assert (found["layer"], found["sample"][:8]) == ("batch", f"{BAD} (row ")


@pytest.mark.parametrize("fault", ["exp", "raises"])
def test_two_processes_are_replayed_by_two_and_name_the_sample_of_one(fault, tmp_path):
    (tmp_path / "points.yaml").write_text(RECIPE)
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2")
    words = ("fit", "--config=points.yaml", "--run_name=r", *net("mlp", fault), *two)
    run = Training(tmp_path, *words)
    status, shown = run.end()
    assert status == 1, shown
    (file,) = (tmp_path / "runs/r").glob("failure-*.json")
    assert shown.strip().endswith(f"python train.py replay runs/r/{file.name}")
    found = Training(tmp_path, "replay", str(file)).finish()
    assert "layer   net.2\n" in found
    assert f"sample  {BAD} (row " in found
    assert re.search("replayed .* in 2 processes from .*, bit for bit", found)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photo_is_named_with_its_path(workers, failed, replayed, tmp_path):
    photos.image_folder(tmp_path / "data", train=4, val=2)
    bad = tmp_path / "data/train/n02/n02_001.JPEG"
    bad.write_bytes(bad.read_bytes()[:400])
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    file = failed("--config=photos.yaml", f"--data.num_workers={workers}")
    found = replayed(file)
    assert found["replayed"].endswith(", bit for bit")
    assert found["layer"] == "DecodedDataset"
    assert re.match(r"\d+ \(data/train/n02/n02_001.JPEG\) \(row \d\)$", found["sample"])


def test_a_sample_that_a_worker_can_not_read_is_named(failed, replayed):
    found = replayed(failed("--data.fault=read", "--data.workers=1"))
    assert (found["layer"], found["sample"][:8]) == ("Samples", f"{BAD} (row ")


@pytest.mark.filterwarnings("ignore:left out, ")
def test_steps_that_are_left_out_are_left_out_again(failed, replayed):
    found = replayed(failed(*net("mlp", "exp"), "--health.skip=1", "--trainer.max_epochs=4"))
    assert "epoch 2, " in found["replayed"]
    assert (found["layer"], found["sample"][:8]) == ("net.2", f"{BAD} (row ")


def test_on_a_gpu_the_step_is_found_that_is_read_later(failed, replayed, monkeypatch):
    monkeypatch.setattr("anneal.callbacks.non_finite_guard.waits", lambda value: True)
    file = failed(
        *net("mlp", "exp"), "--trainer.log_every_n_steps=5", "--checkpoint.every_n_train_steps=7"
    )
    found = replayed(file)
    assert json.loads(file.read_text())["step"] == 10
    assert "step 8, where the run went on until step 10" in found["replayed"]
    assert (found["layer"], found["sample"][:8]) == ("net.2", f"{BAD} (row ")


def test_a_device_that_has_failed_does_not_hide_the_layer(failed, replayed, monkeypatch):
    """Such as a GPU behind a failed assertion: nothing can be computed there any more."""

    def make(*args: Any):
        raise RuntimeError("device-side assert triggered")

    file = failed(*net("deep", "raises"))
    monkeypatch.setattr("anneal.commands.watch.Layers.make", make)
    found = replayed(file)
    assert (found["layer"], found["sample"][:4]) == ("net.1.1.1", "none")


def test_what_can_not_be_replayed_is_one_line(failed, run, capsys, tmp_path):
    file = failed(*net("mlp", "raises"))
    failure = json.loads(file.read_text())

    def refused(*args: str) -> str:
        Now.on = False
        with pytest.raises(SystemExit) as e:
            run("replay", *args)
        assert e.value.code
        (line,) = [r for r in capsys.readouterr().err.splitlines() if not r.startswith("INFO")]
        return line

    assert refused() == "error: --file is required"
    assert refused("nothing.json") == "error: nothing.json: No such file or directory"
    assert "not what a run leaves" in refused("points.yaml")
    file.write_text(json.dumps({**failure, "processes": 2}))
    assert "that run had 2 processes: start as many" in refused(str(file))
    file.write_text(json.dumps({**failure, "step": 3}))
    assert "last.ckpt, to start from, is gone or from after step 3" in refused(str(file))
    file.write_text(json.dumps(failure))
    assert "step 8 does not fail again: ValueError: a layer" in refused(
        str(file), "--model.fault=x"
    )


def test_the_command_line_is_no_failure(run, tmp_path):
    with pytest.raises(SystemExit):
        run("fit", "--config=small.yaml", "--run_name=r", "--checkpoint.monitor=val/x")
    assert not list((tmp_path / "runs/r").glob("failure-*"))


def test_the_command_of_the_page_replays(failed, run, capsys):
    file = failed(*net("mlp", "exp"))
    page = commands(ROOT / "docs" / "runs.md")
    ((python, program, *words),) = [words for words in page if "replay" in words]
    assert (python, program) == ("python", "train.py")
    Now.on = False
    run(*(str(file) if word.endswith(".json") else word for word in words))
    assert "layer   net.2\n" in capsys.readouterr().out
