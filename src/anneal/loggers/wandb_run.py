"""Starts a W&B run: online if the server takes it, offline otherwise, and says so in a line.

wandb takes half a second to import, for which a command that starts no run does not wait.
"""

import os
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anneal.errors import UserError

ANSWER_SECONDS = 5.0  # for the W&B server to answer at all
INIT_SECONDS = 15.0  # for it to accept a run
FINISH_SECONDS = 60.0  # for the last uploads at the end of a run, also where it went away


def id_of(folder: Path) -> str:
    """The id that the recordings in a folder are named after; a new one if there are none."""
    from wandb.sdk.lib import runid

    stems = [file.stem for file in _recordings(folder)]
    return stems[0].removeprefix("run-") if stems else runid.generate_id()


def start(arguments: Mapping[str, Any], folder: Path, offline: bool) -> Any:
    """The started wandb run: offline where online fails, disabled where that fails too.

    Args:
        arguments: Of `wandb.init`.
        folder: Where wandb records, `wandb` in the folder of the run.
        offline: Record on this machine only, even when logged in.

    Raises:
        UserError: If wandb refuses what the WANDB_... variables say.
    """
    import wandb

    with suppress(Exception):
        wandb.finish()  # an earlier training in this process that was not finished
    earlier = _recordings(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    mode, why = _mode(offline)
    while True:
        resume = "allow" if earlier and mode == "online" else None  # offline: wandb would warn
        try:
            run = wandb.init(
                **{**arguments, "mode": mode, "resume": resume},
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
            why = first_line(error)
            mode = "offline" if mode == "online" else "disabled"
            for left in set(folder.glob("*run-*")) - {file.parent for file in earlier}:
                shutil.rmtree(left, ignore_errors=True)  # of the attempt that failed
    _announce(run, mode, why, folder, earlier)
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return run


def typed(command: str, folder: Path) -> str:
    """A command of wandb as one types it here: with the path of wandb where that is needed.

    Args:
        command: Its name and flags.
        folder: What it is given.
    """
    program = "wandb"
    if not shutil.which("wandb"):  # the environment is not activated
        program = os.path.relpath(Path(sys.executable).with_name("wandb"))
    return f"{program} {command} {shlex.quote(str(folder))}"


def within(seconds: float, call: Callable[[], Any]) -> str:
    """Why a call to the server did not succeed in this time, or an empty string."""
    problem = ["the server does not answer"]

    def run() -> None:
        try:
            call()
            problem[0] = ""
        except Exception as error:
            problem[0] = first_line(error)

    # wandb itself would try for minutes.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problem[0]


def say(line: str) -> None:
    """Print a line about W&B to stderr."""
    print(f"W&B: {line}", file=sys.stderr)


def first_line(error: Exception) -> str:
    """The first line of what an error says, without its full stop; its name if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _recordings(folder: Path) -> list[Path]:
    return list(folder.glob("*run-*/run-*.wandb"))


def _mode(want_offline: bool) -> tuple[str, str]:
    """How to run, and why if not online."""
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
        return "offline", first_line(error)
    if credentials is None:
        return "offline", "not logged in"
    problem = within(ANSWER_SECONDS, credentials.verify)
    return ("offline", f"{credentials.host}: {problem}") if problem else ("online", "")


def _announce(run: Any, mode: str, why: str, folder: Path, earlier: list[Path]) -> None:
    # `wandb sync` sends each folder as a whole run, so that only the last folder would be left;
    # told to resume, it appends, and moves on W&B's own step, which starts from 0 in each.
    sync = f"{'WANDB_RESUME=allow ' if earlier else ''}{typed('sync', folder)}"
    if mode == "disabled":
        say(f"disabled ({why})")
    elif mode == "offline":
        say(f"offline ({why}). Look: {typed('leet', folder)} · Send later: {sync}")
    elif any(
        file.parent.name.startswith("offline-") and not [*file.parent.glob("*.synced")]
        for file in earlier
    ):
        say(f"{run.url} · Its first part was recorded offline, to send it: {sync}")
    else:
        say(str(run.url))
