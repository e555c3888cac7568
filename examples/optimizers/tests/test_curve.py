"""The polynomial fit: its basis, its limit under weight decay, and the recipe's claim."""

from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD

from anneal import UserError
from examples.optimizers.curve import Curve
from examples.optimizers.points import CurvePoints, test_points, train_points

test_points.__test__ = False


def test_points_to_train_on_are_tenths_and_those_to_test_on_lie_between():
    x, y = (t.flatten() for t in train_points())
    assert len(x) == 41
    assert {0.1, 0.2, 0.3} < set(x.numpy().round(9))
    torch.testing.assert_close(y, 1 / (1 + 25 * x**2))
    between, _ = (t.flatten() for t in test_points())
    assert {0.05, 0.15, 0.25} < set(between.numpy().round(9))
    torch.testing.assert_close(between, (x[:-1] + x[1:]) / 2)


def features(x, degree):
    scale = np.sqrt(2 * np.arange(degree + 1) + 1)
    return np.polynomial.legendre.legvander(x / 2, degree) * scale


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
    trainer = Trainer(accelerator="cpu", max_epochs=1, barebones=True)
    trainer.fit(curve, CurvePoints(steps=400))
    x, y = (t.flatten().numpy() for t in train_points())
    a = features(x, 8)
    hessian = 2 * a.T @ a / len(x) + decay * np.eye(9)
    exact = np.linalg.solve(hessian, 2 * a.T @ y / len(x))
    np.testing.assert_allclose(curve.weights.detach(), exact, atol=1e-4)


def test_sizes_that_make_no_fit_are_refused():
    for degree in (-1, 101):
        with pytest.raises(UserError, match="between 0 and 100"):
            Curve(degree)
