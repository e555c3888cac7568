"""Callbacks on the smallest real trainings: random numbers, health, counts, pictures."""

import copy
import re
import signal
from functools import partial
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from matplotlib import image
from tiny import Tiny, fit, loader

from anneal.callbacks.checkpoint import Checkpoint
from anneal.callbacks.epoch_metrics import EpochMetrics
from anneal.callbacks.graceful_shutdown import GracefulShutdown
from anneal.callbacks.lr_monitor import LearningRateMonitor
from anneal.callbacks.non_finite_guard import NonFiniteGuard
from anneal.callbacks.progress_bar import ProgressBar
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.data.in_memory import InMemoryBatches
from anneal.errors import UserError
from anneal.loggers.csv import CSVLogger
from anneal.optim.schedule import Schedule
from anneal.progress import Clock, position_in, resume_position
from anneal.tasks.kinds import Classification
from anneal.tasks.test_report import draw_confusion, draw_top_losses
from anneal.testing import logged


def draw(epoch: int, rank: int) -> float:
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    SeedEveryEpoch().on_train_batch_start(trainer, None, None, 0)
    return float(torch.rand(1))


def test_random_numbers_differ_between_processes_and_epochs_and_repeat():
    pl.seed_everything(0, verbose=False)
    drawn = {(e, r): draw(e, r) for e in range(3) for r in range(3)}
    assert len(set(drawn.values())) == 9
    assert all(draw(*key) == value for key, value in drawn.items())
    pl.seed_everything(1, verbose=False)
    assert draw(0, 0) != drawn[0, 0]


def test_a_checkpoint_holds_the_random_numbers_of_all_processes(monkeypatch):
    def gather(states, own):
        states[:] = [{"torch": torch.zeros(1)}, own]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    saved = {}
    SeedEveryEpoch().on_save_checkpoint(SimpleNamespace(world_size=2), None, saved)
    other, own = saved["rng_states"]
    assert other["torch"] == 0
    assert torch.equal(own["torch"], torch.get_rng_state())


class Dropping(Tiny):
    """Draws a random number in each training step."""

    def training_step(self, batch, batch_idx):
        self.drawn = [*getattr(self, "drawn", []), float(torch.rand(1))]
        return super().training_step(batch, batch_idx)


def test_a_resumed_run_draws_what_it_would_have_drawn(tmp_path):
    pl.seed_everything(0, verbose=False)
    whole = Dropping()
    fit(whole, max_epochs=3, callbacks=[Clock(), SeedEveryEpoch()])
    assert len(set(whole.drawn)) == 24
    fit(Dropping(), max_epochs=1, callbacks=[Clock(), SeedEveryEpoch()], save=tmp_path / "c.ckpt")
    rest = Dropping()
    fit(rest, max_epochs=3, callbacks=[Clock(), SeedEveryEpoch()], ckpt_path=tmp_path / "c.ckpt")
    assert rest.drawn == whole.drawn[8:]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 5, 7])
def test_a_loss_that_is_no_number_is_named_with_its_step(step, value):
    class Bad(Tiny):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * value if self.trainer.global_step == step else loss

    module = Bad()
    where = rf"optimizer step {step} \(epoch 0, batch {step}, lr 1\)"
    with pytest.raises(UserError, match=where) as e:
        fit(module, max_epochs=2, callbacks=[NonFiniteGuard()])
    assert e.value.status == 1
    assert all(p.isfinite().all() for p in module.parameters())  # the step was not taken


class BadLoss(Tiny):
    """Its loss is infinite at the sixth batch of an epoch, and its gradient never."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + (float("inf") if batch_idx == 5 else 0)


def test_a_loss_that_is_no_number_is_named_with_the_batch_it_came_from():
    where = r"is NaN or infinite at optimizer step 1 \(epoch 0, batch 5, after 5 samples, lr 1\): "
    where += r"lower .* or clip the gradient; what is saved is from before that$"
    with pytest.raises(UserError, match=where):
        fit(
            BadLoss(),
            max_epochs=1,
            accumulate_grad_batches=4,
            callbacks=[NonFiniteGuard(), Clock()],
        )


def test_on_a_gpu_the_batch_is_named_although_it_is_read_later_and_is_not_saved(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("anneal.callbacks.non_finite_guard.waits", lambda value: True)
    module = BadGradient()
    checkpoint = Checkpoint(dirpath=tmp_path, every_n_train_steps=4)
    where = r"optimizer step 2 \(epoch 0, batch 2, lr 1\)"
    with pytest.raises(UserError, match=where):
        fit(
            module,
            max_epochs=1,
            callbacks=[NonFiniteGuard(), checkpoint],
            enable_checkpointing=True,
        )
    assert module.trainer.global_step == 4  # when the first checkpoint was due
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_first_of_the_values_that_were_kept_on_a_gpu_is_read(monkeypatch):
    monkeypatch.setattr("anneal.callbacks.non_finite_guard.waits", lambda value: True)
    guard = NonFiniteGuard()
    guard._place = "in the first batch"
    guard._look(torch.tensor(float("nan")))
    with pytest.raises(UserError, match="NaN or infinite in the first batch: "):
        guard.on_save_checkpoint(None)


def test_an_error_does_not_stand_behind_the_progress_bar(capsys):
    with pytest.raises(UserError):
        fit(
            BadLoss(),
            max_epochs=1,
            callbacks=[NonFiniteGuard(), ProgressBar()],
            enable_progress_bar=True,
        )
    out = capsys.readouterr().out
    assert "Epoch 0" in out
    assert out.endswith("\n")


class BadGradient(Tiny):
    """Its gradient is infinite in three steps of eight; its loss never."""

    def on_after_backward(self):
        if self.trainer.global_step in (2, 3, 6):
            next(self.parameters()).grad[:] = float("inf")


def test_a_gradient_that_is_no_number_is_named_before_it_reaches_the_weights():
    module = BadGradient()
    with pytest.raises(UserError, match="optimizer step 2 "):
        fit(module, max_epochs=1, callbacks=[NonFiniteGuard()])
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.filterwarnings("ignore:left out, ")
def test_so_many_bad_gradients_are_left_out_as_was_asked_for():
    module = BadGradient(optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    before = None

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            nonlocal before
            after = [p.detach().clone() for p in pl_module.parameters()]
            moved = before is None or not all(map(torch.equal, before, after))
            assert moved == (trainer.global_step - 1 not in (2, 3, 6))
            before = after

    with pytest.warns(UserWarning, match="left out, 3 so far"):
        fit(module, max_epochs=1, callbacks=[NonFiniteGuard(skip=3), Watch()])
    with (
        pytest.warns(UserWarning, match="left out, 2 so far"),
        pytest.raises(UserError, match=r"optimizer step 6 .*health.skip=2 steps were left out"),
    ):
        fit(BadGradient(), max_epochs=1, callbacks=[NonFiniteGuard(skip=2)])


def test_what_a_bad_batch_leaves_in_a_norm_is_named_as_leaving_out_does_not_undo_it():
    class BadBatch(Tiny):
        def training_step(self, batch, batch_idx):
            bad = float("nan") if batch_idx == 5 else 1.0
            return self.net(bad * batch[0].expand(4, 2)).square().mean()

    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    with pytest.raises(UserError, match=r"net.0.running_mean is NaN .* optimizer step 5"):
        fit(BadBatch(net=net), max_epochs=1, callbacks=[NonFiniteGuard(skip=3)])


class NoLoss(Tiny):
    def training_step(self, batch, batch_idx):
        return None


class NoGradient(Tiny):
    def on_after_backward(self):
        next(self.parameters()).grad[:] = float("inf")


@pytest.mark.filterwarnings("ignore:left out, ")
@pytest.mark.filterwarnings("ignore:.training_step. returned .None")
@pytest.mark.parametrize(
    ("module", "skip", "numbers"),
    [(NoLoss(), 0, "of 8 batches none"), (NoGradient(), 8, "8 left out by health.skip=8")],
)
def test_an_epoch_without_an_optimizer_step_is_an_error(module, skip, numbers):
    with pytest.raises(UserError, match=rf"epoch 0 took no optimizer step.*{numbers}") as e:
        fit(module, max_epochs=2, callbacks=[NonFiniteGuard(skip)])
    assert e.value.status == 1


@pytest.mark.filterwarnings("ignore:Total length of .DataLoader")
@pytest.mark.parametrize("sanity_steps", [0, 2])
def test_a_validation_without_samples_is_an_error(sanity_steps):
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        **settings,
        max_epochs=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[NonFiniteGuard()],
        num_sanity_val_steps=sanity_steps,
    )
    empty = torch.utils.data.DataLoader(range(3), batch_size=4, drop_last=True)
    with pytest.raises(UserError, match="0 batches to validate on, of 8 to train on"):
        trainer.fit(Tiny(), loader(), empty)


def test_the_norm_of_the_gradient_is_logged(tmp_path):
    from anneal.loggers.csv import CSVLogger

    norms = {}

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            squares = sum(float(p.grad.square().sum()) for p in pl_module.parameters())
            norms[trainer.global_step] = squares**0.5

    logger = CSVLogger(tmp_path)
    fit(
        Tiny(),
        max_epochs=1,
        callbacks=[NonFiniteGuard(), Watch()],
        logger=logger,
        log_every_n_steps=3,
    )
    found = {
        r["step"]: float(r["train/grad_norm"]) for r in logged(tmp_path) if r["train/grad_norm"]
    }
    assert found == {str(s): pytest.approx(norms[s]) for s in (2, 5)}


class Dead(Tiny):
    """Gives the same whatever the sample."""

    def training_step(self, batch, batch_idx):
        return 0 * super().training_step(batch, batch_idx) + 3


class Exploding(Tiny):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 1.15**self.trainer.global_step


def sgd(lr: float) -> partial:
    return partial(torch.optim.SGD, lr=lr)


SIGNS = r"learning rate is 0|training loss is|gradient's norm was|weights have moved"


@pytest.mark.parametrize(
    ("module", "sign"),
    [
        (partial(Tiny, sgd(0.0)), "the learning rate is 0 at step 10"),
        (partial(Tiny, sgd(1e-12)), "of their length in 100 steps: lr 1e-12 is far too small"),
        (partial(Dead, sgd(0.1)), "the training loss is 3 at step 100, as in the beginning"),
        (partial(Exploding, sgd(1e-7)), r"the gradient's norm was \S+ and is \S+ at step"),
    ],
    ids=["no rate", "tiny rate", "dead", "exploding"],
)
def test_a_training_that_learns_nothing_says_so_once(module, sign):
    with pytest.warns(UserWarning, match=sign) as caught:
        fit(module(), max_epochs=15, callbacks=[NonFiniteGuard()], log_every_n_steps=10)
    assert len([w for w in caught if re.search(SIGNS, str(w.message))]) == 1


@pytest.mark.filterwarnings("error:.*(learning rate is 0|training loss is|weights have moved)")
def test_a_rate_that_begins_at_0_and_a_resumed_run_are_no_bad_signs(tmp_path):
    from test_schedule import POLYNOMIAL

    from anneal.optim.schedule import Schedule

    settings = {"callbacks": [NonFiniteGuard()], "log_every_n_steps": 1}
    schedule = Schedule(POLYNOMIAL, warmup_steps=8, warmup_start_factor=0.0)
    assert fit(Tiny(sgd(0.1), schedule), max_epochs=15, **settings)[0] == 0
    fit(Tiny(sgd(0.1)), max_epochs=1, save=tmp_path / "d.ckpt")
    settings["callbacks"] = [NonFiniteGuard()]
    fit(Dead(sgd(0.1)), max_epochs=16, ckpt_path=tmp_path / "d.ckpt", **settings)


@pytest.mark.parametrize("accumulate", [3, 5, 8])
def test_the_last_update_of_an_epoch_is_divided_by_the_batches_it_is_made_of(accumulate):
    """A step over k batches is that over the mean of their losses, also for the k that are left."""
    found = Tiny(partial(torch.optim.SGD, lr=0.1))
    net = copy.deepcopy(found.net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    batches = list(loader())
    for _ in range(2):
        for window in range(0, len(batches), accumulate):
            part = batches[window : window + accumulate]
            optimizer.zero_grad()
            torch.stack([net(x).square().mean() for (x,) in part]).mean().backward()
            optimizer.step()
    fit(
        found,
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        callbacks=[Clock()],
    )
    for a, b in zip(found.net.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_samples_are_counted_over_epochs_and_resumes(accumulate, tmp_path):
    counter = Clock()
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulate}
    fit(Tiny(), callbacks=[counter], save=tmp_path / "c.ckpt", **settings)
    assert counter.seen == 16
    assert counter.samples_per_second > 0
    again = Clock()
    settings["max_epochs"] = 5
    fit(Tiny(), callbacks=[again], ckpt_path=tmp_path / "c.ckpt", **settings)
    assert again.seen == 40


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_the_speed_of_a_run_that_is_resumed_within_an_epoch_is_that_of_this_process(
    tmp_path, monkeypatch
):
    """The checkpoint is from after 4 of 8 batches; afterwards each takes half a second."""
    now = [0.0]
    monkeypatch.setattr("anneal.progress.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(pl.Callback):
        def on_train_batch_start(self, *args) -> None:
            now[0] += 0.5

    fit(Tiny(), callbacks=[Clock()], max_steps=4, max_epochs=9, save=tmp_path / "c.ckpt")
    clock = Clock()
    fit(Tiny(), callbacks=[clock, Slow()], max_epochs=1, ckpt_path=tmp_path / "c.ckpt")
    assert clock.seen == 8
    assert clock.samples_per_second == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_no_checkpoint_is_best_with_a_metric_that_is_no_number(bad, tmp_path):
    values = [0.5, bad, 0.4]
    checkpoint = Checkpoint(dirpath=tmp_path)
    fit(
        Tiny(values=values),
        max_epochs=3,
        callbacks=[checkpoint],
        enable_checkpointing=True,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "best-epoch=00-val_acc=0.5000.ckpt",
        "last.ckpt",
    ]


def test_last_is_saved_within_an_epoch_when_asked_for(tmp_path):
    seen = []

    class Looks(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            path = tmp_path / "last.ckpt"
            seen.append(torch.load(path, weights_only=True)["global_step"] if path.exists() else 0)

    fit(
        Tiny(),
        max_epochs=1,
        callbacks=[Checkpoint(dirpath=tmp_path, every_n_train_steps=3), Looks()],
        enable_checkpointing=True,
    )
    assert seen == [0, 0, 0, 3, 3, 3, 6, 6]


def test_best_follows_several_validations_in_an_epoch(tmp_path):
    checkpoint = Checkpoint(dirpath=tmp_path, save_top_k=2)
    fit(
        Tiny(values=[0.1, 0.9, 0.3, 0.5]),
        max_epochs=1,
        val_check_interval=0.25,
        callbacks=[checkpoint],
        enable_checkpointing=True,
    )
    assert float(checkpoint.best_model_score) == pytest.approx(0.9)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [
        "best-epoch=00-val_acc=0.5000.ckpt",
        "best-epoch=00-val_acc=0.9000.ckpt",
        "last.ckpt",
    ]


def test_plateau_in_the_checkpoint_knows_the_validation_before_it(tmp_path):
    from test_schedule import PLATEAU

    from anneal.optim.schedule import Schedule

    fit(
        Tiny(schedule=Schedule(PLATEAU), values=[0.5, 0.4]),
        max_epochs=2,
        callbacks=[Checkpoint(monitor="val/loss", dirpath=tmp_path)],
        enable_checkpointing=True,
    )
    (state,) = torch.load(tmp_path / "last.ckpt", weights_only=True)["lr_schedulers"]
    assert state["plateau"]["best"] == pytest.approx(0.4)


class Rows(pl.loggers.logger.DummyLogger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
def test_the_csv_has_every_rate_and_other_loggers_what_draws_the_same_curve(tmp_path):
    cosine = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=200)
    curves = []
    for folder, *ends in (("whole", 200), ("early", 20, 200), ("late", 140, 200)):
        other, checkpoint = Rows(), None
        for end in ends:
            fit(
                Tiny(sgd(0.1), Schedule(cosine, warmup_steps=10)),
                batches=50,
                max_steps=end,
                limit_val_batches=0,
                callbacks=[LearningRateMonitor()],
                logger=[CSVLogger(tmp_path / folder), other],
                log_every_n_steps=50,
                ckpt_path=checkpoint,
                save=(checkpoint := tmp_path / f"{end}.ckpt"),
            )
        rows = logged(tmp_path / folder)
        written = {int(row["step"]): float(row["lr"]) for row in rows if row["lr"]}
        curves.append((written, {step: row["lr"] for step, row in other.rows if "lr" in row}))
    written, sent = curves[0]
    assert curves == [(written, sent)] * 3
    assert list(written) == list(range(200))
    assert sent.items() <= written.items()
    assert {0, 50, 100, 150} <= sent.keys()
    assert len(sent) < 150
    last = sent[0]
    for step, lr in written.items():
        last = sent.get(step, last)
        assert lr == pytest.approx(last, rel=0.02)


def effective(tmp_path, optimizer, schedule=None, **settings) -> dict[str, list[float]]:
    """Train and return what is logged of the rates in effect, by group."""
    module = Tiny(optimizer, schedule, **settings)
    logger = CSVLogger(tmp_path)
    fit(module, max_epochs=2, callbacks=[LearningRateMonitor()], logger=logger, log_every_n_steps=1)
    rows = [row for row in logged(tmp_path) if row["lr" if settings == {} else "lr/decay"]]
    names = [name for name in rows[0] if name.startswith("lr/effective")]
    return {name: [float(row[name]) for row in rows] for name in names}


def test_the_rate_in_effect_of_an_optimizer_that_finds_its_own_is_logged(tmp_path):
    from theirs import KeepsInGroups

    halved = Schedule(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    found = effective(tmp_path / "one", partial(KeepsInGroups, lr=0.2), halved)
    expected = [0.2 * 0.5 ** (s // 8) * 1e-3 * 1.1**s for s in range(16)]
    assert found == {"lr/effective": pytest.approx(expected)}
    groups = effective(tmp_path / "two", partial(KeepsInGroups, lr=0.2), halved, decay_bias=False)
    assert groups == {
        f"lr/effective/{name}": pytest.approx(expected) for name in ("decay", "no_decay")
    }
    assert effective(tmp_path / "none", sgd(0.1)) == {}

    class Wide(torch.optim.SGD):  # whose d is another thing
        def __init__(self, params):
            super().__init__([{"params": list(params), "d": 64}], lr=0.1)

    assert effective(tmp_path / "other", lambda groups: Wide(groups[0]["params"])) == {}


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("prodigyopt", "Prodigy"),
        *(("pytorch_optimizer", n) for n in ("Prodigy", "DAdaptAdam", "DAdaptAdan", "DAdaptSGD")),
        ("schedulefree", "SGDScheduleFree"),
    ],
)
def test_the_rate_in_effect_is_what_the_packages_of_such_optimizers_keep(tmp_path, package, name):
    kind = getattr(pytest.importorskip(package), name)
    kept = []

    class Watched(kind):
        def step(self, closure=None):
            group = self.param_groups[0]
            kept.append(float(group["d"] * group["lr"] if "d" in group else group["scheduled_lr"]))
            self.train() if package == "schedulefree" else None
            return super().step(closure)

    settings = {"warmup_steps": 4} if package == "schedulefree" else {}
    found = effective(tmp_path, partial(Watched, lr=0.5, **settings))["lr/effective"]
    assert found == pytest.approx(kept, rel=1e-6)
    assert 0 < found[0] <= found[-1] or package == "schedulefree"


def test_pictures_show_something(tmp_path):
    matrix = torch.tensor([[50, 2], [1, 47]])
    draw_confusion(matrix, ["cat", "dog"]).savefig(tmp_path / "a.png")
    draw_confusion(torch.eye(100, dtype=torch.long), [str(i) for i in range(100)]).savefig(
        tmp_path / "b.png"
    )
    wrong = torch.tensor(0), torch.tensor(1)
    pictures = [(2.0, *wrong, torch.randint(256, (c, 28, 28))) for c in (1, 3)]
    draw_top_losses(pictures, Classification(), ["cat", "dog"]).savefig(tmp_path / "c.png")
    for name in "abc":
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.std() > 0.05


def test_loader_is_the_same_each_time():
    assert torch.equal(next(iter(loader()))[0], next(iter(loader()))[0])


def test_processes_ask_each_other_once_a_second_and_stop_together(tmp_path, monkeypatch):
    asked = []

    def reduce(mine: torch.Tensor, reduce_op: str) -> torch.Tensor:
        assert (reduce_op, mine.device.type) == ("max", "meta")
        seconds = (loop.total_batch_idx - asked[-1]) / 8 if asked else 0
        asked.append(loop.total_batch_idx)
        told = signal.SIGTERM if loop.total_batch_idx > 60 else 0  # another process
        return torch.tensor([told, seconds])

    loop = SimpleNamespace(total_batch_idx=3)
    strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("meta"))
    trainer = SimpleNamespace(world_size=2, fit_loop=loop, strategy=strategy)
    time = SimpleNamespace(monotonic=lambda: loop.total_batch_idx / 8)
    monkeypatch.setattr("anneal.callbacks.graceful_shutdown.time", time)
    shutdown = GracefulShutdown(tmp_path)
    monkeypatch.setattr(shutdown, "_listen", lambda: None)
    shutdown.on_train_start(trainer, None)
    stops = []
    for loop.total_batch_idx in range(3, 80):
        stops.append(shutdown._agree(trainer))
    assert asked == [3, 4, 6, 10, *range(18, 67, 8)]
    assert stops == [batch >= 66 for batch in range(3, 80)]


@pytest.mark.filterwarnings("ignore:.ModelCheckpoint.monitor")  # there was no validation
def test_a_run_that_ends_within_an_epoch_is_saved_before_the_epoch_is_closed(tmp_path):
    class Watched(Checkpoint):
        def _save_last(self, trainer):
            saves.append((trainer.global_step, trainer.fit_loop.epoch_progress.current.completed))
            super()._save_last(trainer)

    saves = []
    callbacks = [Clock(), Watched(dirpath=tmp_path)]
    fit(Tiny(), max_epochs=2, max_steps=5, callbacks=callbacks, enable_checkpointing=True)
    assert saves == [(5, 0)]


def test_a_best_checkpoint_that_is_found_again_takes_the_place_of_the_first(tmp_path):
    for _ in range(2):
        callbacks = [Clock(), Checkpoint(dirpath=tmp_path)]
        fit(Tiny(values=[0.5]), max_epochs=1, callbacks=callbacks, enable_checkpointing=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["best-epoch=00-val_acc=0.5000.ckpt", "last.ckpt"]


class SaveAt(pl.Callback):
    """Saves after some batches of the first epoch, in the middle of an accumulation too."""

    def __init__(self, folder, *batches: int) -> None:
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 0 and batch_idx + 1 in self.batches:
            trainer.save_checkpoint(self.folder / f"{batch_idx + 1}.ckpt", weights_only=False)


def test_a_position_is_that_of_the_last_step_whose_gradients_were_used(tmp_path):
    callbacks = [Clock(), SaveAt(tmp_path, 4, 6, 8)]
    fit(Tiny(), max_epochs=1, accumulate_grad_batches=4, callbacks=callbacks)
    keys = ("epoch", "batches", "samples", "seen", "stepped", "validation_is_due")
    found = []
    for batches in (4, 6, 8):
        saved = torch.load(tmp_path / f"{batches}.ckpt", weights_only=True)
        found.append(tuple(saved["position"].get(key) for key in keys))
    assert found == [(0, 4, 4, 0, 1, False), (0, 4, 4, 0, 1, None), (0, 8, 8, 0, 2, True)]


def test_the_position_in_a_checkpoint_that_no_clock_has_written_is_lightnings(tmp_path):
    fit(Tiny(), max_epochs=1, accumulate_grad_batches=4, callbacks=[SaveAt(tmp_path, 4, 8)])
    within = torch.load(tmp_path / "4.ckpt", weights_only=True)
    expected = {"epoch": 0, "batches": 4, "samples": 0, "seen": 0, "stepped": 1, "seconds": 0.0}
    assert position_in(within) == expected
    assert position_in(within | {"samples": (16, 4)}) == expected | {"samples": 4, "seen": 16}
    fit(Tiny(), max_epochs=1, save=tmp_path / "end.ckpt")
    end = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert position_in(end) == expected | {"epoch": 1, "batches": 0, "stepped": 8}


def test_the_speed_of_a_training_does_not_count_its_validations(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("anneal.progress.time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Timed(Tiny):
        def training_step(self, batch, batch_idx):
            now[0] += 0.5
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            now[0] += 100
            super().validation_step(batch, batch_idx)

    clock = Clock()
    fit(Timed(), max_epochs=2, callbacks=[clock])
    assert (clock.seconds, clock.seen, clock.samples_per_second) == (8.0, 16, 2.0)


class Frozen(Tiny):
    """Trains some of the parameters that its optimizer has."""

    def __init__(self, *trained: bool) -> None:
        super().__init__(net=torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)))
        for p, trains in zip(self.parameters(), trained, strict=True):
            p.requires_grad_(trains)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_what_was_frozen_when_a_run_was_saved_is_frozen_when_it_goes_on(tmp_path):
    path = tmp_path / "c.ckpt"
    fit(Frozen(True, False, True, True), max_epochs=1, callbacks=[Clock()], save=path)
    again = Frozen(False, True, True, True)
    fit(again, max_epochs=2, callbacks=[Clock()], ckpt_path=path)
    assert [p.requires_grad for p in again.parameters()] == [True, False, True, True]


class Plateau(Tiny):
    """Leaves its plateau to Lightning, which shows it an epoch after callbacks have saved."""

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val/loss"}


def test_a_plateau_of_lightning_sees_the_epoch_after_which_a_run_was_saved(tmp_path):
    whole = fit(Plateau(), max_epochs=4, callbacks=[Clock()])
    assert whole[::8] == [1.0, 1.0, 0.5, 0.25]

    def leg(**settings) -> list[float]:
        callbacks = [Clock(), Checkpoint(dirpath=tmp_path)]
        return fit(Plateau(), callbacks=callbacks, enable_checkpointing=True, **settings)

    leg(max_epochs=2)
    assert leg(max_epochs=4, ckpt_path=tmp_path / "last.ckpt") == whole[16:]


def test_a_step_without_a_gradient_has_no_norm(tmp_path):
    class Without(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for p in pl_module.parameters():
                p.grad = None

    logger, callbacks = CSVLogger(tmp_path), [Without(), NonFiniteGuard()]
    with pytest.raises(UserError, match="epoch 0 took no optimizer step: of 8 batches none gave"):
        fit(Tiny(), max_epochs=1, log_every_n_steps=8, callbacks=callbacks, logger=logger)
    assert not any(row.get("train/grad_norm") for row in logged(tmp_path))


def test_last_remembers_a_best_that_was_found_when_the_run_was_told_to_end(tmp_path):
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 4

    checkpoint = Checkpoint(dirpath=tmp_path)
    callbacks = [Clock(), Stops(), checkpoint]
    fit(Tiny(values=[0.5]), max_epochs=2, callbacks=callbacks, enable_checkpointing=True)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = saved["callbacks"][checkpoint.state_key]
    assert (tmp_path / state["best_model_path"]).is_file()
    assert list(state["best_k_models"].values()) == [0.5]


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before")
def test_a_validation_that_was_due_when_a_run_was_saved_is_made_when_it_goes_on(tmp_path):
    fit(Tiny(), max_epochs=1, callbacks=[Clock(), SaveAt(tmp_path, 4, 8)])
    for batches, max_steps in ((4, -1), (8, -1), (8, 8)):
        module, file = Tiny(values=[0.5]), tmp_path / f"{batches}.ckpt"
        settings = {"max_epochs": 1, "max_steps": max_steps, "callbacks": [Clock()]}
        fit(module, ckpt_path=file, **settings)
        assert (module.validations, len(module.lrs)) == (1, 8 - batches)


def test_samples_are_those_of_the_whole_epoch_after_a_resume_within_it(tmp_path):
    def leg(*save: int, **settings: Any) -> None:
        clock, quiet = Clock(), {"logger": False, "enable_progress_bar": False}
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            enable_checkpointing=False,
            callbacks=[clock, SaveAt(tmp_path, *save)],
            **quiet,
        )
        position = partial(resume_position, trainer)
        data = InMemoryBatches(torch.ones(12, 2), torch.ones(12), 2, seed=0, position=position)
        trainer.fit(Tiny(), data, loader(2), weights_only=True, **settings)
        assert clock.seen == 12

    leg(3)
    leg(4, ckpt_path=tmp_path / "3.ckpt")
    saved = torch.load(tmp_path / "4.ckpt", weights_only=True)["position"]
    assert (saved["batches"], saved["samples"], saved["stepped"]) == (4, 8, 4)


@pytest.mark.parametrize(("position", "saved"), [((1, 3, 0), True), ((1, 0, 0), False)])
def test_metrics_of_an_epoch_are_saved_within_it_though_no_sample_was_counted(
    monkeypatch, position, saved
):
    monkeypatch.setattr("anneal.callbacks.epoch_metrics.resume_position", lambda _: position)
    metrics, checkpoint = EpochMetrics(), {}
    metrics._stored = {"values": {"train/acc": 1.0}}
    trainer = SimpleNamespace(is_last_batch=True, world_size=1)
    metrics.on_save_checkpoint(trainer, None, checkpoint)
    assert checkpoint == ({"epoch_metrics": [metrics._stored]} if saved else {})
