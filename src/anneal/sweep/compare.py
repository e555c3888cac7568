"""The command `compare`: is B better than A? Paired by seeds, with a test that has a name."""

import argparse
import hashlib
import math
import shlex
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from anneal.errors import UserError, command, did_you_mean, read_text
from anneal.runs.folder import LONGEST, check_name, find_runs, recipe_of
from anneal.runs.metrics import direction, of_run
from anneal.system import text_table

if TYPE_CHECKING:
    import pandas as pd

USUAL = ("test/acc", "val/acc", "test/loss", "val/loss")  # metrics, the first that all have
SET_HERE = ("config", "seed_everything", "run_name", "run", "resume", "ckpt_path")
Groups = dict[str, dict[int, Path]]  # the folder of each run, by what it is compared as and seed


@command
def main(args: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 if a training failed, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(
        prog="python train.py compare",
        usage="%(prog)s A.yaml B.yaml [...] [--seeds=N] [-j N] [--metric=NAME] [--key=value ...]",
        description="Is B better than A? Trains each with the same seeds, unless finished runs are "
        "named, and tests the differences. Typed again, it resumes. Overrides are for all.",
        allow_abbrev=False,
    )
    about = "a configuration, in quotes with overrides of its own; or runs, as `report` takes them"
    parser.add_argument("what", nargs="+", metavar="A", help=about)
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 on (default: 10)")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--metric", help="whose last value counts (default: test/acc, if logged)")
    parser.add_argument("--mode", choices=["min", "max"], help="what is better, if no name says it")
    typed, overrides = parser.parse_known_intermixed_args(args)
    are_files = [Path(word.split(" --")[0]).suffix in (".yaml", ".yml") for word in typed.what]
    if any(are_files) != all(are_files):
        raise UserError("name either configuration files or finished runs, not some of each")
    if overrides and not all(are_files):
        raise UserError(f"{overrides[0]}: no override changes a finished run")
    folder, failed = None, dict[str, str]()
    if all(are_files):
        groups, folder, failed = trained(typed.what, overrides, typed.seeds, typed.jobs)
    else:
        groups = finished(typed.what)
    rows, metric = results(groups, typed.metric)
    better = direction(metric, typed.mode, "--metric")
    for line in chain(notes(rows, groups), verdicts(rows, list(groups), metric, better)):
        print(line)
    if folder:
        rows.to_csv(folder / "table.csv", index=False)
        print(f"\n{folder / 'table.csv'}")
    shown = shlex.join([str(folder)] if folder else typed.what)
    print(f"curves: python train.py report --bands {shown}")
    return 1 if failed else 0


def trained(
    what: list[str], overrides: list[str], seeds: int, jobs: int
) -> tuple[Groups, Path, dict[str, str]]:
    """Train what is missing; return the finished runs, their folder, and what failed and why."""
    from anneal.sweep.process import train

    if seeds < 2:
        raise UserError(f"--seeds={seeds}: a test needs at least 2, and 6 to find something")
    sides: dict[str, tuple[str, list[str]]] = {}
    for file, *own in map(shlex.split, what):
        if not Path(file).is_file():
            near = did_you_mean(file, map(str, Path(file).parent.glob("*.yaml")))
            raise UserError(f"{file}: no such file{near}")
        for word in (words := [*own, *overrides]):
            if "=" not in word or word.removeprefix("--").partition("=")[0] in SET_HERE:
                raise UserError(f"{word}: no override, as --key=value, of what is not set here")
        label = "-".join([recipe_of(Path(file)), *(word.removeprefix("--") for word in own)])
        label = label.replace("/", "-")
        if label in sides:  # of another folder
            label = f"{Path(file).resolve().parent.name}-{label}"
        check_name(label, "compare")
        sides[label] = read_text(Path(file)), words
    if len(set(map(repr, sides.values()))) < max(2, len(what)):
        raise UserError("compare needs two or more different configurations, or finished runs")
    # What is changed is another comparison; and the trainings read copies, which nobody edits.
    key = hashlib.sha256(repr(sides).encode()).hexdigest()[:6]
    name = f"{'-vs-'.join(sides)}-{key}"
    if len(name.encode()) > LONGEST:
        name = f"{next(iter(sides))}-vs-{len(sides) - 1}-others-{key}"
    check_name(name, "compare")
    folder = Path("runs/compare", name)
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for seed in range(seeds):  # pairs are whole early
        for label, (text, words) in sides.items():
            (folder / f"{label}.yaml").write_text(text)
            config = [f"--config={folder / label}.yaml", *words, f"--seed_everything={seed}"]
            listed[f"{label}-seed{seed}"] = config
    failed = train(folder, listed, jobs)
    groups = {
        k: {s: folder / name for s in range(seeds) if (name := f"{k}-seed{s}") not in failed}
        for k in sides
    }
    return groups, folder, failed


def finished(words: list[str]) -> Groups:
    """Return finished runs, grouped by what differs beside the seed."""
    from anneal.runs.run import Run, grouped

    folders, wrong = find_runs(words)
    if wrong:
        raise UserError("\nerror: ".join(wrong))
    groups: Groups = {}
    for label, runs in grouped([Run.read(folder, str(folder)) for folder in folders]).items():
        groups[label] = {int(run.config["seed_everything"]): Path(run.name) for run in runs}
        if len(groups[label]) < len(runs):
            raise UserError(f"{label}: several runs have the same seed; name one of them")
    if len(groups) < 2:
        raise UserError(f"runs of one configuration, {', '.join(groups)}: nothing to compare with")
    return groups


def results(groups: Groups, asked: str | None) -> "tuple[pd.DataFrame, str]":
    """Return the table of results, a row a run, and the name of the metric."""
    import pandas as pd

    runs = [(k, seed, folder) for k, seeds in groups.items() for seed, folder in seeds.items()]
    if not runs:
        raise UserError("no training has finished", 1)
    tables = [of_run(folder) for _, _, folder in runs]
    logged = [{c for c in t.columns if c.startswith(("train/", "val/", "test/"))} for t in tables]
    names = sorted(set.intersection(*logged))
    metric = asked or next((c for c in USUAL if c in names), (names or [""])[-1])
    if metric not in names:
        of_each = zip(runs, logged, strict=True)
        without = [str(run[-1]) for run, columns in of_each if metric not in columns]
        near = did_you_mean(metric, names) or f"; all have {', '.join(names) or 'none'}"
        raise UserError(f"--metric={metric}: not logged by {', '.join(without[:2])}{near}")
    ends = [([math.nan, *t.values(metric)][-1], int(max(t.values("step"))) + 1) for t in tables]
    rows = [(k, seed, *end, folder) for (k, seed, folder), end in zip(runs, ends, strict=True)]
    return pd.DataFrame(rows, columns=["configuration", "seed", metric, "steps", "folder"]), metric


def notes(rows: "pd.DataFrame", groups: Groups) -> Iterator[str]:
    """Yield in what the runs differ that may be no part of the question."""
    from anneal.runs.run import Run

    for seed, found in rows.groupby("seed"):
        if without := sorted(groups.keys() - set(found["configuration"])):
            yield f"note: seed {seed} is left out, {' and '.join(without)} has no result of it"
    if rows["steps"].nunique() > 1:
        counts = rows.groupby("configuration", sort=False)["steps"].unique().items()
        each = ", ".join(f"{label} {' or '.join(map(str, steps))}" for label, steps in counts)
        yield f"note: they trained different numbers of steps: {each}"
    folders = rows.groupby("configuration")["folder"].first()
    configs = [Run.read(folder).config for folder in folders]
    keys = {key for config in configs for key in config if key.startswith("data")}
    if differ := sorted(k for k in keys if len({config.get(k) for config in configs}) > 1):
        yield f"note: their data differs: {', '.join(differ)}"


def verdicts(rows: "pd.DataFrame", labels: list[str], metric: str, better: str) -> Iterator[str]:
    """Yield the table of means, and a sentence on each configuration but the first."""
    from anneal.sweep.paired import EXACT, LEVEL, holm, interval, paired, verdict

    values = rows.pivot(index="seed", columns="configuration", values=metric)
    values = values.reindex(columns=labels).dropna()
    n = len(values)
    if n < 2:
        raise UserError(f"seeds with results of {' and '.join(labels)}: {n}; a test needs 2", 1)
    lines = [[metric, "seeds", "mean", "std", "95 % interval"]]
    for label in labels:
        low, high = interval(values[label])
        about = [f"{values[label].mean():.4f}", f"{values[label].std():.4f}"]
        lines.append([label, str(n), *about, f"{low:.4f} to {high:.4f}"])
    yield f"\n{text_table(lines, 1)}\n"
    first, *others = labels
    how = f"{'exact' if 2**n <= EXACT else 'random'} paired permutation test over {n} seeds"
    if len(others) > 1:
        how += f", Holm's correction for {len(others)} tests"
    tests = [paired(values[first], values[other], LEVEL / len(others)) for other in others]
    corrected = holm([test.p for test in tests])
    for other, test, p in zip(others, tests, corrected, strict=True):
        yield verdict((first, other), metric, better, test._replace(p=p), how)
