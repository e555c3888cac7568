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
    leg,
    misses,
    names,
    pairwise,
    whole,
)

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


# One more, which pairs alone don't reach: a validation because time is up, at an epoch's end.
CELLS = [*pairwise(), Cell("time", "edge", "same", "null")]


@pytest.mark.parametrize("cell", CELLS, ids=names(CELLS))
def test_a_disturbed_run_becomes_what_it_would_have_been(folder, cell):
    assert disturb(folder, cell) == []


def test_a_validation_within_an_accumulation_leaves_each_row_once(folder):
    """Nor are the weights others: what the resumed run makes again, it makes the same way."""
    every = "--trainer.val_check_interval=3"
    shared = [*command(folder, Cell("kill", "inside", "same", "accumulate")), every]
    leg(folder, *shared, "--run_name=rows")
    again = (*shared, "--run_name=again", "--resume=auto")  # from step 3, which is batch 4
    assert leg(folder, *again, alone=True, COURSE_END="kill batch 1 7")[0] == -9
    leg(folder, *again, COURSE_LEG="2")
    assert differences(folder / "runs" / "again", folder / "runs" / "rows") == []


def test_processes_come_and_go_and_each_sample_comes_once(folder):
    """The batches hold the same samples, so the weights differ by how sums are rounded."""
    shared = [*command(folder, Cell("kill", "inside", "same", "default")), "--data.noise=false"]
    leg(folder, *shared, "--data.batch_size=24", "--run_name=one")
    many = [*shared, "--run_name=many", "--resume=auto", "--trainer.strategy=ddp"]
    for number, (devices, batch_size, end) in enumerate(
        [(2, 12, "kill batch 0 2"), (3, 8, "kill batch 1 3"), (1, 24, "")], 1
    ):
        size = (f"--trainer.devices={devices}", f"--data.batch_size={batch_size}")
        save = "--checkpoint.every_n_train_steps=1"
        words = (*many, *size, save)
        env = {"COURSE_LEG": str(number), "COURSE_END": end}
        status, output = leg(folder, *words, alone=True, **env)
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


def test_a_checkpoint_from_before_there_was_a_clock_goes_on(folder):
    shared = [*command(folder, Cell("term", "inside", "same", "default")), "--resume=auto"]
    expected = whole(folder, Cell("term", "inside", "same", "default"))
    leg(folder, *shared, "--run_name=old", COURSE_END="term batch 1 4")
    run = folder / "runs" / "old"
    file = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    position = checkpoint.pop("position")
    del checkpoint["rows"]
    checkpoint["samples"] = [position["seen"], position["samples"]]
    torch.save(checkpoint, file)
    status, output = leg(folder, *shared, "--run_name=old", COURSE_LEG="2")
    assert status == 0, output
    assert differences(run, expected) == []


THEIRS = {
    "epoch means, torchmetrics": "--model=theirs.Plain",
    "plateau of Lightning": "--model=theirs.Plateau",
    "two schedulers": "--model=theirs.Schedulers",
    "two optimizers": "--model=theirs.Two",
    "state in groups": "--model=theirs.Adaptive",
    "later groups": "--model=theirs.Frozen --trainer.callbacks+=theirs.Unfreeze",
    "several optimizers": """--model=MNISTConvNet --model.optimizer=Muon
        --model.rules+={"match":{"layer":"norm"},"optimizer":"theirs.KeepsInGroups"}
        --model.rules+={"match":{"name":"*"},"settings":{"lr_decay":0.9}}""",
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
        assert leg(folder, *shared, f"--run_name={expected.name}")[0] == 0
    run = folder / "runs" / f"{name}-{moment.replace(' ', '-')}"
    again = [*shared, f"--run_name={run.name}", "--resume=auto"]
    steps = 12 * (1 + (name == "two optimizers"))
    limit = (f"--trainer.max_steps={steps}",) if moment == "steps" else ()
    end = "" if limit else moment
    leg(folder, *again, *limit, alone=end.startswith("kill"), COURSE_END=end)
    free = ("--trainer.max_steps=-1",) if limit else ()
    status, output = leg(folder, *again, *free, COURSE_LEG="2")
    assert status == 0, output
    assert differences(run, expected) == []
