"""The trials of a sweep, in a database that outlives its workers and can be shared by them."""

import itertools
import json
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from anneal.errors import UserError, first_line
from anneal.sweep.file import Sweep
from anneal.system import lock

SIGN_OF_LIFE = 10.0  # seconds between two of a running trial
DEAD_AFTER = 60.0  # seconds without one, then another worker runs the trial again
SAME_IN_A_ROW = 100  # draws that were all tried before end a sweep
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped early"


class Study:
    """Optuna's study of a sweep: what is run next, and what became of it.

    One worker asks for a trial and tells how it ended; its parameters, its status and its folder
    are among Optuna's user attributes. The trials of a worker that died are run again:
    at the next start where the database is `study.db` in the sweep's folder, which one worker has
    to itself; in another storage of Optuna (postgresql://..., mysql://...) by another worker, after
    a minute without a sign of life.
    """

    def __init__(self, sweep: Sweep, folder: Path, storage: str | None = None) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep = sweep
        self.shared = storage is not None
        self.mine: dict[int, Trial] = {}
        self._reported: dict[int, int] = {}
        self._seen: dict[int, tuple[Any, float]] = {}  # of others: last sign of life, since when
        self._next_look = 0.0
        self._same_in_a_row = 0
        folder.mkdir(parents=True, exist_ok=True)
        if not self.shared:
            self._lock = lock(folder)
            if self._lock is None:
                raise UserError(
                    f"the sweep {sweep.name} is running already, in {folder}: -j sets how many "
                    "trials run at a time, --storage lets several workers share a sweep"
                )
        self.study, created = self._open(storage or f"sqlite:///{folder}/study.db")
        self._check_sweep(folder)
        self._fill(created)
        if not self.shared:
            for trial in self.trials(TrialState.RUNNING):
                self.requeue(trial.number)

    def _open(self, storage: str) -> tuple[optuna.Study, bool]:
        """Return the study, and whether it is new."""
        early = self.sweep.early
        settings: dict[str, Any] = {
            "study_name": self.sweep.name,
            "storage": storage,
            "sampler": self._sampler(),
            "pruner": SuccessiveHalvingPruner(early.first, early.eta) if early else NopPruner(),
        }
        metric = self.sweep.metric
        settings["direction"] = "maximize" if metric and metric.maximize else "minimize"
        attempts = 3 if self.shared else 1
        while True:
            attempts -= 1
            try:
                return optuna.create_study(**settings), True
            except DuplicatedStudyError:
                return optuna.create_study(**settings, load_if_exists=True), False
            except Exception as e:  # SQLAlchemy's, a driver's, Redis' ...
                if not attempts:
                    cause = e.__cause__ or e  # not the URL, which may hold a password
                    raise UserError(f"the storage: {first_line(cause)}") from e
            # Workers that find an empty database all make its tables, and all but one fail.
            time.sleep(1.0)

    def _sampler(self) -> BaseSampler:
        if self.sweep.method != "bayes":
            return RandomSampler()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(constant_liar=True)  # trials side by side keep their distance

    def _check_sweep(self, folder: Path) -> None:
        """Raise UserError unless the sweep is what the study was begun with, but for run_cap."""
        sweep = self.sweep
        now = {
            "method": sweep.method,
            "parameters": {p.name: repr(p.distribution) for p in sweep.parameters},
            "constants": {".".join(path): value for path, value in sweep.constants.items()},
            "metric": repr(sweep.metric),
            "early_terminate": repr(sweep.early),
            "command": [sweep.program, *sweep.command],
        }
        begun = self.study.user_attrs.get("sweep", now)
        if changed := [key for key in now if json.dumps(now[key]) != json.dumps(begun[key])]:
            raise UserError(
                f"the sweep {sweep.name} was begun with other {' and '.join(changed)}: give this "
                f"one another name in its file, or remove {folder}"
                f"{' and the study from the storage' if self.shared else ''}"
            )
        self.study.set_user_attr("sweep", now)

    # ---- what is run next

    def _fill(self, created: bool) -> None:
        """Queue all trials of a sweep that has an end."""
        total = self.sweep.total
        if total is None:
            return
        deadline = time.monotonic() + DEAD_AFTER
        while self.shared and not created and time.monotonic() < deadline:
            if "queued" in self.study.user_attrs:
                break
            time.sleep(0.5)  # the worker that made the study is at it
        if self.study.user_attrs.get("queued") == total:
            return
        queued = [*self._begun(), *self.trials(TrialState.WAITING)]
        points: list[dict[str, Any]] = [{}] * (total - len(queued))  # drawn when they are asked for
        if self.sweep.method == "grid":
            points = list(itertools.islice(self.sweep.grid(), total))
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=bool(point) and not created)
        self.study.set_user_attr("queued", total)

    def is_over(self) -> bool:
        """Return whether nothing is left to be asked for."""
        metric, best = self.sweep.metric, self.best()
        if metric and metric.target is not None and best is not None:
            sign = 1 if metric.maximize else -1
            if sign * best >= sign * metric.target:
                return True
        waits = self.sweep.total is None or bool(self.trials(TrialState.WAITING))
        return not waits or self._same_in_a_row >= SAME_IN_A_ROW

    def ask(self) -> tuple[Trial, dict[str, Any]] | None:
        """Return the next trial and its parameters; None: none is left, or it was tried before."""
        if self.is_over():
            return None
        trial = self.study.ask({p.name: p.distribution for p in self.sweep.parameters})
        recorded = self.trials()[trial.number]
        if self.sweep.total is not None and "fixed_params" not in recorded.system_attrs:
            self.study.tell(trial, state=TrialState.FAIL)  # another worker took the last one
            return None
        values = self.sweep.values(trial.params)
        same = next((t for t in self.trials() if t.user_attrs.get("values") == values), None)
        if same and "again" not in trial.user_attrs:
            # Told the same result, Bayes looks elsewhere.
            done = same.state == TrialState.COMPLETE
            self.study.tell(trial, same.value if done else None, None if done else TrialState.FAIL)
            self._same_in_a_row += 1
            if self.sweep.total is not None:
                self.study.enqueue_trial({})  # another draw in its place
            return None
        self._same_in_a_row = 0
        trial.set_user_attr("values", values)
        self.mine[trial.number] = trial
        return trial, values

    def requeue(self, number: int) -> None:
        """Queue a trial that ended with its worker once more."""
        trial = self.trials()[number]
        drawn = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        with suppress(ValueError, UpdateFinishedTrialError):  # another worker has done it
            self.study.tell(number, state=TrialState.FAIL)
            self.study.enqueue_trial(drawn, user_attrs={"again": number})
        self.mine.pop(number, None)

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Return all trials by number, or those in some states."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    # ---- what becomes of it

    def should_stop(self, trial: Trial, values: list[float]) -> bool:
        """Return whether early termination ends a running trial with these values of the metric."""
        early = self.sweep.early
        if early is None:
            return False
        for step in range(self._reported.get(trial.number, 0) + 1, len(values) + 1):
            trial.report(values[step - 1], step)
            self._reported[trial.number] = step
            if (early.end is None or step < early.end) and trial.should_prune():
                return True
        return False

    def finish(self, trial: Trial, status: str, value: float | None = None, **attrs: Any) -> None:
        """Record how a trial ended, its last value if it FINISHED, and what the table shows."""
        with suppress(ValueError, UpdateFinishedTrialError):  # it was thought dead and is run again
            for key, attr in {"status": status, **attrs}.items():
                trial.set_user_attr(key, attr)
            if status == FINISHED:
                self.study.tell(trial, 0.0 if value is None else value)
            else:
                state = TrialState.PRUNED if status == STOPPED else TrialState.FAIL
                self.study.tell(trial, state=state)
        del self.mine[trial.number]

    def heartbeat(self) -> bool:
        """Give signs of life, requeue the trials of dead workers; return whether others work."""
        if not self.shared:
            return False
        running = self.trials(TrialState.RUNNING)
        others = [t for t in running if t.number not in self.mine]
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + SIGN_OF_LIFE
            for trial in self.mine.values():
                with suppress(UpdateFinishedTrialError):
                    trial.set_user_attr("alive", time.time())
            for other in others:
                # By our own clock: those of two machines may differ.
                alive, since = self._seen.get(other.number, (None, now))
                if other.user_attrs.get("alive") != alive:
                    since = now
                self._seen[other.number] = other.user_attrs.get("alive"), since
                if now - since > DEAD_AFTER:
                    self.requeue(other.number)
        return bool(others)

    def interrupted(self) -> set[int]:
        """Return the numbers of the trials that ended with their worker and were queued again."""
        return {t.user_attrs["again"] for t in self.trials() if "again" in t.user_attrs}

    def ended(self) -> int:
        """Return how many trials are done with, run or not."""
        return sum(t.state.is_finished() for t in self._begun())

    def _begun(self) -> list[FrozenTrial]:
        """Return the trials that were begun, each with its own parameters."""
        interrupted = self.interrupted()
        begun = [t for t in self.trials() if "values" in t.user_attrs]
        return [t for t in begun if t.number not in interrupted]

    def best(self) -> float | None:
        """Return the best value so far, if there is one."""
        with suppress(ValueError):  # there is none
            return self.study.best_value if self.sweep.metric else None
        return None
