"""Batches of samples held in memory, and how to split these."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from anneal.data.sampler import EpochSampler, global_seed
from anneal.errors import UserError
from anneal.progress import resume_position


class InMemoryBatches(EpochSampler):
    """A share of samples held in memory: indexing into tensors, without workers.

    The arguments are those of `in_run`, and the others of `EpochSampler`.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, **share: Any) -> None:
        super().__init__(len(labels), batch_size, **share)
        self.images = images
        self.labels = labels

    @classmethod
    def in_run(
        cls,
        trainer: Trainer | None,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        shuffle: bool = False,
    ) -> "InMemoryBatches":
        """Return this process's share in a run: what a data module's loaders return.

        Args:
            trainer: The data module's; None: outside of a run, everything.
            images: All images of the split, (N, ...).
            labels: All labels of the split, (N, ...).
            batch_size: Samples in a batch of one process.
            shuffle: Whether each epoch has an order of its own. It follows from seed and epoch, so
                a resumed run continues in it.
        """
        return cls(images, labels, batch_size, **share_of(trainer, shuffle))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels, batch by batch."""
        for _, _, index in self.batches():
            yield self.images[index], self.labels[index]


def share_of(trainer: Trainer | None, shuffle: bool) -> dict[str, Any]:
    """Return the arguments of an `EpochSampler` that follow from a run; None: outside of one."""
    rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
    fixed = bool(trainer and trainer.overfit_batches)  # type: ignore[attr-defined]
    return {
        "rank": rank,
        "world_size": world_size,
        "seed": global_seed() if shuffle and not fixed else None,
        "position": partial(resume_position, trainer) if shuffle else None,
    }


def check_split_size(name: str, split: str, size: int, batch_size: int, processes: int) -> None:
    """Raise UserError if a split has no sample for a process, or `train` no full batch for each."""
    if size < processes:
        few = f"the {processes} processes: lower trainer.devices"
    elif split == "train" and size < batch_size * processes:
        each = f" in each of {processes} processes" if processes > 1 else ""
        few = f"a batch of {batch_size}{each}: lower data.batch_size"
    else:
        return
    raise UserError(f"{name} has {size} {split} images, fewer than {few}")


def stratified_split(
    labels: Tensor, held_out: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Split 0..N-1 in two: indices that stay, and `held_out` others, both in rising order.

    Each class is in the same proportion in both.
    """
    n = len(labels)
    shuffled = torch.randperm(n, generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    # Evenly spaced places in a list sorted by class meet each class in proportion.
    picked = torch.zeros(n, dtype=torch.bool)
    picked[(2 * torch.arange(held_out) + 1) * n // (2 * held_out)] = True
    return by_class[~picked].sort().values, by_class[picked].sort().values
