"""Private names of Lightning that the engine needs, as they were in releases 2.6.4 to 2.6.6."""

import re
from operator import attrgetter
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _process_dataloader
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.data import sized_len
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchmetrics import Metric

# A hyper-parameter that has `load_from_checkpoint` build the module from plain arguments.
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}
_move = _ResultMetric.to
Kind = TypeVar("Kind")


def _move_elsewhere(metric: Any, *to: Any, **more: Any) -> Any:
    """Move what `self.log` keeps of a value only elsewhere: Lightning copies it all, each time."""
    here = metric.is_tensor and to == (metric.value.device,)
    return metric if here else _move(metric, *to, **more)


_ResultMetric.to = _move_elsewhere  # type: ignore[assignment, method-assign]


def callbacks_of(trainer: Trainer, kind: Any = Callback) -> list[Any]:
    """Return the callbacks of a trainer that are of a class, or of one of several."""
    return [c for c in trainer.callbacks if isinstance(c, kind)]  # type: ignore[attr-defined]


def callback_of(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """Return the first callback of a class among those of a trainer; None: it has none."""
    return next(iter(callbacks_of(trainer, kind)), None)


def steps_after_this_batch(trainer: Trainer) -> bool:
    """Return whether the optimizer makes a step with the batch that was fetched last."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validation_is_due(trainer: Trainer) -> bool:
    """Return whether a validation belongs after the last batch, not only as the run is to stop."""
    stop, trainer.should_stop = trainer.should_stop, False
    fetcher: Any = trainer.fit_loop._data_fetcher
    due = trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)
    trainer.should_stop = stop
    return due


def validates_before_next_step(trainer: Trainer) -> bool:
    """Return whether a validation comes within the accumulation that begins with the next batch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    due = False
    for _ in range(1, trainer.accumulate_grad_batches):
        progress.increment_ready()
        due = due or validation_is_due(trainer)
    for counter in (progress.current, progress.total):
        counter.ready -= trainer.accumulate_grad_batches - 1
    return due


def unscales(optimizer: Optimizer) -> bool:
    """Return whether an optimizer's step takes the gradients that fp16 has scaled."""
    return _optimizer_handles_unscaling(optimizer)


def resize_into(out: Tensor, images: Tensor, mode: str, antialias: bool) -> None:
    """Resize as `F.interpolate` does, which takes no `out` and copies each image once more.

    The operator's name is as in torch 1.11 to 2.14.
    """
    name = f"_upsample_{mode}2d_aa" if antialias else f"upsample_{mode}2d"
    getattr(torch.ops.aten, name).out(images, list(out.shape[2:]), False, out=out)


def is_between_steps(trainer: Trainer) -> bool:
    """Return whether all of the step that was just taken is done.

    False in the middle of an accumulation, and where a validation or the end of the epoch is still
    to come: these save on their own.
    """
    ends = trainer.is_last_batch
    return steps_after_this_batch(trainer) and not (ends or validation_is_due(trainer))


def place(trainer: Trainer, checkpoint: Any, epoch: int, within: bool, validate: bool) -> int:
    """Have Lightning load that so many epochs are done, before it asks whether a run has ended.

    `within` some of the next one is done too. Return how much `max_steps` was raised, without which
    the run would end before a validation that is to come first.
    """
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    now = epoch + within
    for kind in ("total", "current"):
        progress[kind].update(ready=now, started=now, processed=epoch, completed=epoch)
    loop = trainer.fit_loop.epoch_loop
    extra = validate and loop.max_steps == checkpoint["global_step"]
    loop.max_steps += extra
    return int(extra)


def begin_at(trainer: Trainer, epoch: int, batches: int, stepped: int, validate: bool) -> None:
    """Have a resumed training begin after so many epochs, and batches of the next one.

    So many epochs are done, and batches of the next; the optimizer has `stepped` after so many in
    all. A validation that is due after them may come first. Lightning guesses from its counters in
    which hook a checkpoint was saved, and with `max_steps` takes an epoch's end for a place within.
    """
    fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    within = batches > 0
    for counts in (fit.epoch_progress.current, fit.epoch_progress.total):
        counts.ready = counts.started = epoch + within  # type: ignore[attr-defined]
        counts.processed = counts.completed = epoch  # type: ignore[attr-defined]
    progress = loop.batch_progress
    batches = int(min(batches, trainer.num_training_batches))
    now = progress.current
    now.ready = now.started = now.processed = now.completed = batches  # type: ignore[attr-defined]
    total = progress.total
    total.started = total.processed = total.completed = total.ready  # type: ignore[attr-defined]
    progress.is_last_batch = batches == trainer.num_training_batches
    fit._restarting = False  # else a plateau would not see the end of this epoch
    for each in (loop, loop.val_loop, loop.automatic_optimization, loop.manual_optimization):
        each._restarting = within
    fit._restart_stage = "restarted_mid_epoch" if within else "none"
    loop._restart_stage = loop.val_loop._restart_stage = "none"
    loop._batches_that_stepped = stepped
    if not within:
        return
    fetcher: Any = fit._data_fetcher
    if validate and loop._should_check_val_fx(fetcher):
        loop.val_loop._restart_stage = "restarted_mid_evaluation"
        loop.val_loop.batch_progress.reset()
        loop._batches_that_stepped -= 1  # the batch is counted after it
    elif progress.is_last_batch:
        loop.val_loop._has_run = True  # nothing is left but the epoch's end
    elif loop._should_check_val_fx(fetcher):
        loop._restart_stage = "restarted_on_last"  # the validation is done
    loop._batches_that_stepped -= not loop._should_accumulate()  # the loop's reset counts one


def skip_batches(trainer: Trainer, batches: int) -> None:
    """Read the batches of an epoch that are done, if the loader can't begin after them."""
    fetcher: Any = trainer.fit_loop._data_fetcher
    if not all(hasattr(loader, "load_state_dict") for loader in fetcher.combined_loader.flattened):
        for _ in range(batches):
            next(fetcher)
        fetcher.fetched -= batches  # Lightning adds them


def plateaus_wait(trainer: Trainer) -> bool:
    """Return whether Lightning is about to show a finished epoch to a plateau of its own."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    return (
        trainer.is_last_batch
        and epochs.processed > epochs.completed
        and any(c.reduce_on_plateau and c.interval == "epoch" for c in trainer.lr_scheduler_configs)
    )


def logged_step(trainer: Trainer) -> int:
    """Return the step at which Lightning would log now.

    With one optimizer it is `global_step` before a step and `global_step - 1` after it; with
    several, `global_step` counts the steps of all of them, and this one does not.
    """
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int, epoch: int) -> None:
    """Have what is logged next, such as the metrics of a test, stand at this step and epoch."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
    trainer.fit_loop.epoch_progress.current.completed = epoch


def metrics_to_log(trainer: Trainer) -> tuple[int, dict[str, float]]:
    """Return the metrics that Lightning is about to log, and their step; none at other times.

    It logs after its callbacks have saved their checkpoints.
    """
    connector: Any = trainer._logger_connector
    ends_epoch = connector._first_loop_iter is None  # whose line has its last step
    if not trainer.training or not (ends_epoch or connector.should_update_logs):
        return 0, {}
    if ends_epoch and not trainer.is_last_batch:  # but the run, within the epoch
        return 0, {}
    values = {name: float(v) for name, v in connector.metrics["log"].items()}
    return logged_step(trainer) - ends_epoch, values


def sums_of_epoch(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return what Lightning has summed up of the values logged with `on_epoch` in training."""
    return {
        key: metric.metric_state
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.on_epoch and metric.update_called
    }


def add_sums(trainer: Trainer, sums: dict[str, dict[str, Any]]) -> None:
    """Put what `sums_of_epoch` returned before what was logged since."""
    for key, stored in sums.items():
        metric = trainer.fit_loop.epoch_loop._results[key]
        extreme = metric.meta.is_max_reduction or metric.meta.is_min_reduction
        for name, value in stored.items():
            now = getattr(metric, name)
            setattr(metric, name, metric.meta.reduce_fx(value, now) if extreme else value + now)


def epoch_values(trainer: Trainer) -> dict[str, float]:
    """Return the values of a training epoch that Lightning is going to log at its end."""
    values = trainer.fit_loop.epoch_loop._results.metrics(False)["log"]
    return {name: float(value) for name, value in values.items()}


def set_state(metric: Metric, state: dict[str, Any]) -> None:
    """Set the sums of a metric of torchmetrics."""
    for name, value in state.items():
        setattr(metric, name, value)
    metric._update_count = 1


def attach_data(trainer: Trainer, model: LightningModule, datamodule: LightningDataModule) -> None:
    """Make trainer, module and data known to one another, as `trainer.fit` does first of all."""
    trainer._data_connector.attach_data(model, datamodule=datamodule)


def batches_of_a_process(trainer: Trainer, loader: object) -> int | None:
    """Return the batches of a training loader in one process; None: it doesn't say.

    Lightning shares out the samples of a DataLoader among the processes.
    """
    where = trainer, TrainerFn.FITTING, RunningStage.TRAINING
    return sized_len(_process_dataloader(*where, loader))


def skip_empty_hooks(trainer: Trainer) -> None:
    """Have Lightning not call, in each step, what our callbacks and its own leave empty."""
    for callback in callbacks_of(trainer):
        if type(callback).__module__.startswith(("anneal.", "lightning.")):
            for hook in filter(re.compile("batch|before|after").search, dir(Callback)):
                if getattr(type(callback), hook) is getattr(Callback, hook):
                    vars(callback).setdefault(hook, None)  # it may have one of its own


class QuickModule(LightningModule):
    """Keeps text without torch's search for a parameter: the name of each hook of a step, twice."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self) and (value is None or type(value) is str):
            object.__setattr__(self, name, value)
            return
        super().__setattr__(name, value)


def _set_iterator(owner: Any, value: Any) -> None:
    owner.loader._iterator = value


class HasWorkers:
    """Base of a loader around a DataLoader, whose workers Lightning then ends with the run.

    It does so for everything with an `_iterator`, a private name of torch 2.6 to 2.12. Left to the
    garbage collector each worker would take 5 s to end.
    """

    loader: DataLoader[Any]
    _iterator = property(attrgetter("loader._iterator"), _set_iterator)
