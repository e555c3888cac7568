"""What optimizers do on surfaces, against what can be computed, and every recipe's claim."""

from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, StepLR

from anneal import Schedule, UserError, make_generator, read_checkpoint
from anneal.testing import logged
from examples.optimizers import gallery
from examples.optimizers.figure import LabModule, Steps, train_bare
from examples.optimizers.functions import BUILT_IN, find, surface
from examples.optimizers.surface import Surface
from examples.optimizers.trajectories import ends_in

CONFIGS = Path(__file__).parents[1] / "configs"
CASES = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())
PAGE = (CONFIGS.parents[2] / "docs" / "optimizers.md").read_text()


@surface((-2, 2), (-1, 1), minima=((1, 0),))
def shown(x, y):
    return (x - 1) ** 2 + y**2


def train(steps=20, seed=0, **kwargs):
    """Train a surface and return it."""
    seed_everything(seed, verbose=False)
    return train_bare(Surface(**kwargs), Steps(steps))


def path(**kwargs):
    """Return where the first start was before the first step and after each, (steps + 1, dims)."""
    return train(**kwargs).trajectory().path[:, 0]


@pytest.mark.parametrize(("function", "a", "start"), [("well", 1, [3]), ("quadratic", 10, [0, 3])])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.9, 2 * (1 - 1e-3), 2, 2 * (1 + 1e-3)])
def test_descent_is_a_power_of_one_minus_lr_times_curvature(function, a, start, share):
    lr = share / a
    xs = path(function=function, start=start, optimizer=partial(SGD, lr=lr), steps=100)[:, -1]
    expected = 3 * (1 - lr * a) ** torch.arange(101.0)
    torch.testing.assert_close(xs, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_velocity_is_the_weighted_sum_of_all_gradients(momentum):
    optimizer = partial(SGD, lr=0.01, momentum=momentum)
    module = train(function="himmelblau", start=[0.0, 0.0], optimizer=optimizer)
    gradients = module.trajectory().gradients
    weights = momentum ** torch.arange(len(gradients) - 1.0, -1, -1)
    (state,) = module.optimizers().state.values()
    expected = (weights[:, None] * gradients).sum(0)
    torch.testing.assert_close(state["momentum_buffer"][0], expected, rtol=1e-4, atol=1e-4)


def test_l2_and_decoupled_decay_are_one_path_under_sgd_and_two_under_adam():
    start, settings = torch.tensor([-4.0, 2.0]), {"lr": 0.1, "weight_decay": 0.1}
    made = [partial(cls, **settings) for cls in (SGD, Adam, AdamW)]
    paths = [path(function="quadratic", start=start.tolist(), optimizer=one) for one in made]
    l2, with_l2, decoupled = paths
    factor = 1 - 0.1 * torch.tensor([1.0, 10.0]) - 0.1 * 0.1
    torch.testing.assert_close(l2, start * factor ** torch.arange(len(l2))[:, None])
    # The first step of Adam is lr in both; AdamW takes the decay on top of it.
    torch.testing.assert_close(with_l2[1], start - 0.1 * start.sign())
    torch.testing.assert_close(decoupled[1], (1 - 0.1 * 0.1) * start - 0.1 * start.sign())
    assert (with_l2[-1] - decoupled[-1]).abs().min() > 0.1


@pytest.mark.parametrize("lr", [0.01, 0.3])
@pytest.mark.parametrize("start", [[1.0, 1.0], [-1e3, 1e-3], [1e-2, -1e2]])
def test_adams_first_step_has_the_size_lr_whatever_the_gradient(lr, start):
    first, second = path(function="scales", start=start, optimizer=partial(Adam, lr=lr), steps=1)
    expected = torch.full((2,), lr)
    torch.testing.assert_close((second - first).abs(), expected, rtol=5e-3, atol=1e-4 * lr)


@pytest.mark.parametrize("cls", [partial(SGD, momentum=0.9), Adam, RMSprop], ids=str)
def test_256_starts_in_one_batch_go_where_each_goes_alone(cls):
    optimizer = partial(cls, lr={Adam: 0.1, RMSprop: 0.02}.get(cls, 0.005))
    schedule = Schedule(partial(StepLR, step_size=10), interval="step")
    settings = {"optimizer": optimizer, "schedule": schedule, "steps": 25}
    together = train(function="himmelblau", grid=16, **settings).trajectory().path
    assert together.shape == (26, 256, 2)
    for i in (0, 100, 255):
        alone = path(function="himmelblau", start=together[0, i].tolist(), **settings)
        torch.testing.assert_close(together[:, i], alone, rtol=1e-4, atol=1e-5)


def test_a_grid_stands_in_the_middle_of_equal_cells():
    starts = Surface("quadratic", grid=2).points.detach()
    assert starts.tolist() == [[-2.5, -1.5], [-2.5, 1.5], [2.5, -1.5], [2.5, 1.5]]
    assert Surface("well", grid=4).points.flatten().tolist() == [-3.75, -1.25, 1.25, 3.75]


def test_noise_follows_from_the_seed_and_is_new_at_every_step_for_every_start():
    def steps(seed):
        module = train(seed=seed, grid=4, noise=1.0, optimizer=partial(SGD, lr=1.0))
        return module.trajectory().path[1:].diff(dim=0).flatten()

    assert steps(0).equal(steps(0))
    assert not steps(0).equal(steps(1))
    assert len(set(steps(0).tolist())) == 19 * 4


@pytest.mark.parametrize("config", CASES["resumed"])
def test_a_resumed_training_is_the_undisturbed_one(config, run, monkeypatch):
    given = [f"--config={CONFIGS / config}.yaml", "--data.steps=60", *CASES["resumed"][config]]
    run("fit", *given, "--run_name=whole")
    with monkeypatch.context() as crash:
        crash.setattr(LabModule, "on_before_backward", lambda self, _: 1 / (25 - self.global_step))
        with pytest.raises(ZeroDivisionError):
            run("fit", *given, "--run_name=part", "--checkpoint.every_n_train_steps=20")
    run("fit", "--ckpt_path=last", "--run=part")
    keys, seen = ("train/loss", "val/loss", "lr", "x", "val/y", "sharpness", "sharpness/edge"), []
    for name in ("whole", "part"):
        rows = logged(Path(f"runs/{name}"))
        curves = {k: [(row["step"], row[k]) for row in rows if row.get(k)] for k in keys}
        assert bool(curves["sharpness"]) == ("edge" in config)
        saved = read_checkpoint(Path(f"runs/{name}/checkpoints/last.ckpt"))
        kept = saved.get("walk", saved.get("fit", saved["state_dict"])).values()
        seen.append((curves, [v.tolist() if torch.is_tensor(v) else v for v in kept]))
    assert seen[0] == seen[1]


def test_a_trajectory_is_logged_and_goes_on_in_a_longer_run(run):
    whole = run("fit", f"--config={CONFIGS}/surface_noise.yaml", "--run_name=it").model.trajectory()
    rows = logged(Path("runs/it"))
    steps = [row for row in rows if row["train/loss"]]
    (end,) = (row for row in rows if row["val/loss"])
    assert [row["step"] for row in steps] == [str(step) for step in range(200)]
    assert [float(row["lr"]) for row in rows if row["lr"]] == pytest.approx(whole.lrs)
    for name, seen in zip(("loss", "x", "y"), (whole.losses, *whole.path.unbind(-1)), strict=True):
        key = "train/loss" if name == "loss" else name
        found = [float(row[key]) for row in steps] + [float(end[f"val/{name}"])]
        torch.testing.assert_close(torch.tensor(found), seen[:, 0])
    resume = ["--ckpt_path=last", "--run=it", "--trainer.max_epochs=2"]
    longer = run("fit", *resume).model.trajectory()
    assert longer.path[:201].equal(whole.path)
    assert len(longer.lrs) == len(longer.rates) == 400
    assert Path("runs/it/figure-2.png").is_file()  # that of the first training is kept


@pytest.mark.parametrize("optimizer", gallery.RATES)
@pytest.mark.parametrize("function", ["quadratic", "saddle"])
def test_every_optimizer_of_the_gallery_comes_down(function, optimizer):
    lr = gallery.RATES[optimizer][["quadratic", "saddle"].index(function)]
    losses = gallery.train(function, optimizer, lr, steps=40).losses
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_function_is_that_of_its_formula_and_its_minima_are_minima(name):
    function = BUILT_IN[name]
    at = torch.tensor([[3.0], [1.0, 2.0]][function.dims - 1], dtype=torch.float64)
    assert float(function(at)) == pytest.approx(CASES["values"][name])
    view = torch.tensor(function.view, dtype=torch.float64)
    minima = torch.tensor(function.minima, dtype=torch.float64)
    assert len(view) == minima.shape[1] == function.dims
    assert ((view[:, 0] < minima) & (minima < view[:, 1])).all()
    minima.requires_grad_()
    losses = function(minima)
    losses.sum().backward()
    assert minima.grad.abs().max() < 2e-4
    around = 1e-2 * torch.randn(500, 1, function.dims, dtype=torch.float64)
    around += 1e-3 * around.sign()  # the minima have a few digits only
    assert (function(minima + around) > losses).all()
    sample = view[:, 0] + (view[:, 1] - view[:, 0]) * torch.rand(5000, function.dims)
    assert function(sample).min() >= losses[0] == losses.min()


def test_a_function_of_ones_own_is_taken_by_its_import_path():
    module = train(function=f"{__name__}.shown.loss", optimizer=partial(SGD, lr=0.4))
    assert module.points[0].tolist() == pytest.approx([1, 0], abs=1e-4)
    assert module.draw().axes
    many = train(function=f"{__name__}.shown", grid=3, optimizer=partial(SGD, lr=0.4))
    assert ends_in(shown, many.points.detach()).tolist() == [0] * 9
    assert many.draw().axes


@pytest.mark.parametrize(("name", "settings", "message"), CASES["refused"])
def test_a_setting_that_can_not_be_is_refused(name, settings, message):
    with pytest.raises(UserError, match=message):
        resolve_name(f"examples.optimizers.{name}")(**settings)


def test_warm_restarts_leave_the_shallow_well_with_almost_every_seed(run):
    recipe = CONFIGS / "surface_restarts.yaml"
    xs = run("fit", f"--config={recipe}").model.trajectory().path[:, 0, 0]
    # The same of a hundred seeds at once, by hand.
    x = torch.full((100, 1), 5.0, requires_grad=True)
    optimizer = SGD([x], lr=0.4)
    schedule = CosineAnnealingWarmRestarts(optimizer, T_0=10, T_mult=2)
    many = [x.detach().flatten().clone()]
    for t in range(70):
        rngs = [make_generator(seed, t, t, 0) for seed in range(100)]
        noise = torch.stack([torch.randn(1, generator=rng) for rng in rngs])
        optimizer.zero_grad()
        (find("two_wells")(x).sum() + 0.1 * (noise * x).sum()).backward()
        optimizer.step()
        schedule.step()
        many.append(x.detach().flatten().clone())
    torch.testing.assert_close(torch.stack(many)[:, 0], xs, rtol=1e-3, atol=1e-3)
    left = int((((many[10] - 2.92).abs() < 0.1) & (many[70].abs() < 0.1)).sum())
    assert f"0 to 99, {left} go from" in PAGE
    assert f"{left} of seeds 0 to 99" in recipe.read_text()
