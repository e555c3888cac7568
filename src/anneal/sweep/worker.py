"""The trials of a sweep, run some at a time; the sweep goes on when one fails."""

import math
import sys
import time
from pathlib import Path
from typing import Any

from optuna.trial import Trial
from tqdm import tqdm

from anneal.runs.metrics import of_run, recorded
from anneal.sweep.file import Sweep
from anneal.sweep.process import Process, can_resume
from anneal.sweep.study import FAILED, FINISHED, STOPPED, Study

POLL_SECONDS = 0.1


class Worker:
    """Run `jobs` trials at a time, each with its share of the cores and its own folder."""

    def __init__(self, sweep: Sweep, study: Study, folder: Path, jobs: int) -> None:
        self.sweep = sweep
        self.study = study
        self.folder = folder
        self.jobs = jobs
        self.running: dict[int, tuple[Trial, Process]] = {}
        self.failed = 0
        self.interrupted = False

    def interrupt(self, *_: Any) -> None:
        """End the running trials and `run` within seconds; a handler of signals."""
        self.interrupted = True

    def run(self) -> None:
        """Run until no trial is left, here or with another worker that may die."""
        total, name = self.sweep.total, self.sweep.name
        bar = tqdm(total=total, desc=name, unit=" trials", smoothing=0, disable=None)
        try:
            while not self.interrupted:
                others = self.study.heartbeat()
                while not (
                    len(self.running) >= self.jobs or self.interrupted or self.study.is_over()
                ):
                    if asked := self.study.ask():
                        self._start(*asked)
                self._show(bar)
                if not self.running and not others:
                    break
                self._wait()
        finally:
            self._end_all()
            bar.close()

    def _start(self, trial: Trial, values: dict[str, Any]) -> None:
        name = f"{self.sweep.name}-{trial.number:03d}"
        folder = self.folder / name
        if (again := trial.user_attrs.get("again")) is not None:  # the trial that it repeats
            left = self.study.trials()[again].user_attrs.get("folder")
            folder = Path(left) if left and can_resume(Path(left)) else folder
        trial.set_user_attr("folder", str(folder))
        words = self.sweep.words(values, self.folder / f"{name}.json")
        started = Process(words, folder, self.sweep.name, self.jobs, self.sweep.env)
        self.running[trial.number] = trial, started

    def _wait(self) -> None:
        """Wait until a trial has ended; not for ever, as the study wants its heartbeat."""
        deadline = time.monotonic() + 1.0
        while not (self.interrupted or self._tend()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _tend(self) -> bool:
        """Record the trials that have ended, stop those that should; return whether one has."""
        before = len(self.running)
        for number, (trial, run) in list(self.running.items()):
            if (outcome := self._outcome(trial, run)) is None:
                continue
            status, value, error = outcome
            seconds = round(time.monotonic() - run.started, 1)
            self.study.finish(trial, status, value, error=error, seconds=seconds)
            self.failed += status == FAILED
            metric = self.sweep.metric
            result = f"{metric.name} {value:.4g}" if metric and value is not None else ""
            facts = ", ".join(filter(None, [status, error, result]))
            tqdm.write(f"{run.folder}: {facts}", file=sys.stderr)
            del self.running[number]
        return len(self.running) < before

    def _outcome(self, trial: Trial, run: Process) -> tuple[str, float | None, str] | None:
        """Return status, last value of the metric and error of a trial; None: it is running."""
        metric, code = self.sweep.metric, run.status()
        if code is None:
            if not self.sweep.early or not metric:
                return None
            if not self.study.should_stop(trial, of_run(run.folder).values(metric.name)):
                return None
            run.terminate()
            run.end()
            return STOPPED, None, ""
        if code:
            return FAILED, None, run.error()
        if metric is None:
            return FINISHED, None, ""
        values = of_run(run.folder).values(metric.name)
        if not values:  # a program that writes no metrics.csv
            found = [row.get(metric.name) for row in recorded(run.folder)]
            values = [float(v) for v in found if isinstance(v, int | float)]
        if not values:
            return FAILED, None, f"{metric.name} was not logged"
        if not math.isfinite(values[-1]):
            return FAILED, None, f"{metric.name} is {values[-1]} at the end"
        return FINISHED, values[-1], ""

    def _show(self, bar: Any) -> None:
        """Show how many have ended, with all workers, and the best so far."""
        bar.n = self.study.ended()
        best = self.study.best()
        metric = self.sweep.metric
        facts = [f"best {metric.name} {best:.4g}"] if metric and best is not None else []
        facts += [f"{self.failed} failed"] if self.failed else []
        bar.set_postfix_str(", ".join(facts))

    def _end_all(self) -> None:
        """End what is running when the sweep is interrupted, and queue it again for its resume."""
        for _, run in self.running.values():
            run.terminate()
        for trial, run in self.running.values():
            run.end()
            self.study.requeue(trial.number)
