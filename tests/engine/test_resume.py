"""A resumed run is the undisturbed one, however it ended, wherever, and however it is counted."""

import itertools

import pytest
import torch
from cells import (
    Cell,
    batches,
    command,
    differences,
    disturb,
    impossible,
    misses,
    names,
    pairwise,
)
from launch import Training

from anneal.testing import logged


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


def test_each_two_values_meet_in_a_cell():
    cells = pairwise()
    assert not any(map(impossible, cells))
    met = {pair for cell in cells for pair in itertools.combinations(enumerate(cell), 2)}
    assert ((0, "kill"), (1, "validation")) in met
    assert ((0, "steps"), (2, "processes")) in met
    assert ((1, "accumulation"), (2, "batch")) in met
    assert len(cells) < 36


@pytest.mark.parametrize("cell", pairwise(), ids=names(pairwise()))
def test_a_disturbed_run_becomes_what_it_would_have_been(folder, cell):
    assert disturb(folder, cell) == []


def test_processes_come_and_go_and_each_sample_comes_once(folder):
    """The batches hold the same samples, so the weights differ by how sums are rounded."""
    shared = [*command(folder, Cell("kill", "inside", "same", "default")), "--data.noise=false"]
    Training(folder, *shared, "--data.batch_size=24", "--run_name=one").finish()
    many = [*shared, "--run_name=many", "--resume=auto", "--trainer.strategy=ddp"]
    for leg, (devices, batch_size, end) in enumerate(
        [(2, 12, "kill batch 0 2"), (3, 8, "kill batch 1 3"), (1, 24, "")], 1
    ):
        size = (f"--trainer.devices={devices}", f"--data.batch_size={batch_size}")
        save = "--checkpoint.every_n_train_steps=1"
        run = Training(folder, *many, *size, save, COURSE_LEG=str(leg), COURSE_END=end)
        status, output = run.end()
        assert status == (-9 if end else 0), output
    one, run = folder / "runs" / "one", folder / "runs" / "many"
    assert len({line["epoch"] for line in batches(run)}) == 3
    assert misses(run) == []
    a, b = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (one, run))
    for name, tensor in a["state_dict"].items():
        torch.testing.assert_close(b["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)
    for name in ("val/loss", "val/acc", "train/acc", "samples", "lr"):
        found = [[float(row[name]) for row in logged(r) if row[name]] for r in (one, run)]
        assert found[1] == pytest.approx(found[0], rel=1e-4)


THEIRS = {
    "epoch means, torchmetrics": "--model=theirs.Plain",
    "plateau of Lightning": "--model=theirs.Plateau",
    "two schedulers": "--model=theirs.Schedulers",
    "two optimizers": "--model=theirs.Two",
    "state in groups": "--model=theirs.Adaptive",
    "later groups": "--model=theirs.Frozen --trainer.callbacks+=theirs.Unfreeze",
    "DataLoader": "--data=theirs.Loaders",
    "double precision": "--trainer.precision=64-true",
    "average": "--trainer.callbacks+=EMA",
    "plateau": "--model.schedule.scheduler=ReduceLROnPlateau"
    " --model.schedule.scheduler.patience=0 --model.schedule.scheduler.factor=0.3",
}
MOMENTS = ("kill batch 1 4", "kill validation 1 1", "term batch 1 4", "steps")


@pytest.mark.parametrize(
    ("name", "moment"),
    [(name, MOMENTS[i % len(MOMENTS)]) for i, name in enumerate(THEIRS)]
    + [(name, MOMENTS[(i + 2) % len(MOMENTS)]) for i, name in enumerate(THEIRS)],
)
def test_modules_and_callbacks_of_a_user_go_on_as_if_they_had_not_stopped(folder, name, moment):
    flags = THEIRS[name].split()
    default = Cell("kill", "inside", "same", "default")
    shared = [*command(folder, default), *flags]
    expected = folder / "runs" / f"whole-{name}"
    if not expected.exists():
        Training(folder, *shared, f"--run_name={expected.name}").finish()
    run = folder / "runs" / f"{name}-{moment.replace(' ', '-')}"
    again = [*shared, f"--run_name={run.name}", "--resume=auto"]
    steps = 12 * (1 + (name == "two optimizers"))
    limit = (f"--trainer.max_steps={steps}",) if moment == "steps" else ()
    Training(folder, *again, *limit, COURSE_END="" if limit else moment).end()
    free = ("--trainer.max_steps=-1",) if limit else ()
    Training(folder, *again, *free, COURSE_LEG="2").finish()
    assert differences(run, expected) == []
