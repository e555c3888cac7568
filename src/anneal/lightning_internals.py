"""Private names of other libraries that the engine needs, read in Lightning 2.6.4 to 2.6.6."""

from lightning.pytorch import Trainer


def is_between_steps(trainer: Trainer) -> bool:
    """Whether all of the step that was just taken is done.

    False in the middle of an accumulation, and where a validation or the end of the epoch is still
    to come: a run that goes on from there would leave it out.
    """
    loop = trainer.fit_loop.epoch_loop
    return not (
        loop._should_accumulate()
        or trainer.is_last_batch
        or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    )
