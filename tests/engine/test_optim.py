"""Optimizers against their update equations, parameter groups, and the choice of the fused step."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torchvision
from tiny import Tiny, fit
from torch import nn

from anneal.errors import UserError
from anneal.optim.configure import batch_factor, build_optimizer, may_fuse
from anneal.optim.groups import NORMS, parameter_groups

# Gradients of five steps, far from each other in size.
GRADIENTS = [torch.tensor([g, -10 * g, 0.01]) for g in (1.0, -0.5, 2.0, 0.1, -3.0)]
START = torch.tensor([0.3, -2.0, 5.0])


def walk(make) -> torch.Tensor:
    parameter = nn.Parameter(START.clone())
    optimizer = build_optimizer(make, [{"params": [parameter]}])
    for gradient in GRADIENTS:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def sgd(lr: float, momentum: float, weight_decay: float) -> torch.Tensor:
    """v = m v + g + wd p;  p = p - lr v  (wd is L2: it goes into the velocity)."""
    p, v = START.clone(), torch.zeros(3)
    for g in GRADIENTS:
        v = momentum * v + g + weight_decay * p
        p = p - lr * v
    return p


def adam(lr: float, weight_decay: float, decoupled: bool) -> torch.Tensor:
    """Kingma and Ba, algorithm 1; decoupled: Loshchilov and Hutter, algorithm 2."""
    p, m, v = START.clone(), torch.zeros(3), torch.zeros(3)
    for t, g in enumerate(GRADIENTS, start=1):
        if decoupled:
            p = p * (1 - lr * weight_decay)
        else:
            g = g + weight_decay * p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        p = p - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return p


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (partial(torch.optim.SGD, lr=0.1), sgd(0.1, 0, 0)),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), sgd(0.1, 0.9, 0)),
        (
            partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
            sgd(0.1, 0.9, 0.1),
        ),
        (partial(torch.optim.Adam, lr=0.1), adam(0.1, 0, False)),
        (partial(torch.optim.Adam, lr=0.1, weight_decay=0.1), adam(0.1, 0.1, False)),
        (partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1), adam(0.1, 0.1, True)),
    ],
)
def test_five_steps_follow_the_update_equation(make, expected):
    torch.testing.assert_close(walk(make), expected, rtol=1e-5, atol=1e-6)


def test_weight_decay_of_adam_and_adamw_differ():
    assert not torch.allclose(adam(0.1, 0.1, True), adam(0.1, 0.1, False), atol=1e-2)


def test_all_norms_of_torch_are_norms_and_nothing_else():
    modules = {name: kind for name, kind in vars(nn).items() if isinstance(kind, type)}
    found = {name for name, kind in modules.items() if issubclass(kind, NORMS)}
    without = {"LocalResponseNorm"}  # has no parameters
    assert found == {name for name in modules if "Norm" in name} - without
    assert {"SyncBatchNorm", "InstanceNorm3d", "LazyBatchNorm2d", "RMSNorm"} <= found


@pytest.mark.parametrize(
    ("decay_norm", "decay_bias", "decayed"),
    [(False, False, 54), (False, True, 55), (True, False, 160)],
)
def test_resnet50_decays_what_it_should_and_spares_the_rest(decay_norm, decay_bias, decayed):
    groups = parameter_groups(torchvision.models.resnet50(weights=None), decay_norm, decay_bias)
    counts = {g["name"]: len(g["params"]) for g in groups}
    assert counts == {"decay": decayed, "no_decay": 161 - decayed}
    assert groups[1]["weight_decay"] == 0.0


def test_every_trainable_parameter_stands_in_exactly_one_group():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 2)
            self.norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)])
            self.head = nn.Linear(4, 5)
            self.head.weight = self.embed.weight  # tied
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

    net = Mixed()
    for decay in (True, False):
        ids = [id(p) for g in parameter_groups(net, decay, decay) for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    decayed = {id(p) for p in parameter_groups(net, False, False)[0]["params"]}
    names = {n for n, p in net.named_parameters() if id(p) in decayed}
    assert names == {"embed.weight", "attention.in_proj_weight", "attention.out_proj.weight"}


def test_decay_reaches_only_the_decay_group():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    groups = parameter_groups(net, decay_norm=False, decay_bias=False)
    optimizer = build_optimizer(partial(torch.optim.SGD, lr=0.1, weight_decay=0.5), groups)
    before = {n: p.clone() for n, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in net.named_parameters():
        factor = 0.95 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), before[name].detach() * factor)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_is_chosen_where_torch_has_it(name):
    optimizer = build_optimizer(
        partial(getattr(torch.optim, name), lr=0.1), [{"params": [nn.Parameter(START)]}]
    )
    assert optimizer.param_groups[0]["fused"] is True


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (partial(torch.optim.SGD, lr=0.1, fused=False), nn.Parameter(START)),
        (partial(torch.optim.Adam, lr=0.1, foreach=True), nn.Parameter(START)),
        (partial(torch.optim.Adam, lr=0.1, differentiable=True), nn.Parameter(START)),
        (partial(torch.optim.SGD, lr=0.1), nn.Parameter(START.to(torch.complex64))),
        (partial(torch.optim.RMSprop, lr=0.1), nn.Parameter(START)),
    ],
)
def test_unfused_where_asked_for_or_where_torch_can_not(make, parameter):
    optimizer = build_optimizer(make, [{"params": [parameter]}])
    assert not optimizer.param_groups[0].get("fused")


@pytest.mark.parametrize(
    ("precision", "clip", "fuses"),
    [
        ("32-true", 1, True),
        ("bf16-mixed", 0, True),
        ("bf16-mixed", 1, False),
        ("16-mixed", 1, False),
    ],
)
def test_a_step_in_mixed_precision_that_is_clipped_is_not_fused(precision, clip, fuses):
    trainer = SimpleNamespace(precision=precision, gradient_clip_val=clip, strategy=None)
    assert may_fuse(trainer) is fuses


def test_fused_and_unfused_take_the_same_way():
    for make in (
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.AdamW, lr=0.1),
    ):
        torch.testing.assert_close(walk(make), walk(partial(make, fused=False)))


def test_optimizer_of_ones_own_needs_nothing_but_its_class():
    class Sign(torch.optim.Optimizer):
        def __init__(self, params, lr: float = 0.5):
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure=None):
            loss = closure() if closure else None
            for group in self.param_groups:
                for p in group["params"]:
                    p -= group["lr"] * p.grad.sign()
            return loss

    assert fit(Tiny(Sign), max_epochs=1) == [0.5] * 8


def test_groups_are_named_in_the_optimizer():
    module = Tiny(decay_norm=False, decay_bias=False)
    fit(module, max_epochs=1)
    assert [g["name"] for g in module.optimizers().param_groups] == ["decay", "no_decay"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(torch.optim.SGD, lr=-1.0), "Invalid learning rate: -1.0"),
        (partial(torch.optim.SGD, lr=0.1, nesterov=True), "Nesterov momentum requires"),
        (partial(torch.optim.Adam, lr=0.1, fused=True, foreach=True), "fused"),
    ],
)
def test_arguments_that_the_optimizer_refuses_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        fit(Tiny(make), max_epochs=1)


def test_an_eps_that_is_nothing_in_half_precision_is_refused():
    half = [{"params": [nn.Parameter(START.half())]}]
    with pytest.raises(UserError, match="eps=1e-08 is 0 in fp16"):
        build_optimizer(partial(torch.optim.Adam, lr=0.1), half)
    build_optimizer(partial(torch.optim.Adam, lr=0.1, eps=1e-4), half)
    build_optimizer(partial(torch.optim.SGD, lr=0.1), half)


def test_module_without_trainable_parameters_is_refused():
    with pytest.raises(UserError, match="no parameter to train"):
        parameter_groups(nn.Linear(1, 1).requires_grad_(False), True)


def test_the_rate_grows_with_the_samples_of_a_step_and_says_how(caplog):
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=8), world_size=2, accumulate_grad_batches=3
    )
    optimizer = torch.optim.SGD([nn.Parameter(START)], lr=0.5)
    with caplog.at_level("INFO"):
        assert batch_factor(trainer, optimizer, 16) == 3
    line = "2 devices x batch_size 8 x accumulate 3 = 48 samples a step; lr 0.5 is for 16: lr 1.5"
    assert caplog.messages == [line]
    trainer.datamodule = None
    with pytest.raises(UserError, match="lr_batch_size needs a data module that says"):
        batch_factor(trainer, optimizer, 16)
