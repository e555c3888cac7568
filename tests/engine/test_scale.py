"""More processes, more machines and less precision, as Lightning has them, in real processes."""

import csv
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import SMALL
from launch import QUIET, Training, script, train
from pages import ROOT, commands
from torch import nn

from anneal.callbacks import graceful_shutdown
from anneal.testing import logged, wait_for

WRITTEN = commands(ROOT / "docs" / "devices.md")
PLAIN = ("--data.shift=0", "--data.rotation=0")  # nothing is drawn for a batch


def start(folder: Path, *command: str, **env: str) -> subprocess.Popen:
    """A command in a process of its own, in `folder`."""
    (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: true"))
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "HOME": str(folder), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=600)[0]
    assert process.returncode == 0, output
    return output


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def column(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open() as file:
        return {int(r["step"]): float(r[name]) for r in csv.DictReader(file) if r.get(name)}


def printed(output: str) -> dict[str, str]:
    """The numbers in Lightning's table, as they stand there."""
    return dict(re.findall(r"((?:val|test)/\w+)[\s│]+([\d.e-]+)", output))


def free_port() -> str:
    """A port that no program has, nor is given by the system before it is used."""
    with socket.socket() as s:
        for port in random.SystemRandom().sample(range(10_000, 30_000), 100):
            with suppress(OSError):
                s.bind(("127.0.0.1", port))
                return str(port)
    raise OSError("no port is free")


def refused(run, capsys, *args: str) -> str:
    """The one line that a command is refused with, before another process is started."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        run("fit", "--config=small.yaml", *args)
    assert e.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    return line


# ---- the same step, however its samples are split

NORMS = "--health.norms=layers"
FIT = ("fit", "--config=small.yaml", "--run_name=r", *PLAIN, "--trainer.logger=true", NORMS)
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")
FSDP = ("--trainer.devices=2", "--trainer.strategy=fsdp2")
ONE = ("--trainer.devices=1", "--trainer.strategy=auto")


def assert_steps_of_64_samples(run, folder: Path) -> None:
    """The run in `folder` is, to the rounding, that of one process with 64 samples in a batch."""
    run(*FIT[:2], *FIT[3:], "--run_name=whole", "--data.batch_size=64")
    found, whole = weights(folder), weights(folder.parent / "whole")
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert max(column(folder, "samples").values()) == 8 * 64
    for name in ("weight", "gradient", "update", "ratio"):  # of a layer, at steps that are logged
        found, whole = (column(r, f"norms/net.1/{name}") for r in (folder, folder.parent / "whole"))
        assert found == {step: pytest.approx(whole[step], rel=1e-3) for step in (1, 3, 5, 7)}


def test_accumulation_takes_the_steps_of_larger_batches(run, tmp_path):
    twice = ("--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=8")
    run(*FIT, "--data.batch_size=32", *twice)
    assert_steps_of_64_samples(run, tmp_path / "runs" / "r")


@pytest.mark.parametrize("split", [DDP, FSDP], ids=["ddp", "fsdp2"])
def test_two_processes_take_the_steps_of_larger_batches(run, tmp_path, split):
    train(tmp_path, *FIT, "--data.batch_size=32", *split)
    assert_steps_of_64_samples(run, tmp_path / "runs" / "r")


def test_two_machines_with_torchrun_take_the_steps_of_larger_batches(run, tmp_path):
    """By the command of docs/devices.md, with a process on each of two machines that are here."""
    (written,) = (words for words in WRITTEN if words[0] == "torchrun" and "--nnodes=2" in words)
    here = {
        "--master_addr=HOST": ["--master_addr=127.0.0.1", f"--master_port={free_port()}"],
        "--nproc_per_node=4": ["--nproc_per_node=1"],
        "train.py": ["train.py", *FIT, "--data.batch_size=32"],
        "--trainer.devices=4": ["--trainer.devices=1"],
        "--run_name=NAME": [],
    }
    assert here.keys() | {"--node_rank=0"} < set(written)
    machines = []
    for rank in (0, 1):
        here["--node_rank=0"] = [f"--node_rank={rank}"]
        words = [new for word in written[1:] for new in here.get(word, [word])]
        where = words.index("train.py")
        machines.append(Training(tmp_path, *words[where + 1 :], torchrun=words[:where]))
    outputs = [machine.finish() for machine in machines]
    assert ["best val/acc" in output for output in outputs] == [True, False]
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["r"]
    assert_steps_of_64_samples(run, tmp_path / "runs" / "r")


@pytest.mark.parametrize("split", [ONE, FSDP], ids=["whole", "fsdp2"])
def test_the_gradient_is_clipped_by_its_length_over_all_parameters(run, tmp_path, split):
    step = ("--trainer.limit_train_batches=1", "--trainer.log_every_n_steps=1")
    fit = ("fit", "--config=small.yaml", *PLAIN, "--trainer.max_epochs=1", *step)
    run(*fit, "--run_name=before", "--model.optimizer={class_path: SGD, init_args: {lr: 1.0e-12}}")
    clip = ("--trainer.gradient_clip_val=0.01", "--run_name=after", *split)
    clip = (*clip, "--model.optimizer={class_path: SGD, init_args: {lr: 1.0}}")
    if split is ONE:
        run(*fit, *clip)
    else:
        train(tmp_path, *fit, *clip)
    before, after = (weights(tmp_path / "runs" / name) for name in ("before", "after"))
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-3)


# ---- metrics and checkpoints


@pytest.fixture
def two_processes(tmp_path) -> Path:
    """A run of a network with batch norm, by two processes."""
    settings = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=20", "--data.val_size=401")
    whole = ("--trainer.limit_val_batches=1.0", "--trainer.limit_test_batches=1.0")
    fit = ("fit", "--config=small.yaml", "--model=MNISTConvNet", "--run_name=r")
    train(tmp_path, *fit, *settings, *whole, "--trainer.devices=2")
    return tmp_path / "runs" / "r"


@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, .tensorboardX.")
def test_metrics_of_one_two_and_three_processes_are_the_same(run, two_processes, capsys):
    validate = ("validate", "--ckpt_path=last", "--run=r")
    capsys.readouterr()
    run(*validate, "--trainer.devices=1")
    one = printed(capsys.readouterr().out)
    two, three = (
        printed(train(two_processes.parents[1], *validate, f"--trainer.devices={n}"))
        for n in (2, 3)
    )
    right = float(one["val/acc"]) * 401  # a prime number: no split divides it
    assert right == pytest.approx(round(right), abs=1e-4)
    for name in ("val/acc", "val/acc_macro", "val/acc_top3"):
        assert one[name] == two[name] == three[name]  # to the last digit
    # A sample's loss depends in its last digit on the size of the batch that it comes in.
    expected = pytest.approx(float(one["val/loss"]), rel=1e-6)
    assert float(two["val/loss"]) == expected
    assert float(three["val/loss"]) == expected
    assert column(two_processes, "val/loss") == {19: expected}
    run("test", "--ckpt_path=last", "--run=r", "--trainer.devices=1")
    tested = printed(capsys.readouterr().out)
    assert {19: float(tested["test/acc"])} == column(two_processes, "test/acc")


def test_pieces_make_a_plain_checkpoint_that_goes_on_in_pieces_and_whole(run, tmp_path, capsys):
    fit = ("fit", "--config=small.yaml", "--model=MNISTConvNet", "--run_name=r")
    train(tmp_path, *fit, *FSDP, "--data.batch_size=32")
    folder = tmp_path / "runs" / "r"
    assert all(type(value) is torch.Tensor for value in weights(folder).values())
    capsys.readouterr()
    run("validate", "--ckpt_path=last", *ONE, "--data.batch_size=64")
    whole = printed(capsys.readouterr().out)
    assert column(folder, "val/loss")[7] == pytest.approx(float(whole["val/loss"]), rel=1e-6)
    train(tmp_path, "fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=4", *ONE, "--data.batch_size=64")
    assert column(folder, "samples")[15] == 16 * 64


# ---- less precision


def test_bf16_convolutions_have_their_channels_last(run, monkeypatch):
    seen = set()
    convolve = nn.Conv2d.forward

    def watch(self, x):
        y = convolve(self, x)
        layout = all(
            t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight, y)
        )
        seen.add((layout, y.dtype, self.weight.dtype))
        return y

    monkeypatch.setattr(nn.Conv2d, "forward", watch)
    precision = "--trainer.precision=bf16-mixed"
    run("fit", "--config=small.yaml", "--model=MNISTConvNet", precision)
    assert seen == {(True, torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_less_precision_goes_with_clipping(run, optimizer):
    clip = ("--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1.0")
    cli = run("fit", "--config=small.yaml", f"--model.optimizer={optimizer}", *clip)
    assert cli.trainer.global_step == 8


# ---- what there is for GPUs only


def test_synchronized_batch_norm_on_cpus_is_one_line(run, capsys):
    args = ("--model=MNISTConvNet", "--trainer.sync_batchnorm=true", "--trainer.devices=2")
    assert "for GPUs only" in refused(run, capsys, *args)


def test_fsdp_on_cpus_is_one_line(run, capsys):
    line = refused(run, capsys, "--trainer.strategy=fsdp", "--trainer.devices=2")
    assert "requires a GPU" in line


# ---- SLURM

SRUN = f"""#!{sys.executable}
# As srun: the same command in SLURM_NTASKS processes that are told who they are. Both are copies
# of this one, which has paid for the imports.
import os, shutil, sys
kill, python, script, *words = sys.argv[1:]
assert (kill, script) == ("--kill-on-bad-exit=1", "train.py")
assert shutil.which(python) == os.path.abspath(".venv/bin/python")
import warmed
from launch import run_here
sys.argv[:] = [script, *words]
pids = []
for i in map(str, range(int(os.environ["SLURM_NTASKS"]))):
    pids.append(os.fork())
    if not pids[-1]:
        os.environ |= dict(SLURM_PROCID=i, SLURM_NODEID=i, SLURM_LOCALID="0")
        run_here(tuple(words))
        sys.exit()
with open("pids", "w") as file:
    print(*pids, file=file)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


@pytest.fixture
def cluster(tmp_path) -> Path:
    """A folder with the project and commands that pretend to be SLURM's."""
    bin = tmp_path / ".venv" / "bin"
    bin.mkdir(parents=True)
    (bin / "activate").write_text(f'export PATH="{bin}:$PATH"\n')
    commands = {
        "srun": SRUN,
        "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n',
        "python": f'#!/bin/bash\nexec "{sys.executable}" "$@"\n',
    }
    for name, text in commands.items():
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # which train.py names
    return tmp_path


def submit(folder: Path, job: str, *args: str) -> subprocess.Popen:
    """As sbatch: two machines with a task each."""
    slurm = {
        "SLURM_JOB_NAME": "small",
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    (folder / "hold").touch()
    hold = ("--trainer.callbacks=ranks.Hold", "--trainer.callbacks.step=15")
    (written,) = (words for words in WRITTEN if words[0] == "sbatch")
    path, config = written[1:]
    assert config.startswith("--config=configs/")
    words = ("--config=small.yaml", *LONG, *QUIET, *hold, *args)
    return start(folder, "bash", str(ROOT / path), *words, **slurm)


LONG = ("--trainer.max_epochs=4", "--trainer.limit_train_batches=10")


def test_a_slurm_job_saves_itself_once_and_goes_on_bit_for_bit(cluster):
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    train(cluster, "fit", "--config=small.yaml", *LONG, *two, "--run_name=whole")
    job = submit(cluster, "2")
    last = cluster / "runs" / "small-2" / "checkpoints" / "last.ckpt"
    wait_for(lambda: (cluster / "held").exists() or job.poll() is not None)
    for pid in (cluster / "pids").read_text().split():
        os.kill(int(pid), signal.SIGUSR1)
    (cluster / "hold").unlink()
    assert "SLURM starts job 2 again" in finish(job)
    assert (cluster / "scontrol.log").read_text() == "requeue 2\n"
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 40
    finish(submit(cluster, "2"))
    assert (cluster / "scontrol.log").read_text() == "requeue 2\n"  # not at its end
    undisturbed, run = (cluster / "runs" / name for name in ("whole", "small-2"))
    assert sorted(p.name for p in (cluster / "runs").iterdir()) == ["small-2", "whole"]
    assert {p.name for p in run.iterdir()} == {p.name for p in undisturbed.iterdir()}
    expected = weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert logged(run) == logged(undisturbed)


def test_a_job_that_failed_before_its_first_checkpoint_starts_again_in_its_folder(tmp_path):
    (tmp_path / "runs" / "job-3").mkdir(parents=True)
    (tmp_path / "runs" / "job-3" / "config.yaml").write_text("seed_everything: 1\n")
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1")
    train(tmp_path, "fit", "--config=small.yaml", "--resume=auto", "--run_name=job-3", *two)
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "config.yaml").read_text() == "seed_everything: 1\n"
    assert (folder / "config-2.yaml").exists()
    assert (folder / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("scontrol", ["exit 1", None])
def test_a_job_that_slurm_does_not_start_again_trains_on(run, tmp_path, monkeypatch, scontrol):
    (tmp_path / "bin").mkdir()
    if scontrol:
        (tmp_path / "bin" / "scontrol").write_text(f"#!/bin/sh\n{scontrol}\n")
        (tmp_path / "bin" / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "4")

    class Signal(graceful_shutdown.Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            if trainer.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr("anneal.cli.run.SeedEveryEpoch", Signal)
    with pytest.warns(UserWarning, match="SLURM refuses to start job 4 again"):
        cli = run("fit", "--config=small.yaml")
    assert cli.trainer.global_step == 8


def test_the_job_of_an_array_is_named_as_scontrol_takes_it(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    assert graceful_shutdown.job_id() == "77"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert graceful_shutdown.job_id() == "70_3"


def test_no_setting_of_the_slurm_script_stands_after_its_first_command():
    lines = (ROOT / "scripts" / "slurm.sbatch").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert "#SBATCH --signal=SIGUSR1@180" in lines[:first]
    assert not [line for line in lines[first:] if line.startswith("#SBATCH")]


# ---- the benchmark for GPUs


def test_the_plain_loop_of_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
    small = ("--arch=resnet18", "--size=64", "--batch_size=4", "--steps=2")
    output = script(tmp_path, ROOT / "benchmarks" / "gpu_loop.py", *small)
    assert re.search(r"resnet18, 64x64, batch 4.*: [\d.]+ images/s", output)
