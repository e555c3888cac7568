"""A run's config.yaml is read back as what it was, whatever a class has for defaults."""

from pathlib import Path

import odd_defaults
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from test_cli import FIT, fails, weights

from anneal.cli.schema import REQUIRED, parameters, path_of, subclasses
from anneal.testing import logged

ARGUMENTS = {
    "EarlyStopping": ["monitor=val/acc", "mode=max"],
    "ModelPruning": ["pruning_fn=l1_unstructured"],  # torch's function, by its name
    "StochasticWeightAveraging": ["swa_lrs=[0.01]"],
    "ThroughputMonitor": ["batch_size_fn=odd_defaults.half"],
    "StepLR": ["step_size=3"],
    "LambdaLR": ["lr_lambda=odd_defaults.double"],
}
KINDS = {
    "trainer.callbacks+": Callback,
    "trainer.logger+": Logger,
    "trainer.profiler": Profiler,
}


def printed(run, capsys, *args: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run("fit", *args, "--print_config")
    out, err = capsys.readouterr()
    assert "error" not in err
    assert "Unable" not in out + err
    return out


def read_back(run, capsys, *args: str) -> dict:
    """What is printed, after a look whether it is read back as the same."""
    text = printed(run, capsys, *FIT[1:], *args)
    Path("printed.yaml").write_text(text)
    assert printed(run, capsys, "--config=printed.yaml") == text
    return yaml.safe_load(text)


@pytest.mark.parametrize("key", KINDS)
def test_every_class_of_lightning_is_read_back(run, capsys, key):
    flags = []
    for cls in subclasses(KINDS[key]):
        args = ARGUMENTS.get(cls.__name__, [])
        needed = [p for p in parameters(cls).values() if p.default is REQUIRED]
        if cls.__module__.startswith("lightning.") and len(needed) <= len(args):
            words = [f"--{key}={path_of(cls)}", *(f"--{key.rstrip('+')}.{arg}" for arg in args)]
            flags.append(words)
    assert len(flags) > 2
    together = [[word for words in flags for word in words]] if key.endswith("+") else flags
    for words in together:
        read_back(run, capsys, *words)


@pytest.mark.parametrize("name", ["Adafactor", "LBFGS", "SparseAdam"])
def test_an_optimizer_of_torch_is_read_back(run, capsys, name):
    read_back(run, capsys, f"--model.optimizer={name}")


@pytest.mark.parametrize("name", ["LambdaLR", "StepLR"])
def test_a_scheduler_of_torch_is_read_back(run, capsys, name):
    key = "--model.schedule.scheduler"
    read_back(run, capsys, f"{key}={name}", f"{key}.{ARGUMENTS[name][0]}")


def test_defaults_that_can_be_written_are_and_others_are_left_out(run, capsys):
    tree = read_back(run, capsys, "--trainer.callbacks=odd_defaults.Held")
    assert tree["trainer"]["callbacks"]["init_args"].keys() == parameters(odd_defaults.Held).keys()
    tree = read_back(run, capsys, "--trainer.callbacks=odd_defaults.NotHeld")
    assert tree["trainer"]["callbacks"]["init_args"].keys() <= {"part"}


TYPED = {
    "Held.act": "torch.nn.GELU",
    "Held.cls": "torch.nn.GELU",
    "Held.colour": "BLUE",
    "Held.dtype": "torch.float16",
    "Held.exact": "2.5",
    "Held.some": "odd_defaults.half",
    "Held.text": "1e-4",
    "NotHeld.norm": "torch.nn.BatchNorm1d",
    "NotHeld.inner": "torch.nn.Identity",
    "NotHeld.part": "odd_defaults.Part",
    "NotHeld.device_or_name": "cpu",
    "NotHeld.named": "{a: 2}",
    "NotHeld.untyped": "odd_defaults.half",
}


@pytest.mark.parametrize("place", TYPED)
def test_what_was_typed_is_read_back_as_it_was_typed(run, capsys, place):
    cls, name = place.split(".")
    key = "--trainer.callbacks"
    tree = read_back(run, capsys, f"{key}=odd_defaults.{cls}", f"{key}.{name}={TYPED[place]}")
    found = tree["trainer"]["callbacks"]["init_args"][name]
    if isinstance(found, dict):
        found = found.get("class_path", found)
    assert found == TYPED[place] or found == yaml.safe_load(TYPED[place])


@pytest.mark.parametrize(
    ("place", "value"),
    [("NotHeld.norm", "odd_defaults.half"), ("NotHeld.device", "cpu"), ("Held.colour", "PINK")],
)
def test_what_cant_be_read_back_is_refused_before_the_run(run, capsys, place, value):
    cls, name = place.split(".")
    key = "--trainer.callbacks"
    line = fails(run, capsys, *FIT, f"{key}=odd_defaults.{cls}", f"{key}.{name}={value}")
    assert line.startswith(f"error: {key}.{name}: ")
    assert not Path("runs").exists()


@pytest.mark.parametrize("net", ["odd_defaults.Net", "odd_defaults.PlainNet"])
def test_a_run_with_such_defaults_goes_on_and_is_tested(run, capsys, net):
    args = ("--config=small.yaml", f"--model={net}", "--model.width=9")
    args += ("--checkpoint.monitor=val/loss", "--trainer.logger=null")
    run("fit", *args, "--run_name=whole")
    run("fit", *args, "--run_name=a", "--trainer.max_epochs=1")
    run("fit", "--ckpt_path=last", "--run=a", "--trainer.max_epochs=2")
    run("fit", "--config=runs/whole/config.yaml", "--run_name=again")
    for other in ("a", "again"):
        pairs = zip(
            weights(Path("runs/whole")).values(), weights(Path("runs", other)).values(), strict=True
        )
        assert all(torch.equal(x, y) for x, y in pairs)
    run("test", "--ckpt_path=last", "--run=whole")
    tested = [r for r in logged(Path("runs/whole")) if r.get("test/loss")]
    assert len(tested) == 2
    assert tested[0] == tested[1]
    if net.endswith(".Net"):
        run("predict", "--ckpt_path=last", "--run=whole")


def test_a_state_that_no_resume_could_read_is_refused_when_it_is_saved(run, capsys):
    line = fails(run, capsys, *FIT, "--trainer.callbacks+=odd_defaults.Keeps", status=1)
    assert "Keeps holds odd_defaults.Part, which no resume would read" in line
