"""The race between optimizers: its statistics, its rules as they were kept, what its page says."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import race_results  # noqa: E402
import race_rules  # noqa: E402
from race_results import standings  # noqa: E402
from race_rules import OPTIMIZERS, REFERENCE, RULES, STEPS, UNTUNED  # noqa: E402

RACED = [task for task in STEPS if standings(task)]


def test_the_permutation_test_is_scipys():
    differences = np.array([0.012, -0.003, 0.004, 0.001, 0.007, 0.002, -0.001, 0.009])
    exact = stats.permutation_test(
        (differences, np.zeros(8)), lambda a, b: np.mean(a - b), permutation_type="samples"
    )
    assert race_results.p_value(differences) == pytest.approx(exact.pvalue)
    assert race_results.p_value(-differences) == pytest.approx(exact.pvalue)
    assert race_results.p_value([0.01] * 20) == 2 / 2**20


def test_holms_correction_is_that_of_his_paper():
    found = race_results.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert found == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})


def test_steps_to_a_target_lie_between_two_validations():
    assert race_results.reach(np.array([0.2, 0.4, 0.8]), 0.5) == pytest.approx(2.25)
    assert race_results.reach(np.array([0.6, 0.4]), 0.5) == 1
    assert race_results.reach(np.array([0.2, 0.4]), 0.5) == np.inf


@pytest.mark.parametrize("task", RACED)
def test_everyone_had_the_same_search_and_the_same_seeds(task):
    lines = race_rules.read(task)
    seeds, searched = set(), set()
    for name in [*standings(task)]:
        mine = [x for x in lines if x["optimizer"] == name]
        trials = {x["seed"]: x for x in mine if x["kind"] == "trial"}
        finals = [x for x in mine if x["kind"] == "final"]
        assert sorted(x["seed"] for x in finals) == RULES["seeds"]
        seeds |= {x["seed"] for x in finals}
        if name == UNTUNED:
            assert not trials
            assert {x["lr"] for x in finals} == {""}
            continue
        assert len(trials) == RULES["trials"]
        for wanted in race_rules.trials(name):
            found = trials[wanted["seed"]]
            assert all(found[key] == value for key, value in wanted.items())
        searched |= trials.keys()
        best = race_rules.winner(name, lines)
        settings = {(x["lr"], x["weight_decay"]) for x in finals}
        assert settings == {(best["lr"], best["weight_decay"])}
    assert not seeds & searched


def test_at_least_twenty_have_raced_and_the_best_of_them_on_photos():
    for task in ("digits", "fashion"):
        assert standings(task).keys() == {*OPTIMIZERS, UNTUNED}
        assert len(standings(task)) >= 22
    assert standings("photos").keys() == {REFERENCE, UNTUNED, *race_results.best()}


def test_the_page_has_the_tables_of_the_stored_results():
    assert race_results.PAGE.read_text() == race_results.page()
