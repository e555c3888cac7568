"""The sharpness of a network: measured right, cheaply, and at the edge of stability."""

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.optim import SGD, Adam

from anneal import UserError
from examples.optimizers.points import Steps
from examples.optimizers.sharpness import Sharpness, largest_eigenvalue
from examples.optimizers.surface import Surface

CONFIG = Path(__file__).parents[1] / "configs" / "edge_of_stability.yaml"


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
    trainer = Trainer(max_epochs=1, callbacks=[watch], accelerator="cpu", barebones=True)
    module = Surface("quadratic", [-4.0, 2.2], optimizer=make)
    trainer.fit(module, Steps(6))
    # After a step Adam divides by the size of the first gradient, (-4, 22), times 1 - beta1.
    expected = 10 / (22 * 0.1) if adam else 10
    assert [step for step, *_ in watch.measured] == [1, 4]
    assert watch.measured[0][1:] == pytest.approx((expected, edge), rel=1e-4)
    with pytest.raises(UserError, match="max_share=0"):
        Sharpness(max_share=0)


@pytest.mark.parametrize("flags", [[], ["--model.optimizer=Adam", "--model.optimizer.lr=0.01"]])
def test_a_network_comes_to_the_edge_of_stability_and_stays_there(run, flags):
    trainer = run("fit", f"--config={CONFIG}", "--run_name=it", *flags).trainer
    with Path("runs/it/metrics.csv").open() as file:
        *rows, last = csv.DictReader(file)
    late = [row for row in rows if row["sharpness"] and int(row["step"]) > 400]
    assert float(late[0]["sharpness/edge"]) == pytest.approx(38 / 0.01 if flags else 2 / 0.4)
    shares = [float(row["sharpness"]) / float(row["sharpness/edge"]) for row in late]
    assert sum(shares) / len(shares) == pytest.approx(1, abs=0.15 if flags else 0.05)
    (watch,) = (c for c in trainer.callbacks if isinstance(c, Sharpness))
    assert watch.spent <= 0.1 * float(last["time"])
