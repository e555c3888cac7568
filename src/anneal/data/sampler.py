"""The samples that make each batch of each process, and the seeds of what is random in them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(eq=False)
class EpochSampler:
    """One process's share of a split: the samples of each of its batches, in the order of an epoch.

    Every sample comes exactly once, in one process, and all processes make the same number of
    steps: the order is cut into batches of `batch_size * world_size`, of which each process takes
    every `world_size`-th sample. A rest of fewer than two samples for each process joins the batch
    before it, as batch norm can't train on one and a process can't step on none.

    Args:
        size: Samples in the split.
        batch_size: Samples in a batch of one process.
        rank: Number of this process.
        world_size: How many processes there are.
        seed: Shuffles by this number and the epoch, whatever else has drawn random numbers. None:
            the order as it is.
        position: Tells, when the first batch is asked for, the epoch, how many of its batches are
            done, and how many samples these had in all processes; 0 if that is not known.
        shuffle: The permutation of a generator, if not any is as good.
        repeats: How often each sample in turn stands in the order, which keeps its length: an epoch
            then sees a part of them several times (Hoffer et al. 2020, arXiv 1901.09335).
    """

    size: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    seed: int | None = None
    position: Callable[[], tuple[int, int, int]] | None = None
    shuffle: Callable[[torch.Generator], Tensor] | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        self.skipped: list[int] = []  # batches of this iteration that the loader has left out

    def __len__(self) -> int:
        return self.left(0)

    def left(self, samples: int) -> int:
        """Return the batches that are left of an epoch when so many samples are done."""
        if samples >= self.size:
            return 0
        whole, rest = divmod(self.size - samples, self.batch_size * self.world_size)
        return max(1, whole + (rest >= 2 * self.world_size))

    def place(self, batches: int, start: int = 0) -> int:
        """Return the samples of an epoch that are done, in all processes.

        They are those at the start of the iteration, and of the batches that came since then.
        """
        for skipped in self.skipped:
            batches += skipped < batches
        if batches >= self.left(start):
            return self.size
        return start + batches * self.batch_size * self.world_size

    def __iter__(self) -> Iterator[Any]:
        """Yield the samples of each batch as (epoch, place, index), as a DataLoader takes them."""
        for epoch, places, index in self.batches():
            yield [(epoch, p, i) for p, i in zip(places.tolist(), index.tolist(), strict=True)]

    def batches(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield of each batch the epoch, places in its order and the samples that stand there."""
        self.skipped = []
        epoch, done, samples = self.position() if self.position else (0, 0, 0)
        order = torch.arange(self.size)
        if self.seed is not None:
            generator = make_generator(self.seed, epoch)
            if self.shuffle:
                order = self.shuffle(generator)
            else:
                order = torch.randperm(self.size, generator=generator)
            # On as many processes as there are repeats each gets one of them; on fewer, one whole
            # step follows the other, so that no image meets itself in a batch.
            block = 1 if self.world_size >= self.repeats else self.batch_size * self.world_size
            if self.repeats > 1:
                blocks = order.split(block)
                order = torch.cat([b.repeat(self.repeats) for b in blocks])[: self.size]
        step = self.batch_size * self.world_size
        start = samples or done * step
        last = self.left(start) - 1
        for batch in range(last + 1):
            end = start + step if batch < last else self.size
            places = torch.arange(start, end)[self.rank :: self.world_size]
            yield epoch, places, order[places]
            start = end

    def state_dict(self) -> dict[str, int]:
        """Return nothing: `position` knows. That it is there tells Lightning that we can resume."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Load nothing."""


def balanced(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many samples as there are, each class as often, in a random order.

    No sample of a class, whose number `classes` has for each, comes twice before all came once.
    """
    shuffled = torch.randperm(len(classes), generator=generator)
    members = shuffled[classes[shuffled].argsort(stable=True)]
    counts = classes.unique(return_counts=True)[1]
    turn = torch.arange(len(classes)) // len(counts)
    own = torch.arange(len(classes)) % len(counts)
    drawn = members[counts.cumsum(0)[own] - 1 - turn % counts[own]]
    return drawn[torch.randperm(len(classes), generator=generator)]


# ---- seeds that follow from other numbers, such as the run's seed and the epoch


def global_seed() -> int:
    """Return what `seed_everything` was last set to; 0 if never."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derive_seed(*key: int) -> int:
    """Return a seed that depends on these numbers only, and is unrelated for any others."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def make_generator(*key: int) -> torch.Generator:
    """Return a generator whose seed follows from these numbers."""
    return torch.Generator().manual_seed(derive_seed(*key))
