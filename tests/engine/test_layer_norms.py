"""`--health.norms=layers` logs what a step does to each layer, as plain torch works it out."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from tiny import Tiny, fit, loader
from torch import nn

from anneal.callbacks.non_finite_guard import NonFiniteGuard
from anneal.errors import UserError
from anneal.loggers.csv import CSVLogger
from anneal.optim.joint import JointOptimizer
from anneal.progress import Clock
from anneal.testing import logged

LR = 0.05
SGD = partial(torch.optim.SGD, lr=LR)


def network() -> nn.Module:
    """Two layers, of one a part is frozen; between them a frozen layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    net[1].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def norms(folder, module: Tiny, **settings) -> dict[int, dict[str, float]]:
    """Train and return what is logged of the layers, by step."""
    callbacks = [
        Clock(),
        *settings.pop("callbacks", ()),
        NonFiniteGuard(norms="layers"),
    ]
    fit(module, callbacks=callbacks, logger=CSVLogger(folder), **settings)
    found = [
        (int(row["step"]), {k: float(v) for k, v in row.items() if k[:6] == "norms/" and v})
        for row in logged(folder)
    ]
    return {step: values for step, values in found if values}


def by_hand(net: nn.Module, layers, window: int, batches: int = 8) -> list[dict[str, float]]:
    """The same of each step of an epoch of gradient descent, in plain torch."""
    samples = torch.cat([x for (x,) in loader(batches)])
    steps = []
    for part in samples.split(window):
        net.zero_grad()
        net(part).square().mean().backward()
        step = {}
        for name, parameters in layers(net).items():
            weight, gradient = (
                sum(float(t.detach().square().sum()) for t in tensors) ** 0.5
                for tensors in (parameters, [p.grad for p in parameters])
            )
            step |= {f"norms/{name}/weight": weight, f"norms/{name}/gradient": gradient}
            step |= {f"norms/{name}/update": LR * gradient}
            step |= {f"norms/{name}/ratio": LR * gradient / weight}
        steps.append(step)
        with torch.no_grad():
            for p in net.parameters():
                p -= LR * p.grad if p.grad is not None else 0
    return steps


def parts(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    return {"net.0": list(net[0].parameters()), "net.2": [net[2].weight]}


@pytest.mark.parametrize(("window", "every"), [(1, 3), (3, 1), (8, 1)])
def test_norms_are_those_of_plain_torch(tmp_path, window, every):
    module = Tiny(SGD, net=network())
    settings = {"accumulate_grad_batches": window, "log_every_n_steps": every}
    found = norms(tmp_path, module, max_epochs=1, **settings)
    expected = by_hand(network(), parts, window)
    steps = range(every - 1, len(expected), every)
    assert found == {s: pytest.approx(expected[s], rel=1e-5) for s in steps}


def test_gradients_are_those_before_they_are_clipped_and_updates_those_after(tmp_path):
    module = Tiny(SGD, net=network())
    found = norms(tmp_path, module, max_steps=1, gradient_clip_val=1e-3, log_every_n_steps=1)[0]
    expected = by_hand(network(), parts, 1)[0]
    for name in ("norms/net.0/gradient", "norms/net.2/gradient"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    together = sum(found[f"norms/net.{i}/update"] ** 2 for i in (0, 2)) ** 0.5
    assert together == pytest.approx(LR * 1e-3, rel=1e-3)


def test_a_module_without_layers_and_a_weight_of_zero(tmp_path):
    class Point(Tiny):
        def __init__(self):
            super().__init__(SGD, net=nn.Identity())
            self.x = nn.Parameter(torch.zeros(2))

        def training_step(self, batch, batch_idx):
            return (self.x - 1).sum()

    (values,) = norms(
        tmp_path, Point(), max_epochs=1, log_every_n_steps=1, limit_train_batches=1
    ).values()
    gradient = 2**0.5
    expected = {"weight": 0.0, "gradient": gradient, "update": LR * gradient}
    assert values == {f"norms/module/{k}": pytest.approx(v) for k, v in expected.items()}


class Manual(Tiny):
    """Two optimizers that share a layer, one of which steps twice in a batch."""

    def __init__(self):
        super().__init__(net=network())
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, last = self.net[0], self.net[2]
        groups = [first.weight, last.weight], [first.bias]
        return [torch.optim.SGD(parameters, lr=LR) for parameters in groups]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def test_several_optimizers_that_a_module_steps_itself(tmp_path):
    found = norms(tmp_path, Manual(), max_epochs=1, log_every_n_steps=2)
    expected = by_hand(network(), parts, 1)
    assert found == {s: pytest.approx(expected[s], rel=1e-5) for s in (1, 3, 5, 7)}


class Twice(torch.optim.SGD):
    """Looks at the gradient elsewhere before its step, as SAM does."""

    def step(self, closure):
        loss = closure()
        (group,) = self.param_groups
        kept = [p.detach().clone() for p in group["params"]]
        with torch.no_grad():
            for p in group["params"]:
                p += 1
        closure()
        with torch.no_grad():
            for p, old in zip(group["params"], kept, strict=True):
                p.copy_(old - group["lr"])
        return loss


def test_an_update_is_that_of_the_whole_step_of_an_optimizer_that_calls_its_closure_twice(tmp_path):
    net = nn.Linear(2, 1)
    first = copy.deepcopy(net)
    found = norms(tmp_path, Tiny(partial(Twice, lr=LR), net=net), max_epochs=1, log_every_n_steps=1)
    weights = nn.utils.parameters_to_vector(first.parameters())
    assert found[0]["norms/net/weight"] == pytest.approx(float(weights.detach().norm()))
    assert all(
        step["norms/net/update"] == pytest.approx(LR * 3**0.5, rel=1e-5) for step in found.values()
    )
    assert len(found) == 8


def joint(groups) -> JointOptimizer:
    first, *rest = groups[0]["params"]
    return JointOptimizer([torch.optim.SGD(p, LR, fused=len(p) == 1) for p in ([first], rest)])


@pytest.mark.parametrize("optimizer", [partial(SGD, fused=False), partial(SGD, fused=True), joint])
def test_gradients_that_fp16_has_scaled_are_shown_as_they_are(tmp_path, optimizer):
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    module = Tiny(optimizer, net=network())
    found = norms(tmp_path, module, max_epochs=1, log_every_n_steps=1, plugins=[half])
    assert len(found) == 8
    for values in found.values():
        for layer in ("net.0", "net.2"):
            update = LR * values[f"norms/{layer}/gradient"]
            assert values[f"norms/{layer}/update"] == pytest.approx(update, rel=1e-3)
    expected = by_hand(network(), parts, 1)
    assert found[0] == pytest.approx(expected[0], rel=0.01)


def test_a_step_that_is_left_out_has_no_norms(tmp_path):
    class Broken(Tiny):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (float("nan") if batch_idx == 3 else 1)

    module = Broken(SGD, net=network())
    callbacks = [NonFiniteGuard(skip=1, norms="layers")]
    with pytest.warns(UserWarning, match="left out, 1 so far"):
        fit(
            module,
            callbacks=callbacks,
            logger=CSVLogger(tmp_path),
            max_epochs=1,
            log_every_n_steps=1,
        )
    steps = {int(row["step"]) for row in logged(tmp_path) if row["norms/net.0/weight"]}
    assert steps == set(range(8)) - {3}


@pytest.mark.parametrize("asked", [True, False])
def test_they_are_logged_on_request_and_also_of_a_short_window(run, tmp_path, asked):
    words = ("fit", "--config=small.yaml", "--trainer.logger=true", "--run_name=r")
    steps = ("--trainer.accumulate_grad_batches=3", "--trainer.log_every_n_steps=1")
    run(*words, *steps, *["--health.norms=layers"] * asked, "--model.optimizer.momentum=0")
    rows = [r for r in logged(tmp_path / "runs" / "r") if any(r[k] for k in r if k[:6] == "norms/")]
    assert [int(row["step"]) for row in rows] == [0, 1, 2, 3] * asked
    for row in rows:  # of three batches and of one
        update, gradient = (float(row[f"norms/net.1/{what}"]) for what in ("update", "gradient"))
        assert update == pytest.approx(0.1 * gradient, rel=1e-4)


def test_weights_in_pieces_that_do_not_say_so_are_refused():
    guard = NonFiniteGuard(norms="layers")
    trainer = SimpleNamespace(strategy=FSDPStrategy(), global_step=0, callbacks=[])
    with pytest.raises(UserError, match=r"not with trainer\.strategy=fsdp; take fsdp2"):
        guard.on_train_start(trainer, None)
