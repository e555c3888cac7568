"""The moving average of the weights."""

import warnings
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Average the weights as they change; the average is what is validated, tested and saved.

    average <- decay * average + (1 - decay) * weights. The weights that train on are in the
    checkpoint too.

    Args:
        decay: 0 to 1.
        update_every_n_steps: Optimizer steps from one update to the next.
        copy_epochs: In the first epochs, such as those of a warmup, the average is the weights.
    """

    def __init__(
        self, decay: float = 0.999, update_every_n_steps: int = 1, copy_epochs: int = 0
    ) -> None:
        super().__init__(decay=decay, update_every_n_steps=update_every_n_steps)
        self.copy_epochs = copy_epochs

    def setup(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # Of sharded models: those of a classifier are whole.
            warnings.filterwarnings("ignore", ".*overrides the configure_model.*")
            super().setup(*args, **kwargs)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        # Lightning's has no public name, in 2.6.4 to 2.6.6.
        if trainer.current_epoch < self.copy_epochs and self._average_model is not None:
            self._average_model.n_averaged.zero_()  # the next update copies
        super().on_train_batch_end(trainer, *args, **kwargs)
