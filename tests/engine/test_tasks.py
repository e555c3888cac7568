"""Classification, several labels and regression from one base: each is exact, saved and drawn."""

import csv
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
import torch.nn.functional as F
from helpers import SMALL
from lightning.pytorch import LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from pages import ROOT, commands
from tasks_data import Labels, OneOf, Values
from test_classification import QUIET, Samples, Shift
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from anneal import ClassificationModule, InMemoryBatches, TaskModule, UserError
from anneal.commands.export import export
from anneal.image_grid import legible
from anneal.runs import exported
from anneal.system import write_csv
from anneal.tasks import test_report as figures
from anneal.tasks.kinds import TASKS, Classification, MultiLabel, Regression, Task
from anneal.testing import image_folder, main

KINDS = {"classification": "OneOf", "multilabel": "Labels", "regression": "Values"}
NAMES = ["cat", "dog", "owl", "eel"]
FIT = (
    "--trainer.max_epochs=3",
    "--trainer.logger=false",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_train_batches=null",
    "--trainer.limit_val_batches=null",
    "--trainer.limit_test_batches=null",
    "--model.num_classes=4",
    "--model.optimizer=AdamW",
    "--model.optimizer.lr=0.01",
    f"--data.names=[{','.join(NAMES)}]",
)


class Says(TaskModule):
    """A model whose outputs are its pixels."""

    def __init__(self, num_classes: int | None = 5, optimizer: Any = None, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=0.1)
        self.net = Shift()

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.task.train_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


def data_of(task: str, n: int = 203, k: int = 5, batch_size: int = 16) -> Samples:
    """Samples of a task whose images are outputs, good ones and bad ones."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(n, k, generator=rng)
    target: Tensor = torch.randint(0, k, (n,), generator=rng)
    if task == "multilabel":
        target = (torch.rand(n, k, generator=rng) > 0.7).float()
        noise += 2 * target - 1.5
    if task == "regression":
        target = 2000 + torch.arange(1.0, k + 1) * torch.randn(n, k, generator=rng)
        noise = noise / 3 + (target - target.mean(0)) / target.std(0, correction=0)
    samples = Samples(noise[:, None, None], target, batch_size)
    samples.task, samples.train_targets = task, target
    return samples


def by_hand(samples: Samples) -> dict[str, float]:
    """What validation is to say, by scikit-learn."""
    outputs, y = samples.samples[0].flatten(1).double(), samples.samples[1].numpy()
    if samples.task == "multilabel":
        p = outputs.sigmoid().numpy()
        return {
            "loss": F.binary_cross_entropy_with_logits(outputs, torch.tensor(y).double()).item(),
            "acc": sk.accuracy_score(y, p > 0.5),
            "f1_macro": sk.f1_score(y, p > 0.5, average="macro"),
            "f1_micro": sk.f1_score(y, p > 0.5, average="micro"),
            "map": sk.average_precision_score(y, p, average="macro"),
        }
    if samples.task == "regression":
        y = y.astype(np.float64)
        said = outputs.numpy() * y.std(0) + y.mean(0)
        return {
            "loss": np.mean(((said - y) / y.std(0)) ** 2),
            "mae": sk.mean_absolute_error(y, said),
            "rmse": np.sqrt(np.mean((said - y) ** 2)),
            "r2": sk.r2_score(y, said),
        }
    said = outputs.argmax(1).numpy()
    return {
        "loss": F.cross_entropy(outputs, samples.samples[1]).item(),
        "acc": sk.accuracy_score(y, said),
        "acc_macro": sk.balanced_accuracy_score(y, said),
        "f1_macro": sk.f1_score(y, said, average="macro"),
    }


def trained(task: str, trainer: Trainer | None = None, **kwargs: Any) -> tuple[Says, Trainer]:
    """A module that has made one step, which its learning rate of 0 leaves without effect."""
    trainer = trainer or Trainer(**QUIET)
    module = Says(optimizer=partial(torch.optim.SGD, lr=0.0), **kwargs)
    trainer.fit(module, data_of(task))
    return module, trainer


# The numbers


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("batch_size", [1, 41, 500])
def test_metrics_are_those_of_scikit_learn(task, batch_size):
    data = data_of(task, batch_size=batch_size)
    module, trainer = trained(task)
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        found = run(module, data, verbose=False)[0]
        expected = {f"{stage}/{name}": value for name, value in by_hand(data).items()}
        assert found == pytest.approx(expected, rel=2e-5)


def test_two_processes_say_the_same_as_one():
    task = "multilabel"  # whose metrics gather all predictions
    _, trainer = trained(task, Trainer(**QUIET, devices=2, strategy="ddp_fork"))
    for name, value in by_hand(data_of(task)).items():
        assert trainer.callback_metrics[f"val/{name}"] == pytest.approx(value, rel=2e-5), name


@pytest.mark.filterwarnings("ignore:Encountered `nan`")
def test_r2_of_one_sample_is_no_number_and_no_error():
    found = Trainer(**QUIET).validate(
        Says(task="regression"), data_of("regression", 1), verbose=False
    )
    assert np.isnan(found[0]["val/r2"])


def test_a_single_target_may_come_as_a_list_of_numbers():
    data = data_of("regression", k=1)
    data.train_targets = data.samples[1].flatten()
    data.samples = (data.samples[0], data.train_targets)
    module = Says(1)
    trainer = Trainer(**QUIET)
    trainer.fit(module, data)
    assert module.task.mean.item() == pytest.approx(data.train_targets.mean().item())
    assert trainer.callback_metrics["val/r2"] > 0.5


def test_a_constant_target_is_no_division_by_zero():
    task = Regression()
    task.prepare(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), ["a", "b"])
    assert task.std.tolist() == [1.0, 1.0]
    assert task.mean.tolist() == [2.0, 5.0]
    task.prepare(torch.full((7, 1), 0.1), ["a"])  # whose mean is rounded
    assert task.std.tolist() == [1.0]


@pytest.mark.parametrize("unit", [1e30, 1e-30, 1.7e9])
def test_targets_that_32_bits_can_not_measure_are_a_line(unit):
    values = torch.arange(9.0) * unit if unit != 1.7e9 else torch.arange(9.0).double() + unit
    with pytest.raises(UserError, match=r"b is .* deviation of .*: subtract a number, or scale it"):
        Regression().prepare(torch.stack([torch.arange(9.0), values], 1), ["a", "b"])


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_thresholds_are_those_with_the_highest_f1_of_the_validation():
    module, _ = trained("multilabel")
    data = data_of("multilabel")
    p, y = data.samples[0].flatten(1).sigmoid(), data.samples[1]
    tried = torch.linspace(0, 1, 101)
    for i, threshold in enumerate(module.task.thresholds):
        f1 = [sk.f1_score(y[:, i], p[:, i] >= t) for t in tried]
        at = sk.f1_score(y[:, i], p[:, i] >= threshold)
        assert at == pytest.approx(max(f1))
    sure = MultiLabel()
    sure.metrics(2)
    sure.chooser.update(torch.tensor([[0.99, 0.2], [0.01, 0.1]]), torch.tensor([[1, 0], [0, 0]]))
    sure.choose()
    assert sure.thresholds.tolist() == [0.5, 0.5]  # any of 0.02 to 0.99, and of no sample


# Weights of the loss


def test_balanced_weights_are_the_formulas_of_the_field():
    classes = torch.tensor([0, 0, 0, 1, 2, 2])
    task = Classification(class_weight="balanced")
    task.prepare(classes, ["a", "b", "c"])
    from sklearn.utils.class_weight import compute_class_weight

    y = classes.numpy()
    expected = compute_class_weight("balanced", classes=np.unique(y), y=y)
    assert task.weight.tolist() == pytest.approx(expected.tolist())
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    many = MultiLabel(pos_weight="balanced")
    many.prepare(labels, ["a", "b"])
    assert many.weight.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("task", "option"), [("classification", "class_weight"), ("multilabel", "pos_weight")]
)
def test_weights_are_for_training_and_reports_are_plain(task, option):
    weight = [1.0, 2.0, 3.0, 4.0, 5.0]
    module, trainer = trained(task, **{option: weight})
    data = data_of(task)
    outputs, target = data.samples[0].flatten(1), data.samples[1]
    loss = module.task.train_loss(outputs, target)
    if task == "classification":
        expected = F.cross_entropy(outputs, target, torch.tensor(weight))
    else:
        expected = F.binary_cross_entropy_with_logits(
            outputs, target, pos_weight=torch.tensor(weight)
        )
    assert loss.item() == pytest.approx(expected.item())
    assert trainer.callback_metrics["val/loss"] == pytest.approx(by_hand(data)["loss"], rel=1e-5)
    assert abs(loss.item() - by_hand(data)["loss"]) > 0.01


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        ("classification", {"class_weight": [1.0, 2.0]}, "class_weight=.*: give 5 numbers"),
        ("classification", {"class_weight": [1.0, 2.0, 3.0, 4.0, -1.0]}, "5 numbers above 0"),
        (
            "classification",
            {"pos_weight": "balanced"},
            "set --model.pos_weight=null",
        ),
        ("multilabel", {"class_weight": "balanced"}, "model.class_weight is not for multilabel"),
        (
            "multilabel",
            {"label_smoothing": 0.1},
            "not for multilabel: set --model.label_smoothing=0",
        ),
        ("regression", {"label_smoothing": 0.1}, "model.label_smoothing is not for regression"),
        (
            "regression",
            {"task": "multilabel"},
            "the data is for regression, and the model is for mul",
        ),
        ("segmentation", {}, "the data is for segmentation: there are classification, multilabel"),
    ],
)
def test_options_that_make_no_sense_are_a_line(task, options, reason):
    with pytest.raises(UserError, match=reason):
        Trainer(**QUIET).fit(Says(**options), data_of(task))


def test_a_class_without_samples_can_not_be_balanced():
    data = data_of("classification")
    data.train_targets = data.train_targets.clamp(max=3)
    with pytest.raises(UserError, match=r"class_weight=balanced for 0, .*: some of them are on no"):
        Trainer(**QUIET).fit(Says(class_weight="balanced"), data)
    del data.train_targets
    with pytest.raises(UserError, match="class_weight: the data has no train_targets to count"):
        Trainer(**QUIET).fit(Says(class_weight="balanced"), data)


def test_targets_of_another_shape_are_a_line():
    data = data_of("multilabel")
    data.samples = data.samples[0], data.samples[1][:, :3]
    with pytest.raises(
        UserError, match=r"have the shape of the outputs, \[16, 5\], and not \[16, 3\]"
    ):
        Trainer(**QUIET).validate(Says(), data, verbose=False)
    with pytest.raises(UserError, match="multilabel needs at least 2 labels, not 1"):
        Trainer(**QUIET).validate(Says(1), data_of("multilabel", k=1), verbose=False)


# Checkpoints


@pytest.mark.parametrize("task", KINDS)
def test_a_checkpoint_says_its_task_and_predicts_in_its_units(task, tmp_path):
    module, trainer = trained(task)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert stored["task"] == task
    again = Says.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.task.name == task
    assert again.task.state() == module.task.state()
    data = data_of(task)
    outputs = again.predict_step(data.samples, 0)
    assert torch.equal(outputs, module.predict_step(data.samples, 0))
    if task == "regression":
        assert (outputs - data.samples[1]).abs().mean() < 2
    other = {"classification": "multilabel"}.get(task, "classification")
    match = f"the checkpoint is for {task}, and the model is for {other}"
    with pytest.raises(UserError, match=match):
        Trainer(**QUIET).test(Says(), data_of(other), ckpt_path=tmp_path / "a.ckpt")


class Former(ClassificationModule):
    """A classifier as it was written before there were tasks."""

    def __init__(self, num_classes: int = 5, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes)
        self.net = Shift()

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, reduction="none")

    forward, training_step = Says.forward, Says.training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Deeper(Former):
    """Hands all that it does not know to the one above, which takes no task."""

    def __init__(self, depth: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_a_classifier_from_before_trains_and_is_read_back(tmp_path):
    data = data_of("classification")
    del data.task, data.train_targets
    trainer = Trainer(**QUIET)
    trainer.fit(Deeper(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)
    del stored["task"], stored["task_state"]  # as they were
    torch.save(stored, tmp_path / "a.ckpt")
    assert Deeper.load_from_checkpoint(tmp_path / "a.ckpt").task.name == "classification"


# The commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with a run of each task, trained and tested on the command line."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "small.yaml").write_text(SMALL)
        for task, kind in KINDS.items():
            main(
                [
                    "fit",
                    "--config=small.yaml",
                    f"--data=tasks_data.{kind}",
                    *FIT,
                    f"--run_name={task}",
                ]
            )
    return folder / "runs"


@pytest.fixture
def copied(runs, tmp_path, monkeypatch) -> Path:
    shutil.copytree(runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


FILES = {
    "classification": {"calibration.png", "classes.csv", "confusion.csv", "confusion.png"},
    "multilabel": {"labels.csv", "pr-curves.png", "top-losses.png"},
    "regression": {"targets.csv", "regression.png", "top-losses.png"},
}
MONITORED = {"classification": "val_acc", "multilabel": "val_map", "regression": "val_loss"}


@pytest.mark.parametrize("task", KINDS)
def test_a_run_leaves_the_figures_and_the_best_checkpoint_of_its_task(runs, task):
    found = {path.name.removeprefix("test-") for path in (runs / task).glob("test-*")}
    assert found - {"top-losses.png"} == FILES[task] - {"top-losses.png"}
    assert found >= FILES[task]
    (best,) = (runs / task / "checkpoints").glob("best-*")
    assert f"-{MONITORED[task]}=" in best.name


@pytest.mark.parametrize("task", KINDS)
def test_predictions_of_a_file_are_those_of_the_checkpoint(copied, task, monkeypatch):
    where = ("--ckpt_path=last", f"--run={task}")
    main(["predict", *where, *FIT[4:6]])
    main(["export", *where, "--format=torch_export", "--output=a.pt2"])
    main(["predict", "--ckpt_path=a.pt2", "--run_name=file", *FIT[4:6]])
    first, second = rows(copied / task / "predictions.csv"), rows(copied / "file/predictions.csv")
    assert len(first) == 40
    columns = {
        "classification": [
            "index",
            *(f"{x}_{i}" for i in (1, 2, 3) for x in ("class", "probability")),
        ],
        "multilabel": ["index", "labels", *NAMES],
        "regression": ["index", *NAMES],
    }
    assert list(first[0]) == columns[task]
    for a, b in zip(first, second, strict=True):
        for name, value in a.items():
            try:
                assert float(b[name]) == pytest.approx(float(value), rel=1e-5, abs=2e-6)
            except ValueError:
                assert b[name] == value
    about = exported.read(Path("a.pt2")).about
    assert about["task"] == task
    words = {"regression": "values: float32 (batch, targets)"}
    assert about["output"] == words.get(
        task, f"probabilities: float32 (batch, {TASKS[task].things})"
    )


def test_predicted_labels_are_those_above_the_thresholds_of_the_validation(copied):
    main(["predict", "--ckpt_path=last", "--run=multilabel", *FIT[4:6]])
    stored = torch.load(copied / "multilabel/checkpoints/last.ckpt", weights_only=True)
    thresholds = stored["task_state"]["thresholds"]
    assert len(thresholds) == 4
    for row in rows(copied / "multilabel/predictions.csv"):
        said = [n for n, t in zip(NAMES, thresholds, strict=True) if float(row[n]) >= t]
        assert row["labels"] == "|".join(said)


def test_values_are_predicted_in_the_units_of_the_targets(copied):
    main(["predict", "--ckpt_path=last", "--run=regression", *FIT[4:6]])
    said = np.array(
        [[float(row[n]) for n in NAMES] for row in rows(copied / "regression/predictions.csv")]
    )
    true = Values(NAMES).targets()[160:].numpy()
    assert np.abs(said - true).mean() < 3.5
    table = {row["target"]: row for row in rows(copied / "regression/test-targets.csv")}
    for i, name in enumerate(NAMES):
        assert float(table[name]["mae"]) == pytest.approx(
            np.abs(said - true)[:, i].mean(), rel=1e-3
        )
        assert float(table[name]["r2"]) == pytest.approx(
            sk.r2_score(true[:, i], said[:, i]), abs=1e-3
        )


def test_tables_of_classes_and_labels_are_those_of_scikit_learn():
    data = data_of("classification")
    task: Task = Classification()
    found = task.found(data.samples[0].flatten(1), data.samples[1])
    _, tables = figures.of_classes(found, task, list("abcde"), list("abcde"))
    expected = sk.precision_recall_fscore_support(found["target"], found["preds"])
    for i, line in enumerate(tables["classes"][1:]):
        assert [float(x) for x in line[1:]] == pytest.approx([e[i] for e in expected], rel=1e-4)
    data = data_of("multilabel")
    task = MultiLabel()
    task.thresholds = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    found = task.found(data.samples[0].flatten(1), data.samples[1])
    _, tables = figures.of_labels(found, task, list("abcde"), list("abcde"))
    p, y = found["preds"].numpy(), found["target"].numpy()
    for i, line in enumerate(tables["labels"][1:]):
        t = float(task.thresholds[i])
        ap = sk.average_precision_score(y[:, i], p[:, i])
        f1 = [sk.f1_score(y[:, i], p[:, i] >= at) for at in (0.5, t)]
        expected = [y[:, i].sum(), ap, f1[0], t, f1[1]]
        assert [float(x) for x in line[1:]] == pytest.approx(expected, rel=1e-4)


def test_negative_numbers_are_written_as_such_and_formulas_are_not(tmp_path):
    numbers = ["-1", "-0.25", "-1.5e-07", -2.5, "-inf", "-1e+30"]
    formulas = ["-1+2", "-A1", "-1e", "- 1", "-1.5;=A1", "+1", "=-1", "-"]
    write_csv(tmp_path / "t.csv", [numbers, formulas])
    with (tmp_path / "t.csv").open(newline="") as file:
        read = list(csv.reader(file))
    assert read == [[*map(str, numbers)], [f"'{formula}" for formula in formulas]]


def test_ece_is_the_mean_gap_between_confidence_and_accuracy(copied, capsys):
    main(["test", "--ckpt_path=last", "--run=classification", *FIT[4:6]])
    line = next(x for x in capsys.readouterr().out.splitlines() if "test/ece" in x)
    main(["predict", "--ckpt_path=last", "--run=classification", *FIT[4:6]])
    said = rows(copied / "classification/predictions.csv")
    sure = np.array([float(row["probability_1"]) for row in said])
    names = [NAMES[i] for i in OneOf(NAMES).targets()[160:]]
    right = np.array([row["class_1"] == name for row, name in zip(said, names, strict=True)])
    place = np.minimum((sure * 15).astype(int), 14)
    gaps = [abs(sure[place == b].sum() - right[place == b].sum()) for b in range(15)]
    assert float(line.split("│")[2]) == pytest.approx(sum(gaps) / len(said), abs=1e-5)


# The figures


LONG = {
    "words": [
        f"the {['great', 'small', 'spotted'][i % 3]} woodpecker of the hills, {i:02d}"
        for i in range(100)
    ],
    "one": [f"GreatSpottedWoodpeckerOfTheNorthHills_{i:03d}" for i in range(100)],
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("n", [2, 10])
@pytest.mark.parametrize("task", KINDS)
def test_names_of_forty_letters_neither_overlap_nor_are_cut(task, n, kind):
    names = legible(LONG[kind][:n])
    of: Task = TASKS[task]()
    data = data_of(task, k=n)
    outputs, target = data.samples[0].flatten(1), data.samples[1]
    of.prepare(data.train_targets, names)
    found, loss = of.found(outputs, target), of.loss(outputs, target)
    drawn, _ = figures.DRAWN[task](found, of, names, names)
    top = [(float(loss[i]), found["preds"][i], target[i], torch.zeros(1, 8, 8)) for i in range(25)]
    drawn["top"] = figures.draw_top_losses(top, of, names)
    for what, figure in drawn.items():
        FigureCanvasAgg(figure).draw()
        texts = [t for t in figure.findobj(Text) if re.search("[a-z]", t.get_text())]
        texts = [t for t in texts if t.get_visible()]
        boxes = [t.get_window_extent().shrunk(0.9, 0.8) for t in texts]
        width, height = figure.get_size_inches() * figure.dpi
        for i, box in enumerate(boxes):
            assert min(box.x0, box.y0) >= 0, (what, texts[i])
            assert box.x1 <= width, (what, texts[i])
            assert box.y1 <= height, (what, texts[i])
            assert not [other for other in boxes[:i] if box.overlaps(other)], (what, texts[i])
        shown = {t.get_text() for t in texts}
        assert any("…" in text for text in shown) or what in ("calibration", "regression")


@pytest.mark.parametrize(
    ("task", "preds", "target", "name", "caption"),
    [
        ("regression", [41.0, -0.2463], [41.0, 0.7], "dose", "dose 0.7 → -0.2463 (0.59)"),
        (
            "regression",
            [41.0, -0.2463],
            [41.0, 0.7],
            "dose per day",
            "dose per day 0.7 →\n-0.2463 (0.59)",
        ),
        ("multilabel", [0.1, 0.9], [0.0, 1.0], "dose", "no mistake (0.59)"),
        ("multilabel", [0.9, 0.1], [0.0, 1.0], "dose", "dose → age (0.59)"),
    ],
)
def test_captions_cut_no_number_and_say_that_nothing_is_wrong(task, preds, target, name, caption):
    top = [(0.59, torch.tensor(preds), torch.tensor(target), torch.zeros(1, 8, 8))]
    figure = figures.draw_top_losses(top, TASKS[task](), ["age", name])
    assert caption in [text.get_text() for text in figure.findobj(Text)]


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_an_average_of_the_weights_and_a_resume_keep_units_and_thresholds(copied, task):
    (copied.parent / "small.yaml").write_text(SMALL)
    ema = ["--run_name=ema", "--trainer.callbacks=EMA", "--trainer.callbacks.decay=0.5"]
    main(["fit", "--config=small.yaml", f"--data=tasks_data.{KINDS[task]}", *FIT, *ema])
    main(["fit", "--ckpt_path=last", "--run=ema", *FIT[1:6], "--trainer.max_epochs=4"])
    states = [
        torch.load(copied / name / "checkpoints/last.ckpt", weights_only=True)["task_state"]
        for name in (task, "ema")
    ]
    if task == "regression":
        assert states[0] == states[1]
        assert states[0]["mean"] == pytest.approx([2005] * 4, abs=1)
    assert all(len(value) == 4 for value in states[1].values())


# Files to predict, modules without a task


class Listed(Labels):
    """Knows the files of its predictions: by a list, or by a dataset of torchvision's."""

    def __init__(self, names: list[str], by: str = "list") -> None:
        super().__init__(names)
        self.by = by

    def predict_dataloader(self) -> Any:
        if self.by == "list":
            self.predicted = sorted(Path("photos").rglob("*.JPEG"))
            images = torch.zeros(len(self.predicted), 1, 28, 28)
            return InMemoryBatches(images, images, 5)
        grey = v2.Compose([v2.Grayscale(), v2.Resize((28, 28)), v2.PILToTensor()])
        return DataLoader(ImageFolder("photos/val", grey), batch_size=5)


@pytest.mark.parametrize(("by", "n"), [("list", 36), ("dataset", 12)])
def test_files_are_named_where_the_data_knows_them(copied, by, n):
    image_folder(Path("photos"))
    own = ("--data=test_tasks.Listed", f"--data.names=[{','.join(NAMES)}]", f"--data.by={by}")
    main(["predict", "--ckpt_path=last", "--run=multilabel", *own, *FIT[4:6]])
    found = rows(copied / "multilabel/predictions.csv")
    assert len(found) == n
    assert all(Path(row["path"]).is_file() for row in found)
    assert (copied / "multilabel/predictions.png").is_file()


class Plain(LightningModule):
    """A module of the user's own, of rows of numbers and without a task."""

    def __init__(self, example: bool = True) -> None:
        super().__init__()
        self.net = torch.nn.Linear(10, 3)
        self.example_input_array = torch.randn(2, 10) if example else None

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.net(x).tanh()


class Pair(Plain):
    """Returns two tensors."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


@pytest.mark.parametrize("example", [True, False])
def test_any_module_is_exported_as_its_forward(example, tmp_path):
    module, x = Plain(example), torch.randn(6, 10)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "a.ckpt")
    data = Samples(x, torch.zeros(6))
    data.trainer = Trainer(**QUIET)
    said = export(module, data, tmp_path / "a.ckpt", "torch_export", tmp_path / "a.pt2")
    assert re.search(r"difference   \S+ of the largest output at most", said)
    file = exported.read(tmp_path / "a.pt2")
    assert torch.allclose(file(x), module(x), rtol=1e-4)
    assert file.about["input"] == "input: float32 (batch, 10)"
    with pytest.raises(UserError, match=r"takes inputs of shape \[10\] and type torch.float32"):
        file(x.double())


def test_a_module_with_several_outputs_is_a_line(tmp_path):
    module = Pair()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="forward returns a tuple, and a file holds one tensor"):
        export(
            module, Samples(*[torch.zeros(2)] * 2), tmp_path / "a.ckpt", "onnx", tmp_path / "a.onnx"
        )


# The page

PAGE = ROOT / "docs/tasks.md"


@pytest.mark.filterwarnings("ignore:No positive samples", "ignore:.*score for one or more classes")
def test_each_command_of_the_page_runs_and_leaves_what_it_lists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = PAGE.read_text()
    ((name, recipe),) = re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, re.DOTALL)
    head, *lines = csv.reader(re.search(r"```csv\n(.*?)```", text, re.DOTALL)[1].splitlines())
    Path(name).parent.mkdir()
    Path(name).write_text(recipe)
    image_folder(Path("made"), train=12, val=0)
    images = [p.rename(tmp_path / p.name) for p in sorted(Path("made").rglob("*.JPEG"))]
    Path("data/scans").mkdir(parents=True)
    with open("data/scans.csv", "w", newline="") as file:
        csv.writer(file).writerow(head)
        for i, image in enumerate(images):
            image.rename(f"data/scans/{i:04}.jpg")
            csv.writer(file).writerow([f"{i:04}.jpg", *lines[i % 4][1:]])
    few = ["--trainer.max_epochs=1", "--data.num_workers=0", "--model.width=2"]
    few += ["--trainer.accelerator=cpu", "--trainer.logger=false", *FIT[4:6]]
    for words in commands(PAGE):
        assert words[:2] == ["python", "train.py"]
        main([*words[2:], *(few if words[2].startswith("-") else few[1:2])])
    for run, files in zip(("kind", "findings", "age"), FILES.values(), strict=True):
        found = {path.name.removeprefix("test-") for path in Path("runs", run).glob("test-*")}
        assert found | {"top-losses.png"} == files | {"top-losses.png"}
        assert all(f"test-{name.partition('.')[0]}" in text for name in files)
    assert Path("runs/age/model.pt2").is_file()
    assert rows(Path("runs/findings/predictions.csv"))[0]["path"].startswith("data/scans/")
