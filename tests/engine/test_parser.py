"""Mistakes on the command line are answered in a line; valid input means what it did."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anneal import main
from anneal.cli.files import read_file
from anneal.cli.prepare import Project, prepare
from anneal.cli.schema import REQUIRED, Parameter, default_of, in_words, resolve
from anneal.cli.values import Text, option, reads_back, standing, wrong_value
from anneal.cli.words import read_words
from anneal.errors import UserError, nearest
from anneal.sweep import file as sweep


class TinyScheduler(ABC):
    """The torch schedulers by their names."""

    @staticmethod
    def __subclasses__() -> list[type]:
        return LRScheduler.__subclasses__()

    @abstractmethod
    def step(self) -> None: ...


TinyScheduler.register(LRScheduler)


@dataclass
class TinySchedule:
    """A schedule.

    Args:
        scheduler: Its class.
        interval: Its unit.
        warmup: Its warmup.
        monitor: Its metric.
    """

    scheduler: Callable[[Optimizer], TinyScheduler] | None = None
    interval: Literal["epoch", "step"] | None = None
    warmup: float = 0.0
    monitor: str = "val/loss"


NO_SCHEDULE = TinySchedule()


class TinyNet(LightningModule):
    """A net.

    Args:
        width: How wide.
        optimizer: How it learns.
        schedule: How fast.
    """

    def __init__(
        self,
        width: int = 3,
        optimizer: Callable[[Iterable], Optimizer] = AdamW,
        schedule: TinySchedule = NO_SCHEDULE,
        sizes: list[int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()


class TinyDeepNet(LightningModule):
    """Another net.

    Args:
        depth: How deep.
        optimizer: How it learns.
    """

    def __init__(self, depth: int = 2, optimizer: Callable[[Iterable], Optimizer] = AdamW) -> None:
        super().__init__()


class OtherWidths(LightningModule):
    """A net whose `width` is of another type.

    Args:
        width: How wide, layer by layer.
        optimizer: How it learns.
    """

    def __init__(
        self,
        width: tuple[int, int] = (1, 2),
        optimizer: Callable[[Iterable], Optimizer] = AdamW,
        bias: bool = True,
    ) -> None:
        super().__init__()


class TinyData(LightningDataModule):
    """Data.

    Args:
        batch_size: How many at once.
    """

    def __init__(self, batch_size: int = 3) -> None:
        super().__init__()


def fit(run: Any) -> None:
    """Train."""


def parse(*args: str) -> Namespace:
    """The configuration of `python train.py fit ARGS`."""
    typed = "".join(args)
    data = [] if "data" in typed or "printed" in typed else ["--data=TinyData"]
    run = prepare(read_words(["fit", *args, *data]), Project({"fit": fit}, [], NOTHING))
    return run.config


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A default recipe without a setting, and a cache of this test's own."""
    NOTHING.write_text("seed_everything: 0\n")
    monkeypatch.setattr("anneal.cli.entry.DEFAULT_CONFIG", NOTHING)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


NOTHING = Path(tempfile.gettempdir()) / f"nothing-{os.getpid()}.yaml"


@pytest.fixture
def errors(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The messages that end a command line; their form is the same for all of them."""

    def run(*words: str) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            main(fit, [], list(words))
        shown = capsys.readouterr()
        assert stop.value.code == 2
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert all(line.startswith("error: ") and len(line) < 400 for line in lines)
        return [line.removeprefix("error: ").strip() for line in lines]

    return run


@pytest.fixture
def error(errors: Callable[..., list[str]]) -> Callable[..., str]:
    """The one message that ends `python train.py fit ARGS`."""

    def run(*args: str) -> str:
        (line,) = errors("fit", *args)
        return line

    return run


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an empty configs folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    return tmp_path


IMPORT_PATH = " (or give an import path such as my_package.MyClass)"
QUOTES = " (YAML takes off, no, on and yes for booleans: put quotes around it)"

# key as typed, value, what is said; where {} is the dashes of a flag, or nothing in a file
NO_SUCH_KEY = [
    ("trainer.max_epoch", 2, "", "trainer.max_epochs"),
    ("trainr.max_epochs", 2, "", "trainer.max_epochs"),
    ("model.widht", 3, " of TinyNet", "model.width"),
    ("model.optimizer.lrr", 1, " of AdamW", "model.optimizer.lr"),
    ("model.optimiser.lr", 1, " of TinyNet", "model.optimizer.lr"),
    ("model.schedule.schedular", "StepLR", " of TinyNet", "model.schedule.scheduler"),
    ("checkpoint.save_topk", 3, "", "checkpoint.save_top_k"),
    ("max_epochs", 2, "", "trainer.max_epochs"),
    ("data.batchsize", 2, " of TinyData", "data.batch_size"),
]
WRONG_VALUE = [
    ("trainer.max_epochs", "abc", "expected an int, got 'abc'"),
    # Not a union of int and float: releases of the parser differ in its order.
    ("trainer.accumulate_grad_batches", "abc", "expected an int, got 'abc'"),
    ("model.width", 0.5, "expected an int, got 0.5"),
    ("model.optimizer.lr", "abc", "expected a float or a Tensor, got 'abc'"),
    ("model.schedule.warmup", "abc", "expected a float, got 'abc'"),
    (
        "model.schedule.interval",
        "epohc",
        "expected epoch or step, got 'epohc'; did you mean epoch?",
    ),
    ("model.sizes", "abc", "expected a list of int, got 'abc'"),
    ("model.bias", "maybe", "expected true or false, got 'maybe'"),
    ("model", "TinyNett", f"'TinyNett' is no LightningModule; did you mean TinyNet?{IMPORT_PATH}"),
    (
        "data",
        "TinyDta",
        f"'TinyDta' is no LightningDataModule; did you mean TinyData?{IMPORT_PATH}",
    ),
    ("model.optimizer", "SGDD", f"'SGDD' is no Optimizer; did you mean SGD?{IMPORT_PATH}"),
    (
        "model.schedule.scheduler",
        "steplr",
        f"'steplr' is no TinyScheduler; did you mean StepLR?{IMPORT_PATH}",
    ),
    (
        "trainer.callbacks",
        "EarlyStoping",
        f"'EarlyStoping' is no Callback; did you mean EarlyStopping?{IMPORT_PATH}",
    ),
    ("model.optimizer", "collections.OrderedDict", "'collections.OrderedDict' is no Optimizer"),
    ("model.optimizer", "os.path", "'os.path' is no Optimizer"),
    (
        "model.optimizer",
        "torch.optim.SGDD",
        "can't import torch.optim.SGDD: module 'torch.optim' has no attribute 'SGDD'; "
        "did you mean SGD?",
    ),
    ("model.optimizer", "nope.Other", "can't import nope.Other: No module named 'nope'"),
]


def as_tree(key: str, value: Any) -> dict[str, Any]:
    """A configuration of TinyNet and TinyData with one key, given as typed, set."""
    tree: dict[str, Any] = {
        "model": {"class_path": "TinyNet", "init_args": {}},
        "data": {"class_path": "TinyData", "init_args": {}},
    }
    if key in tree:
        tree[key] = value
        return tree
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {"class_path": "AdamW"} if part == "optimizer" else {})
        if "class_path" in node:
            node = node.setdefault("init_args", {})
    node[last] = value
    return tree


def write(key: str, value: Any) -> str:
    """Write a configuration with one key set."""
    Path("configs/my.yaml").write_text(yaml.safe_dump(as_tree(key, value)))
    return "configs/my.yaml"


FIRST = ("--model=TinyNet", "--data=TinyData")


@pytest.mark.parametrize(("key", "value", "of", "right"), NO_SUCH_KEY)
def test_an_unknown_option_is_named_with_the_nearest(error, key, value, of, right):
    wanted = f"--{key}: no such option{of}; did you mean --{right}?"
    assert error(*FIRST, f"--{key}={value}") == wanted
    assert error(*FIRST, f"--{key}", str(value)) == wanted


@pytest.mark.parametrize(("key", "value", "of", "right"), NO_SUCH_KEY)
def test_an_unknown_key_is_named_with_its_file(error, in_tmp, key, value, of, right):
    wanted = f"configs/my.yaml: {key}: no such key{of}; did you mean {right}?"
    assert error(f"--config={write(key, value)}") == wanted


def test_an_option_that_is_gone_is_not_offered_again(error, in_tmp):
    file = write("verbose", "true")
    assert error(f"--config={file}") == f"{file}: verbose: no such key"
    assert "did you mean" not in error("test", f"--config={file}", "--verbose=true")


@pytest.mark.parametrize(("key", "value", "wanted"), WRONG_VALUE)
def test_a_wrong_value_of_an_option_is_explained(error, key, value, wanted):
    assert error(*FIRST, f"--{key}={value}") == f"--{key}: {wanted}"


@pytest.mark.parametrize(("key", "value", "wanted"), WRONG_VALUE)
def test_a_wrong_value_in_a_file_is_explained(error, in_tmp, key, value, wanted):
    assert error(f"--config={write(key, value)}") == f"configs/my.yaml: {key}: {wanted}"


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("model.schedule.monitor", f"expected a str, got False{QUOTES}"),
        ("model.schedule.interval", f"expected epoch or step, got False{QUOTES}"),
        ("model.width", "expected an int, got False"),
        ("model.schedule", "expected keys under it, got False"),
        ("trainer", "expected keys under it, got False"),
    ],
)
def test_a_yaml_boolean_where_something_else_is_wanted_is_explained(error, in_tmp, key, wanted):
    assert error(f"--config={write(key, False)}") == f"configs/my.yaml: {key}: {wanted}"


def test_off_is_a_text_where_a_text_is_wanted():
    assert parse(*FIRST, "--model.schedule.monitor=off").model.init_args.schedule.monitor == "off"


def test_a_missing_argument_of_a_class_is_named(error, in_tmp):
    wanted = "model.schedule.scheduler.step_size is required by StepLR"
    assert error(*FIRST, "--model.schedule.scheduler=StepLR") == f"--{wanted}"
    file = write("model.schedule.scheduler", "StepLR")
    assert error(f"--config={file}") == f"configs/my.yaml: {wanted}"


def test_all_mistakes_are_said_a_line_each(errors, in_tmp):
    file = write("trainer.max_epoch", 2)
    assert errors() == ["--model is required", "--data is required"]
    words = ("--model.widht=3", "--model.sizes=abc", "--data.batch_size=x")
    assert errors("fit", f"--config={file}", *words, "tset") == [
        f"{file}: trainer.max_epoch: no such key; did you mean trainer.max_epochs?",
        "'tset' is neither a command (fit, validate, test, predict, export, schedule, lr_find, "
        "show-batch, replay, report, card, sweep, compare, cooldown, check, shards) nor an option; "
        "did you mean test?",
        "--model.widht: no such option of TinyNet; did you mean --model.width?",
        "--model.sizes: expected a list of int, got 'abc'",
        "--data.batch_size: expected an int, got 'x'",
    ]


def test_a_callback_in_a_list_is_explained(error, in_tmp):
    file = write("trainer.callbacks", [{"class_path": "EarlyStopping", "init_args": {"mnitor": 1}}])
    assert error(f"--config={file}") == (
        "configs/my.yaml: trainer.callbacks.mnitor: no such key of EarlyStopping; "
        "did you mean trainer.callbacks.monitor?"
    )


def test_an_option_of_a_class_that_only_the_files_know_is_offered(error, in_tmp):
    file = write("model.optimizer.lr", 0.1)
    wanted = "--lr: no such option; did you mean --model.optimizer.lr?"
    assert error(f"--config={file}", "--lr=3") == wanted


def test_the_flag_is_to_blame_and_not_the_file_with_the_right_key(error, in_tmp):
    file = write("model.optimizer.lr", 0.1)
    wanted = "--model.optimizer.lr: expected a float or a Tensor, got 'abc'"
    assert error(f"--config={file}", "--model.optimizer.lr=abc") == wanted


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("", "is empty"),
        ("- 2\n", "has no settings, such as 'seed_everything: 0'"),
        ("abc\n", "has no settings, such as 'seed_everything: 0'"),
        ("a: [2\nb: }\n", "is no YAML: line 2, column 2, "),
        ("\tmodel: TinyNet\n", "is no YAML: line 1, column 1, found character"),
        ("a: 2026-99-99\n", "is no YAML: month must be in 1..12"),
        ("a: !!int x\n", "is no YAML: invalid literal for int() with base 10: 'x'"),
        ("a: !!bool x\n", "is no YAML: 'x'"),
        ("a: !!timestamp x\n", "is no YAML: "),
        ('a: !!float ""\n', "is no YAML: string index out of range"),
        ('a: "\\uDC80"\nb: ' + 1000 * "[" + 1000 * "]", "is no YAML: maximum recursion depth"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(error, in_tmp, content, wanted):
    Path("configs/my.yaml").write_text(content)
    assert error("--config", "configs/my.yaml").startswith(f"configs/my.yaml {wanted}")


UTF_16 = "can't be read: UTF-16, as PowerShell's > writes; save it as UTF-8"
ENCODINGS = {"utf-16": UTF_16, "utf-16-le": UTF_16, "utf-16-be": UTF_16}


@pytest.mark.parametrize("encoding", [*ENCODINGS, "latin-1", "utf-8-sig"])
@pytest.mark.parametrize("text", ["# Grün\nmethod: 3\n", "# é\r\nmethod: 3\r\n"])
def test_a_file_in_another_encoding_is_named(in_tmp, encoding, text):
    path = Path("configs/my.yaml")
    path.write_bytes(text.encode(encoding))
    wanted = ENCODINGS.get(encoding, r"can't be read: invalid .* at byte \d+; save it as UTF-8")
    for read in (read_file, sweep.read):
        if encoding != "utf-8-sig":
            with pytest.raises(UserError, match=f"^{path} {wanted}$"):
                read(path)
    if encoding == "utf-8-sig":
        assert read_file(path) == {"method": 3}


@pytest.mark.parametrize("depth", [0, 9])
def test_aliases_that_make_billions_of_a_few_lines_are_refused(error, in_tmp, depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]" if depth else "a0: &a0 [*a0]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    Path("configs/my.yaml").write_text("\n".join(lines))
    line = error("--config=configs/my.yaml")
    assert line.startswith("configs/my.yaml: its aliases make more than 100,000")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "b:\n  a: 1\n  a: {}", "[{a: 1, a: 1}]"])
def test_a_key_that_stands_twice_is_named_with_its_line(error, in_tmp, text):
    Path("configs/my.yaml").write_text(text)
    line = error("--config=configs/my.yaml")
    assert line.startswith(f"configs/my.yaml is no YAML: line {text.count(chr(10)) + 1}, column ")
    assert line.endswith("a second 'a' beside that above it")


def test_a_missing_file_is_named_with_the_nearest(error, in_tmp):
    file = write("seed_everything", 0)
    wanted = f"--config: no such file: configs/mi.yaml; did you mean {file}?"
    assert error("--config=configs/mi.yaml") == wanted
    assert error("-c", "nowhere/x.yaml") == "--config: no such file: nowhere/x.yaml"
    Path(".pre-commit-config.yaml").touch()
    assert error("--config=nope.yaml") == "--config: no such file: nope.yaml"
    assert error("--config=mi.yaml").endswith(f"; did you mean {file}?")
    assert error("--config=configs") == "--config: a directory, no file: configs"
    assert error("--model=nope.yaml") == "--model: no such file: nope.yaml"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["fit", "tset"], "'tset' is neither a command ({}) nor an option; did you mean test?"),
        (["tset"], "'tset' is neither a command ({}) nor an option; did you mean test?"),
        (["fit", "test"], "'test' is a command, and a command stands first"),
        (["--trainer.max_epochs=3", "fit"], "'fit' is a command, and a command stands first"),
        (
            ["fit", "trainer.max_epochs=3"],
            "'trainer.max_epochs=3': options begin with two dashes; "
            "did you mean --trainer.max_epochs?",
        ),
        (
            ["fit", "-trainer.max_epochs=3"],
            "'-trainer.max_epochs=3': options begin with two dashes; "
            "did you mean --trainer.max_epochs?",
        ),
        (
            ["fit", "epochs=3"],
            "'epochs=3': options begin with two dashes; did you mean --trainer.max_epochs?",
        ),
        (["fit", "--trainer.max_epochs"], "--trainer.max_epochs needs a value"),
        (["fit", "--model=TinyNet", "--model.width"], "--model.width needs a value"),
        (["fit", "--print_confi"], "--print_confi: no such option; did you mean --print_config?"),
    ],
)
def test_a_word_that_nothing_takes_is_explained(errors, words, wanted):
    commands = "fit, validate, test, predict, export, schedule, lr_find, show-batch, replay, report"
    assert errors(*words)[-1 if "needs" in wanted else 0] == wanted.format(
        f"{commands}, card, sweep, compare, cooldown, check, shards"
    )


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("trainer:\nmodel: TinyNet", "trainer: expected keys under it, got None"),
        ("trainer: {class_path: Trainer}", "trainer: takes no class"),
        (
            "model: {class_path: TinyNet, init_args: }",
            "model.init_args: expected keys under it, got None",
        ),
        (
            "model: {class_path: TinyNet, init_args: [2]}",
            "model.init_args: expected keys under it, got [2]",
        ),
        (
            "model: {class_path: TinyNet, init_args: {optimizer: {class_path: SGD, lr: 3}}}",
            "model.optimizer: arguments stand under init_args, not beside class_path",
        ),
        (
            "model: {class_path: TinyNet, init_args: {optimizer: {class: SGD}}}",
            "model.optimizer.class: no such key of AdamW; there are amsgrad, betas, capturable, "
            "differentiable, eps, foreach, fused, lr, maximize, weight_decay",
        ),
        (
            "model: [TinyNet]",
            "model: expected the name of a class (LightningModule), got ['TinyNet']",
        ),
        ("1: 2", "Key must be a string, got: 1."),
    ],
)
def test_a_class_written_the_wrong_way_is_explained(error, in_tmp, content, wanted):
    Path("configs/my.yaml").write_text(content)
    assert error("--config=configs/my.yaml") == f"configs/my.yaml: {wanted}"


def test_a_mistake_in_a_file_hides_none_of_those_after_it(errors, in_tmp):
    Path("configs/my.yaml").write_text("1: 2\ntrainr: 3\ndta: 4\nmodel: [TinyNet]")
    found = [line.split(": ")[1] for line in errors("--config=configs/my.yaml")]
    assert found == ["Key must be a string, got", "trainr", "dta", "model"]


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        (
            "--model.optimizer=",
            "--model.optimizer: expected the name of a class (Optimizer), got nothing",
        ),
        (
            "--model.class_path=TinyNett",
            f"--model: 'TinyNett' is no LightningModule; did you mean TinyNet?{IMPORT_PATH}",
        ),
        ("--config=", "--config is empty"),
        ("--trainer=nope.yaml", "--trainer: no such file: nope.yaml"),
        ("--trainer.max_epochs.deep=3", "--trainer.max_epochs.deep: no such option"),
    ],
)
def test_odd_flags_are_explained(error, flag, wanted):
    assert error(*FIRST, flag) == wanted


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("--epochs=3", "--epochs: no such option; did you mean --trainer.max_epochs?"),
        ("--seed=3", "--seed: no such option; did you mean --seed_everything?"),
        ("--workers=3", "--workers: no such option; did you mean --data.num_workers?"),
        ("--dry-run", "--dry-run: no such option; did you mean --trainer.fast_dev_run=true?"),
        (
            "--multirun",
            "--multirun: no such option; several runs are a sweep: python train.py sweep FILE",
        ),
        ("--resume", "--resume needs a value: auto"),
        ("--lr=1", "--lr: no such option; did you mean --model.optimizer.lr?"),
    ],
)
def test_the_options_of_other_tools_are_known(error, word, wanted):
    assert error(*FIRST, word) == wanted


def test_the_commands_of_other_tools_are_known(errors):
    for word, meant in {"train": "fit", "eval": "validate", "tune": "sweep"}.items():
        assert errors(word)[0].endswith(f"; did you mean {meant}?")


def test_typed_flags_win_over_files_in_any_order(in_tmp):
    file = write("trainer.max_epochs", 20)
    for words in (
        ["--trainer.max_epochs=1", f"--config={file}"],
        [f"-c={file}", "--trainer.max_epochs", "1"],
    ):
        assert parse(*words, "--data.batch_size=2").trainer.max_epochs == 1


# ---- classes that replace others


RECIPE = """
model:
  class_path: TinyNet
  init_args:
    width: 5
    optimizer: {class_path: AdamW, init_args: {lr: 0.01, weight_decay: 0.2}}
    schedule: {scheduler: {class_path: StepLR, init_args: {step_size: 3, gamma: 0.5}}}
"""


@pytest.fixture
def recipe(in_tmp: Path) -> str:
    Path("recipe.yaml").write_text(RECIPE)
    return "--config=recipe.yaml"


def later(text: str) -> str:
    Path("later.yaml").write_text(text)
    return "--config=later.yaml"


SGD_IN_FILE = "model: {init_args: {optimizer: {class_path: SGD, init_args: {lr: 0.3}}}}"


@pytest.mark.parametrize(
    ("change", "lr", "dropped"),
    [
        (["--model.optimizer=SGD"], 0.001, "lr=0.01, weight_decay=0.2"),
        (["--model.optimizer=torch.optim.SGD"], 0.001, "lr=0.01, weight_decay=0.2"),
        (["--model.optimizer=SGD", "--model.optimizer.lr=0.1"], 0.1, "weight_decay=0.2"),
        (
            ["--model.optimizer.eps=1e-8", "--model.optimizer=SGD"],
            0.001,
            "lr=0.01, weight_decay=0.2",
        ),
        (["--model.optimizer.lr=0.1", "--model.optimizer=SGD"], 0.001, "lr=0.1, weight_decay=0.2"),
        (["--model.optimizer={class_path: SGD, init_args: {lr: 1.0}}"], 1.0, "weight_decay=0.2"),
        ([SGD_IN_FILE], 0.3, "weight_decay=0.2"),
        (["model: {init_args: {optimizer: SGD}}"], 0.001, "lr=0.01, weight_decay=0.2"),
    ],
)
def test_another_optimizer_starts_from_its_own_defaults(recipe, capsys, change, lr, dropped):
    change = [word if word.startswith("--") else later(word) for word in change]
    model = parse(recipe, *change).model.init_args
    assert model.optimizer.class_path == "torch.optim.SGD"
    assert model.optimizer.init_args.lr == lr
    assert model.optimizer.init_args.weight_decay == 0
    assert model.optimizer.init_args.momentum == 0
    assert "betas" not in model.optimizer.init_args
    assert (model.width, model.schedule.scheduler.init_args.gamma) == (5, 0.5)
    assert capsys.readouterr().err == f"note: model.optimizer: AdamW -> SGD drops {dropped}\n"


@pytest.mark.parametrize("name", ["AdamW", "torch.optim.AdamW", "torch.optim.adamw.AdamW"])
def test_the_same_class_named_again_keeps_its_arguments(recipe, capsys, name):
    in_file = later(f"model: {{init_args: {{optimizer: {{class_path: {name}}}}}}}")
    for change in (f"--model.optimizer={name}", in_file):
        args = parse(recipe, change).model.init_args.optimizer.init_args
        assert (args.lr, args.weight_decay) == (0.01, 0.2)
    assert capsys.readouterr().err == ""


def test_a_required_argument_is_not_taken_from_the_class_before(error, recipe):
    wanted = "--model.schedule.scheduler.gamma is required by ExponentialLR"
    assert error(recipe, "--data=TinyData", "--model.schedule.scheduler=ExponentialLR") == wanted


def test_a_schedule_can_be_taken_away(recipe, capsys):
    assert (
        parse(recipe, "--model.schedule.scheduler=null").model.init_args.schedule.scheduler is None
    )


def test_another_model_keeps_what_both_take_and_says_so(recipe, capsys):
    for change in ("--model=TinyDeepNet", later("model: {class_path: TinyDeepNet}")):
        model = parse(recipe, change).model
        assert model.init_args.depth == 2
        assert model.init_args.optimizer.init_args.lr == 0.01
        assert "width" not in model.init_args
        assert capsys.readouterr().err == (
            "note: model: TinyNet -> TinyDeepNet keeps optimizer and drops width=5, schedule\n"
        )


def test_what_does_not_fit_the_other_model_is_not_kept(recipe, capsys):
    model = parse(recipe, "--model.bias=false", "--model=OtherWidths").model
    assert list(model.init_args.width) == [1, 2]
    assert model.init_args.optimizer.init_args.lr == 0.01
    assert capsys.readouterr().err == (
        "note: model: TinyNet -> OtherWidths keeps optimizer, bias and drops width=5, schedule\n"
    )


# ---- what must not change


@pytest.mark.parametrize(
    "args",
    [
        ["--model=TinyNet"],
        [*FIRST, "--trainer.max_epochs=3", "--model.optimizer.lr=1e-3", "--model.sizes=[1,2]"],
        [*FIRST, "--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val/acc"],
        [*FIRST, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acc"],
        [*FIRST, "--model.schedule.scheduler=StepLR", "--model.schedule.scheduler.step_size=3"],
        ["--config=recipe.yaml", "--trainer.logger=false"],
    ],
)
def test_valid_input_says_nothing(recipe, capsys, args):
    parse(*args)
    assert capsys.readouterr().err == ""


def test_values_have_the_types_that_they_are_given_for(recipe):
    config = parse(
        *FIRST, "--trainer.max_epochs=3", "--model.optimizer.lr=1e-3", "--model.sizes=[1,2]"
    )
    assert config.trainer.max_epochs == 3
    assert config.model.init_args.optimizer.init_args.lr == 1e-3
    assert config.model.init_args.sizes == [1, 2]
    for sign in ("=", "+="):
        callbacks = parse(
            *FIRST, f"--trainer.callbacks{sign}EarlyStopping", "--trainer.callbacks.monitor=val/acc"
        ).trainer.callbacks
        (callback,) = callbacks if isinstance(callbacks, list) else [callbacks]
        assert callback.class_path == "lightning.pytorch.callbacks.EarlyStopping"
        assert callback.init_args.monitor == "val/acc"
    scheduler = parse(
        *FIRST, "--model.schedule.scheduler=StepLR", "--model.schedule.scheduler.step_size=3"
    ).model.init_args.schedule.scheduler
    assert scheduler.class_path == "torch.optim.lr_scheduler.StepLR"
    assert (scheduler.init_args.step_size, scheduler.init_args.gamma) == (3, 0.1)
    assert parse("--config=recipe.yaml", "--trainer.logger=false").trainer.logger is False


def test_a_class_in_a_list_is_added_set_anew_or_addressed_as_the_last(recipe):
    def names(*words: str) -> list[str]:
        found = parse(*FIRST, *(f"--trainer.callbacks{word}" for word in words)).trainer.callbacks
        found = found if isinstance(found, list) else [found]
        return [callback.class_path.rpartition(".")[2] for callback in found]

    timer, stop = "+=DeviceStatsMonitor", "+=EarlyStopping"
    assert names(timer, stop, ".monitor=val/acc") == ["DeviceStatsMonitor", "EarlyStopping"]
    assert names(timer, stop, ".monitor=val/acc", "=OnExceptionCheckpoint", ".dirpath=here") == [
        "OnExceptionCheckpoint"
    ]


def test_print_config_prints_a_configuration_that_parses_to_the_same(recipe, capsys):
    change = [recipe, "--model.optimizer=SGD", "--model.optimizer.lr=0.5", "--data=TinyData"]
    with pytest.raises(SystemExit) as stop:
        main(fit, ["test_parser"], ["fit", *change, "--print_config"])
    assert not stop.value.code
    shown = capsys.readouterr()
    assert "note: model.optimizer: AdamW -> SGD drops weight_decay=0.2" in shown.err
    Path("printed.yaml").write_text(shown.out)
    printed, direct = parse("--config=printed.yaml"), parse(*change)
    assert printed.model == direct.model
    assert printed.trainer == direct.trainer


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["--help"], ["--trainer.max_epochs", "model, a class chosen by name:", "[--key=value"]),
        (["--model.help=TinyNet"], ["How wide."]),
        (["--model=TinyNet", "--model.optimizer.help=SGD"], ["momentum"]),
        (["--model=TinyNet", "--model.help"], ["How wide."]),
    ],
)
def test_help_shows_docstrings_and_no_wall_of_usage(capsys, args, wanted):
    with pytest.raises(SystemExit) as stop:
        main(fit, [], ["fit", *args])
    shown = capsys.readouterr().out
    assert not stop.value.code
    assert all(text in shown for text in wanted)
    assert "[--trainer.max_epochs" not in shown


def test_an_unknown_class_asked_for_help_is_explained(error):
    wanted = f"--model.help: 'TinyNett' is no LightningModule; did you mean TinyNet?{IMPORT_PATH}"
    assert error("--model.help=TinyNett") == wanted


# ---- the pure functions


def test_nearest_prefers_the_whole_key_to_its_last_part():
    names = ["trainer.max_epochs", "trainer.min_epochs", "data.batch_size"]
    assert nearest("trainer.min_epoch", names) == "trainer.min_epochs"
    assert nearest("batch_size", names) == "data.batch_size"
    assert nearest("sgd", ["SGD", "Adam"]) == "SGD"
    assert nearest("zzz", names) == ""
    assert nearest("model.schedule.step_size", ["model.schedule", "model.width"]) == ""


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an int"),
        (int | None, "an int"),
        (float | list[int], "a float or a list of int"),
        (Literal["a", "b"] | Literal[3] | None, "a, b or 3"),
        (bool | int, "true, false or an int"),
        (list["Net"], "a list of values"),  # noqa: F821
        ("Net", "a Net"),  # a name that could not be looked up
    ],
)
def test_a_type_is_put_in_words(hint, words):
    assert in_words(hint) == words


@pytest.mark.parametrize(("value", "said"), [(True, QUOTES), (False, QUOTES), (1, ""), (0, "")])
def test_quotes_are_advised_for_a_boolean_alone(value, said):
    assert wrong_value(value, Literal["a", "b"]) == f"expected a or b, got {value}{said}"


def test_print_config_takes_no_word():
    words = read_words(["fit", "--print_config", "word"])
    assert (words.flags, words.others) == ([("print_config", None)], ["word"])


def test_a_list_is_added_to_what_there_is_or_to_its_default():
    for text, found in (("3", [1, 3]), ("[3, 4]", [1, 3, 4])):
        assert option("x+", Text(text), Parameter(list[int]), [1]) == found
    assert option("x", Text("[3]"), Parameter(list[int]), [1]) == [3]
    assert standing(None, Parameter(list[int], [1])) == [1]
    assert standing(True, Parameter(list[int] | bool, False)) == []
    assert (default_of(Parameter(int, 3)), default_of(None)) == (3, REQUIRED)
    assert standing(3, Parameter(list[int] | int, [1])) == [3]


def test_a_short_name_is_ones_own_class_before_that_of_a_library(tmp_path, monkeypatch):
    class Base:
        """Of these."""

    def same(module: str, base: type = Base) -> type:
        return type("Same", (base,), {"__module__": module})

    _libraries = same("lightning.a.b"), same("torch.c.d")
    with pytest.raises(UserError, match=r"several of the name 'Same': .* lightning\.a\.b\.Same, "):
        resolve("Same", Base)
    assert resolve("Base", Base) is Base
    own = same("mine.models")
    assert resolve("Same", Base) is own
    replaced = same("mine.more", own)
    assert resolve("Same", Base) is replaced
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "silent.py").write_text("raise ValueError")
    with pytest.raises(
        UserError, match=r"can't import silent.Same: ValueError; did you mean Same\?$"
    ):
        resolve("silent.Same", Base)


@pytest.mark.parametrize(
    ("written", "value", "hint", "found"),
    [
        ("3", "3", str, True),
        ("3", "3", float | str, False),  # it would be a number
        ("a", Path("a"), Path, True),
        ("b", Path("a"), Path, False),
        ("a", Path("a"), str, False),
    ],
)
def test_a_value_is_read_back_if_yaml_and_its_type_make_the_same_of_it(written, value, hint, found):
    assert reads_back(written, value, hint) is found
