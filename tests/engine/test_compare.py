"""Is B better than A: the statistics, what is trained for them, and what the runs must share."""

import itertools
import os
import re
import signal
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from helpers import SMALL
from test_report import make_run

from anneal.sweep.paired import Paired, holm, interval, paired, seeds_needed, verdict
from anneal.testing import logged, main, wait_for

A = SMALL.replace("logger: false", "logger: true")
B = A.replace("lr: 0.1", "lr: 0.5")


# ---- statistics


@pytest.mark.parametrize("n", range(2, 10))
def test_p_is_the_share_of_all_patterns_of_signs(n):
    random = np.random.default_rng(n)
    a = np.round(random.normal(0.9, 0.02, n), 2)  # many ties
    b = np.round(a + random.normal(0.01, 0.02, n), 2)
    hundredths = np.round(100 * (b - a)).astype(int)
    means = [abs(np.dot(s, hundredths)) for s in itertools.product((-1, 1), repeat=n)]
    share = np.mean([mean >= abs(hundredths.sum()) for mean in means])
    # As metrics.csv has them: in single precision, so that no two differences are quite the same.
    assert paired(np.float32(a), np.float32(b)).p == pytest.approx(share)


def test_of_many_seeds_patterns_are_drawn_and_always_the_same():
    random = np.random.default_rng(0)
    a = random.normal(size=30)
    b = a + random.normal(0.4, 1, 30)
    test = scipy.stats.ttest_rel(b, a)
    assert paired(a, b) == paired(a, b)
    assert paired(a, b).p == pytest.approx(test.pvalue, rel=0.3)
    assert paired(a, b)[:3] == pytest.approx((np.mean(b - a), *test.confidence_interval()))
    assert interval(a) == pytest.approx(scipy.stats.ttest_1samp(a, 0).confidence_interval())


# Of G*Power 3.1 for a paired t-test, two tails, 5 %, a power of 80 %.
@pytest.mark.parametrize(("size", "n"), [(0.1, 787), (0.2, 199), (0.5, 34), (0.8, 15), (1.2, 8)])
def test_the_seeds_that_would_be_needed_are_those_of_the_t_test(size, n):
    assert seeds_needed(size, 1.0) == seeds_needed(-3 * size, 3.0) == n


def test_fewer_seeds_than_the_permutation_test_needs_are_never_enough():
    assert seeds_needed(1e9, 1.0) == seeds_needed(1.0, 0.0) == 6  # 2 of 2^6 patterns: p = 0.031
    assert paired(range(6), [n + 1 for n in range(6)]).p == 2 / 2**6
    assert seeds_needed(1e9, 1.0, 0.05 / 4) == 8
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(0.0, 0.0) is None
    assert paired([1.0, 1.0], [1.0, 1.0]) == Paired(0, 0, 0, 1, None)


def test_holms_correction_is_that_of_his_paper():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]


@pytest.mark.parametrize(
    ("metric", "better", "mean", "expected"),
    [
        (
            "test/acc",
            "max",
            0.0031,
            "B is better than A by 0.31 points (95 % interval 0.21 to 0.41",
        ),
        ("val/acc", "max", -0.0031, "B is worse than A by 0.31 points (95 % interval 0.21 to 0.41"),
        ("test/loss", "min", -2.0, "B is better than A by 2 (95 % interval 2 to 2"),
        ("test/loss", "min", 2.0, "B is worse than A by 2 (95 % interval 2 to 2"),
    ],
)
def test_the_verdict_says_which_is_better_whatever_the_metric(metric, better, mean, expected):
    test = Paired(mean, mean - 0.001, mean + 0.001, 0.004, 7)
    assert verdict(("A", "B"), metric, better, test, "test").startswith(expected)


# ---- finished runs


def make(name: str, accuracies, lr=0.1, seeds=None, steps=10, **more) -> None:
    """Runs of some seeds, as a training leaves them."""
    for seed, accuracy in zip(seeds or itertools.count(), accuracies, strict=False):
        rows = [{"step": 0, "lr": lr}, {"step": steps - 1, "test/acc": accuracy, "val/loss": 1}]
        folder = make_run(Path(f"runs/{name}-seed{seed}"), pd.DataFrame(rows), lr=lr, **more)
        with (folder / "config.yaml").open("a") as file:
            file.write(f"seed_everything: {seed}\ndata: {{size: {more.get('max_epochs', 4)}}}\n")


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """Run the command in an empty folder; return its status, and what it has printed."""
    monkeypatch.chdir(tmp_path)

    def compare(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["compare", *words])
        printed = capsys.readouterr()
        return end.value.code or 0, printed.err + printed.out

    return compare


FIRST = [0.90, 0.91, 0.92, 0.93, 0.94, 0.95]


def test_finished_runs_are_grouped_by_what_differs_beside_the_seed(compare):
    make("slow", FIRST, 0.1)
    make("fast", [x + 0.01 for x in FIRST], 0.2)
    status, output = compare("slow-*", "runs/fast-*")
    assert status == 0
    assert re.search(r"slow +6 +0.9250 +0.0187 +0.9054 to 0.9446\n", output), output
    assert "fast is better than slow by 1 points (95 % interval 1 to 1, p = 0.031, exact" in output
    assert "note" not in output


def test_pairs_are_by_seed_and_what_is_without_a_partner_is_named(compare):
    make("a", FIRST, 0.1)
    make("b", reversed(FIRST), 0.2, seeds=[5, 4, 3, 2, 9])
    status, output = compare("a-*", "b-*")
    assert status == 0
    assert "over 4 seeds" in output
    assert "-0 points" in output or " 0 points" in output, (
        output
    )  # by their order they would differ
    for seed, without in ((0, "b"), (1, "b"), (9, "a")):
        assert f"note: seed {seed} is left out, {without} has no result of it" in output


def test_other_lengths_and_other_data_are_noted(compare):
    make("a", FIRST, 0.1)
    make("b", FIRST, 0.1, steps=20, max_epochs=8)
    status, output = compare("a-*", "b-*")
    assert status == 0
    assert "note: they trained different numbers of steps: a 10, b 20\n" in output
    assert "note: their data differs: data.size\n" in output


def test_several_are_each_tested_against_the_first(compare):
    for lr, name in enumerate("abcd", 1):
        make(name, [x + (name == "b") / 100 for x in FIRST], float(lr))
    output = compare("a-*", "b-*", "c-*", "d-*")[1]
    assert "b - a is 1 points" in output  # 2 of 64 patterns, three times
    assert "p = 0.094, exact paired permutation test over 6 seeds, Holm's correction" in output
    assert output.count("\nno difference can be told: ") == 3
    assert "c - a is 0 points (95 % interval 0 to 0, p = 1" in output
    assert "more than 1,000 seeds" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a-*"], "error: runs of one configuration, a: nothing to compare with"),
        (["a-*", "b-*", "--metric=test/ac"], "not logged by .*; did you mean test/acc?"),
        (["a-*", "b-*", "--metric=f1"], "not logged by .*; all have test/acc, val/loss"),
        (["a-*", "c-*"], "error: c-[*]: no such run, neither here nor in runs/"),
        (["a-*", "b-seed1"], "error: seeds with results of a and b: 1; a test needs 2"),
        (["a-*", "b-*", "--data.batch_size=3"], "data.batch_size=3: no override changes a finish"),
        (["a-*", "a.yaml"], "error: name either configuration files or finished runs"),
        (["a-*", "again-seed1", "b-*"], "error: lr=0.1: several runs have the same seed; name one"),
        (["a.yaml", "no.yaml"], "error: no.yaml: no such file"),
        (["a.yaml", "./a.yaml"], "error: compare needs two or more different configurations"),
        (["a.yaml"], "error: compare needs two or more different configurations"),
        (["a.yaml", "b.yaml", "--seeds=1"], "error: --seeds=1: a test needs at least 2"),
        (["a.yaml", "b.yaml", "-j0"], "error: -j 0: must be at least 1"),
        (["a.yaml", "b.yaml", "--seed_everything=3"], "error: --seed_everything=3: no override"),
        (["a.yaml", "b.yaml --trainer.max_epochs"], "error: --trainer.max_epochs: no override"),
    ],
)
def test_a_mistake_is_one_line(compare, words, message):
    make("a", FIRST, 0.1)
    make("again", FIRST, 0.1)
    make("b", FIRST, 0.2)
    Path("a.yaml").write_text(A)
    Path("b.yaml").write_text(B)
    status, output = compare(*words)
    assert status == (1 if "a test needs 2" in message else 2)
    lines = [line for line in output.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1
    assert re.search(message.replace("?", r"\?"), lines[0]), lines


# ---- configurations that are trained


def interrupt_when(pattern: str) -> threading.Thread:
    """Send Ctrl-C to this process as soon as a file is there."""

    def interrupt() -> None:
        wait_for(lambda: any(Path().glob(pattern)))
        os.kill(os.getpid(), signal.SIGINT)

    (thread := threading.Thread(target=interrupt)).start()
    return thread


def test_a_comparison_that_is_interrupted_goes_on_and_trains_nothing_twice(
    run, compare, capsys, monkeypatch
):
    Path("a.yaml").write_text(A)
    hold = "callbacks: {class_path: ranks.Hold, init_args: {step: 6}}"  # in its second epoch
    Path("b.yaml").write_text(B.replace("trainer:", f"trainer:\n  {hold}"))
    Path("hold").touch()
    monkeypatch.setattr("anneal.sweep.process.TERM_SECONDS", 0.1)  # it is held up
    thread = interrupt_when("held")
    status, output = compare("a.yaml", "b.yaml", "--seeds=2")
    thread.join()
    Path("hold").unlink()
    assert status == 130, output
    assert output.endswith("interrupted: the same command goes on\n")
    (folder,) = Path("runs/compare").iterdir()
    first = (folder / "a-seed0/metrics.csv").stat().st_mtime_ns
    status, output = compare("a.yaml", "b.yaml", "--seeds=3", "-j2")  # one more
    assert status == 0, output
    names = [f"{side}-seed{seed}" for seed in range(3) for side in "ab"]
    assert sorted((folder / "finished.txt").read_text().split()) == sorted(names)
    assert (folder / "a-seed0/metrics.csv").stat().st_mtime_ns == first
    assert (folder / "b-seed0/log.txt").read_text().count("Restored all states") == 1

    table = pd.read_csv(folder / "table.csv")
    assert list(table.columns) == ["configuration", "seed", "test/acc", "steps", "folder"]
    found = table.pivot(index="seed", columns="configuration", values="test/acc")
    for row in table.itertuples():
        assert float(logged(Path(row.folder))[-1]["test/acc"]) == row[3]
    for side in "ab":
        about = f"{side} +3 +{found[side].mean():.4f} +{found[side].std():.4f} "
        assert re.search(about, output), output
    assert f"{100 * (found['b'] - found['a']).mean():.3g} points" in output
    assert compare(str(folder))[1].splitlines()[-2] in output  # of the finished runs the same

    # Nothing but the seed is set, and what was interrupted is as if it had not been.
    run("fit", "--config=b.yaml", "--seed_everything=0", "--run_name=alone")
    assert logged(Path("runs/alone")) == logged(folder / "b-seed0")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["report", "--bands", str(folder)])
    assert capsys.readouterr().out.splitlines()[0] == "report.html"


def test_a_training_that_fails_is_named_and_the_others_go_on(compare):
    text = A.replace("trainer:", "trainer:\n  callbacks: {class_path: tiny.CrashIfNamed}")
    Path("a.yaml").write_text(text)
    words = ["a.yaml", "a.yaml --model.optimizer.lr=0.2", "--seeds=3", "-j2"]
    Path("crash").write_text("a-model.optimizer.lr=0.2-seed1")
    before = signal.getsignal(signal.SIGTERM)
    status, output = compare(*words)
    assert signal.getsignal(signal.SIGTERM) is before
    assert status == 1, output
    (folder,) = Path("runs/compare").iterdir()
    failed = folder / "a-model.optimizer.lr=0.2-seed1"
    assert f"failed: {failed}: exit status 1: OSError: crash" in output
    assert "seed 1 is left out, a-model.optimizer.lr=0.2 has no result" in output
    assert "over 2 seeds" in output
    Path("crash").unlink()  # it is mended: the same command goes on
    status, output = compare(*words)
    assert status == 0, output
    assert "over 3 seeds" in output
    assert (failed / "log.txt").read_text().count("Restored all states") == 1


def test_wrong_options_are_one_line_and_what_is_changed_is_another_comparison(compare):
    Path("a.yaml").write_text(A)
    Path("b.yaml").write_text(B)
    wrong = ["a.yaml", "b.yaml", "--seeds=2", "--trainer.max_epoch=1"]

    def folders() -> int:
        status, output = compare(*wrong)
        assert status == 2
        assert output == (
            "error: --trainer.max_epoch: no such option; did you mean --trainer.max_epochs?\n"
        )
        return len(list(Path("runs/compare").iterdir()))

    assert [folders(), folders()] == [1, 1]
    Path("b.yaml").write_text(B.replace("lr: 0.5", "lr: 0.6"))
    assert folders() == 2
    wrong.append("--trainer.max_epochs=3")
    assert folders() == 3
    many = [f"a.yaml --model.optimizer.lr=0.{n}" for n in range(1, 12)]
    for others, name in ((many, "a-vs-11-others-"), (["b.yaml", *many[:3]], "a-vs-b-vs-a-model")):
        compare("a.yaml", *others, *wrong[2:])
        assert len(list(Path("runs/compare").glob(f"{name}*"))) == 1
