"""A sweep whose trials stand in a PostgreSQL server, shared by several workers."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from helpers import is_alive
from optuna.trial import TrialState
from test_sweep import calls, folder, start, table, write

from anneal.sweep import study as study_module
from anneal.sweep.file import read
from anneal.sweep.main import main
from anneal.sweep.study import Study
from anneal.testing import wait_for

__all__ = ["folder"]  # a fixture
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
INITDB = shutil.which("initdb") or (PROGRAMS and str(PROGRAMS[-1]))


@pytest.fixture(scope="module")
def postgres():
    """The address of a server of its own, on a socket in a new folder."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if not INITDB:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    # The server refuses to run as root.
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    data = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(data, user)
    programs = Path(INITDB).resolve().parent
    options = {"user": user, "cwd": data, "stdout": subprocess.DEVNULL}
    made = [programs / "initdb", "-D", data / "db", "-U", "anneal", "-A", "trust", "--no-sync"]
    subprocess.run(made, check=True, **options)
    command = [programs / "postgres", "-D", data / "db", "-k", data, "-h", "", "-F"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for((data / ".s.PGSQL.5432").exists)
        yield f"postgresql+psycopg://anneal@/postgres?host={data}"
    finally:
        server.send_signal(signal.SIGINT)  # fast shutdown
        server.wait(600)
        shutil.rmtree(data)


def test_two_workers_share_a_sweep_and_run_nothing_twice(folder, postgres):
    file = write(folder, {"x": {"min": 0, "max": 9}, "steps": {"value": 3}}, name="shared")
    workers = [start(folder, str(file), "--storage", postgres) for _ in range(2)]
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert sorted(int(c["x"]) for c in calls(folder)) == list(range(10))
    # The one that ends last shows all of them.
    assert max(output.count("  finished") for output in outputs) == 10, outputs


def test_the_trial_of_a_dead_worker_is_run_by_another(folder, postgres, monkeypatch):
    file = write(folder, {"x": {"values": [1, 2]}}, name="taken")
    (folder / "hold-1-0").touch()
    worker = start(folder, str(file), "--storage", postgres)
    wait_for(lambda: (folder / "calls.txt").exists())
    worker.kill()
    worker.wait()
    wait_for(lambda: not is_alive(calls(folder)[0]["pid"]))
    (folder / "hold-1-0").unlink()
    monkeypatch.setattr(study_module, "SIGN_OF_LIFE", 0.2)
    monkeypatch.setattr(study_module, "DEAD_AFTER", 1.0)
    assert main([str(file), "--storage", postgres]) == 0
    status = [row["status"] for row in table(folder, "taken")]
    assert status == ["finished", "finished", "interrupted, run again"]
    assert [c["x"] for c in calls(folder)] == ["1", "2", "1"]


def test_a_slow_worker_is_not_taken_for_dead_and_its_result_counts_once(
    folder, postgres, monkeypatch
):
    sweep = read(write(folder, {"x": {"values": [1]}}, name="slow"))
    slow, other = (Study(sweep, folder, postgres) for _ in range(2))
    trial, _ = slow.ask()
    assert other.is_over()
    monkeypatch.setattr(study_module, "DEAD_AFTER", 0.05)
    for _ in range(3):
        slow.heartbeat()
        slow._next_look = other._next_look = 0.0
        assert other.heartbeat()
        time.sleep(0.1)
    assert not other.trials(TrialState.WAITING)
    # Thought dead for all that: what the other one queues is what counts.
    other.requeue(trial.number)
    slow.finish(trial, "finished", 1.0)
    assert [t.state for t in other.trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_a_storage_that_does_not_answer_is_one_line(folder, capsys):
    file = write(folder, {"x": {"values": [1]}})
    assert main([str(file), "--storage", f"postgresql+psycopg://me:secret@/db?host={folder}"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: the storage: ")
    assert len(printed.splitlines()) == 1
    assert "secret" not in printed
