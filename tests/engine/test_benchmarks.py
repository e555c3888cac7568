"""What `make bench` knows of the benchmarks, without running one."""

import json
import runpy
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHARED = {"__main__", "turns", "training", "first_step", "optimizers"}
BENCH = runpy.run_path(str(FOLDER / "__main__.py"), run_name="bench")
CLAIMS = yaml.safe_load((FOLDER / "claims.yaml").read_text())
RESULTS = json.loads((FOLDER / "results.json").read_text())


def test_every_benchmark_has_one_claim():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - SHARED
    assert sorted(map(BENCH["stem"], CLAIMS)) == sorted(scripts)


def test_every_goal_and_reason_is_of_a_figure():
    for claim in CLAIMS:
        rows = {row["name"] for row in RESULTS.get(BENCH["stem"](claim), {}).get("rows", [])}
        goals = claim.get("goals", {}).keys()
        assert claim.get("missed", {}).keys() <= goals
        assert not rows or goals <= rows


def test_the_page_is_that_of_claims_and_results():
    assert (FOLDER / "README.md").read_text() == BENCH["readme"](CLAIMS, RESULTS)


def test_a_missed_goal_gives_its_reason_and_a_missing_path_its_option(capsys):
    claim = {
        "command": "race.py {track}",
        "says": "Laps.",
        "goals": {"car": {"at least": 2}, "bus": {"at most": 1}},
        "missed": {"car": "it has no wheels."},
    }
    rows = [{"name": name, "value": 1, "cells": {"laps": "1"}} for name in ("car", "bus")]
    lines = BENCH["section"](claim, {"machine": "here", "rows": rows}).splitlines()
    assert "## `python benchmarks/race.py TRACK`" in lines
    assert "| car | 1 | at least 2: missed |" in lines
    assert "| bus | 1 | at most 1: met |" in lines
    assert "Missed, car: it has no wheels." in lines
    with pytest.raises(SystemExit):
        BENCH["main"](["no_such_benchmark"])
    assert "no such benchmark: no_such_benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    "package", ["torch.optim", "pytorch_optimizer", "schedulefree", "prodigyopt", "lion_pytorch"]
)
def test_the_list_of_optimizers_has_every_class_of_its_packages(package):
    pytest.importorskip(package)
    classes = vars(import_module(package)).items()
    exported = {
        n for n, c in classes if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)
    }
    of = yaml.safe_load((FOLDER / "optimizers.yaml").read_text())[package]
    listed, excluded = of["listed"].keys(), of.get("excluded", {})
    assert exported <= listed | excluded.keys()
    assert not listed & excluded.keys()
    assert all(excluded.values())


def test_nearly_all_optimizers_of_the_list_do_what_it_asks_for():
    bench = runpy.run_path(str(FOLDER / "optimizers.py"), run_name="optimizers")
    results = json.loads((FOLDER / "optimizers.json").read_text())
    met = [bench["is_met"](results[name]) for name in bench["entries"]()]
    assert sum(met) >= 0.95 * len(met)
