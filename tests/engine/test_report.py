"""A report shows what metrics.csv and config.yaml hold, in one page that needs no network."""

import re
import shutil
import subprocess
from base64 import b64decode
from io import BytesIO
from itertools import pairwise
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from test_sweep import tool
from torch.optim import lr_scheduler

from anneal.report.curves import BUDGET, colours, first_panels, lines_of, panels_of, still
from anneal.report.page import main, page, read, results, table, write
from anneal.report.traces import SMOOTHING, traces_of
from anneal.runs.metrics import family
from anneal.runs.run import AXES, Curve, Run, grouped, labelled, mean_of
from anneal.testing import main as start

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def make_run(folder: Path, metrics: pd.DataFrame, **changes) -> Path:
    """A run's folder as a training leaves it."""
    config = {
        "trainer": {"max_epochs": changes.pop("max_epochs", 4)},
        "model": {
            "class_path": "mine.models.MLP",
            "init_args": {
                "optimizer": {
                    "class_path": changes.pop("optimizer", "torch.optim.SGD"),
                    "init_args": {"lr": 0.1, "momentum": 0.9} | changes,
                }
            },
        },
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics.to_csv(folder / "metrics.csv", index=False)
    return folder


def ladder(epochs=4, length=10, lr=0.1, loss=1.0, acc=0.5, done=True) -> pd.DataFrame:
    """Metrics as they are logged: rates before a step, an epoch's values at its last step.

    The rate falls to a tenth in the middle. 32 samples and 0.5 s a step.
    """
    rows = []
    for step in range(epochs * length):
        epoch, seconds = step // length, step / 2
        rate = lr if step < epochs * length // 2 else lr / 10
        rows.append({"step": step, "epoch": epoch, "time": seconds, "lr": rate})
        noisy = loss / (1 + step) + 0.05 * (step % 3)
        rows.append({"step": step, "epoch": epoch, "time": seconds + 0.5, "train/loss": noisy})
        if step % length == length - 1:
            after = {"step": step, "epoch": epoch, "time": seconds + 0.5}
            quality = {"val/loss": loss / (1 + epoch), "val/acc": acc + epoch / 100}
            rows += [after | {"samples": 32 * (step + 1)}, after | quality]
    if done:
        last = {"step": step, "epoch": epoch, "time": seconds + 0.5}
        rows.append(last | {"test/loss": loss / 10, "test/acc": acc + 0.1})
    return pd.DataFrame(rows)


def make_two(folder: Path) -> Path:
    """Two runs: `first` is better in accuracy, `second` in loss, and unfinished."""
    make_run(folder / "runs/first", ladder(acc=0.9, loss=2.0))
    make_run(folder / "runs/second", ladder(3, acc=0.8, done=False), lr=0.3, momentum=0.5)
    return folder


@pytest.fixture
def two(tmp_path, monkeypatch):
    """A folder to work in, with the two in runs/."""
    monkeypatch.chdir(tmp_path)
    return make_two(tmp_path)


# ---------------------------------------------------------------------------------------- curves


def test_a_rate_stands_before_its_step_and_results_after_it(two):
    run = Run.read(Path("runs/first"))
    val, lr = run.curve("val/acc"), run.curve("lr")
    assert val.x["step"].tolist() == [10, 20, 30, 40]
    assert val.x["epoch"].tolist() == [1, 2, 3, 4]
    assert val.x["samples"].tolist() == [320, 640, 960, 1280]
    assert val.x["time"].tolist() == [5, 10, 15, 20]
    assert lr.x["step"].tolist() == list(range(40))
    np.testing.assert_allclose(lr.x["epoch"], np.arange(40) / 10)
    np.testing.assert_allclose(lr.x["samples"], np.arange(40) * 32)


def test_an_epoch_that_is_not_over_is_a_part_of_one(tmp_path):
    metrics = ladder()
    run = Run.read(make_run(tmp_path / "run", metrics[metrics["step"] < 25]))
    assert run.curve("train/loss").x["epoch"][-1] == pytest.approx(2.5)
    assert run.reached() == {"step": 25, "epoch": 2.5, "samples": 640, "time": 12.5}


def test_a_line_that_is_being_written_is_not_read(two):
    whole = Run.read(Path("runs/first")).metrics
    with Path("runs/first/metrics.csv").open("a") as file:
        file.write("39,3,20.5,0.0")  # of 0.01
    pd.testing.assert_frame_equal(Run.read(Path("runs/first")).metrics, whole)


def test_a_diverged_loss_does_not_spoil_its_curve(tmp_path):
    metrics = pd.DataFrame({"step": [0, 1, 2, 3], "train/loss": [2.0, 1.0, np.inf, nan]})
    metrics.to_csv(make_run(tmp_path / "run", metrics) / "metrics.csv", index=False, na_rep="nan")
    assert Run.read(tmp_path / "run").curve("train/loss").y.tolist() == [2, 1]


def test_thinning_keeps_both_ends_and_every_extreme():
    y = np.random.default_rng(0).normal(size=100_003)
    y[[777, 55_555]] = 9, -9
    kept = Curve(y, {}).extremes(1000)
    assert len(kept) <= 1000
    assert {0, 777, 55_555, 100_002} <= set(kept)
    assert (np.diff(kept) > 0).all()
    assert Curve(y[:50], {}).extremes(1000).tolist() == list(range(50))


def test_smoothing_is_the_moving_average_of_all_points():
    y = np.random.default_rng(0).normal(size=40)
    average, total, expected = 0.0, 0.0, []
    for value in y:
        average, total = 0.9 * average + 0.1 * value, 0.9 * total + 0.1
        expected.append(average / total)
    np.testing.assert_allclose(Curve(y, {}).smooth(0.9).y, expected)


# ------------------------------------------------------------------------- where the rate drops


def rates(make, epochs=20, length=10, every=1, warmup=0) -> pd.DataFrame:
    """The rate of each step, from torch's own scheduler, stepped every `every` steps.

    Before it starts, `warmup` steps rise to its first rate.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = make(optimizer)
    found = [optimizer.param_groups[0]["lr"] * step / warmup for step in range(warmup)]
    for step in range(warmup, epochs * length):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    steps = np.arange(epochs * length)
    return pd.DataFrame({"step": steps, "epoch": steps // length, "lr": found})


def drops_of(folder: Path, metrics: pd.DataFrame) -> list[float]:
    return [drop.at["step"] for drop in Run.read(make_run(folder, metrics)).drops]


def test_each_step_of_a_ladder_is_marked(tmp_path):
    stairs = rates(lambda o: lr_scheduler.StepLR(o, 6), every=10, warmup=20)
    assert drops_of(tmp_path / "step", stairs) == [80, 140]
    uneven = rates(lambda o: lr_scheduler.MultiStepLR(o, [3, 4, 5, 15], 0.2), every=10)
    assert drops_of(tmp_path / "uneven", uneven) == [30, 40, 50, 150]
    factors = [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.05, 0.05]
    other = rates(lambda o: lr_scheduler.LambdaLR(o, lambda e: factors[min(e // 2, 9)]), every=10)
    assert drops_of(tmp_path / "other", other) == [100, 160]


@pytest.mark.parametrize("every", [1, 10], ids=["step", "epoch"])
@pytest.mark.parametrize(
    "make",
    [
        lambda o, n: lr_scheduler.CosineAnnealingLR(o, n),
        lambda o, n: lr_scheduler.OneCycleLR(o, 0.1, n),
        lambda o, n: lr_scheduler.PolynomialLR(o, n, 2),
        lambda o, n: lr_scheduler.LinearLR(o, 1, 0, n),
        lambda o, n: lr_scheduler.CosineAnnealingWarmRestarts(o, n // 4),
        lambda o, n: lr_scheduler.ExponentialLR(o, 0.97),
        lambda o, n: lr_scheduler.CyclicLR(o, 0.001, 0.1, n // 8),
    ],
    ids=["cosine", "onecycle", "poly", "linear", "restarts", "exponential", "cyclic"],
)
def test_a_slope_is_not_marked(tmp_path, make, every):
    slope = rates(lambda o: make(o, 200 // every), every=every)
    assert drops_of(tmp_path / "run", slope) == []
    warm = rates(lambda o: make(o, 200 // every), every=every, warmup=30)
    assert drops_of(tmp_path / "warm", warm) == []


# ------------------------------------------------------------------------------- metric families

TITLES = {  # what a run of Lightning's may log, and the panel that it belongs to
    "train/loss": "loss",
    "val/loss": "loss",
    "train/loss_step": "loss",
    "val_loss": "loss",
    "test/loss": "loss",
    "val/acc": "accuracy",
    "val/f1_macro": "f1_macro",
    "val/mae/dataloader_idx_1": "mae",
    "test/mae": "mae",
    "val/iou/cat": "iou of each",
    "val/iou/dog": "iou of each",
    "lr/decay": "learning rate",
    "lr/no_decay": "learning rate",
    "lr/effective/decay": "effective learning rate",
    "lr/decay-momentum": "momentum",
    "norms/net.0/weight": "norms/weight",
    "norms/net.2/weight": "norms/weight",
    "temperature": "temperature",
}


def with_all(folder: Path) -> Path:
    """A run that has logged all of `TITLES`, each a different curve."""
    metrics = pd.DataFrame({"step": np.arange(40), "epoch": np.arange(40) // 10})
    for i, name in enumerate(TITLES):
        metrics[name] = (i + 1) / (1 + metrics["step"])
    return make_run(folder, metrics)


def test_every_metric_has_a_panel_with_those_of_its_name(tmp_path):
    run = Run.read(with_all(tmp_path / "run"))
    lines = lines_of([run])
    data = traces_of([run], lines)
    shown = {line["metric"]: panel["title"] for panel in data["panels"] for line in panel["lines"]}
    assert shown == {k: v for k, v in TITLES.items() if family(k)[0] != "test"}
    assert [panel["title"] for panel in data["panels"]] == [*dict.fromkeys(TITLES.values())]
    assert first_panels(lines) == ["loss", "acc", "lr"]
    for name in ("test/mae", "test/loss", "temperature"):
        assert any(column.endswith(name) for column in results(run)), name


def test_regression_has_no_empty_panel_and_its_errors_are_better_when_low(tmp_path):
    metrics = ladder().rename(columns={"val/acc": "val/mae", "test/acc": "test/mae"})
    metrics["val/curvature"] = metrics["val/mae"]
    first = make_run(tmp_path / "runs/a", metrics)
    metrics["val/mae"] *= 2
    metrics.to_csv(make_run(tmp_path / "runs/b", metrics, lr=0.3) / "metrics.csv", index=False)
    runs = read([str(tmp_path / "runs")])
    assert first_panels(lines_of(runs)) == ["loss", "mae", "lr"]
    paths = write(runs, tmp_path / "report.html")
    assert tmp_path / "report-mae.png" in paths
    frame = shown(runs).loc[[first.name, "b"]]
    assert frame["best val/mae"].tolist() == ["0.5*", "1"]
    assert frame["last val/curvature"].tolist() == ["0.53", "0.53"]  # better when it is...?
    assert "best val/curvature" not in frame
    assert "test/mae" in frame


# ----------------------------------------------------------------------------------- which runs


def test_runs_are_found_by_name_folder_parent_and_pattern(two, capsys):
    make_run(two / "elsewhere/first", ladder(2))
    assert [r.name for r in read(["first", "runs/second"])] == ["first", "second"]
    assert {r.name for r in read(["runs"])} == {"first", "second"}
    assert [r.name for r in read(["runs/f*", "fir*", "runs/first/"])] == ["first"]  # once
    names = [r.name for r in read(["runs/first", "elsewhere"])]
    assert names == [str(Path("runs/first")), str(Path("elsewhere/first"))]
    assert capsys.readouterr().err == ""


def break_csv(folder: Path) -> None:
    with (folder / "metrics.csv").open("a") as file:
        file.write("39,3,20,oops,,,,,,\n")


BROKEN = {
    "no such run": lambda folder: shutil.rmtree(folder),
    "no metrics yet": lambda folder: (folder / "metrics.csv").unlink(),
    "metrics yet": lambda folder: (folder / "metrics.csv").write_text("step,epoch\n"),
    "line 95: lr=oops": break_csv,
    "metrics.csv: no column called step": lambda folder: (folder / "metrics.csv").write_text(
        "a\n1\n"
    ),
    "config.yaml is no YAML": lambda folder: (folder / "config.yaml").write_text("a: [1\nb: {"),
    "config.yaml has no settings": lambda folder: (folder / "config.yaml").write_text("- 1\n"),
    "no metric in": lambda folder: (folder / "metrics.csv").write_text("step,epoch\n1,1\n"),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_mistake_is_one_line_and_status_2(two, capsys, message):
    lines = Path("runs/first/metrics.csv").read_text().count("\n") + 1
    BROKEN[message](two / "runs/first")
    assert main(["first"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.replace("line 95", f"line {lines}") in error
    assert "first" in error
    assert not Path("report.html").exists()


def test_the_nearest_run_is_offered(two, capsys):
    assert main(["frist"]) == 2
    assert capsys.readouterr().err.strip().endswith("in runs/; did you mean first?")


def test_a_broken_run_among_others_is_named_and_left_out(two, capsys):
    break_csv(two / "runs/second")
    assert main(["runs", "nowhere"]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("left out: ") == 2
    assert "runs/second/metrics.csv" in printed.err
    assert "nowhere" in printed.err
    assert "1 run<" in Path("report.html").read_text()
    assert printed.out.split() == [
        "report.html", "report.png", "report-loss.png", "report-acc.png", "report-lr.png"
    ]  # fmt: skip


def test_a_page_that_cannot_be_written_is_one_line(two, capsys):
    Path("file").touch()
    assert main(["first", "-o", "file/report.html"]) == 2
    assert capsys.readouterr().err.startswith("error: can't write ")


# --------------------------------------------------------------------------------------- table


def shown(runs) -> pd.DataFrame:
    """The table's text; marked cells end in a star."""
    html = table(runs)
    best = re.findall(r"(?:#T_\w+_row\d+_col\d+(?:, )?)+ \{\s*background-color", html)
    places = re.findall(r"row(\d+)_col(\d+)", " ".join(best))
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in html.split("<tr>")[2:]]
    head, *body = rows
    frame = pd.DataFrame([r[1:] for r in body], index=[r[0] for r in body], columns=head[1:])
    for row, column in places:
        frame.iloc[int(row), int(column)] += "*"
    return frame


def test_the_best_value_of_each_metric_is_marked(two):
    frame = shown(read(["first", "second"]))
    assert frame["best val/acc"].tolist() == ["0.9300*", "0.8200"]  # higher is better
    assert frame["test/acc"].tolist() == ["1.0000*", "–"]  # noqa: RUF001
    assert frame["best val/loss"].tolist() == ["0.5", "0.3333*"]  # lower is better
    assert frame["epochs"].tolist() == ["4 of 4", "3 of 4"]
    assert frame["steps"].tolist() == ["40", "30"]
    assert frame["time [s]"].tolist() == ["20.0", "15.0"]
    assert frame["samples/s"].tolist() == ["64*", "64*"]
    assert "*" not in shown(read(["first"])).to_string()  # nothing to compare with


def test_only_settings_that_differ_are_listed(two):
    make_run(two / "runs/third", ladder(), optimizer="torch.optim.AdamW", lr=0.1)
    frame = shown(read(["first", "second", "third"]))
    settings = list(frame.columns[list(frame.columns).index("samples/s") + 1 :])
    assert settings == ["model.optimizer", "model.optimizer.lr", "model.optimizer.momentum"]
    assert frame["model.optimizer"].tolist() == ["SGD", "SGD", "AdamW"]
    assert frame["model.optimizer.lr"].tolist() == ["0.1", "0.3", "0.1"]


def named(*runs: tuple[str, dict[str, str]]) -> list[str]:
    """The names in the legend of runs with these names and configurations."""
    return [run.name for run in labelled([Run(n, c, pd.DataFrame()) for n, c in runs])]


def test_runs_that_nobody_has_named_go_by_what_differs(tmp_path):
    for i, lr in enumerate((0.1, 0.01)):
        make_run(tmp_path / f"runs/sweeps/try/try-{i:03d}", ladder(), lr=lr)
    runs = labelled(read([str(tmp_path / "runs/sweeps/try")]))
    assert sorted(run.name for run in runs) == ["lr=0.01", "lr=0.1"]
    names = [t.get_text() for t in still(runs, lines_of(runs)).legends[0].get_texts()]
    assert names[-2:] == ["training", "validation"]
    assert sorted(names[:-2]) == ["lr=0.01", "lr=0.1"]


STAMP = "-20261130-120000-0a1b2c"


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        # Recipes are named by their files, whatever differs between them.
        (
            [(f"mnist{STAMP}", {"a": "1"}), (f"mnist_mlp{STAMP}", {"a": "2"})],
            ["mnist", "mnist_mlp"],
        ),
        ([("mine", {}), (f"mnist{STAMP}", {})], ["mine", "mnist"]),
        # Of many keys, those that tell the runs apart.
        (
            [
                (f"t-00{i}", {"m.optimizer": o, "m.a": o[0], "m.b": o[0], "m.c": o[0]})
                for i, o in enumerate(("SGD", "Adam"))
            ],
            ["optimizer=SGD", "optimizer=Adam"],
        ),
        # Two keys with one last part; a key that one of them has not; what is beside the point.
        (
            [("t-000", {"x.lr": "1", "y.lr": "2"}), ("t-001", {"x.lr": "2", "y.lr": "1"})],
            ["x.lr=1, y.lr=2", "x.lr=2, y.lr=1"],
        ),
        (
            [("t-000", {"o": "SGD", "o.m": "0.9"}), ("t-001", {"o": "Adam"})],
            ["o=SGD, m=0.9", "o=Adam"],
        ),
        (
            [(f"t-00{i}", {"seed_everything": str(i), "wandb.name": str(i)}) for i in range(2)],
            ["seed_everything=0", "seed_everything=1"],
        ),
        (
            [("t-000", {"lr": "0.00010964781961431851"}), ("t-001", {"lr": "1.5e-05"})],
            ["lr=0.0001096", "lr=1.5e-05"],
        ),
        ([("t-000", {"a": "1"}), ("t-001", {"a": "1"})], ["t-000", "t-001"]),
        ([("mine", {"a": "1"}), ("t-001", {"a": "2"})], ["mine", "t-001"]),
    ],
)
def test_a_legend_says_what_tells_runs_apart(runs, names):
    assert named(*runs) == names


def test_a_sweeps_bands_are_called_after_what_differs():
    configs = [{"o.lr": "1"}] * 3 + [{"o.lr": "2"}]
    runs = [
        Run(f"t-00{i}", config | {"seed_everything": str(i)}, pd.DataFrame())
        for i, config in enumerate(configs)
    ]
    assert [*grouped(runs)] == ["lr=1", "lr=2"]


def test_what_a_resume_changed_is_shown(two):
    config = yaml.safe_load(Path("runs/first/config.yaml").read_text())
    config["trainer"]["max_epochs"] = 8
    Path("runs/first/config-2.yaml").write_text(yaml.safe_dump(config))
    frame = shown(read(["first", "second"]))
    assert frame["trainer.max_epochs"].tolist() == ["4 → 8", "4"]


# ---------------------------------------------------------------------------- page and pictures


def unpack(data: dict[str, str]) -> np.ndarray:
    return np.frombuffer(b64decode(data["bdata"]), f"<{data['dtype']}")


def test_runs_that_differ_by_their_seed_only_are_a_mean_in_a_band(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, acc in enumerate((0.5, 0.6, 0.8)):
        config = make_run(Path(f"runs/a-seed{seed}"), ladder(acc=acc)) / "config.yaml"
        config.write_text(f"seed_everything: {seed}\n{config.read_text()}")
    make_run(Path("runs/b"), ladder(acc=0.7), lr=0.3)
    runs = read(["a-*", "b"])
    groups = grouped(runs)
    assert {label: len(members) for label, members in groups.items()} == {"a": 3, "b": 1}
    means = [mean_of(label, members) for label, members in groups.items()]
    assert [mean.name for mean in means] == ["a (3 runs)", "b"]
    lines = lines_of(means)
    (line,) = [x for x in lines if x.metric == "val/acc" and x.run == 0]
    epochs = np.arange(4) / 100
    assert line.curve.y == pytest.approx(1.9 / 3 + epochs)
    assert line.curve.x["step"].tolist() == [10, 20, 30, 40]
    low, high = line.band
    assert (low, high) == (pytest.approx(0.5 + epochs), pytest.approx(0.8 + epochs))
    assert {x.metric for x in lines if x.band} == {"val/acc", "val/loss"}
    panel = next(
        panel for panel in traces_of(means, lines)["panels"] if panel["title"] == "accuracy"
    )
    (area,) = [x for x in panel["lines"] if "band" in x]
    there_and_back = np.append(line.curve.x["step"], line.curve.x["step"][::-1])
    assert unpack(area["x"]["step"]).tolist() == there_and_back.tolist()
    assert unpack(*area["y"]) == pytest.approx(np.append(low, high[::-1]))
    assert len(still(means, lines).axes[1].collections) == 1

    with pytest.raises(SystemExit) as end:
        start(["report", "a-*", "b", "--bands"])
    assert end.value.code == 0
    html = Path("report.html").read_text()
    assert "in a band of all values" in html
    for seed in range(3):
        assert f">a-seed{seed}<" in html
    assert len(set(re.findall(r"border-left: 0.7em solid (#\w+)", html))) == 2


def test_a_mean_has_the_learning_rate_of_runs_that_log_its_changes_only():
    """As plateaus do, which drop at steps of their own; one run ends earlier."""
    changes = [{0: 1.0, 4: 0.2}, {0: 1.0, 6: 0.4}, {0: 1.0}]
    runs = []
    for (i, found), length in zip(enumerate(changes), (8, 8, 3), strict=True):
        metrics = pd.DataFrame({"step": np.arange(length), "lr": nan, "val/loss": 1.0})
        for step, lr in found.items():
            metrics.loc[step, "lr"] = lr
        runs.append(Run(f"a-seed{i}", {}, metrics.astype(float)))
    curve = mean_of("a", runs).curve("lr")
    assert dict(zip(curve.x["step"], curve.y, strict=True)) == pytest.approx(
        {0: 1.0, 4: 0.6, 6: 0.3}
    )


def test_layers_of_a_single_run_have_their_own_colours(tmp_path):
    run = Run.read(with_all(tmp_path / "run"))
    lines = lines_of([run])
    norms = [line for line in lines if line.panel == "norms/weight"]
    assert len({line.colour for line in norms} - {""}) == 2
    names = [text.get_text() for text in still([run], norms).axes[0].get_legend().get_texts()]
    assert names == ["norms/net.0/weight", "norms/net.2/weight"]
    assert not any(line.colour for line in lines_of([run, run]))


def test_a_real_training_is_reported_with_its_numbers(run, capsys):
    run("fit", "--config=small.yaml", "--trainer.logger=true", "--run_name=real")
    summary = dict(re.findall(r"^(best val/acc|test/acc) +(\S+)", capsys.readouterr().out, re.M))
    [real] = read(["real"])
    row = results(real)
    assert {k: f"{row[k]:.4f}" for k in summary} == summary
    assert row["steps"] == 8
    assert row["epochs"] == "2 of 2"
    assert row["time [s]"] > 0
    assert set(real.curve("val/acc").x) == set(AXES)
    command = tool("report", "runs", "-o", "new/one.html")
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert all(Path(path).stat().st_size > 1000 for path in printed.split())


def test_the_page_smooths_over_all_points(tmp_path):
    y = np.random.default_rng(0).normal(5, 1, size=5000)
    metrics = pd.DataFrame({"step": range(5000), "train/loss": y})
    runs = [Run.read(make_run(tmp_path / "run", metrics))]
    lines = lines_of(runs)
    [panel] = traces_of(runs, lines)["panels"]
    kept = lines[0].kept
    assert len(kept) < 2000
    expected = pd.Series(y).ewm(alpha=0.1).mean()[kept]
    drawn = panel["lines"][0]["y"][SMOOTHING.index(0.9)]
    np.testing.assert_allclose(unpack(drawn), expected, rtol=1e-6)


def test_text_of_a_configuration_is_no_html(two):
    evil = "</script><script>document.title='hacked'</script><b>"
    make_run(two / "runs/<b>bold", ladder(), lr=evil)
    html = page(runs := read(["runs"]), lines_of(runs))
    assert evil not in html
    assert "<b>bold" not in html
    assert shown(runs)["model.optimizer.lr"].iloc[-1].startswith("&lt;/script&gt;")


def test_the_pictures_show_every_run_in_its_colour(two):
    runs = read(["first", "second"])
    pictures = write(runs, Path("report.html"))[1:]
    assert len(pictures) == 4
    for path in pictures:
        pixels = imread(path)[..., :3]
        for colour in colours(2):
            near = np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02
            assert near.sum() > 200, f"{path} lacks {colour}"


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """The page of 100 runs of 10,000 points, every metric at every step."""
    folder = tmp_path_factory.mktemp("hundred")
    steps = np.arange(10_000)
    noise = np.random.default_rng(0).normal(size=10_000) / 20
    metrics = pd.DataFrame({"step": steps, "epoch": steps // 100, "time": steps / 10})
    metrics["lr"] = 0.1 ** (1 + steps // 4000)
    metrics["samples"] = 64 * (steps + 1)
    for stage in ("train", "val"):
        metrics[f"{stage}/loss"] = 2 / (1 + steps / 1000) + noise
        metrics[f"{stage}/acc"] = 0.9 - 0.5 / (1 + steps / 1000) - noise
    first = make_run(folder / "runs/run-0", metrics)
    for i in range(1, 100):
        other = folder / f"runs/run-{i}"
        shutil.copytree(first, other)
    runs = read([str(folder / "runs")])
    lines = lines_of(runs)
    (folder / "report.html").write_text(page(runs, lines))
    return folder / "report.html", lines


def test_the_page_of_100_long_runs_stays_small(hundred):
    path, lines = hundred
    assert len(lines) == 500
    for panel in panels_of(lines):
        assert sum(len(line.kept) for line in lines if line.panel == panel) <= BUDGET
    assert path.stat().st_size < 15e6
    text = path.read_text()
    assert re.search(r"drawn by up to \d+ points, the lowest and the highest", text)


# ----------------------------------------------------------------------------------- in Chromium


@pytest.fixture(scope="module")
def browser():
    """A Chromium that is installed; `apt-get install chromium`, for one."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on the PATH: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page as it is seen."""

    def __init__(self, browser, path: Path, width: int = 1300) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        self.page.set_default_timeout(300_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector(".plot .main-svg")

    def plot(self, panel: str, expression: str):
        """The value of an expression about `plot`, what Plotly draws a panel in."""
        self.page.wait_for_function(f"() => {{ {self.code(panel)} return plot && plot._fullData }}")
        return self.page.evaluate(f"() => {{ {self.code(panel)} return {expression} }}")

    @staticmethod
    def code(panel: str) -> str:
        return f"const plot = data.panels.find(p => p.title == '{panel}').plot;"

    def wait(self, panel: str, condition: str) -> None:
        """Until a condition on `plot` is met."""
        self.page.wait_for_function(f"() => {{ {self.code(panel)} return {condition} }}")

    def drawn(self, panel: str, axis: str, metric: str) -> list[float]:
        """Where the first run's curve of a metric is drawn."""
        return self.plot(panel, f"Array.from({self.trace(metric)}.{axis})")

    @staticmethod
    def trace(metric: str) -> str:
        """The first run's curve of a metric, in an expression about `plot`."""
        return f"plot._fullData.find(t => (t.hovertemplate ?? '').startsWith('{metric} '))"

    def click(self, nav: str, text: str, count: int = 1) -> None:
        self.page.locator(f"#{nav}").get_by_text(text, exact=True).click(click_count=count)

    def panels(self) -> list[str]:
        """The panels that are seen, from top to bottom."""
        return self.page.locator("section:not([hidden]) h2").all_inner_texts()

    def hover(self, panel: str, x: float, y: float) -> str:
        """The text that appears at a value of a panel."""
        self.plot(panel, "plot.scrollIntoView()")
        left, top = self.plot(
            panel,
            "(l => { const box = plot.getBoundingClientRect(); return ["
            f"box.x + l.xaxis._offset + l.xaxis.d2p({x}),"
            f"box.y + l.yaxis._offset + l.yaxis.d2p({y})] }})(plot._fullLayout)",
        )
        self.page.mouse.move(left + 30, top)  # it listens to movements
        self.page.mouse.move(left, top)
        self.page.wait_for_selector(".hovertext")
        return " ".join(self.page.locator(".hovertext").all_text_contents())

    def count(self, colour: str, panel: int = 0) -> int:
        """Pixels of a colour in a panel."""
        self.page.mouse.move(0, 0)
        place = self.page.locator(".cartesianlayer").nth(panel)
        shot = imread(BytesIO(place.screenshot()))[..., :3]
        return int((np.abs(shot - np.array(to_rgb(colour))).max(axis=-1) < 0.02).sum())


@pytest.fixture(scope="module")
def page_of_two(tmp_path_factory) -> Path:
    folder = make_two(tmp_path_factory.mktemp("two"))
    runs = read([str(folder / "runs/first"), str(folder / "runs/second")])
    (folder / "report.html").write_text(page(runs, lines_of(runs)))
    return folder / "report.html"


@pytest.fixture(scope="module")
def page_of_all(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("all")
    runs = [Run.read(with_all(folder / "run"))]
    (folder / "report.html").write_text(page(runs, lines_of(runs)))
    return folder / "report.html"


@pytest.fixture
def opened(page_of_two, browser):
    """The page of the two runs, which must not have complained when a test is over."""
    opened = Opened(browser, page_of_two)
    yield opened
    opened.page.close()
    assert opened.complaints == []
    assert opened.requests == [page_of_two.as_uri()]  # of the page itself, and no other


def test_the_page_is_not_blank_and_shows_both_runs(opened):
    for panel in range(3):
        for colour in colours(2):
            assert opened.count(colour, panel) > 100
    assert "best val/acc" in opened.page.inner_text("table")


def test_a_click_on_a_run_takes_it_out_of_all_panels(opened):
    blue, orange = colours(2)
    before = opened.count(orange)
    opened.click("runs", "first")
    for panel in opened.panels():
        opened.wait(panel, "plot._fullData.find(t => t.name == 'first').visible === false")
    assert opened.count(blue) == 0
    assert opened.count(orange) > before / 2
    opened.click("runs", "first")
    opened.wait("loss", "plot._fullData[0].visible === true")
    assert opened.count(blue) > 100
    opened.click("runs", "second", 2)  # it alone
    opened.wait("loss", "plot._fullData.find(t => t.name == 'first').visible === false")
    opened.wait("loss", "plot._fullData.find(t => t.name == 'second').visible === true")


def test_values_appear_under_the_pointer(opened):
    text = opened.hover("accuracy", 30, 0.92)
    assert "val/acc 0.92" in text
    assert "30 optimizer steps" in text
    assert "first" in text
    text = opened.hover("learning rate", 5, 0.1)
    assert "lr 0.1" in text


def test_the_x_axis_can_be_steps_epochs_samples_or_time(opened):
    assert opened.drawn("accuracy", "x", "val/acc") == [10, 20, 30, 40]
    expected = {
        "epochs": [1, 2, 3, 4],
        "samples": [320, 640, 960, 1280],
        "seconds": [5, 10, 15, 20],
    }
    for label, places in expected.items():
        opened.click("axes", label)
        for panel in opened.panels():  # one range for all: they can be compared
            opened.wait(panel, f"plot._fullLayout.xaxis.title.text == '{label}'")
            low, high = opened.plot(panel, "plot._fullLayout.xaxis.range")
            assert low <= 0
            assert places[-1] <= high <= 1.1 * places[-1]
        assert opened.drawn("accuracy", "x", "val/acc") == places
        # The marks go along.
        half = opened.plot("loss", "Array.from(plot._fullData.find(t => t.line.dash == 'dot').x)")
        assert set(half) == {places[1]}


def test_zooming_into_a_panel_zooms_into_all_of_them(opened):
    opened.plot("loss", "Plotly.relayout(plot, {'xaxis.range': [5, 15]})")
    for panel in ("accuracy", "learning rate"):
        opened.wait(panel, "plot._fullLayout.xaxis.range[1] == 15")


def test_the_slider_smooths_the_curves_in_training(opened, page_of_two):
    run = Run.read(page_of_two.parent / "runs/first")
    for level in (len(SMOOTHING) - 1, 0):
        opened.page.locator("#smoothing").fill(str(level))
        expected = run.curve("train/loss").smooth(SMOOTHING[level])
        opened.wait("loss", f"Math.abs({opened.trace('train/loss')}.y[1] - {expected.y[1]}) < 1e-4")
        np.testing.assert_allclose(opened.drawn("loss", "y", "train/loss"), expected.y, rtol=1e-5)
        np.testing.assert_allclose(opened.drawn("loss", "y", "val/loss"), run.curve("val/loss").y)


def test_a_mark_says_what_the_rate_dropped_from_and_to(opened):
    low, high = opened.plot("loss", "plot._fullLayout.yaxis.range")
    assert "lr 0.1 → 0.01" in opened.hover("loss", 20, low + 0.8 * (high - low))


def test_buttons_choose_the_metrics(page_of_all, browser):
    opened = Opened(browser, page_of_all)
    assert opened.panels() == ["loss", "accuracy", "learning rate"]
    for title in opened.page.locator("#panels button").all_inner_texts():
        if title not in opened.panels():
            opened.click("panels", title)
        assert opened.plot(title, "plot._fullData.filter(t => t.x.length).length") > 0
    assert opened.panels() == [*dict.fromkeys(TITLES.values())]
    opened.click("panels", "loss")
    assert "loss" not in opened.panels()
    assert opened.complaints == []


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_a_phone_and_a_screen(page_of_all, browser, width):
    opened = Opened(browser, page_of_all, width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    for title in opened.panels():
        ticks = opened.plot(
            title,
            "[...plot.querySelectorAll('.ytick text')].map(text => {"
            " const b = text.getBoundingClientRect(); return [b.left, b.top, b.bottom] })",
        )
        assert len(ticks) >= 1, title
        assert all(left >= 0 for left, *_ in ticks)
        rows = sorted((top, bottom) for _, top, bottom in ticks)
        assert all(a[1] <= b[0] + 2 for a, b in pairwise(rows)), title
        assert opened.plot(title, "plot.getBoundingClientRect().width") <= width


def test_text_of_a_run_is_shown_as_text(two, browser):
    evil = "</script><script>document.title='hacked'</script><img src=x onerror=alert(1)>"
    metrics = ladder().rename(columns={"val/acc": "val/<img src=x onerror=alert(2)>"})
    make_run(two / "runs/<i>slanted", metrics, lr=evil)
    runs = read(["runs"])
    Path("report.html").write_text(page(runs, lines_of(runs)))
    opened = Opened(browser, Path("report.html"))
    for button in opened.page.locator("#panels button[aria-pressed=false]").all():
        button.click()
    assert opened.complaints == []
    assert len(opened.requests) == 1
    assert opened.page.title() == "3 runs"
    assert evil in opened.page.inner_text("table")
    assert "<i>slanted" in opened.page.inner_text("table")
    assert "<i>slanted" in opened.page.inner_text("#runs")


def test_100_long_runs_cost_the_browser_little_more_than_two(hundred, page_of_two, browser):
    def work(path: Path) -> float:
        """Seconds the page's thread computes until it has been drawn, other programs left out."""
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.resolve().as_uri(), timeout=300_000)
        page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r)))")
        metrics = session.send("Performance.getMetrics")["metrics"]
        page.close()
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    assert work(hundred[0]) < 4 * work(page_of_two)
