"""Figures and tables of a test: what they show follows from the task."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from anneal.image_grid import legible
from anneal.launch import gather
from anneal.progress import log_image
from anneal.runs.folder import next_free_path
from anneal.system import write_csv
from anneal.tasks.figures import BINS, DRAWN, TOP, draw_top_losses
from anneal.tasks.kinds import Classification, Task

Loss = tuple[float, Tensor, Tensor, Tensor]  # loss, prediction, target, image (C, H, W), 0 to 255


class TestReport(Callback):
    """Draw figures of a test, such as `test-confusion.png`, and send them to the loggers.

    Tables stand beside them; an earlier test's files stay. Takes what the test_step of a
    `TaskModule` returns: `loss` of each sample, `preds` and `target`.
    """

    __test__ = False  # for pytest, which takes the name for a test

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.parts: list[dict[str, Tensor]] = []
        self.top: list[Loss] = []

    def on_test_batch_end(
        self, trainer: Trainer, _: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if not isinstance(outputs, dict) or not {"loss", "preds", "target"} <= outputs.keys():
            return
        found = {name: values.detach().cpu() for name, values in outputs.items()}
        loss, preds, target = (found.pop("loss").float(), found["preds"], found["target"])
        self.parts.append(found)
        right = preds == target if preds.ndim == 1 else torch.zeros(len(loss), dtype=torch.bool)
        worst = loss.masked_fill(right, -1.0).topk(min(TOP, len(loss)))
        for value, i in zip(worst.values.tolist(), worst.indices.tolist(), strict=True):
            if value >= 0:
                self.top.append((value, preds[i], target[i], batch[0][i].cpu()))
        self.top = _highest(self.top)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather what all processes have found."""
        parts = [part for parts in gather(trainer, self.parts) for part in parts]
        self.found = {name: torch.cat([p[name] for p in parts]) for name in (parts or [{}])[0]}
        own = getattr(pl_module, "evaluated", {})
        if "confidence" in self.found and "ece" not in own:
            right = (self.found["preds"] == self.found["target"]).int()
            ece = binary_calibration_error(self.found["confidence"], right, n_bins=BINS)
            pl_module.log("test/ece", float(ece), sync_dist=True)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.top = _highest([loss for part in gather(trainer, self.top) for loss in part])
        if not self.found or not trainer.is_global_zero:
            return
        task: Task = getattr(pl_module, "task", None) or Classification()
        names = getattr(pl_module, "class_names", None)
        names = names or list(map(str, range(pl_module.num_classes)))  # type: ignore[arg-type]
        drawn = legible(names)
        figures, tables = DRAWN[task.name](self.found, task, names, drawn)
        if self.top:
            figures["top-losses"] = draw_top_losses(self.top, task, drawn)
        self.folder.mkdir(parents=True, exist_ok=True)
        for what, figure in figures.items():
            path = next_free_path(self.folder / f"test-{what}.png")
            figure.savefig(path, dpi=120)
            rank_zero_info(f"{path}")
            log_image(trainer, f"test/{what}", path)
        for what, rows in tables.items():
            write_csv(next_free_path(self.folder / f"test-{what}.csv"), rows)


def _highest(losses: list[Loss]) -> list[Loss]:
    return sorted(losses, key=lambda loss: loss[0], reverse=True)[:TOP]
