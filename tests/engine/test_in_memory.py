"""Data held in memory: which samples make each batch, how they are split, how files are read."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

from anneal.data.idx import MAX_BYTES, read_idx_pair
from anneal.data.in_memory import InMemoryBatches, stratified_split
from anneal.errors import UserError


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 8, 64])
@pytest.mark.parametrize("n", [3, 37, 40, 41])
def test_each_sample_comes_once_in_equal_steps(
    n: int, batch_size: int, world: int, seed: int | None
) -> None:
    labels = torch.arange(n)
    share = {"world_size": world, "seed": seed}
    parts = [InMemoryBatches(labels, labels, batch_size, rank=r, **share) for r in range(world)]
    shares = [[batch.tolist() for _, batch in part] for part in parts]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(n))
    assert {len(share) for share in shares} == {len(parts[0])}
    for share in shares:
        for batch in share[:-1]:
            assert len(batch) == batch_size
        assert len(share[-1]) >= min(2, batch_size, n // world)


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.rand(seed + epoch)
        labels = torch.arange(100)
        batches = InMemoryBatches(labels, labels, 10, seed=seed, position=lambda: (epoch, 0, 0))
        return [i for _, batch in batches for i in batch.tolist()]

    assert order(0, 3) == order(0, 3)
    assert len({tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25


def test_a_split_keeps_the_proportions_of_uneven_classes() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
    rest, held_out = stratified_split(labels, 100, torch.Generator())
    assert labels[held_out].bincount().tolist() == [70, 20, 10]
    assert torch.cat([rest, held_out]).sort().values.equal(torch.arange(1000))


def test_a_gz_that_unpacks_to_any_size_is_refused(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 60, 28, 28)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header + bytes(60 * 28 * 28 + MAX_BYTES)))
    with pytest.raises(UserError, match=rf"{path.name} is damaged or cut \(more than"):
        read_idx_pair(tmp_path, "train")
