"""The command `sweep`: run the trials of a sweep file, and show a table and a figure of them."""

import argparse
import signal
import sys
from pathlib import Path

from anneal.errors import UserError, command

SWEEPS = Path("runs/sweeps")
STOPPING = (signal.SIGINT, signal.SIGTERM)


def run(file: Path, jobs: int, storage: str | None) -> int:
    """Run a sweep or resume it; return 0, 1 if no trial succeeded, 130 if it was interrupted."""
    if jobs < 1:
        raise UserError(f"-j {jobs}: must be at least 1")
    from anneal.sweep import process
    from anneal.sweep.file import read

    sweep = read(file)
    process.warm_up(training=sweep.trains)
    # These take seconds, in which the trials' imports are done too.
    from anneal.sweep import result
    from anneal.sweep.study import Study
    from anneal.sweep.worker import Worker

    folder = SWEEPS / sweep.name
    study = Study(sweep, folder, storage)
    if not result.rows_of(study) and (old := next(folder.glob(f"{sweep.name}-*/"), None)):
        raise UserError(f"{old} is of an earlier sweep: move or remove {folder}")
    worker = Worker(sweep, study, folder, jobs)
    # From here on a signal only leaves word: an exception in the middle of a transaction would
    # take the storage's connection along.
    for number in STOPPING:
        signal.signal(number, worker.interrupt)
    worker.run()
    rows = result.rows_of(study)
    result.write_table(folder / "table.csv", sweep, rows)
    if not worker.interrupted and study.ended() < (sweep.run_cap or 0):
        why = "the target is reached" if sweep.metric and sweep.metric.target else "none is left"
        print(f"{study.ended()} trials of run_cap={sweep.run_cap}: {why}", file=sys.stderr)
    print(f"\n{result.text_table(sweep, rows)}\n\n{folder / 'table.csv'}")
    if figure := result.plot(sweep, rows):
        figure.savefig(folder / f"{sweep.name}.png", dpi=120)
        print(folder / f"{sweep.name}.png")
    if worker.interrupted:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    return 0 if any(row.status == "finished" for row in rows) else 1


@command
def main(args: list[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    about = "Runs a W&B sweep file on this machine. Typed again, it resumes."
    parser = argparse.ArgumentParser(prog="python train.py sweep", description=about)
    parser.add_argument("file", type=Path, help="as `wandb sweep` takes it")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="trials at a time")
    parser.add_argument("--storage", metavar="URL", help="of Optuna, for several workers")
    typed = parser.parse_args(args)
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
    return run(typed.file, typed.jobs, typed.storage)
