"""A polynomial that overfits, and what weight decay does about it."""

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from anneal import UserError
from examples.optimizers.figure import LabModule
from examples.optimizers.fits import CurveFit, draw
from examples.optimizers.points import LIMIT

Batch = tuple[Tensor, Tensor]


class Curve(LabModule):
    """A polynomial through the points of `CurvePoints`, trained on their mean squared error.

    It is a sum of Legendre polynomials, f(x) = sum of w_k sqrt(2k + 1) P_k(x / 2), which are
    orthonormal over -2 to 2. In powers of x the same polynomial is all but untrainable: there the
    Hessian's eigenvalues differ by a factor of 1e32 at degree 38, and gradient descent does not get
    past the first dozen powers. Here most directions are learnt in a few hundred steps. The slow
    ones are the few that the points hardly determine, which let a fit swing between the points.
    Weight decay, the L2 penalty, keeps these small from the start.

    Args:
        degree: Degree of the polynomial, 0 to 100; it has degree + 1 weights.
    """

    def __init__(self, degree: int = 38, **settings: Any) -> None:
        super().__init__(**settings)
        if not 0 <= degree <= 100:
            raise UserError(f"model.degree={degree}: must lie between 0 and 100")
        self.degree = degree
        self.weights = nn.Parameter(torch.zeros(degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return y of the polynomial at x, both of the same shape, which may be any."""
        k = torch.arange(self.degree + 1, device=x.device)
        scaled = x[..., None].to(self.weights.dtype) / LIMIT
        features = torch.special.legendre_polynomial_p(scaled, k) * (2 * k + 1).sqrt()
        y: Tensor = features @ self.weights
        return y

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._error(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._error(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._error(batch, "test")

    def _error(self, batch: Batch, stage: str) -> Tensor:
        x, y = batch
        error = F.mse_loss(self(x), y.to(self.weights.dtype))
        self.log(f"{stage}/loss", error, batch_size=len(x), prog_bar=True)
        return error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["fit"] = vars(self.fit())

    @torch.no_grad()
    def fit(self) -> CurveFit:
        """Return the polynomial as it is now, to be drawn."""
        x = torch.linspace(-LIMIT, LIMIT, 801, dtype=torch.float64)
        y, weights = self(x.to(self.device)).double().cpu(), self.weights.detach().cpu()
        return CurveFit(f"degree {self.degree}, {self.label}", x, y, weights)

    def draw(self) -> Figure:
        """Draw the polynomial, the curve and its points."""
        return draw([self.fit()])
