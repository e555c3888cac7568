"""A model card says what its run's folder holds, in the form that a hub reads."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from helpers import SMALL

from anneal.report.card import main, value_of
from anneal.testing import main as train
from anneal.testing import picture

ROOT = Path(__file__).parents[2]
QUIET = ["--trainer.enable_model_summary=false", "--trainer.enable_progress_bar=false"]


@pytest.fixture
def folder(trained_runs, tmp_path, monkeypatch) -> Path:
    """The run, in a folder of this test's own."""
    shutil.copytree(trained_runs, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/digits"


def split(folder: Path) -> tuple[dict, str]:
    """The front matter and the text."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def rows(text: str) -> dict[str, list[str]]:
    """The lines of all tables, by their first cell."""
    tables = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(" `"): [cell.strip() for cell in rest] for first, *rest in tables}


def test_the_card_has_the_values_of_metrics_csv_and_their_counts(folder, capsys, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", None)  # no network is asked for anything
    assert main(["digits"]) == 0
    assert capsys.readouterr().out == "runs/digits/README.md\n"
    head, text = split(folder)
    with (folder / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    (tested,) = [float(line["test/acc"]) for line in lines if line["test/acc"]]
    validated = [float(line["val/acc"]) for line in lines if line["val/acc"]]
    found = rows(text)
    best, last = found["val/acc"]
    assert best == f"{max(validated):.4f} ({round(max(validated) * 64)} of 64)"  # two batches of 32
    assert last == f"{validated[-1]:.4f} ({round(validated[-1] * 64)} of 64)"
    assert found["test/acc"][1] == f"{tested:.4f} ({round(tested * 64)} of 64)"
    assert found["optimizer steps"][1] == "8"

    assert head["pipeline_tag"] == "image-classification"
    (index,) = head["model-index"]
    by_split = {
        r["dataset"]["split"]: {m["type"]: m["value"] for m in r["metrics"]}["accuracy"]
        for r in index["results"]
    }
    assert by_split == {
        "test": pytest.approx(tested, abs=1e-6),
        "val": pytest.approx(max(validated), abs=1e-6),
    }


def test_a_count_is_given_only_where_it_is_one():
    assert value_of("val/acc", 0.75, {"val": 4}) == "0.7500 (3 of 4)"
    assert value_of("val/acc_top3", 1.0, {"val": 2_000}) == "1.0000 (2,000 of 2,000)"
    assert value_of("val/acc_macro", 0.75, {"val": 4}) == "0.7500"  # a mean of shares
    assert value_of("test/acc", 0.75, {"val": 4}) == "0.7500"
    assert value_of("val/acc", 0.75, {"val": 5}) == "0.7500"  # counted on other data


def test_recipe_data_and_environment_are_those_of_the_run(folder):
    main([str(folder)])
    _, text = split(folder)
    found = rows(text)
    expected = {
        "model.optimizer": "SGD",
        "model.optimizer.momentum": "0.9",
        "data.rotation": "5.0",
        "trainer.max_epochs": "2",
        "torch": torch.__version__.partition("+")[0],
        "devices": "1 x cpu",
    }
    assert {key: found[key][0].partition("+")[0] for key in expected} == expected
    git = [
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
    ]
    assert found.get("commit", [""]) == [git[0] + ("-dirty" if git[1] else "")]
    assert "`MLP` with 6,370 parameters, trained on digits with SGD, 2 epochs of 128 sam" in text
    assert "10 classes: 0, 1, 2" in text


def test_links_lead_into_the_folder_and_the_code_runs(folder, monkeypatch):
    train(["export", "--ckpt_path=last", "--format=torch_export", *QUIET])
    main(["digits"])
    _, text = split(folder)
    links = re.findall(r"\]\((.*?)\)", text)
    assert links == ["curves.png", "test-confusion.png", "test-calibration.png", "config.yaml"]
    assert all((folder / link).is_file() for link in links)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(folder)
    found = []
    for block in blocks:
        names = {"pixels": torch.zeros(2, 1, 28, 28, dtype=torch.uint8)}
        exec(block, names)
        found.append(names["outputs"].detach())
    assert found[0].shape == (2, 10)


def test_a_run_without_a_test_says_so(folder):
    metrics = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(metrics[0]) if not name.startswith("test/")]
    lines = [",".join(line[i] for i in kept) for line in metrics]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    for path in folder.glob("test-*"):
        path.unlink()
    main(["digits"])
    head, text = split(folder)
    assert "There was no test" in text
    assert "confusion" not in text
    assert [r["dataset"]["split"] for r in head["model-index"][0]["results"]] == ["val"]


def test_mistakes_are_one_line_and_a_persons_card_stays(folder, capsys):
    def refused(word: str) -> str:
        assert main([word]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        return line

    (folder / "README.md").write_text("mine")
    assert "is there already" in refused("digits")
    assert (folder / "README.md").read_text() == "mine"
    assert "no such run" in refused("nothing")
    shutil.copytree(folder, folder.with_name("other"))
    assert "2 runs" in refused("runs")
    (folder / "README.md").unlink()
    shutil.rmtree(folder / "checkpoints")
    assert "has no checkpoint" in refused("digits")
    assert not (folder / "README.md").exists()


def trained_as(folder: Path, task: str | None, metrics: dict[str, str]) -> None:
    """Make the run one of another task, with other metrics in the place of its own."""
    for path in folder.glob("checkpoints/*"):
        stored = torch.load(path, weights_only=True) | {"task": task}
        if task is None:
            del stored["class_names"], stored["task"]
        torch.save(stored, path)
    head, *lines = (folder / "metrics.csv").read_text().splitlines()
    names = [metrics.get(name, name) for name in head.split(",")]
    (folder / "metrics.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
    for path in folder.glob("test-confusion.*"):
        path.rename(path.with_name(f"test-own-2{path.suffix}"))


@pytest.mark.parametrize(
    ("task", "metric", "on_hub", "tag", "words"),
    [
        ("classification", "my_own", "my_own", "image-classification", "10 classes: 0,"),
        ("multilabel", "map", "map", "image-classification", "10 labels: 0,"),
        ("regression", "mae", "mae", None, "10 targets: 0,"),
        (None, "my_own", "my_own", None, "ends_with"),
    ],
)
def test_every_task_has_a_card_with_all_of_its_metrics(folder, task, metric, on_hub, tag, words):
    trained_as(folder, task, {f"{s}/acc": f"{s}/{metric}" for s in ("val", "test")})
    assert main(["digits"]) == 0
    head, text = split(folder)
    for name in (f"val/{metric}", f"test/{metric}", "val/acc_macro", "test/acc_top3", "test/loss"):
        assert len(rows(text)[name]) == 2
    assert head.get("pipeline_tag") == tag
    assert on_hub in head["metrics"]
    results = head["model-index"][0]["results"]
    kinds = {m["type"] for r in results if r["dataset"]["split"] == "test" for m in r["metrics"]}
    assert kinds == {on_hub, "acc_macro", "acc_top3", "ece", "f1"}
    assert "The test had no part" in text
    assert "](test-own-2.png)" in text
    assert (words in text) == bool(task)
    assert ("predict_step" in text) == bool(task)
    command = "predict" if task else "test"
    assert f"\npython train.py {command} --run=digits --ckpt_path=best" in text


@pytest.mark.parametrize(("data", "word"), [("tiny.Own", "predict"), ("tiny.NoPrediction", "test")])
def test_the_command_is_one_that_the_data_takes(folder, capsys, data, word):
    """Also of a data module of one's own, which has no predict_path, or nothing to predict."""
    small = SMALL.replace("MNISTDataModule", data).partition("init_args: {batch_size")[0]
    (folder.parents[1] / "own.yaml").write_text(small)
    train(["fit", "--config=own.yaml", "--trainer.logger=null", "--run_name=own", *QUIET])
    main(["own"])
    text = (folder.with_name("own") / "README.md").read_text()
    assert {"val/acc", "test/acc"} <= rows(text).keys()
    [command] = re.findall(rf"^python train.py ({word} .*)$", text, re.MULTILINE)
    assert "predict_path" not in command
    capsys.readouterr()
    train([*command.split(), *QUIET])
    assert {"predict": "predictions.csv", "test": "test/loss"}[word] in capsys.readouterr().out

    main(["digits"])
    [command] = re.findall(
        r"^python train.py (predict .*)$", (folder / "README.md").read_text(), re.M
    )
    picture().save("one.png")
    train([*command.replace("FOLDER", "one.png").split(), *QUIET])
    assert "predictions.csv" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
@pytest.mark.parametrize("command", ["card", "report", "fit"])
def test_a_file_that_may_not_be_read_is_named_in_a_line(folder, command, name, monkeypatch, capsys):
    if command == "fit":
        more = ["--run_name=digits", "--resume=auto", "--trainer.max_epochs=99", *QUIET]
    else:
        more = ["runs/digits"]
    read = Path.open

    def refuse(path, *args, **kwargs):  # for root, who may read all, too
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SystemExit) as e:
        train([command, *more])
    assert e.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(rf"error: (\S*/)?runs/digits/{name}: Permission denied", said)
