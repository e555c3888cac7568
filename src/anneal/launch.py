"""Several processes of one training: when one fails, all end, and its reason is shown last.

A process that has lost its connection to another one is not the reason: it waits until whoever
started it ends it. The reason of a process that was started by another one goes through a file, the
way torchrun has it, so that it is shown once, after all that the others print.

Lightning's private names are as they were in releases 2.6.4 to 2.6.6.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import distributed

from anneal.errors import UserError, show
from anneal.system import atomic_write

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # an environment variable of torchrun's
LOST = re.compile(r"gloo|nccl|by peer|broken pipe", re.IGNORECASE)
PATIENCE = 10.0  # seconds until a lost connection counts as the reason itself
STUCK = 5.0  # seconds after which a process that has not noticed another one's end is ended

Failure = tuple[str, int]  # what a person reads, and the exit status


class Launcher(_SubprocessScriptLauncher):
    """Start processes as Lightning does. All of them end when one does, and the reason is shown.

    Lightning's own looks every 5 seconds, then kills all without a reason, and does not look at all
    when it is the first process that fails: the others stay.
    """

    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: Trainer | None = None, **kw: Any
    ) -> Any:
        global _launcher
        self.cluster_environment.validate_settings(self.num_processes, self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            _launcher = self
            self.folder = TemporaryDirectory()
            self.file = Path(self.folder.name) / "error"
            os.environ[ERROR_FILE] = str(self.file)
            self._call_children_scripts()
            del os.environ[ERROR_FILE]
        _set_num_threads_if_needed(num_processes=self.num_processes)
        ended = threading.Event()
        if self.procs:
            threading.Thread(target=self._watch, args=(ended,), daemon=True).start()
        try:
            return function(*args, **kw)
        except distributed.DistNetworkError as e:
            if "EADDRINUSE" not in str(e):
                raise
            raise UserError(
                f"MASTER_PORT={self.cluster_environment.main_port}: another program has this "
                "port; take another one, or unset MASTER_PORT and a free one is taken"
            ) from e
        finally:
            ended.set()

    def reason(self) -> Failure | None:
        """Return why another process has failed; None: none has."""
        if self.file.exists():
            message = json.loads(self.file.read_text())["message"]
            return message["message"], message["errorCode"]
        codes = {rank: code for rank, p in enumerate(self.procs, 1) if (code := p.poll())}
        if not codes:
            return None
        rank = min(codes, key=codes.__getitem__)  # a killed one rather than one that noticed
        if (code := codes[rank]) > 0:
            return f"error: process {rank} has ended with status {code}", code
        name = signal.Signals(-code).name
        memory = ", as the system does when memory is short" if name == "SIGKILL" else ""
        return f"error: process {rank} was killed by {name}{memory}", 128 - code

    def first_failure(self, lost: bool) -> Failure | None:
        """End all others, and return why one has failed if this one has only `lost` them."""
        deadline = time.monotonic() + PATIENCE
        while lost and not self.reason() and time.monotonic() < deadline:
            time.sleep(0.1)
        found = self.reason() if lost else None
        self.kill(signal.SIGKILL)
        return found

    def join(self, seconds: float) -> None:
        """Wait for the others to end by themselves, and no longer than that."""
        deadline = time.monotonic() + seconds
        for process in self.procs:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - time.monotonic()))

    def _watch(self, ended: threading.Event) -> None:
        """End this process, too, if it does not notice that another one has failed."""
        while not ended.wait(0.5):
            if self.reason() and not ended.wait(STUCK) and (found := self.first_failure(lost=True)):
                show(found[0])
                self.folder.cleanup()
                os._exit(found[1])


_launcher: Launcher | None = None  # in the process that has started the others


def gather(trainer: Trainer, value: Any) -> list[Any]:
    """Return what each process has, by rank."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        distributed.all_gather_object(values, value)
    return values


def watch(strategy: Strategy) -> None:
    """Have a strategy that starts processes of this machine start them by a `Launcher`."""
    if type(old := strategy.launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(old.cluster_environment, old.num_processes, old.num_nodes)


@contextmanager
def run_distributed(describe: Callable[[Exception], Failure | None]) -> Iterator[None]:
    """Run a block so that it fails in all processes if it fails in one, and end this one then.

    `describe` makes of an exception what a person is shown; None: its traceback.
    """
    global _launcher
    if ERROR_FILE in os.environ:
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()
    try:
        yield
        if _launcher:
            _launcher.join(PATIENCE)
            if found := _launcher.first_failure(lost=bool(_launcher.reason())):
                _end(found)
        if distributed.is_initialized():
            # A thread of gloo's that still holds a tensor while the interpreter ends aborts it:
            # https://github.com/pytorch/pytorch/pull/179291. Lightning does it for NCCL alone.
            distributed.destroy_process_group()
    except Exception as e:
        lost, reports = is_lost(e), ERROR_FILE in os.environ
        if lost and not _launcher:
            time.sleep(PATIENCE)
        found = (_launcher.first_failure(lost) if _launcher else None) or describe(e)
        if not (found or _launcher or reports):
            raise
        found = found or (traceback.format_exc().rstrip(), 1)
        if reports:
            _record(*found)
        if reports and "TORCHELASTIC_RUN_ID" not in os.environ:  # a Launcher shows it
            sys.exit(found[1])
        _end(found)
    finally:
        if _launcher:
            _launcher.join(STUCK)
            _launcher.kill(signal.SIGKILL)
            _launcher = None


def is_lost(e: BaseException) -> bool:
    """Return whether an exception says no more than that another process is gone."""
    if isinstance(e, distributed.DistError):
        return True
    many = isinstance(e, RuntimeError) and distributed.is_initialized()
    return many and bool(LOST.search(str(e)))


def _record(text: str, status: int) -> None:
    """Write a failure into the file, as torchrun reads it."""
    about = {"py_callstack": text, "timestamp": str(int(time.time()))}
    message = {"message": text, "errorCode": status, "extraInfo": about}
    with atomic_write(Path(os.environ[ERROR_FILE]), shared=True) as part:
        part.write_text(json.dumps({"message": message}))


def _watch_parent(parent: int) -> None:
    """End this process with the one that has started it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    show("error: the process that has started this one is gone: it was killed")
    os._exit(1)


def _end(failure: Failure) -> None:
    show(failure[0])
    sys.exit(failure[1])
