"""Weights & Biases, with an account or without, and never in the way of a training."""

import os
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal.loggers import wandb_run
from anneal.loggers.wandb_run import first_line, say, within


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
        self._recordings = self.run_dir / "wandb"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started on first use by the process of rank 0."""
        if self._experiment is None and not hasattr(self, "_attach_id"):
            arguments = self._wandb_init
            self._id = arguments["id"] = wandb_run.id_of(self._recordings)
            self._experiment = wandb_run.start(arguments, self._recordings, self._want_offline)
        return super().experiment

    @property
    def look(self) -> str:
        """What shows the run to a person: its address, or a command; empty if W&B is disabled."""
        run = self._experiment
        if run is None or run.disabled:
            return ""
        return wandb_run.typed("leet", self._recordings) if run.offline else str(run.url)

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
            import wandb

            score = callback.best_model_score
            artifact = wandb.Artifact(
                f"model-{run.id}",
                type="model",
                metadata={str(callback.monitor): None if score is None else float(score)},
            )
            artifact.add_file(best)
            # The only call that waits for the server.
            send = partial(run.log_artifact, artifact, aliases=["best", "latest"])
            if problem := within(wandb_run.INIT_SECONDS, send):
                say(f"{best} was not sent ({problem})")

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
            later = wandb_run.typed("sync --include-online", self._recordings)
            say(f"not all was sent ({first_line(error)}). Send later: {later}")

    @contextmanager
    def _unless_lost(self) -> Iterator[None]:
        # wandb records in a process of its own. If that dies, training goes on without it.
        try:
            yield
        except OSError as error:
            if not self._lost:
                say(f"stopped recording: {first_line(error)}. metrics.csv goes on")
            self._lost = True


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
