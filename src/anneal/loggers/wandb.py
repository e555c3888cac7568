"""Weights & Biases, with an account or without, and never in the way of a training.

wandb takes half a second to import, for which a command that starts no run does not wait. Its
private names (`wandb.sdk`) are as they were in release 0.31.0.
"""

import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger as LightningWandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from anneal.errors import UserError, first_line
from anneal.loggers.viewers import Viewer, default_project, typed
from anneal.runs.metrics import recorded

RECORDINGS = "*run-*/run-*.wandb"
ANSWER_SECONDS = 5.0  # for the W&B server to answer at all
INIT_SECONDS = 15.0  # for it to accept a run
FINISH_SECONDS = 60.0  # for the last uploads at the end of a run, also where it went away


class WandbLogger(Viewer, LightningWandbLogger):
    """Record the run with Weights & Biases; an account is not needed.

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
            project=project or default_project(),
            save_dir=self.run_dir,
            tags=tags,
            notes=notes,
            group=group,
        )
        del self._wandb_init["anonymous"]  # wandb warns about it
        self._want_offline = offline
        self._recordings = self.run_dir / "wandb"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started on first use by the process of rank 0."""
        if self._experiment is None and not hasattr(self, "_attach_id"):
            # A run that is resumed keeps the id that its recordings are named after.
            ids = [f.stem.removeprefix("run-") for f in self._recordings.glob(RECORDINGS)]
            self._id = self._wandb_init["id"] = ids[0] if ids else secrets.token_hex(4)
            self._experiment = start(self._wandb_init, self._recordings, self._want_offline)
        return super().experiment

    @property
    def look(self) -> str:  # type: ignore[override]
        """The address or the command that shows the run; empty if W&B is disabled."""
        run = self._experiment
        if run is None or run.disabled:
            return ""
        return typed("wandb", "leet", self._recordings) if run.offline else str(run.url)

    @rank_zero_only
    def log_config(self, config: dict[str, Any], file: str | os.PathLike[str]) -> None:
        """Put the resolved configuration into the run, once before training, and its `file` too."""
        run = self.experiment
        run.config.update(config, allow_val_change=True)
        if not run.disabled:
            # Under another name, because wandb writes a `config.yaml` of its own there.
            copy = shutil.copyfile(file, Path(run.dir) / "anneal.yaml")
            run.save(copy, base_path=run.dir, policy="now")

    def recorded(self) -> Iterable[tuple[int, str]]:
        rows = recorded(self.run_dir)
        return ((row.get("trainer/global_step", -1), name) for row in rows for name in row)

    def log_image(self, key: str, images: list[Any], *args: Any, **kwargs: Any) -> None:
        """Send images, as Lightning's logger does."""
        with self.unless_lost():
            super().log_image(key, images, *args, **kwargs)

    @rank_zero_only
    def finish(self, exit_code: int = 0) -> None:
        """End the run; with another `exit_code` than 0 W&B shows it as failed."""
        run, self._experiment = self._experiment, None
        if run is None or self._lost:
            return
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # what was trained does not depend on the tracker
            later = typed("wandb", "sync", "--include-online", self._recordings)
            say(f"not all was sent ({_reason(error)}). Send later: {later}")


def start(arguments: Mapping[str, Any], folder: Path, offline: bool) -> Any:
    """Start a wandb run that records into `folder`: offline where online fails, else disabled."""
    import wandb

    with suppress(Exception):
        wandb.finish()  # an earlier training in this process that was not finished
    earlier = [*folder.glob(RECORDINGS)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1.0,  # what a kill can lose, and how late `leet` shows it
    )
    mode, why = _mode(offline)
    while True:
        resume = "allow" if earlier and mode == "online" else None  # offline: wandb would warn
        try:
            run = wandb.init(**{**arguments, "mode": mode, "resume": resume, "settings": settings})
            break
        except Exception as error:  # no training fails because of its tracker
            if mode == "disabled":
                raise
            why = _reason(error)
            mode = "offline" if mode == "online" else "disabled"
            for left in set(folder.glob("*run-*")) - {file.parent for file in earlier}:
                shutil.rmtree(left, ignore_errors=True)  # of the attempt that failed
    _announce(run, mode, why, folder, earlier)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def within(seconds: float, call: Callable[[], Any]) -> str:
    """Return why a call to the server did not succeed in this time, or an empty string."""
    problem = ["the server does not answer"]

    def run() -> None:
        try:
            call()
            problem[0] = ""
        except Exception as error:
            problem[0] = _reason(error)

    # wandb itself would try for minutes.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problem[0]


def say(line: str) -> None:
    """Print a line about W&B to stderr."""
    print(f"W&B: {line}", file=sys.stderr)


def _reason(error: Exception) -> str:
    return first_line(error).rstrip(".")


def _mode(want_offline: bool) -> tuple[str, str]:
    """Return how to run, and why if not online."""
    import wandb
    from wandb.sdk.lib import wbauth

    # Reports of wandb's own errors hold up the end where the server does not answer.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        settings = wandb.setup().settings
    except ValueError as error:
        problem = " ".join(str(error).split())[:200]
        raise UserError(f"wandb refuses its settings (WANDB_... variables): {problem}") from error
    if settings.mode == "disabled":
        return "disabled", "as asked"
    if want_offline or settings.mode in ("offline", "dryrun"):
        return "offline", "as asked"
    try:
        credentials = wbauth.authenticate_session(
            host=settings.base_url, source="anneal", prompt=False, update_session=False
        )
    except Exception as error:  # a key that can't be one
        return "offline", _reason(error)
    if credentials is None:
        return "offline", "not logged in"
    problem = within(ANSWER_SECONDS, credentials.verify)
    return ("offline", f"{credentials.host}: {problem}") if problem else ("online", "")


def _announce(run: Any, mode: str, why: str, folder: Path, earlier: list[Path]) -> None:
    # `wandb sync` sends each folder as a whole run, so that only the last folder would be left;
    # told to resume, it appends, and moves on W&B's own step, which starts from 0 in each.
    sync = f"{'WANDB_RESUME=allow ' if earlier else ''}{typed('wandb', 'sync', folder)}"
    offline = [file.parent for file in earlier if file.parent.name.startswith("offline-")]
    if mode == "disabled":
        say(f"disabled ({why})")
    elif mode == "offline":
        say(f"offline ({why}). Look: {typed('wandb', 'leet', folder)} · Send later: {sync}")
    elif any(not [*left.glob("*.synced")] for left in offline):
        say(f"{run.url} · Its first part was recorded offline, to send it: {sync}")
    else:
        say(str(run.url))
