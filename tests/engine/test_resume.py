"""A resumed run is the undisturbed one, however it ended, wherever, and however it is counted."""

import itertools

import pytest
from cells import Cell, command, differences, disturb, impossible, names, pairwise
from launch import Training


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
