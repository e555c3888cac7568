"""Each layout of docs/data.md is made as the page draws it, and its commands are run."""

import csv
import re

import pytest
from launch import QUIET
from pages import ROOT, commands

from anneal import testing as photos
from anneal.testing import draw_nothing, main

PAGE = ROOT / "docs/data.md"
CLASSES = ("cat", "dog", "owl")
SHORT = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--data.batch_size=4"]
SHORT += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--data.num_workers=0"]
SHORT += ["--trainer.precision=32-true", "--trainer.limit_test_batches=1"]


def build(tree: str, table: str) -> None:
    """Make the images of a tree, 12 for a star, and a table of them with the lines of the page."""
    images = []
    for line in tree.split():
        for name in CLASSES if "CLASS" in line else [""]:
            for i in range(1, 13 if "*" in line else 1):
                path = ROOT.__class__(line.replace("CLASS", name).replace("*", f"{i:04}"))
                images.append(photos.save(photos.picture(seed=i, size=(40, 36)), path))
    for file in re.findall(r"\S+\.csv", tree):
        head, *rows = csv.reader(table.splitlines())
        name = "stem" if "." not in rows[0][0] else "name"
        with open(file, "w", newline="") as out:
            lines = ([getattr(p, name), *rows[i % len(rows)][1:]] for i, p in enumerate(images))
            csv.writer(out).writerows([head, *lines])


@pytest.mark.filterwarnings("ignore:schedule. the warmup takes")
def test_each_layout_of_the_page_is_read_by_its_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "anneal.tasks.test_report.TestReport.on_test_end", lambda *_: None, raising=False
    )
    draw_nothing(monkeypatch)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    text = PAGE.read_text()
    trees = re.findall(r"```text\n(.*?)```(?:\n\n```csv\n(.*?)```)?", text, re.DOTALL)
    assert len(trees) == 5
    for tree, table in trees:
        build(tree, table)
    for words in commands(PAGE):
        assert words[:2] == ["python", "train.py"]
        if words[2] in ("check", "shards"):
            with pytest.raises(SystemExit) as e:
                main(words[2:])
            assert e.value.code == 0, capsys.readouterr().err
        elif words[2] == "show-batch":
            main([*words[2:], *SHORT])
        else:
            main(["fit", *words[2:], *SHORT, *QUIET])
    out = capsys.readouterr().out
    assert out.count("runs/check") == len([w for w in commands(PAGE) if w[2] == "check"])
    assert "not to train on" not in out
    for line in (
        "cat         9    2     1\n",
        "old    ",
        "cyst   ",
        "38 to 60",
        "runs/show-batch.png",
    ):
        assert line in out, out


def test_every_option_of_the_layout_stands_on_the_page():
    from anneal.cli.schema import parameters
    from anneal.vision.layouts import Layout

    for name in [*parameters(Layout), "sampler"]:
        assert re.search(rf"\b{name}\b", PAGE.read_text()), name
