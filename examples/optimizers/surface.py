"""An optimizer at work on a network of one or two numbers, whose loss can be drawn."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Optimizer

from anneal import UserError, global_seed, make_generator
from examples.optimizers.figure import LabModule
from examples.optimizers.functions import find
from examples.optimizers.trajectories import CHECKPOINT_KEY, Trajectory, draw


class Surface(LabModule):
    """One or two numbers, trained to the minimum of a function, from one start or from many.

    Logs `train/loss` and the position `x` (and `y`) before every step, `val/loss`, `val/x` and
    `val/y` where an epoch ended; of many starts the mean loss and the position of the first.

    All starts are rows of one parameter (starts, dims) and their losses are summed, so that each
    has the gradient it would have alone. Each also takes the trajectory it would take alone if the
    optimizer works element by element, as all but LBFGS, Muon and Adafactor do, and if no gradient
    is clipped.

    Args:
        function: `well` or `two_wells` of x; `quadratic`, `valley`, `scales`, `saddle`,
            `rosenbrock`, `beale`, `rastrigin` or `himmelblau` of x and y; or the import path of
            your own, of tensors x or x and y. Their formulas are in `functions.yaml`.
        start: The start, x or x and y. None: the middle of the view.
        grid: Number of starts along each axis, spread over the view of the function, instead of
            one start. The figure then shows which start ends in which minimum.
        noise: Standard deviation of a normal random number that is added to each component of the
            gradient, like the noise of a mini-batch. It is drawn anew for every step, from seed and
            step, and for every start.
    """

    def __init__(
        self,
        function: str = "well",
        start: list[float] | None = None,
        grid: int | None = None,
        noise: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.function = function
        self.loss = find(function)
        self.noise = noise
        if noise < 0:
            raise UserError(f"model.noise={noise}: must be 0 or more")
        self.points = nn.Parameter(self._starts(start, grid))
        self.path: list[Tensor] = []  # the points before each step
        self.lrs: list[float] = []
        self.gradients: list[Tensor] = []  # of the first start, at each step, noise included
        self.rates: list[Tensor] = []

    def _starts(self, start: list[float] | None, grid: int | None) -> Tensor:
        """Return the points to start from, (starts, dims)."""
        dims, view = self.loss.dims, self.loss.view
        if grid is not None:
            if start is not None or grid < 2 or not view or not self.loss.minima:
                known = "a function whose view and minima are known (@surface in functions.py)"
                needs = f"must be at least 2, goes without model.start, and with {known}"
                raise UserError(f"model.grid={grid}: {needs}")
            # In the middle of equal cells.
            sides = [low + (high - low) * (torch.arange(grid) + 0.5) / grid for low, high in view]
            return torch.cartesian_prod(*sides).view(-1, dims)
        if start is None:
            start = [(low + high) / 2 for low, high in view] or [0.0] * dims
        if len(start) != dims:
            raise UserError(f"model.start={start}: {self.function} takes {dims} number(s)")
        return torch.tensor([start], dtype=torch.get_default_dtype())

    def on_train_start(self) -> None:
        super().on_train_start()
        self.label += f"; noise {self.noise:g}" if self.noise else ""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if len(self.path) == self.trainer.global_step:  # not in the middle of an accumulation
            self.path.append(self.points.detach().clone())
            self.lrs.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep what a step was made of, before a checkpoint is written after it."""
        super().optimizer_step(*args, **kwargs)
        gradient: Any = self.points.grad
        self.gradients.append(gradient[0].detach().clone())
        self.rates.append(effective_rates(self.trainer.optimizers[0], self.points, self.lrs[-1])[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = self.loss(self.points)
        self._log("", {"train/loss": losses.mean()})
        total = losses.sum()
        if self.noise:
            # The gradient of noise * points is noise. A function of step and batch, so that it is
            # the same after a resume, and in each of the evaluations of one step of LBFGS.
            step = self.trainer.global_step
            rng = make_generator(global_seed(), step, batch_idx, self.global_rank)
            noise = torch.randn(self.points.shape, generator=rng).to(self.points)
            total = total + self.noise * (noise * self.points).sum()
        return total

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log("val/", {"val/loss": self.loss(self.points).mean()})

    def _log(self, prefix: str, metrics: dict[str, Tensor]) -> None:
        where = {prefix + name: u for name, u in zip("xy", self.points.detach()[0], strict=False)}
        self.log_dict(metrics | where, batch_size=1, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = vars(self.trajectory())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        done = Trajectory(**checkpoint[CHECKPOINT_KEY])
        self.path, self.lrs = list(done.path[:-1].to(self.points)), done.lrs
        self.gradients, self.rates = list(done.gradients), list(done.rates)

    def trajectory(self) -> Trajectory:
        """Return the trajectory so far."""
        path = torch.stack([*self.path, self.points.detach()]).cpu()
        gradients, rates = (
            torch.stack(rows).cpu() if rows else torch.empty(0, self.loss.dims)
            for rows in (self.gradients, self.rates)
        )
        return Trajectory(self.function, self.label, path, [*self.lrs], gradients, rates)

    def draw(self) -> Figure:
        """Draw the trajectory over the function, or which start ends in which minimum."""
        return draw([self.trajectory()])


def effective_rates(optimizer: Optimizer, parameter: Tensor, lr: float) -> Tensor:
    """Return what an optimizer has just multiplied each gradient, or its mean, by."""
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    squares = state.get("square_avg", state.get("sum"))  # RMSprop, Adagrad
    if "exp_avg_sq" in state:  # Adam and its kin
        squares = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
    if squares is None:
        return torch.full_like(parameter, lr)
    rates: Tensor = lr / (squares.sqrt() + group["eps"])
    return rates
