"""The trials of a sweep, run some at a time; the sweep goes on when one fails."""

import math
from pathlib import Path
from typing import Any

from optuna.trial import Trial

from anneal.sweep.file import Sweep
from anneal.sweep.pool import Pool
from anneal.sweep.process import Process, can_resume, logged, recorded
from anneal.sweep.study import FAILED, FINISHED, STOPPED, Study


class Worker(Pool):
    """Run the trials that the study asks for, until none is left, here or with another worker."""

    unit = " trials"

    def __init__(self, sweep: Sweep, study: Study, folder: Path, jobs: int) -> None:
        super().__init__(sweep.name, sweep.total, jobs)
        self.sweep = sweep
        self.study = study
        self.folder = folder
        self.failed = 0

    def _heartbeat(self) -> bool:
        return self.study.heartbeat()

    def _start(self) -> bool:
        if self.study.is_over():
            return False
        if asked := self.study.ask():
            trial, values = asked
            name = f"{self.sweep.name}-{trial.number:03d}"
            folder = self.folder / name
            if (left := self.study.previous_run_dir(trial)) and can_resume(left):
                folder = left
            trial.set_user_attr("folder", str(folder))
            words = self.sweep.words(values, self.folder / f"{name}.json")
            started = Process(words, folder, self.sweep.name, self.threads, self.sweep.env)
            self.running[trial.number] = started
        return True

    def _ended(self, key: int, process: Process) -> str | None:
        trial = self.study.mine[key]
        if (outcome := self._outcome(trial, process)) is None:
            return None
        status, value, error = outcome
        self.study.finish(trial, status, value, error=error, seconds=round(process.seconds, 1))
        self.failed += status == FAILED
        metric = self.sweep.metric
        result = f"{metric.name} {value:.4g}" if metric and value is not None else ""
        return ", ".join(filter(None, [status, error, result]))

    def _outcome(self, trial: Trial, run: Process) -> tuple[str, float | None, str] | None:
        """Return status, last value of the metric and error of a trial; None: it is running."""
        metric, code = self.sweep.metric, run.status()
        if code is None:
            if not self.sweep.early or not metric:
                return None
            if not self.study.should_stop(trial, logged(run.folder, metric.name)):
                return None
            run.terminate()
            run.end()
            return STOPPED, None, ""
        if code:
            return FAILED, None, run.error()
        if metric is None:
            return FINISHED, None, ""
        values = logged(run.folder, metric.name) or recorded(run.folder, metric.name)
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

    def _requeue(self, key: int) -> None:
        self.study.requeue(key)
