"""The race between optimizers: its statistics, its rules as they were kept, what its page says."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
import race  # noqa: E402
import race_results  # noqa: E402
import race_rules  # noqa: E402
from race_results import BEFORE, END, standings  # noqa: E402
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["AdamW", "ScheduleFree AdamW"])
def test_a_training_of_a_race_fills_its_line_always_the_same(name, monkeypatch):
    pytest.importorskip("schedulefree")
    monkeypatch.setitem(STEPS, "digits", 20)
    job = race_rules.to_do("final", name, 1, 0.01, 0.1)
    one, two = (race.train("digits", "", job) for _ in range(2))
    assert [*one] == race_rules.COLUMNS
    assert len(race_rules.curve_of(one)) == race_rules.POINTS
    assert float(one["test_acc"]) > 0.3
    assert one | {"ms_step": ""} == two | {"ms_step": ""}


@pytest.mark.filterwarnings("ignore")
def test_a_training_that_diverges_counts_as_nothing(monkeypatch):
    monkeypatch.setitem(STEPS, "digits", 20)
    line = race.train("digits", "", race_rules.to_do("final", "SGD", 1, 1e30, 0.0))
    assert race_rules.curve_of(line)[-1] == float(line["test_acc"]) == 0


@pytest.mark.parametrize("task", RACED)
def test_everyone_had_the_same_search_and_the_same_seeds(task):
    lines = race_rules.read(task)
    seeds, searched = set(), set()
    for name in [*standings(task)]:
        mine = [x for x in lines if x["optimizer"] == name]
        trials = {x["seed"]: x for x in mine if x["kind"] == "trial"}
        finals = [x for x in mine if x["kind"] == "final"]
        assert sorted(x["seed"] for x in finals) == RULES["seeds"]
        assert standings(task)[name].ms_step > 0
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


def test_everyone_has_raced_and_the_best_on_photos():
    for task in ("digits", "fashion"):
        assert standings(task).keys() == {*OPTIMIZERS, UNTUNED}
    assert len(OPTIMIZERS) == 28
    assert standings("photos").keys() == {REFERENCE, UNTUNED, "Muon", *race_results.best()}


# What docs/race.md says.

LOSES = {"digits": (0.0703, 0.0028), "fashion": (0.0591, 0.0143)}  # untuned to tuned, that to best
COUNTS = {"digits": (1, 14, 12), "fashion": (8, 10, 9)}  # better than AdamW, worse, not told apart


@pytest.mark.parametrize("task", LOSES)
def test_tuning_is_worth_more_than_the_optimizer(task):
    found = standings(task)
    untuned, best = found[UNTUNED], next(iter(found.values()))
    assert -untuned.difference == pytest.approx(LOSES[task][0], abs=5e-5)
    assert untuned.p < 0.001
    assert best.difference == pytest.approx(LOSES[task][1], abs=5e-5)
    assert -untuned.difference > 4 * best.difference


def test_on_photos_it_is_not():
    found = standings("photos")
    best = [name for name, s in found.items() if s.p < 0.05 and s.difference > 0]
    assert best == ["RMSprop", "NAdam", "ScheduleFree AdamW"]
    assert found["RMSprop"].difference == pytest.approx(0.0279, abs=5e-5)
    assert found[UNTUNED].difference == pytest.approx(-0.0148, abs=5e-5)
    assert found[UNTUNED].p < 0.05


@pytest.mark.parametrize("task", COUNTS)
def test_a_few_are_surely_better_than_tuned_adamw(task):
    others = [s for name, s in standings(task).items() if name not in (REFERENCE, UNTUNED)]
    sure = [s for s in others if s.p < 0.05]
    better = {s.name for s in sure if s.difference > 0}
    assert (len(better), len(sure) - len(better), len(others) - len(sure)) == COUNTS[task]
    assert "ScheduleFree AdamW" in better


def test_an_order_holds_for_its_task():
    digits, fashion = standings("digits"), standings("fashion")
    assert digits["SOAP"].difference < 0 < fashion["SOAP"].difference
    assert max(digits["SOAP"].p, fashion["SOAP"].p) < 0.001
    assert next(iter(fashion)) == "SOAP"
    others = OPTIMIZERS.keys() - {REFERENCE}
    pairs = [(digits[name].difference, fashion[name].difference) for name in others]
    assert stats.spearmanr(pairs).statistic == pytest.approx(0.73, abs=0.005)


@pytest.mark.parametrize(("task", "share"), [("digits", 0.55), ("fashion", 0.67)])
def test_schedule_free_optimizers_are_early(task, share):
    found = standings(task)
    for name in ("ScheduleFree AdamW", "ScheduleFree SGD"):
        assert found[name].steps < share * found[REFERENCE].steps


@pytest.mark.parametrize(("task", "failed"), [("digits", 7), ("fashion", 8)])
def test_shampoos_settings_fail_from_other_seeds(task, failed):
    for name, standing in standings(task).items():
        assert sum(standing.test == 0) == (failed if name == "Shampoo" else 0), name


FLIPS = {"digits": 6, "fashion": 3}
CORRELATION = {"digits": 0.36, "fashion": 0.82}
FALLS = {"digits": (3, 23), "fashion": (5, 20)}  # places of MARS


@pytest.mark.parametrize("task", FLIPS)
def test_the_order_before_the_decay_is_another(task):
    found = standings(task)
    before, end = ({n: s.curves[:, at].mean() for n, s in found.items()} for at in (BEFORE, END))
    pairs = [(before[name], end[name]) for name in OPTIMIZERS]
    assert stats.spearmanr(pairs).statistic == pytest.approx(CORRELATION[task], abs=0.005)
    places = [sorted(at, key=lambda n, at=at: -at[n]).index("MARS") + 1 for at in (before, end)]
    assert tuple(places) == FALLS[task]
    turned = race_results.flips(task)
    assert len(turned) == FLIPS[task]
    if task == "digits":
        assert turned[0][:2] == ("SGD, momentum", "Lion")
        assert turned[0][2:] == pytest.approx((-0.088, 0.014), abs=5e-4)
        ahead = [at["ScheduleFree AdamW"] - at[REFERENCE] for at in (before, end)]
        assert ahead == pytest.approx([0.037, 0.004], abs=5e-4)
    else:
        assert {name for pair in turned for name in pair[:2]} == {"Adan", "LARS", UNTUNED}


def test_the_page_has_the_tables_of_the_stored_results():
    assert race_results.PAGE.read_text() == race_results.page()
