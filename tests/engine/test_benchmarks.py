"""What `make bench` knows of the benchmarks, without running one."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHARED = {"__main__", "turns", "training", "first_step", "race_results", "race_rules"}
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
