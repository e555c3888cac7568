"""Parameters, gradients and optimizer state in pieces: `--trainer.strategy=fsdp2`."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.fsdp import FSDPModule, fully_shard


class FullyShard(ModelParallelStrategy):
    """Torch's `fully_shard` (FSDP2) over all processes, on GPUs and on CPUs, for any module.

    Lightning's `fsdp` is the older FSDP1, which it has on GPUs only. Each part of a network that
    has parts of its own (a ResNet's stage) is gathered and freed by itself. A checkpoint is one
    file, the same as without pieces.

    Buffers, such as batch norm's running statistics, are those of the first process in a checkpoint
    and in every evaluation, as with DDP.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        assert self.model is not None
        assert self.lightning_module is not None
        mesh = self.device_mesh["data_parallel"]
        self.model.to(self.root_device)
        for network in self.model.children():
            trainable = any(p.requires_grad for p in network.parameters())
            if not trainable or isinstance(network, FSDPModule):  # done in the fit before this test
                continue
            network.to(memory_format=torch.contiguous_format)  # it refuses any other
            for part in network.children():
                if any(True for _ in part.children()):
                    fully_shard(part, mesh=mesh)
            fully_shard(network, mesh=mesh)
        # Lightning wants the module to say that it has sharded itself.
        self.lightning_module.configure_model = lambda: None  # type: ignore[method-assign]
        super().setup(trainer)

    def on_validation_start(self) -> None:
        assert self.model is not None
        for buffer in self.model.buffers():
            torch.distributed.broadcast(buffer, src=0)

    on_test_start = on_validation_start


StrategyRegistry.register("fsdp2", FullyShard, description=FullyShard.__doc__)
