"""The command `cooldown`: runs of several lengths, as branches that decay off one stable run."""

import argparse
import shlex
from pathlib import Path

from anneal.errors import UserError, command
from anneal.runs.config import flatten, parse
from anneal.runs.drops import branch_steps
from anneal.runs.folder import AT_STEP, RUNS, checkpoints_of, configs_of, find_run
from anneal.runs.metrics import of_run
from anneal.system import text_table

COOLDOWNS = RUNS / "cooldown"
SHOWN = ("val/loss", "val/acc", "test/loss", "test/acc")


@command
def main(args: list[str] | None = None) -> int:
    """Run the command line; return 0, 1 if a training failed, 130 if it was interrupted."""
    about = "Trains the decays of runs of half the length, a quarter, ..., each from a checkpoint "
    about += "of one WSD run. Typed again, it resumes."
    parser = argparse.ArgumentParser(prog="python train.py cooldown", description=about)
    parser.add_argument("--run", required=True, metavar="NAME", help="the WSD run")
    about = "lengths, the run's own among them, each half of the one before (default: 5)"
    parser.add_argument("--budgets", type=int, default=5, metavar="N", help=about)
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="so many at a time")
    typed = parser.parse_args(args)
    if typed.budgets < 2:
        raise UserError(f"--budgets={typed.budgets}: at least 2, one is the run's own")
    run = find_run(RUNS, typed.run)
    budgets, key = branches_of(run, typed.budgets)
    folder = COOLDOWNS / run.resolve().name
    listed = {
        f"{folder.name}-{budget}": [
            f"--ckpt_path={checkpoints_of(run) / AT_STEP.format(first)}",
            f"--trainer.max_steps={budget}",
            f"--{key}.branches=0",
        ]
        for budget, first in budgets[1:]
    }
    from anneal.sweep.process import train

    failed = train(folder, listed, typed.jobs)
    print(f"\n{text_table(rows_of(budgets, [run, *(folder / name for name in listed)]))}\n")
    longest, apart = budgets[0][0], sum(budget for budget, _ in budgets)
    cost = longest + sum(budget - first for budget, first in budgets[1:])
    print(
        f"{cost:,} steps, {cost / longest:.2f} times the longest run; trained separately "
        f"{apart:,}, {apart / longest:.2f} times"
    )
    print(f"curves: python train.py report {shlex.join([str(run), str(folder)])}")
    return 1 if failed else 0


def branches_of(run: Path, n: int) -> tuple[list[tuple[int, int]], str]:
    """Return `n` budgets of a run with the step at which each decays, and its scheduler's key."""
    config = dict(flatten(parse(configs_of(run)[-1].read_text(), run)))
    keys = [k for k, v in config.items() if k.endswith(".class_path") and str(v).endswith(".WSD")]
    flags = f"--model.schedule.scheduler=WSD --model.schedule.scheduler.branches={n}"
    if not keys:
        raise UserError(f"{run} has no decay that could begin earlier: train with {flags}")
    key = keys[0].removesuffix(".class_path")
    table = of_run(run)
    steps = int(max(table.values("step"), default=-1)) + 1
    epochs = max(table.values("epoch"), default=-1) + 1
    if steps != config["trainer.max_steps"] and epochs != config["trainer.max_epochs"]:
        raise UserError(f"{run} is not at its end: fit --ckpt_path=last --run={run} resumes it")
    if (kept := config[f"{key}.branches"]) < n:
        raise UserError(f"{run} was trained with branches={kept}: train with {flags}")
    budgets = branch_steps(steps, config[f"{key}.decay"], n)
    for i, (budget, first) in enumerate(budgets[1:], 1):
        if not (path := checkpoints_of(run) / AT_STEP.format(first)).is_file():
            raise UserError(
                f"no {path}, where a run of {budget} steps begins to decay: within a warmup, and "
                "before a run was resumed to another length, nothing is kept"
                + (f"; take --budgets={i}" if i > 1 else "")
            )
        made = COOLDOWNS / run.resolve().name / f"{run.resolve().name}-{budget}" / "config.yaml"
        if made.is_file() and made.stat().st_mtime < path.stat().st_mtime:
            raise UserError(f"{made.parent} is of an earlier {run}: remove {made.parents[1]}")
    return budgets, key


def rows_of(budgets: list[tuple[int, int]], folders: list[Path]) -> list[list[str]]:
    """Return the rows of the table: budgets, steps trained, and the last value of each metric."""
    tables = list(map(of_run, folders))
    shown = [name for name in SHOWN if any(table.values(name) for table in tables)]
    rows = [["budget", "steps trained", *shown, "folder"]]
    for (budget, first), folder, table in zip(budgets, folders, tables, strict=True):
        ends = [table.values(name)[-1:] for name in shown]
        trained = budget - (first if folder != folders[0] else 0)
        values = [f"{end[0]:.4f}" if end else "" for end in ends]
        rows.append([str(budget), str(trained), *values, str(folder)])
    return rows
