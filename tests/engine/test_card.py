"""A model card says what its run's folder holds, in the form that a hub reads."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from anneal.report.card import main, value_of
from anneal.testing import main as train

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
    by_split = {r["dataset"]["split"]: r["metrics"][0]["value"] for r in index["results"]}
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
    assert links == ["curves.png", "test-confusion.png", "config.yaml"]
    assert all((folder / link).is_file() for link in links)
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(folder)
    found = []
    for block in blocks:
        names = {"pixels": torch.zeros(2, 1, 28, 28, dtype=torch.uint8)}
        exec(block, names)
        found.append(names["probabilities"].detach())
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
    for path in folder.glob("checkpoints/*"):
        stored = torch.load(path, weights_only=True)
        del stored["class_names"]
        torch.save(stored, path)
    assert "no classifier" in refused("digits")
    shutil.rmtree(folder / "checkpoints")
    assert "has no checkpoint" in refused("digits")
    assert not (folder / "README.md").exists()
