"""Random seeds that follow from other numbers, such as the run's seed and the epoch."""

import os

import numpy as np
import torch


def global_seed() -> int:
    """Return what `seed_everything` was last set to; 0 if never."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derive_seed(*key: int) -> int:
    """Return a seed that depends on these numbers only, and is unrelated for any others."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


def make_generator(*key: int) -> torch.Generator:
    """Return a generator whose seed follows from these numbers."""
    return torch.Generator().manual_seed(derive_seed(*key))
