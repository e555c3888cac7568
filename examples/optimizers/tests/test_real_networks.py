"""The polynomial's basis and limit; sharpness, measured right, and at the edge of stability."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from anneal import read_checkpoint
from anneal.testing import logged
from examples.optimizers.curve import Curve, CurvePoints, points
from examples.optimizers.figure import LabModule, Steps, train_bare
from examples.optimizers.sharpness import Sharpness, largest_eigenvalue
from examples.optimizers.surface import Surface

CONFIG = Path(__file__).parents[1] / "configs" / "edge_of_stability.yaml"


def test_points_to_train_on_are_tenths_and_those_to_test_on_lie_between():
    x, y = points(True)
    torch.testing.assert_close(x, torch.arange(-20, 21)[None].double() / 10)
    torch.testing.assert_close(y, 1 / (1 + 25 * x**2))
    torch.testing.assert_close(points(False)[0], (x[:, :-1] + x[:, 1:]) / 2)


def features(x, degree):
    return np.polynomial.legendre.legvander(x / 2, degree) * np.sqrt(2 * np.arange(degree + 1) + 1)


def test_the_polynomial_is_a_sum_of_orthonormal_legendre_polynomials():
    curve = Curve(degree=38)
    torch.nn.init.normal_(curve.weights, generator=torch.Generator().manual_seed(0))
    x = np.linspace(-2, 2, 301)
    expected = features(x, 38) @ curve.weights.detach().double().numpy()
    np.testing.assert_allclose(curve(torch.tensor(x)).detach(), expected, atol=2e-3)
    nodes, weights = np.polynomial.legendre.leggauss(50)
    gram = (features(2 * nodes, 38) * weights[:, None] / 2).T @ features(2 * nodes, 38)
    np.testing.assert_allclose(gram, np.eye(39), atol=1e-9)


def test_weight_decay_is_the_l2_penalty_of_the_exact_solution():
    decay = 0.05
    curve = Curve(degree=8, optimizer=partial(SGD, lr=0.1, momentum=0.9, weight_decay=decay))
    train_bare(curve, CurvePoints(steps=400))
    x, y = (t.flatten().numpy() for t in points(True))
    a = features(x, 8)
    hessian = 2 * a.T @ a / len(x) + decay * np.eye(9)
    exact = np.linalg.solve(hessian, 2 * a.T @ y / len(x))
    np.testing.assert_allclose(curve.weights.detach(), exact, atol=1e-4)


def test_the_largest_eigenvalue_is_found_also_from_its_own_vector():
    matrix = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    matrix = matrix + matrix.T - 30 * torch.eye(300)  # another one is larger in size
    value, vector = largest_eigenvalue(lambda v: matrix @ v, torch.ones(300), products=60)
    assert value == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-3)
    assert largest_eigenvalue(lambda v: 3 * v, vector)[0] == pytest.approx(3)


@pytest.mark.parametrize(("momentum", "edge"), [(0, 20), (0.9, 38), (None, 380)])
def test_the_curvature_of_a_quadratic_is_measured_as_its_optimizer_sees_it(momentum, edge):
    adam = momentum is None
    make = partial(Adam, lr=0.1) if adam else partial(SGD, lr=0.1, momentum=momentum)
    watch = Sharpness(3, max_share=float("inf"))
    module = Surface("quadratic", [-4.0, 2.2], optimizer=make)
    train_bare(module, Steps(6), watch)
    # After a step Adam divides by the size of the first gradient, (-4, 22), times 1 - beta1.
    expected = 10 / (22 * 0.1) if adam else 10
    assert [step for step, *_ in watch.measured] == [1, 4]
    assert watch.measured[0][1:] == pytest.approx((expected, edge), rel=1e-4)
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        train_bare(module, Steps(6), watch, Sharpness())


class TwoRates(LabModule):
    """Curvatures of 2 and 30, and a rate for each; a third parameter is not trained."""

    def __init__(self):
        super().__init__()
        self.x, self.y, self.fixed = (nn.Parameter(torch.ones(1)) for _ in range(3))

    def error(self, batch):
        return (self.x**2 + 15 * self.y**2 + 1000 * self.fixed**2).sum()

    def configure_optimizers(self):
        return SGD([{"params": [self.x], "lr": 0.1}, {"params": [self.y], "lr": 0.01}])


def test_of_several_learning_rates_each_scales_the_curvature_of_its_own():
    watch = Sharpness(max_share=float("inf"))
    train_bare(TwoRates(), Steps(2), watch)
    assert watch.measured[0] == pytest.approx((1, 30 * 0.01 / 0.1, 2 / 0.1))


@pytest.mark.parametrize("flags", [[], ["--model.optimizer=Adam", "--model.optimizer.lr=0.01"]])
def test_a_network_comes_to_the_edge_of_stability_and_stays_there(run, flags):
    run("fit", f"--config={CONFIG}", "--run_name=it", *flags)
    rows = logged(Path("runs/it"))
    late = [row for row in rows if row["sharpness"] and int(row["step"]) > 800]
    assert float(late[0]["sharpness/edge"]) == pytest.approx(38 / 0.01 if flags else 2 / 0.4)
    shares = [float(row["sharpness"]) / float(row["sharpness/edge"]) for row in late]
    assert sum(shares) / len(shares) == pytest.approx(1, abs=0.05)
    kept = read_checkpoint(Path("runs/it/checkpoints/last.ckpt"))["callbacks"]["Sharpness"]
    assert kept["spent"] <= 0.1 * kept["took"]
