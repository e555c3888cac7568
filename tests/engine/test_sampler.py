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


def order(**settings) -> list[list[int]]:
    """The samples of each batch, by index."""
    return [[index for _, _, index in batch] for batch in EpochSampler(**settings)]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


@pytest.mark.parametrize(("size", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_a_single_sample_that_is_left_joins_the_batch_before_it(size, sizes):
    batches = order(size=size, batch_size=4)
    assert [len(b) for b in batches] == sizes
    assert flat(batches) == list(range(size))


def test_the_order_follows_from_seed_and_epoch():
    def drawn(seed: int, epoch: int) -> list[int]:
        return flat(order(size=40, batch_size=8, seed=seed, position=lambda: (epoch, 0, 0)))

    orders = [drawn(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    assert drawn(1, 0) == orders[2]


def test_repeats_of_an_image_meet_in_a_step_only_if_each_process_gets_one():
    settings = {"size": 16, "batch_size": 2, "seed": 0, "repeats": 2}
    one = order(**settings)
    assert one[0::2] == one[1::2]
    assert len(set(flat(one))) == 8
    two = [order(**settings, rank=rank, world_size=2) for rank in (0, 1)]
    assert two[0] == two[1]
    assert flat(two[0]) == flat(one[0::2])
