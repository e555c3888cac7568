"""The sampler as torch's DataLoader takes it."""

import pytest
from torch.utils.data import DataLoader

from anneal.data.sampler import EpochSampler


class Keys:
    """A dataset that returns what it is asked for."""

    def __getitem__(self, key):
        return key


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_sampler_hands_a_data_loader_every_sample_with_its_epoch_and_place(world_size):
    settings = {"batch_size": 4, "world_size": world_size, "seed": 0}
    samplers = [
        EpochSampler(23, rank=r, position=lambda: (3, 0, 0), **settings) for r in range(world_size)
    ]
    loaders = [DataLoader(Keys(), batch_sampler=s, collate_fn=list) for s in samplers]
    batches = [list(loader) for loader in loaders]
    assert [len(b) for b in batches] == [len(s) for s in samplers]
    keys = sorted(key for b in batches for batch in b for key in batch)
    assert [(epoch, place) for epoch, place, _ in keys] == [(3, place) for place in range(23)]
    assert sorted(index for _, _, index in keys) == list(range(23))
