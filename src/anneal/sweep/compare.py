"""The command `compare`: is B better than A? Paired by seeds, with a test that has a name."""

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anneal.errors import UserError, command, did_you_mean, read_text
from anneal.runs.folder import check_name, find_runs, recipe_of
from anneal.runs.metrics import direction, read
from anneal.system import write_csv
from anneal.text_table import text_table

if TYPE_CHECKING:
    from anneal.sweep.pool import Trainings

COMPARED = Path("runs/compare")
USUAL = ("test/acc", "val/acc", "test/loss", "val/loss")  # metrics, the first that all have
OPTIONS = ("seeds", "jobs", "metric", "mode", "name")
SET_HERE = ("config", "seed_everything", "run_name", "run", "resume", "ckpt_path")
Seeds = dict[int, Path]  # the folder of each seed's run


class Result(NamedTuple):
    """What a run has come to."""

    value: float  # the metric's last
    steps: int
    folder: Path


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
    parser.add_argument(
        "-j", "--jobs", type=int, default=1, metavar="N", help="trainings at a time"
    )
    parser.add_argument("--metric", help="whose last value counts (default: test/acc, if logged)")
    parser.add_argument("--mode", choices=["min", "max"], help="what is better, if no name says it")
    parser.add_argument("--name", help="of the folder in runs/compare (default: A-vs-B)")
    typed, overrides = parser.parse_known_intermixed_args(args)
    are_files = [Path(word.split(" --")[0]).suffix in (".yaml", ".yml") for word in typed.what]
    pool = None
    if any(are_files):
        if not all(are_files):
            raise UserError("name either configuration files or finished runs, not some of each")
        groups, pool = train(typed, overrides)
    elif overrides:
        raise UserError(f"{overrides[0]}: the runs are trained; overrides are for configurations")
    else:
        groups = finished(typed.what)
    rows = report(groups, typed.metric, typed.mode)
    print()
    if pool:
        write_csv(pool.folder / "table.csv", rows)
        print(pool.folder / "table.csv")
    drawn = pool.folder if pool else shlex.join(typed.what)
    print(f"curves: python train.py report --bands {drawn}")
    return pool.report_failures() if pool else 0


# ---- whose results


def train(typed: argparse.Namespace, overrides: list[str]) -> "tuple[dict[str, Seeds], Trainings]":
    """Train what is missing; return the runs that are finished, and what has trained them."""
    from anneal.sweep.pool import Trainings, mistakes

    if typed.seeds < 2:
        raise UserError(f"--seeds={typed.seeds}: a test needs at least 2, and 6 to find something")
    check_overrides(overrides)
    sides = sides_of(typed.what)
    name = typed.name or "-vs-".join(sides)
    check_name(name, "--name")
    folder = COMPARED / name
    listed, groups = {}, {label: Seeds() for label in sides}
    for seed in range(typed.seeds):  # pairs are whole early
        for label, (_, own) in sides.items():
            groups[label][seed] = folder / f"{label}-seed{seed}"
            words = [f"--config={folder / label}.yaml", *own, *overrides]
            listed[f"{label}-seed{seed}"] = [*words, f"--seed_everything={seed}"]
    texts = {}
    for label, (file, own) in sides.items():
        # The trainings read a copy: a file that is edited meanwhile would spoil the comparison.
        copy = folder / f"{label}.yaml"
        texts[copy] = f"# overrides: {shlex.join([*own, *overrides])}\n{read_text(file)}"
        if copy.is_file() and copy.read_text() != texts[copy]:
            raise UserError(
                f"{file} or its overrides are not what {folder} was begun with: take another "
                f"--name, or remove {folder}"
            )
    pool = Trainings(folder, listed, typed.jobs)
    for copy, (file, own) in zip(texts, sides.values(), strict=True):
        if not copy.is_file():
            if lines := mistakes([f"--config={file}", *own, *overrides]):
                raise UserError("\nerror: ".join(lines))
            copy.write_text(texts[copy])
    pool.run()
    done = {
        label: {s: path for s, path in seeds.items() if path.name in pool.finished}
        for label, seeds in groups.items()
    }
    return done, pool


def check_overrides(words: Iterable[str]) -> None:
    """Raise UserError for a word that is no override of a training, or of what is set here."""
    for word in words:
        key, equals, _ = word.removeprefix("--").partition("=")
        if key in SET_HERE:
            hint = "; --seeds=N says how many" if key == "seed_everything" else ""
            raise UserError(f"{word}: is set for each training here{hint}")
        near = "" if "." in key else did_you_mean(key, OPTIONS)
        if near or not word.startswith("--"):
            raise UserError(f"{word}: no such option{near}")
        if not equals:
            raise UserError(f"{word}: write --key=value")


def sides_of(words: Sequence[str]) -> dict[str, tuple[Path, list[str]]]:
    """Return the configurations, by a name for each, with the overrides of their own."""
    parts = [(Path(file), own) for file, *own in map(shlex.split, words)]
    if len({(file.resolve(), *own) for file, own in parts}) < max(2, len(parts)):
        raise UserError("compare needs two or more different configurations, or finished runs")
    sides: dict[str, tuple[Path, list[str]]] = {}
    for file, own in parts:
        if not file.is_file():
            near = did_you_mean(str(file), map(str, file.parent.glob("*.yaml")))
            raise UserError(f"{file}: no such file{near}")
        check_overrides(own)
        label = "-".join([recipe_of(file), *(word.lstrip("-") for word in own)])
        label = re.sub(r"[^\w.=-]+", "-", label)
        if label in sides:  # of another folder
            label = f"{file.resolve().parent.name}-{label}"
        check_name(label, "--name")
        sides[label] = file, own
    return sides


def finished(words: Sequence[str]) -> dict[str, Seeds]:
    """Return finished runs, grouped by what differs beside the seed."""
    from anneal.runs.run import Run, grouped

    folders, wrong = find_runs(words)
    if wrong:
        raise UserError("\nerror: ".join(wrong))
    runs = {id(run := Run.read(folder)): (run, folder) for folder in folders}
    groups: dict[str, Seeds] = {}
    for label, members in grouped([run for run, _ in runs.values()]).items():
        seeds = groups.setdefault(label, {})
        for run in members:
            folder, seed = runs[id(run)][1], int(run.config["seed_everything"])
            if seed in seeds:
                raise UserError(f"{seeds[seed]} and {folder} are the same training, seed {seed}")
            seeds[seed] = folder
    if len(groups) < 2:
        raise UserError(f"{len(runs)} runs of one configuration: nothing to compare it with")
    return groups


# ---- what they say


def report(groups: dict[str, Seeds], asked: str | None, mode: str | None) -> list[list[Any]]:
    """Print the tables and a verdict on each configuration but the first; return all results."""
    from anneal.sweep.paired import holm, paired, summary, verdict

    results, metric = results_of(groups, asked)
    better = direction(metric, mode, "--metric")
    for line in notes(results):
        print(f"note: {line}", file=sys.stderr)
    first, *others = results
    tests = {}
    for label in others:
        both = sorted(results[first].keys() & results[label].keys())
        if len(both) < 2:
            raise UserError(
                f"{first} and {label} share {len(both)} seeds with a result, and a test needs 2: "
                + "; ".join(
                    f"{k} has {', '.join(map(str, v)) or 'none'}" for k, v in results.items()
                ),
                status=1,
            )
        a, b = ([results[side][seed].value for seed in both] for side in (first, label))
        tests[label] = paired(a, b, tests=len(others))
    rows = [[metric, "seeds", "mean", "std", "95 % interval"]]
    for label, found in results.items():
        s = summary([r.value for r in found.values()])
        interval = f"{s.low:.4f} to {s.high:.4f}"
        rows.append([label, str(len(found)), f"{s.mean:.4f}", f"{s.std:.4f}", interval])
    print(f"\n{text_table(rows, 1)}\n")
    for (label, test), p in zip(tests.items(), holm([t.p for t in tests.values()]), strict=True):
        print(verdict(first, label, metric, better, test, p, len(others)))
    header = ["configuration", "seed", metric, "steps", "folder"]
    return [header, *([k, seed, *r] for k, found in results.items() for seed, r in found.items())]


def results_of(
    groups: dict[str, Seeds], asked: str | None
) -> tuple[dict[str, dict[int, Result]], str]:
    """Return the results by label and seed, and the name of the metric."""
    folders = [folder for seeds in groups.values() for folder in seeds.values()]
    tables = {folder: read(folder / "metrics.csv") for folder in folders}
    logged = [{c for c in t.columns if "/" in c and t.values(c)} for t in tables.values()]
    of_all = sorted(set.intersection(*logged)) if logged else []
    metric = asked or next((name for name in USUAL if name in of_all), (of_all or [""])[-1])
    if not any(metric in names for names in logged):
        there = did_you_mean(metric, of_all) or f"; all have {', '.join(of_all) or 'none'}"
        raise UserError(f"--metric={metric}: was not logged{there}", 2 if logged else 1)
    results: dict[str, dict[int, Result]] = {label: {} for label in groups}
    for label, seeds in groups.items():
        for seed, folder in sorted(seeds.items()):
            last = [math.nan, *tables[folder].values(metric)][-1]
            if math.isfinite(last):
                steps = int(max(tables[folder].values("step"))) + 1
                results[label][seed] = Result(last, steps, folder)
            else:
                print(f"left out: {folder}: no {metric} that is a number", file=sys.stderr)
    return results, metric


def notes(results: dict[str, dict[int, Result]]) -> Iterator[str]:
    """Yield in what the runs differ that may be no part of the question."""
    from anneal.runs.run import Run

    shared = set.intersection(*(set(found) for found in results.values()))
    for label, found in results.items():
        if alone := ", ".join(str(seed) for seed in found if seed not in shared):
            yield f"seed {alone} of {label} is not there of all others"
    steps = {label: sorted({r.steps for r in found.values()}) for label, found in results.items()}
    if len({n for counts in steps.values() for n in counts}) > 1:
        each = [f"{k} {' to '.join(map(str, {n[0]: 0, n[-1]: 0}))}" for k, n in steps.items() if n]
        yield f"they trained different numbers of steps: {', '.join(each)}"
    configs = [Run.read(next(iter(f.values())).folder).config for f in results.values() if f]
    keys = {key for config in configs for key in config if key.startswith("data")}
    if differ := sorted(k for k in keys if len({config.get(k) for config in configs}) > 1):
        yield f"their data differs, too: {', '.join(differ)}"
