"""What a training step costs beside its arithmetic, and that what is left out is not missed."""

import os
import sys

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultMetric,
    _Sync,
)
from tiny import Tiny, fit
from torch import nn

from anneal.cli.trainer import start
from anneal.lightning_internals import QuickModule
from anneal.progress import Clock

STEPS = range(20, 40)
SETTINGS = {"accelerator": "cpu", "barebones": False, "plugins": None, "sync_batchnorm": False}


class Calls(Callback):
    """Counts the calls of Python functions in some steps."""

    def __init__(self):
        self.counts = []

    def on_train_batch_start(self, trainer, *args):
        self.counts.append(0)
        sys.setprofile(self.count if len(self.counts) in STEPS else None)

    def on_validation_start(self, *args):
        sys.setprofile(None)

    def count(self, frame, event, arg):
        self.counts[-1] += event == "call"


def test_a_step_of_a_small_network_makes_few_calls(run):
    """Times depend on what else runs; calls don't. Lightning alone makes 600 of them."""
    flags = ("--model=MLP", "--trainer.max_epochs=3", "--trainer.callbacks+=test_step.Calls")
    trainer = run("fit", *flags).trainer
    (calls,) = (c for c in trainer.callbacks if type(c).__name__ == "Calls")
    counted = sorted(n for n in calls.counts if n)
    assert len(counted) == len(STEPS)
    assert counted[len(counted) // 2] < 1500


def test_a_logged_value_is_moved_to_another_device_only():
    meta = _Metadata("training_step", "loss", on_step=True)
    meta.sync = _Sync()
    metric = _ResultMetric(meta, is_tensor=True)
    metric.forward(torch.tensor(2.0), 4)
    kept = dict(vars(metric))
    assert metric.to(torch.device("cpu")) is metric
    assert all(vars(metric)[name] is value for name, value in kept.items())
    metric.to(torch.device("meta"))
    assert {metric.value.device.type, metric._forward_cache.device.type} == {"meta"}


class Own(Callback):
    """A user's, with two of the hooks; another callback calls one that it has not."""

    def __init__(self):
        self.called = []

    def on_train_batch_end(self, *args):
        self.called.append("end")
        super().on_train_batch_start(*args[:-2], 0)
        self.on_before_backward(*args[:3])


def test_hooks_that_are_empty_are_left_out_and_no_others():
    own, said = Own(), []
    made = LambdaCallback(on_before_zero_grad=lambda *args: said.append("zero"))
    clock = Clock()
    fit(Tiny(), batches=3, max_epochs=1, callbacks=[clock, own, made])
    assert own.called == ["end"] * 3
    assert said == ["zero"] * 3
    assert clock.on_before_zero_grad is made.on_after_backward is None
    assert clock.batches == 0
    assert clock.seen == 3
    fit(Tiny(), batches=3, max_epochs=1, callbacks=[Clock(), own, made])  # once more
    assert said == ["zero"] * 6


def test_a_module_keeps_texts_and_all_else_as_torch_does():
    module = QuickModule()
    module.text = "before"
    module.layer, module.weight = nn.Linear(2, 1), nn.Parameter(torch.zeros(1))
    module.register_buffer("mean", torch.zeros(1))
    module.text = "after"
    module.layer = module.weight = module.mean = None
    assert vars(module)["text"] == "after"
    assert module.layer is module.weight is module.mean is None
    assert not {"layer", "weight", "mean"} & vars(module).keys()
    for name in ("layer", "weight", "mean"):
        with pytest.raises(TypeError):
            setattr(module, name, "a text")
    module.text = nn.Linear(2, 1)
    assert "text" in dict(module.named_children())


@pytest.mark.parametrize("there", [False, True])
def test_no_gpu_is_looked_for_at_each_step_where_there_was_none(there, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    start({**dict.fromkeys(quiet, False), **SETTINGS})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("0" if there else "")
