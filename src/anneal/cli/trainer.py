"""Start Lightning's Trainer from the settings of a configuration."""

import os
from typing import Any

import torch
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed.fsdp import FSDPModule, fully_shard

from anneal.cli.values import check_range
from anneal.errors import UserError, first_line
from anneal.launch import watch
from anneal.lightning_internals import callbacks_of
from anneal.runs.checkpoint_io import AtomicCheckpointIO
from anneal.system import keep_freed_memory

PREVIEW_COMMANDS = ("schedule", "lr_find", "show-batch", "replay")
WHOLE_WEIGHTS = (callbacks.StochasticWeightAveraging, callbacks.WeightAveraging)
Settings = dict[str, Any]

# A look ahead leaves nothing behind.
WRITERS = ("enable_checkpointing", "enable_model_summary", "enable_progress_bar", "logger")
NO_TRACES: Settings = dict.fromkeys(WRITERS, False)
# As many steps as the search asks for, and no validation among them.
SEARCH: Settings = {"max_epochs": -1, "max_steps": -1, "max_time": None, "callbacks": None}
SEARCH |= {"check_val_every_n_epoch": 2**31, "val_check_interval": None, "num_sanity_val_steps": 0}
# A step is repeated without what writes, and with loggers for a module that calls its own.
REPLAY: Settings = {"detect_anomaly": False, "logger": DummyLogger()}
REPLAY |= {"max_time": None, "profiler": None}


def as_list(value: Any) -> list[Any]:
    """What a setting holds: nothing, one thing or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def start(settings: Settings) -> Trainer:
    """A trainer that saves whole files; raises UserError if its settings make no sense."""
    for key, value in settings.items():
        check_range(key, value, f"--trainer.{key}: ")
    if not settings["barebones"]:
        settings["plugins"] = [*as_list(settings["plugins"]), AtomicCheckpointIO()]
    try:
        trainer = Trainer(**settings)
    except (ValueError, TypeError, ImportError, RuntimeError) as e:  # no such device, ...
        raise UserError(f"trainer: {first_line(e)}") from e
    strategy: Any = trainer.strategy
    watch(strategy)
    averages = callbacks_of(trainer, WHOLE_WEIGHTS)
    if averages and isinstance(strategy, ModelParallelStrategy):
        raise UserError(
            f"{type(averages[0]).__name__} averages whole weights, and "
            f"--trainer.strategy={settings['strategy']} keeps them in pieces: leave one of them out"
        )
    if strategy.root_device.type == "cpu":
        if settings["sync_batchnorm"] and trainer.world_size > 1:
            how = "leave it out, and each process normalises by its own batch"
            raise UserError(f"--trainer.sync_batchnorm=true: torch has it for GPUs only; {how}")
        keep_freed_memory()
        if not torch.cuda.is_available():  # each step of an optimizer asks again, for 50 µs
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return trainer


def preview_trainer(command: str, settings: Settings) -> Trainer:
    """A trainer that leaves nothing behind.

    A schedule depends on how many devices there are, and not on whether they are here: where the
    run itself could not start, as many processes on a CPU stand in for them.
    """
    settings = settings | NO_TRACES
    if command == "replay":
        writers = callbacks.Checkpoint | callbacks.ProgressBar | callbacks.ModelSummary
        others = [c for c in as_list(settings["callbacks"]) if not isinstance(c, writers)]
        return start(settings | REPLAY | {"callbacks": others})
    if command in ("lr_find", "show-batch"):
        if settings["fast_dev_run"] or settings["barebones"]:
            raise UserError(f"{command}: leave out --trainer.fast_dev_run and --trainer.barebones")
        return start(settings | SEARCH)
    try:
        return start(settings)
    except (UserError, MisconfigurationException):
        devices = settings["devices"]
        if isinstance(devices, str) and "," in devices:
            devices = devices.split(",")
        count = len(devices) if isinstance(devices, list) else devices
        if count in ("auto", -1, "-1"):
            raise
        elsewhere = {"accelerator": "cpu", "devices": count, "strategy": "auto"}
        return start(settings | elsewhere | {"plugins": None, "sync_batchnorm": False})


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
