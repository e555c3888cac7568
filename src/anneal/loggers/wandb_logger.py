"""Weights & Biases, with an account or without, and never in the way of a training."""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from wandb.sdk.lib import runid, wbauth

from anneal.errors import UserError

ANSWER_SECONDS = 5.0  # for the W&B server to answer at all
INIT_SECONDS = 15.0  # for it to accept a run
FINISH_SECONDS = 60.0  # for the last uploads at the end of a run, also where it went away


class WandbLogger(LightningWandbLogger):
    """Records the run with Weights & Biases; an account is not needed.

    Logged in: online. Otherwise, or where the server does not answer: offline, in the run's folder.
    WANDB_MODE=offline or =disabled is respected.

    Args:
        run_dir: The run's folder; wandb writes into its subfolder `wandb`.
        project: W&B project; by default WANDB_PROJECT, or "anneal".
        name: Name of the run in W&B; by default the name of the run's folder.
        tags: Words to find the run by.
        notes: A longer remark on the run.
        group: Puts the runs of one experiment together.
        offline: Record on this machine only, even when logged in.
    """

    def __init__(
        self,
        run_dir: str | os.PathLike[str],
        project: str | None = None,
        name: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        group: str | None = None,
        offline: bool = False,
    ) -> None:
        self.run_dir = Path(run_dir)
        super().__init__(
            name=name or os.environ.get("WANDB_NAME") or self.run_dir.resolve().name,
            project=project or os.environ.get("WANDB_PROJECT") or "anneal",
            save_dir=self.run_dir,
            tags=tags,
            notes=notes,
            group=group,
        )
        del self._wandb_init["anonymous"]  # wandb warns about it
        self._want_offline = offline
        self._sent: set[tuple[int, str]] = set()
        self._lost = False
        self._folder = shlex.quote(str(self.run_dir / "wandb"))  # as it is typed

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started on first use by the process of rank 0."""
        if self._experiment is None and not hasattr(self, "_attach_id"):
            self._experiment = self._start()
        return super().experiment

    @property
    def look(self) -> str:
        """What shows the run to a person: its address, or a command; empty if W&B is disabled."""
        run = self._experiment
        if run is None or run.disabled:
            return ""
        return f"{_command()} leet {self._folder}" if run.offline else str(run.url)

    @rank_zero_only
    def log_config(self, config: dict[str, Any], file: str | os.PathLike[str]) -> None:
        """Put the whole configuration into the run; to be called once, before training.

        Args:
            config: The resolved configuration, plain nested values.
            file: The same as a file; it becomes a file of the run.
        """
        run = self.experiment
        run.config.update({**config, "code": code_version()}, allow_val_change=True)
        if not run.disabled:
            # Under another name, because wandb writes a `config.yaml` of its own there.
            copy = shutil.copyfile(file, Path(run.dir) / "anneal.yaml")
            run.save(copy, base_path=run.dir, policy="now")

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Does nothing: they are part of the configuration, and would be there twice."""

    @rank_zero_only
    def skip(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Don't send again what an earlier process of this run sent after its last checkpoint.

        Args:
            rows: What `CSVLogger.rewind` took out.
        """
        self._sent = {
            (int(row["step"]), key)
            for row in rows
            for key, value in row.items()
            if value and key not in ("step", "epoch", "time")
        }

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send one row; its x axis is `trainer/global_step`, the index of the optimizer step.

        Args:
            metrics: Name to value.
            step: Index of the optimizer step.
        """
        if self._sent and step is not None:
            metrics = {k: v for k, v in metrics.items() if (step, k) not in self._sent}
            if not metrics.keys() - {"epoch"}:
                return
        with self._unless_lost():
            super().log_metrics(metrics, step)

    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Remember who knows the best checkpoint."""
        if checkpoint_callback.monitor:
            self._checkpoint_callbacks[0] = checkpoint_callback

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """After a training: send the best checkpoint. The run stays open for a test."""
        run, callback = self._experiment, self._checkpoint_callbacks.pop(0, None)
        if status != "success" or callback is None or run is None or run.disabled or run.offline:
            return
        if best := callback.best_model_path:
            score = callback.best_model_score
            artifact = wandb.Artifact(
                f"model-{run.id}",
                type="model",
                metadata={str(callback.monitor): None if score is None else float(score)},
            )
            artifact.add_file(best)
            # The only call that waits for the server.
            send = partial(run.log_artifact, artifact, aliases=["best", "latest"])
            if problem := _within(INIT_SECONDS, send):
                _say(f"{best} was not sent ({problem})")

    def log_image(self, key: str, images: list[Any], *args: Any, **kwargs: Any) -> None:
        """Send pictures, as Lightning's logger does."""
        with self._unless_lost():
            super().log_image(key, images, *args, **kwargs)

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """End the run: after training and test, or when they failed.

        Args:
            exit_code: 0 if all went well; W&B shows the run as failed otherwise.
        """
        run, self._experiment = self._experiment, None
        if run is None or self._lost:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # what was trained does not depend on the tracker
            later = f"{_command()} sync --include-online {self._folder}"
            _say(f"not all was sent ({_line(error)}). Send later: {later}")

    def _start(self) -> Any:
        with suppress(Exception):
            wandb.finish()  # an earlier training in this process that was not finished
        # A run that was started before goes on under its id, which wandb's files are named after.
        folder = self.run_dir / "wandb"
        earlier = {file.parent: file.stem for file in folder.glob("*run-*/run-*.wandb")}
        ids = [stem.removeprefix("run-") for stem in earlier.values()]
        self._id = self._wandb_init["id"] = ids[0] if ids else runid.generate_id()
        self.run_dir.mkdir(parents=True, exist_ok=True)
        mode, why = self._mode()
        while True:
            resume = "allow" if earlier and mode == "online" else None  # offline: wandb would warn
            try:
                run = wandb.init(
                    **self._wandb_init | {"mode": mode, "resume": resume},
                    settings=wandb.Settings(
                        silent=True,
                        console="off",
                        init_timeout=INIT_SECONDS,
                        finish_timeout=FINISH_SECONDS,
                        finish_timeout_raises=True,
                        # What a kill can lose, and how far behind `wandb leet` is on a live run.
                        x_transaction_log_flush_interval=1.0,
                    ),
                )
                break
            except Exception as error:  # no training fails because of its tracker
                if mode == "disabled":
                    raise
                why = _line(error)
                mode = "offline" if mode == "online" else "disabled"
                for left in set(folder.glob("*run-*")) - earlier.keys():
                    shutil.rmtree(left, ignore_errors=True)  # of the attempt that failed
        # `wandb sync` sends each folder as a whole run, so that only the last folder would be left;
        # told to resume, it appends, and moves on W&B's own step, which starts from 0 in each.
        sync = f"{'WANDB_RESUME=allow ' if earlier else ''}{_command()} sync {self._folder}"
        if mode == "disabled":
            _say(f"disabled ({why})")
        elif mode == "offline":
            _say(f"offline ({why}). Look: {_command()} leet {self._folder} · Send later: {sync}")
        elif any(f.name.startswith("offline-") and not [*f.glob("*.synced")] for f in earlier):
            _say(f"{run.url} · Its first part was recorded offline, to send it: {sync}")
        else:
            _say(str(run.url))
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return run

    @contextmanager
    def _unless_lost(self) -> Iterator[None]:
        # wandb records in a process of its own. If that dies, training goes on without it.
        try:
            yield
        except OSError as error:
            if not self._lost:
                _say(f"stopped recording: {_line(error)}. metrics.csv goes on")
            self._lost = True

    def _mode(self) -> tuple[str, str]:
        """How to run, and why if not online."""
        # Reports of wandb's own errors hold up the end where the server does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            settings = wandb.setup().settings
        except ValueError as error:
            problem = " ".join(str(error).split())[:200]
            raise UserError(
                f"wandb refuses its settings (WANDB_... variables): {problem}"
            ) from error
        if settings.mode == "disabled":
            return "disabled", "as asked"
        if self._want_offline or settings.mode in ("offline", "dryrun"):
            return "offline", "as asked"
        try:
            credentials = wbauth.authenticate_session(
                host=settings.base_url, source="anneal", prompt=False, update_session=False
            )
        except Exception as error:  # a key that can't be one
            return "offline", _line(error)
        if credentials is None:
            return "offline", "not logged in"
        problem = _within(ANSWER_SECONDS, credentials.verify)
        return ("offline", f"{credentials.host}: {problem}") if problem else ("online", "")


def _command() -> str:
    """wandb as one types it here: with its path where the environment is not activated."""
    if shutil.which("wandb"):
        return "wandb"
    return os.path.relpath(Path(sys.executable).with_name("wandb"))


def code_version() -> dict[str, Any]:
    """The git commit of the code and whether the tree was dirty; None where git can't tell."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return {"commit": None, "dirty": None}


def _within(seconds: float, call: Callable[[], Any]) -> str:
    """Why a call to the server did not succeed in this time, or an empty string."""
    problem = ["the server does not answer"]

    def run() -> None:
        try:
            call()
            problem[0] = ""
        except Exception as error:
            problem[0] = _line(error)

    # wandb itself would try for minutes.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problem[0]


def _say(line: str) -> None:
    print(f"W&B: {line}", file=sys.stderr)


def _line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
