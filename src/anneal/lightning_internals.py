"""Private names of Lightning that the engine needs, as they were in releases 2.6.4 to 2.6.6."""

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.data_connector import _process_dataloader
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.data import sized_len
from torch.utils.data import DataLoader

# A hyper-parameter that has `load_from_checkpoint` build the module from plain arguments.
INSTANTIATOR = {"_instantiator": "lightning.pytorch.cli.instantiate_module"}


def is_between_steps(trainer: Trainer) -> bool:
    """Return whether all of the step that was just taken is done.

    False in the middle of an accumulation, and where a validation or the end of the epoch is still
    to come: a run that resumes from there would leave it out.
    """
    loop = trainer.fit_loop.epoch_loop
    return not (
        loop._should_accumulate()
        or trainer.is_last_batch
        or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
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
    values = {name: float(v) for name, v in connector.metrics["log"].items()}
    return logged_step(trainer) - ends_epoch, values


def attach_data(trainer: Trainer, model: LightningModule, datamodule: LightningDataModule) -> None:
    """Make trainer, module and data known to one another, as `trainer.fit` does first of all."""
    trainer._data_connector.attach_data(model, datamodule=datamodule)


def batches_of_a_process(trainer: Trainer, loader: object) -> int | None:
    """Return the batches of a training loader in one process; None: it doesn't say.

    Lightning shares out the samples of a DataLoader among the processes.
    """
    where = trainer, TrainerFn.FITTING, RunningStage.TRAINING
    return sized_len(_process_dataloader(*where, loader))


class HasWorkers:
    """Base of a loader around a DataLoader, whose workers Lightning then ends with the run.

    It does so for everything with an `_iterator`, a private name of torch 2.6 to 2.12. Left to the
    garbage collector each worker would take 5 s to end.
    """

    loader: DataLoader[Any]

    @property
    def _iterator(self) -> Any:
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value
