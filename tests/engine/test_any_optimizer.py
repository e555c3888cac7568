"""Optimizers that need more than gradients: they train as in a plain loop and resume exactly."""

from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import odd_optimizers
import pytest
import torch
from course import Numbers
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny import Tiny, fit, loader
from torch import nn
from torch.nn.utils import clip_grad_norm_

from anneal.callbacks.non_finite_guard import NonFiniteGuard
from anneal.callbacks.seed_every_epoch import SeedEveryEpoch
from anneal.errors import UserError
from anneal.optim.configure import Schedule, configure_optimizers
from anneal.optim.groups import Rule
from anneal.optim.kinds import EvaluationWeights, adapt
from anneal.progress import Clock
from anneal.testing import main

# Import path to arguments, and how a plain loop calls it.
CLASSES = {
    "odd_optimizers.Twice": ({}, "closure"),
    "odd_optimizers.Ascent": ({}, "gradient, closure"),
    "odd_optimizers.Curved": ({}, "graph"),
    "odd_optimizers.TwoModes": ({}, "modes"),
    "odd_optimizers.Keeps": ({}, ""),
    "torch.optim.LBFGS": ({"lr": 0.1, "max_iter": 3}, "closure"),
    "pytorch_optimizer.SAM": ({"base_optimizer": torch.optim.SGD, "lr": 0.1}, "gradient, closure"),
    "pytorch_optimizer.AdaHessian": ({"lr": 0.01}, "graph"),
    "pytorch_optimizer.SophiaH": ({"lr": 0.01, "update_period": 2}, "graph"),
    "pytorch_optimizer.ScheduleFreeSGD": ({"lr": 0.1}, "modes"),
    "pytorch_optimizer.SPlus": ({}, "modes"),
    "pytorch_optimizer.DAdaptAdam": ({}, ""),
    "pytorch_optimizer.Shampoo": ({"lr": 0.01}, ""),
    "pytorch_optimizer.SOAP": ({}, ""),
    "pytorch_optimizer.Conda": ({}, ""),  # has an object of its own in its state
    "pytorch_optimizer.StableSPAM": ({}, ""),  # counts in an attribute
    "pytorch_optimizer.A2Grad": ({}, ""),  # has no learning rate
    "pytorch_optimizer.AdaMuon": ({}, "flags"),
    "schedulefree.AdamWScheduleFree": ({"lr": 0.01}, "modes"),
    "schedulefree.SGDScheduleFreeClosure": ({"lr": 0.1}, "closure"),
    "prodigyopt.Prodigy": ({}, ""),
    "lion_pytorch.Lion": ({"lr": 1e-3}, ""),
}
every = pytest.mark.parametrize("path", CLASSES)
own = pytest.mark.parametrize("path", [name for name in CLASSES if name.startswith("odd")])


def cls(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(pytest.importorskip(module.partition(".")[0]) and import_module(module), name)


class Net(Tiny):
    """A network with a hidden matrix, and random numbers that follow from the batch."""

    def __init__(self, make: Any, schedule: Schedule | None = None) -> None:
        torch.manual_seed(0)
        layers = nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 1)
        super().__init__(make, schedule, net=nn.Sequential(*layers))
        self.seen: list[list[torch.Tensor]] = []  # weights in each validation

    def training_step(self, batch, batch_idx):
        torch.manual_seed(batch_idx)
        return (self.net(batch[0]) - 1).square().mean()

    def validation_step(self, batch, batch_idx) -> None:
        super().validation_step(batch, batch_idx)
        if batch_idx == 0:
            self.seen.append(weights(self.net))


def weights(net: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in net.parameters()]


class Pictures(Numbers):
    """Data that can be exported for."""

    image_shape = (1, 28, 28)


def make(path: str) -> Any:
    return partial(cls(path), **CLASSES[path][0])


def plain(path: str, epochs: int = 2, clip: float = 0.0) -> nn.Module:
    """The same network, trained without Lightning as the optimizer's README says."""
    args, how = CLASSES[path]
    net = Net(None).net
    hidden = {"params": [net[2].weight], "use_muon": True}
    rest = [p for p in net.parameters() if p is not net[2].weight]
    groups = [hidden, {"params": rest, "use_muon": False}]
    optimizer = cls(path)(groups if how == "flags" else list(net.parameters()), **args)
    for i, (x,) in enumerate([*loader()] * epochs):
        torch.manual_seed(i % 8)
        if how == "modes":
            optimizer.train()

        def closure(x: torch.Tensor = x) -> torch.Tensor:
            optimizer.zero_grad()
            loss = (net(x) - 1).square().mean()
            loss.backward(create_graph=how == "graph")
            if clip:
                clip_grad_norm_(net.parameters(), clip)
            return loss

        if how == "closure":
            optimizer.step(closure)
        else:
            closure()
            optimizer.step(*([closure] if "closure" in how else []))
    if how == "modes":
        optimizer.eval()
    return net


@every
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
@pytest.mark.filterwarnings("ignore:A2Grad has no lr")
def test_it_trains_as_in_a_plain_loop_and_validations_change_nothing(path):
    module = Net(make(path))
    fit(module, max_epochs=2, val_check_interval=3)
    torch.testing.assert_close(weights(module.net), weights(plain(path)), rtol=0, atol=1e-6)
    without = Net(make(path))
    fit(without, max_epochs=2, limit_val_batches=0)
    assert same(weights(module.net), weights(without.net))


STOPS = [*((path, 11) for path in CLASSES), ("odd_optimizers.TwoModes", 8)]


@pytest.mark.parametrize(("path", "steps"), STOPS)
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.filterwarnings("ignore:A2Grad has no lr")
def test_it_resumes_within_and_after_an_epoch_bit_for_bit(path, steps, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    saved = [tmp_path / f"{name}.ckpt" for name in ("whole", "half", "again")]
    settings: dict[str, Any] = {"max_epochs": 2, "val_check_interval": 3}
    for file, more in zip(saved, ({}, {"max_steps": steps}, {"ckpt_path": saved[1]}), strict=True):
        callbacks = [Clock(), SeedEveryEpoch()]
        fit(Net(make(path)), callbacks=callbacks, save=file, **settings, **more)
    whole, half, again = (torch.load(file, weights_only=True) for file in saved)
    for key in ("state_dict", "optimizer_states"):
        assert same(whole[key], again[key])
    assert not same(whole["state_dict"], half["state_dict"])


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the bit, and of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_what_an_optimizer_changes_in_its_groups_is_kept_and_what_is_typed_anew_counts(tmp_path):
    path = "odd_optimizers.Keeps"
    fit(Net(make(path)), max_epochs=1, callbacks=[Clock()], save=tmp_path / "a.ckpt")
    resumed = {}
    for beta in (0.5, 0.25):
        module = Net(partial(cls(path), beta=beta))
        resume = {"ckpt_path": tmp_path / "a.ckpt", "callbacks": [Clock()]}
        fit(module, max_epochs=2, **resume)
        (group,) = module.optimizers().param_groups
        resumed[beta] = group["beta"], group["d"]
    expected = {0.5: (0.5 * 0.99**16, 3.0), 0.25: (0.25 * 0.99**8, 3.0)}
    assert resumed == {k: pytest.approx(v) for k, v in expected.items()}


@pytest.mark.parametrize("path", ["odd_optimizers.TwoModes", "schedulefree.AdamWScheduleFree"])
def test_validations_checkpoints_and_the_end_have_the_weights_of_eval(path, tmp_path):
    module = Net(make(path))
    fit(module, max_epochs=2, save=tmp_path / "end.ckpt")
    for epochs, seen in zip((1, 2), module.seen[-2:], strict=True):
        torch.testing.assert_close(seen, weights(plain(path, epochs)), rtol=0, atol=1e-6)
    stored = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert same([*stored["state_dict"].values()], weights(module.net))
    (state,) = stored["optimizer_states"]
    assert not same(state["param_groups"][0]["training_weights"], weights(module.net))


SMALL = ("--data=test_any_optimizer.Pictures", "--model=MLP", "--model.width=8", "--model.depth=1")
SMALL += ("--model.schedule.warmup_epochs=0", "--trainer.log_every_n_steps=1")


@pytest.mark.parametrize("path", ["odd_optimizers.TwoModes", "schedulefree.SGDScheduleFree"])
def test_the_commands_use_the_weights_of_eval(run, path, tmp_path):
    pytest.importorskip(path.partition(".")[0])
    words = (*SMALL, f"--model.optimizer={path}")
    run("fit", *words, "--trainer.max_epochs=2", "--run_name=a")
    file = tmp_path / "runs/a/checkpoints/last.ckpt"
    shown = torch.load(file, weights_only=True)
    (group,) = shown["optimizer_states"][0]["param_groups"]
    names = [name for name in shown["state_dict"] if name.startswith("net")]
    pairs = zip(names, group["training_weights"], strict=True)
    assert not all(same(shown["state_dict"][name], trained) for name, trained in pairs)
    run("export", "--run=a", "--ckpt_path=last", "--format=torch_export", "--output=a.pt2")
    exported = torch.export.load("a.pt2").state_dict
    weight = {name: t.data for key, t in exported.items() for name in names if key.endswith(name)}
    assert same(weight, {name: shown["state_dict"][name] for name in names})
    run("lr_find", *words)


@pytest.mark.parametrize("path", ["odd_optimizers.Curved", "odd_optimizers.Ascent"])
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph:UserWarning")
def test_gradients_are_clipped_and_looked_at_before_they_are_used(path):
    module = Net(make(path))
    guard = NonFiniteGuard()
    fit(module, max_epochs=2, gradient_clip_val=0.1, callbacks=[guard])
    clipped = plain(path, clip=0.1)
    torch.testing.assert_close(weights(module.net), weights(clipped), rtol=0, atol=1e-6)
    assert guard.norm is not None
    assert not guard.norm.requires_grad


@pytest.mark.parametrize(
    "path", ["odd_optimizers.Twice", "odd_optimizers.Ascent", "torch.optim.LBFGS"]
)
def test_a_loss_that_is_computed_again_can_not_be_accumulated(path):
    with pytest.raises(UserError, match=r"several times a step: not over --trainer.accumulate"):
        fit(Net(make(path)), max_epochs=1, accumulate_grad_batches=2)


def test_second_derivatives_accumulate_and_need_one_process():
    fit(Net(make("odd_optimizers.Curved")), max_epochs=1, accumulate_grad_batches=2)
    module = Net(make("odd_optimizers.Curved"))
    for world_size, precision in ((2, "32-true"), (1, "16-mixed")):
        trainer = SimpleNamespace(world_size=world_size, precision=precision, callbacks=[])
        module.trainer = trainer
        with pytest.raises(UserError, match=r"Curved needs second derivatives, .*devices=1"):
            adapt(module, odd_optimizers.Curved(module.parameters()))


def test_two_sets_of_weights_are_not_kept_in_pieces():
    trainer = SimpleNamespace(strategy=ModelParallelStrategy(), callbacks=[])
    optimizer = odd_optimizers.TwoModes([nn.Parameter(torch.zeros(1))])
    with pytest.raises(UserError, match="TwoModes sets whole weights aside"):
        EvaluationWeights.attach(trainer, optimizer)


@pytest.mark.parametrize("path", ["odd_optimizers.Twice", "odd_optimizers.Ascent"])
def test_a_loss_that_is_computed_again_is_not_for_one_of_several(path):
    class Two(Net):
        def configure_optimizers(self):
            rules = [Rule({"depth": 0}, make(path))]
            return configure_optimizers(self, partial(torch.optim.SGD, lr=0.1), rules=rules)

    with pytest.raises(UserError, match="several times a step: not beside others"):
        fit(Two(None), max_epochs=1)


def test_one_of_several_has_two_sets_of_weights_and_keeps_its_state(tmp_path, monkeypatch):
    class Two(Net):
        def configure_optimizers(self):
            modes = Rule({"depth": 0}, make("odd_optimizers.TwoModes"))
            return configure_optimizers(self, make("odd_optimizers.Keeps"), rules=[modes])

    saved = [tmp_path / f"{name}.ckpt" for name in ("whole", "half", "again")]
    for file, more in zip(saved, ({}, {"max_epochs": 1}, {"ckpt_path": saved[1]}), strict=True):
        fit(Two(None), callbacks=[Clock()], save=file, **{"max_epochs": 2, **more})
    whole, half, again = (torch.load(file, weights_only=True) for file in saved)
    for key in ("state_dict", "optimizer_states"):
        assert same(whole[key], again[key])
    assert not same(whole["state_dict"], half["state_dict"])


def test_a_module_whose_next_optimizer_needs_no_graph_has_none():
    module = Net(make("odd_optimizers.Curved"))
    fit(module, max_epochs=1)
    module.optimizer = partial(torch.optim.SGD, lr=0.1)
    fit(module, max_epochs=1)
    assert all(p.grad is None or not p.grad.requires_grad for p in module.parameters())


def test_lbfgs_trains_a_network_with_channels_last():
    class Conv(Net):
        def __init__(self) -> None:
            super().__init__(make("torch.optim.LBFGS"))
            layers = nn.Unflatten(1, (2, 1, 1)), nn.Conv2d(2, 4, 3, padding=1), nn.Flatten()
            self.net = nn.Sequential(*layers, nn.Linear(4, 1))
            self.net.to(memory_format=torch.channels_last)

    fit(Conv(), max_epochs=1)


def test_an_optimizer_without_types_and_one_with_its_bases_arguments_go_by_one_flag(run, capsys):
    words = ["fit", *SMALL, "--trainer.fast_dev_run=true"]
    run(*words, "--model.optimizer=odd_optimizers.Keeps", "--model.optimizer.beta=0.25")
    run(*words, "--model.optimizer=odd_optimizers.Around", "--model.optimizer.momentum=0.5")
    with pytest.raises(SystemExit):
        main([*words, "--model.optimizer=odd_optimizers.Keeps", "--model.optimizer.bta=1"])
    assert "did you mean --model.optimizer.beta?" in capsys.readouterr().err


def test_fused_is_not_said_of_an_optimizer_that_only_takes_anything(recwarn):
    class Anything(odd_optimizers.Keeps):
        def __init__(self, params, **kwargs: Any) -> None:
            assert "fused" not in kwargs
            super().__init__(params, **kwargs)

    fit(Net(partial(Anything, lr=0.1)), max_epochs=1)


@own
def test_ones_own_class_is_listed(path):
    assert hasattr(odd_optimizers, path.rpartition(".")[2])
