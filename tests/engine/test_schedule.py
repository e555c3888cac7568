"""The learning rate of every optimizer step against closed forms and plain torch."""

import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from tiny import Tiny, fit, loader
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from anneal.errors import UserError
from anneal.optim import torch_schedulers as schedulers
from anneal.optim.callback import first_validation, run_length
from anneal.optim.run_schedule import RunSchedule
from anneal.optim.schedule import Schedule
from anneal.progress import Clock
from anneal.runs.drops import branch_steps
from anneal.runs.metrics import direction

COSINE = partial(schedulers.CosineAnnealingLR, T_max=None)
ONE_CYCLE = partial(schedulers.OneCycleLR, max_lr=None, total_steps=None)
POLYNOMIAL = partial(schedulers.PolynomialLR, total_iters=None)
STEP = partial(lr_scheduler.StepLR, step_size=2, gamma=0.1)
NEEDS = "^schedule: ReduceLROnPlateau needs validations"
FIRST = f"{NEEDS}; the first would come after"
NO_VALIDATION = r"\(trainer.limit_val_batches, or no validation data\)$"
TOO_LATE = r"\(trainer.check_val_every_n_epoch, val_check_interval, max_steps\)$"
WHOLE_EPOCHS = "warmup_interval=epoch needs warmup_epochs, a whole number"
PLATEAU = partial(schedulers.ReduceLROnPlateau, mode=None, factor=0.1, patience=1)


def one_cycle(step: int, total: int, pct: float = 0.3) -> float:
    """Smith's cycle with torch's defaults and peak 1: cosine from 1/25 to 1 to 1/250000."""
    up = pct * total - 1
    start, peak, end = 1 / 25, 1.0, 1 / 25e4
    if step <= up:
        a, b, t = start, peak, step / up
    else:
        a, b, t = peak, end, (step - up) / (total - 1 - up)
    return b + (a - b) * (1 + math.cos(math.pi * t)) / 2


def wsd(shape: str, **settings):
    return partial(schedulers.WSD, total_steps=None, decay=0.25, shape=shape, **settings)


def stable(step: int, total: int, fall) -> float:
    """1, and `fall` over the last quarter."""
    first = total - round(0.25 * total)
    return 1.0 if step < first else fall((step - first) / (total - first))


FALLS = {
    "sqrt": lambda t: 1 - math.sqrt(t),
    "linear": lambda t: 1 - t,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
}
CLOSED_FORMS = {
    **{
        f"wsd {shape}": (wsd(shape), lambda s, per_epoch, total, fall=f: stable(s, total, fall))
        for shape, f in FALLS.items()
    },
    "step": (STEP, lambda s, per_epoch, total: 0.1 ** (s // per_epoch // 2)),
    "cosine": (COSINE, lambda s, per_epoch, total: (1 + math.cos(math.pi * s / total)) / 2),
    "one_cycle": (ONE_CYCLE, lambda s, per_epoch, total: one_cycle(s, total)),
    "polynomial": (POLYNOMIAL, lambda s, per_epoch, total: 1 - s / total),
    "exponential": (
        partial(lr_scheduler.ExponentialLR, gamma=0.5),
        lambda s, per_epoch, total: 0.5 ** (s // per_epoch),
    ),
    "none": (None, lambda s, per_epoch, total: 1.0),
}


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_rate_of_every_step_is_the_formula(name, accumulate):
    scheduler, formula = CLOSED_FORMS[name]
    # 10 batches: the last accumulation window of an epoch is a short one.
    lrs = fit(
        Tiny(schedule=Schedule(scheduler)),
        batches=10,
        max_epochs=6,
        accumulate_grad_batches=accumulate,
    )
    per_epoch = math.ceil(10 / accumulate)
    assert lrs == pytest.approx(
        [formula(s, per_epoch, 6 * per_epoch) for s in range(6 * per_epoch)]
    )


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_resumed_rates_are_those_of_a_run_that_never_stopped(name, stop, tmp_path):
    schedule = Schedule(CLOSED_FORMS[name][0], warmup_steps=5)
    whole = fit(Tiny(schedule=schedule), max_epochs=6)
    path = tmp_path / "c.ckpt"
    # The first part is told max_epochs=stop: a schedule that follows the run must follow the
    # longer one after the resume, whatever the checkpoint says.
    fit(Tiny(schedule=schedule), max_epochs=stop, save=path)
    rest = fit(Tiny(schedule=schedule), max_epochs=6, ckpt_path=path)
    assert rest == pytest.approx(whole[8 * stop :], abs=1e-15)


@pytest.mark.parametrize("warmup", [{"warmup_epochs": 2}, {"warmup_steps": 12}])
@pytest.mark.parametrize("name", ["step", "cosine", "polynomial", "exponential", "none"])
def test_warmup_in_front_is_what_sequential_lr_does(name, warmup):
    make = CLOSED_FORMS[name][0]
    lrs = fit(Tiny(schedule=Schedule(make, **warmup)), max_epochs=8)
    steps = warmup.get("warmup_steps", 16)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    per_epoch = name in ("step", "exponential")
    length = {"cosine": {"T_max": 64 - steps}, "polynomial": {"total_iters": 64 - steps}}
    after = make(optimizer, **length.get(name, {})) if make else None
    expected = []
    rates = [0.01 + 0.99 * s / steps for s in range(steps)]
    if after is None or per_epoch:
        for s in range(64 - steps):
            if per_epoch and s and s % 8 == 0:
                optimizer.step()
                after.step()
            rates.append(optimizer.param_groups[0]["lr"])
        expected = rates
    else:
        optimizer.param_groups[0]["lr"] = 1.0
        sequence = SequentialLR(
            optimizer, [LinearLR(optimizer, 0.01, 1.0, steps), after], milestones=[steps]
        )
        for _ in range(64):
            expected.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            sequence.step()
    assert lrs == pytest.approx(expected)


@pytest.mark.parametrize("shape", FALLS)
def test_wsd_decays_over_a_share_of_the_whole_run_with_its_warmup(shape):
    schedule = Schedule(wsd(shape, branches=3), warmup_steps=12)
    module = Tiny(schedule=schedule)
    lrs = fit(module, max_epochs=8)
    rising = [0.01 + 0.99 * s / 12 for s in range(12)]
    assert lrs == pytest.approx(rising + [stable(s, 64, FALLS[shape]) for s in range(12, 64)])
    inner = module.lr_schedulers().inner
    assert inner.kept_steps == {48, 24, 12}
    assert branch_steps(64, 0.25, 4) == [(64, 48), (32, 24), (16, 12), (8, 6)]
    with pytest.warns(UserWarning, match="only 3 of branches=4 begin to decay after it"):
        fit(Tiny(schedule=Schedule(wsd(shape, branches=4), warmup_steps=12)), max_epochs=8)
    # What would begin before the end of the warmup begins there.
    short = Schedule(wsd(shape), warmup_steps=12)
    assert fit(Tiny(schedule=short), max_epochs=-1, max_steps=14) == pytest.approx(
        [*rising, 1.0, FALLS[shape](0.5)]
    )


def test_wsd_keeps_branches_by_the_step_only():
    with pytest.raises(UserError, match="keeps its branches by the step: leave interval out"):
        fit(Tiny(schedule=Schedule(wsd("sqrt", branches=2), interval="epoch")), max_epochs=4)
    stairs = fit(Tiny(schedule=Schedule(wsd("linear"), interval="epoch")), max_epochs=8)
    assert stairs == [1.0] * 56 + [0.5] * 8
    with pytest.raises(UserError, match=r"WSD: decay=1.5 must be in \(0, 1\]"):
        fit(Tiny(schedule=Schedule(partial(schedulers.WSD, total_steps=4, decay=1.5))), max_steps=4)


def test_cosine_ends_within_one_percent_of_its_end_also_with_few_epochs():
    lrs = fit(Tiny(schedule=Schedule(COSINE, warmup_epochs=1)), batches=20, max_epochs=10)
    assert max(lrs) == 1.0
    assert lrs.index(1.0) == 20
    assert lrs[-1] < 0.01


def test_interval_epoch_makes_stairs_of_a_cosine():
    lrs = fit(Tiny(schedule=Schedule(COSINE, interval="epoch")), max_epochs=4)
    assert lrs == pytest.approx([(1 + math.cos(math.pi * (s // 8) / 4)) / 2 for s in range(32)])


def test_max_steps_is_the_end_that_schedules_follow():
    lrs = fit(Tiny(schedule=Schedule(COSINE)), max_epochs=-1, max_steps=10)
    assert lrs == pytest.approx([(1 + math.cos(math.pi * s / 10)) / 2 for s in range(10)])


@pytest.mark.parametrize("make", [COSINE, ONE_CYCLE, POLYNOMIAL, wsd("sqrt")])
def test_schedule_that_needs_an_end_refuses_an_endless_run(make):
    module = Tiny(schedule=Schedule(make))
    with pytest.raises(UserError, match="this run has no end"):
        fit(module, max_epochs=-1)
    assert module.lrs == []


def test_endless_run_is_fine_for_a_schedule_that_needs_no_end():
    lrs = fit(
        Tiny(schedule=Schedule(STEP)), max_epochs=-1, limit_train_batches=2, max_time="00:00:00:01"
    )
    assert lrs[4] == pytest.approx(0.1)


STALL = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def plateau_rates(values: list[float], patience: int = 1) -> list[float]:
    """The rate after each validation, by hand: cut when more than `patience` were no better."""
    lr, best, bad, rates = 1.0, math.inf, 0, []
    for value in values:
        if value < best * (1 - 1e-4):
            best, bad = value, 0
        else:
            bad += 1
        if bad > patience:
            lr, bad = lr * 0.1, 0
        rates.append(lr)
    return rates


def test_plateau_follows_a_metric_that_stalls():
    lrs = fit(Tiny(schedule=Schedule(PLATEAU), values=STALL), max_epochs=12)
    assert lrs[::8] == pytest.approx([1.0, *plateau_rates(STALL)[:-1]])
    assert all(len(set(lrs[i : i + 8])) == 1 for i in range(0, 96, 8))


@pytest.mark.parametrize("every", [2, 3])
def test_plateau_counts_validations_and_not_epochs(every):
    lrs = fit(
        Tiny(schedule=Schedule(PLATEAU), values=STALL), max_epochs=12, check_val_every_n_epoch=every
    )
    rates = [1.0, *plateau_rates(STALL)]
    assert lrs[::8] == pytest.approx([rates[epoch // every] for epoch in range(12)])


def test_plateau_looks_at_each_of_several_validations_in_an_epoch():
    lrs = fit(Tiny(schedule=Schedule(PLATEAU), values=STALL), max_epochs=3, val_check_interval=0.25)
    rates = [1.0, *plateau_rates(STALL)]
    assert lrs == pytest.approx([rates[step // 2] for step in range(24)])


def test_plateau_after_a_warmup_counts_only_what_comes_after_it():
    schedule = Schedule(PLATEAU, warmup_epochs=2)
    lrs = fit(Tiny(schedule=schedule, values=[5.0, *STALL]), max_epochs=10)
    assert lrs[:16] == pytest.approx([0.01 + 0.99 * s / 16 for s in range(16)])
    assert lrs[16::8] == pytest.approx(plateau_rates(STALL)[:8])


@pytest.mark.parametrize("stop", [2, 4, 5, 7])
def test_plateau_resumes_with_its_best_its_count_and_its_cuts(stop, tmp_path):
    schedule = Schedule(PLATEAU)
    whole = fit(Tiny(schedule=schedule, values=STALL), max_epochs=12)
    fit(Tiny(schedule=schedule, values=STALL), max_epochs=stop, save=tmp_path / "c.ckpt")
    rest = fit(Tiny(schedule=schedule, values=STALL), max_epochs=12, ckpt_path=tmp_path / "c.ckpt")
    assert rest == pytest.approx(whole[8 * stop :])


def test_plateau_on_an_accuracy_waits_for_higher_values():
    rising = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    lrs = fit(Tiny(schedule=Schedule(PLATEAU, monitor="val/acc"), values=rising), max_epochs=6)
    assert set(lrs) == {1.0}


@pytest.mark.parametrize(
    ("schedule", "trainer", "message"),
    [
        ({"monitor": "val_acc"}, {}, "no metric 'val_acc'; there are: val/loss, val/acc"),
        ({"monitor": "val_acc"}, {"num_sanity_val_steps": 0}, "there are: val/loss, val/acc"),
        ({}, {"limit_val_batches": 0}, f"{NEEDS}, and this run has none {NO_VALIDATION}"),
        ({}, {"check_val_every_n_epoch": 5}, f"{FIRST} 40 steps and the run has 16 {TOO_LATE}"),
        ({}, {"max_steps": 3}, f"{FIRST} 8 steps and the run has 3 {TOO_LATE}"),
        ({"interval": "step"}, {}, "counts validations: leave interval out"),
        ({"monitor": "val/score_of_mine"}, {}, "give `mode`"),
    ],
)
def test_plateau_that_can_not_work_is_refused_before_the_first_step(schedule, trainer, message):
    module = Tiny(schedule=Schedule(PLATEAU, **schedule))
    with pytest.raises(UserError, match=message):
        fit(module, **{"max_epochs": 2} | trainer)
    assert module.lrs == []


class FirstValidation(pl.Callback):
    """Note when the first validation comes, and when it is to come."""

    seen = told = 0

    def on_train_start(self, trainer, pl_module):
        self.told = first_validation(trainer, run_length(trainer)[0])

    def on_validation_start(self, trainer, pl_module):
        self.seen = self.seen or trainer.global_step


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(
    "validates",
    [
        {},
        {"val_check_interval": 0.5},
        {"val_check_interval": 3},
        {"check_val_every_n_epoch": 2},
        {"check_val_every_n_epoch": 2, "val_check_interval": 2},
        {"check_val_every_n_epoch": None, "val_check_interval": 5},
        {"check_val_every_n_epoch": None, "val_check_interval": 12},
        {"limit_train_batches": 0.7},
    ],
    ids=str,
)
def test_the_first_validation_is_known_before_a_run(accumulate, validates):
    first = FirstValidation()
    fit(Tiny(), max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[first], **validates)
    assert first.seen == first.told > 0


def test_plateau_with_the_wrong_mode_is_refused():
    wrong = partial(lr_scheduler.ReduceLROnPlateau, mode="min")
    with pytest.raises(UserError, match="val/acc is better when it is higher"):
        fit(Tiny(schedule=Schedule(wrong, monitor="val/acc")), max_epochs=2)


def test_new_rate_and_new_schedule_on_resume_win_over_the_checkpoint(tmp_path):
    sgd = partial(torch.optim.SGD, lr=1.0, momentum=0.9)
    slow = Schedule(partial(lr_scheduler.StepLR, step_size=4, gamma=0.1))
    fit(Tiny(sgd, slow), max_epochs=4, save=tmp_path / "c.ckpt")
    new = Tiny(
        partial(torch.optim.SGD, lr=0.5, momentum=0.8, weight_decay=0.1),
        Schedule(partial(lr_scheduler.StepLR, step_size=2, gamma=0.5)),
    )
    lrs = fit(new, max_epochs=8, ckpt_path=tmp_path / "c.ckpt")
    assert lrs[::8] == pytest.approx([0.125, 0.125, 0.0625, 0.0625])
    group = new.optimizers().param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 0.1)


def test_a_new_base_rate_on_resume_keeps_the_cuts_of_a_plateau(tmp_path):
    schedule = Schedule(PLATEAU)
    fit(Tiny(schedule=schedule, values=STALL), max_epochs=5, save=tmp_path / "c.ckpt")
    module = Tiny(partial(torch.optim.SGD, lr=0.5), schedule, values=STALL)
    lrs = fit(module, max_epochs=6, ckpt_path=tmp_path / "c.ckpt")
    assert lrs[0] == pytest.approx(0.05)


def test_rate_never_climbs_after_warmup_when_max_epochs_is_raised(tmp_path):
    schedule = Schedule(COSINE, warmup_epochs=1)
    fit(Tiny(schedule=schedule), max_epochs=5, save=tmp_path / "c.ckpt")
    rest = fit(Tiny(schedule=schedule), max_epochs=10, ckpt_path=tmp_path / "c.ckpt")
    plan = fit(Tiny(schedule=schedule), max_epochs=10)
    assert rest == pytest.approx(plan[40:])
    assert rest == sorted(rest, reverse=True)


@pytest.mark.parametrize("name", ["step", "cosine"])
def test_other_number_of_steps_an_epoch_on_resume_keeps_the_place_in_the_plan(name, tmp_path):
    make, formula = CLOSED_FORMS[name]
    fit(Tiny(schedule=Schedule(make)), batches=8, max_epochs=3, save=tmp_path / "c.ckpt")
    rest = fit(
        Tiny(schedule=Schedule(make)), batches=4, max_epochs=6, ckpt_path=tmp_path / "c.ckpt"
    )
    assert rest == pytest.approx([formula(s, 4, 24) for s in range(12, 24)])


@pytest.mark.parametrize(("max_steps", "end"), [(-1, 16), (22, 14)])
def test_a_run_that_goes_on_with_shorter_epochs_follows_the_epochs_done(tmp_path, max_steps, end):
    path, schedule = tmp_path / "c.ckpt", Schedule(COSINE)
    fit(Tiny(schedule=schedule), batches=8, max_epochs=2, callbacks=[Clock()], save=path)
    settings = {"max_epochs": 4, "max_steps": max_steps, "callbacks": [Clock()]}
    rest = fit(Tiny(schedule=schedule), batches=4, ckpt_path=path, **settings)
    expected = [(1 + math.cos(math.pi * step / end)) / 2 for step in range(8, end)]
    assert rest == pytest.approx(expected)


def test_a_group_that_comes_later_takes_part_in_the_warmup_and_is_remembered():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = RunSchedule(optimizer, Schedule(warmup_steps=4, warmup_start_factor=0))
    schedule.setup(steps_per_epoch=4, total_steps=12)
    schedule.step()
    assert schedule.get_last_lr() == [0.25]
    optimizer.add_param_group({"params": [torch.zeros(1)], "lr": 0.5})
    schedule.step()
    assert schedule.get_last_lr() == [0.5, 0.25]
    state = schedule.state_dict()
    assert [group["lr"] for group in state.pop("configured")] == [1.0, 0.5]
    assert state == {"steps": 2, "steps_per_epoch": 4, "total_steps": 12, "constant": False}


def test_a_constant_rate_after_a_schedule_is_the_configured_one(tmp_path):
    path = tmp_path / "c.ckpt"
    fit(Tiny(schedule=Schedule(COSINE)), max_epochs=2, callbacks=[Clock()], save=path)
    assert fit(Tiny(), max_epochs=3, callbacks=[Clock()], ckpt_path=path) == [1.0] * 8


def test_a_group_that_comes_later_leaves_the_cut_of_a_plateau():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = RunSchedule(optimizer, Schedule(PLATEAU))
    schedule.setup(steps_per_epoch=1, total_steps=None)
    for _ in range(3):
        schedule.step()
        schedule.step_metric(1.0)
    assert schedule.get_last_lr() == [0.1]
    optimizer.add_param_group({"params": [torch.zeros(1)], "lr": 0.5})
    schedule.step()
    assert schedule.get_last_lr() == [0.1, 0.5]


def test_a_scheduler_without_a_schedule_needs_its_length():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with pytest.raises(TypeError, match="build it through a Schedule"):
        schedulers.CosineAnnealingLR(optimizer, T_max=None)


def test_arguments_that_break_a_scheduler_later_are_one_line():
    with pytest.raises(UserError, match=r"StepLR: .*zero"):
        fit(Tiny(schedule=Schedule(partial(lr_scheduler.StepLR, step_size=0))), max_epochs=2)


class NoLength(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.randn(8, 1, 2))


@pytest.mark.parametrize(
    ("schedule", "works"),
    [
        (Schedule(), True),
        (Schedule(COSINE, warmup_steps=3), True),
        (Schedule(PLATEAU), True),
        (Schedule(STEP), False),
        (Schedule(COSINE, warmup_epochs=1), False),
    ],
)
def test_data_without_a_length_is_refused_only_where_epochs_are_counted(schedule, works):
    module = Tiny(schedule=schedule)
    module.train_dataloader = lambda: torch.utils.data.DataLoader(NoLength())
    module.val_dataloader = lambda: loader(2)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        max_steps=12,
        max_epochs=-1,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    if works:
        trainer.fit(module)
        assert len(module.lrs) == 12
    else:
        with pytest.raises(
            UserError, match=r"^schedule: it counts epochs and the training data has"
        ):
            trainer.fit(module)


def test_an_own_scheduler_gets_its_length_in_its_own_unit():
    class Line(lr_scheduler.LRScheduler):
        def __init__(self, optimizer, T_max):
            self.T_max = T_max
            super().__init__(optimizer)

        def get_lr(self):
            return [lr * (1 - self.last_epoch / self.T_max) for lr in self.base_lrs]

    lrs = fit(Tiny(schedule=Schedule(partial(Line, T_max=None))), max_epochs=4)
    assert lrs[::8] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_one_cycle_shorter_than_the_run_is_refused_and_short_cosine_is_named():
    short = partial(schedulers.OneCycleLR, total_steps=5)
    with pytest.raises(UserError, match="ends after 5 steps and the run has 16"):
        fit(Tiny(schedule=Schedule(short)), max_epochs=2)
    with pytest.warns(UserWarning, match="after T_max the rate rises again"):
        fit(Tiny(schedule=Schedule(partial(schedulers.CosineAnnealingLR, T_max=5))), max_epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_epochs": 1, "warmup_steps": 3}, "give warmup_epochs or warmup_steps, not both"),
        ({"warmup_steps": -1}, "a warmup can't be shorter than 0"),
        ({"warmup_epochs": -1}, "a warmup can't be shorter than 0"),
        ({"warmup_steps": 3, "warmup_interval": "epoch"}, WHOLE_EPOCHS),
        ({"warmup_epochs": 1.5, "warmup_interval": "epoch"}, WHOLE_EPOCHS),
        ({"warmup_start_factor": 1.1}, "warmup_start_factor must lie between 0 and 1"),
        ({"warmup_start_factor": -0.1}, "warmup_start_factor must lie between 0 and 1"),
    ],
)
def test_warmup_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(UserError, match=f"^schedule: {message}$"):
        Schedule(**settings)


def test_the_ends_of_a_range_and_a_cosine_of_the_runs_own_length_are_fine():
    for factor in (0, 1):
        Schedule(warmup_start_factor=factor)
    cosine = Schedule(partial(schedulers.CosineAnnealingLR, T_max=5), interval="step")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cosine.build(optimizer, 5)
    with pytest.warns(UserWarning, match="schedule: T_max=5 steps and the run has 6: after T_max"):
        cosine.build(optimizer, 6)


def test_a_plateau_whose_metric_does_not_say_what_is_better_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    with pytest.raises(
        UserError, match=r"^schedule.scheduler: is a lower or a higher val/x better"
    ):
        Schedule(PLATEAU, monitor="val/x").build(optimizer, None)


@pytest.mark.parametrize("make", [COSINE, ONE_CYCLE, STEP, PLATEAU, None])
def test_warmup_longer_than_the_run_is_warned_of_and_still_rises(make):
    with pytest.warns(UserWarning, match="the warmup takes 24 steps and the run has 16"):
        lrs = fit(Tiny(schedule=Schedule(make, warmup_epochs=3)), max_epochs=2)
    assert lrs == pytest.approx([lrs[0] * (1 + 99 * s / 24) for s in range(16)])


def test_scheduler_of_ones_own_is_stepped_per_epoch_and_resumed(tmp_path):
    class Halving(lr_scheduler.LRScheduler):
        def get_lr(self):
            return [lr * 0.5**self.last_epoch for lr in self.base_lrs]

    lrs = fit(Tiny(schedule=Schedule(Halving)), max_epochs=3, save=tmp_path / "c.ckpt")
    assert lrs[::8] == [1.0, 0.5, 0.25]
    lrs = fit(Tiny(schedule=Schedule(Halving)), max_epochs=5, ckpt_path=tmp_path / "c.ckpt")
    assert lrs[::8] == [0.125, 0.0625]


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("val/loss", "min"),
        ("val_loss", "min"),
        ("error", "min"),
        ("val/acc", "max"),
        ("val/acc_top5", "max"),
        ("val/f1", "max"),
        ("train/loss_epoch", "min"),
    ],
)
def test_direction_follows_from_the_name(metric, better):
    assert direction(metric) == better
