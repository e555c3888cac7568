"""Rules for parameters, several optimizers as one, and Muon."""

import copy
import csv
import gc
import itertools
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from pages import ROOT
from theirs import KeepsInGroups
from tiny import Tiny, fit, loader
from torch import nn
from torch.optim import SGD, AdamW

from anneal import Muon, Rule, configure_optimizers, parameter_groups
from anneal.cli.schema import path_of, resolve
from anneal.optim.configure import build_optimizers
from anneal.optim.groups import OptimizerCallable
from anneal.optim.joint import JointOptimizer
from anneal.optim.muon import with_muon
from anneal.optim.schedule import Schedule
from anneal.optim.torch_schedulers import OneCycleLR
from anneal.testing import logged


class Net(nn.Sequential):
    """Two convolutions, a norm after each, an embedding that is not used, and a last layer."""

    def __init__(self) -> None:
        parts = {
            "stem": nn.Conv2d(1, 2, 3, bias=False),
            "stem_norm": nn.BatchNorm2d(2),
            "body": nn.Conv2d(2, 3, 3),
            "body_norm": nn.GroupNorm(1, 3),
            "table": nn.Embedding(2, 3),
            "head": nn.Linear(3, 2),
        }
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


ALL = [name for name, _ in Net().named_parameters()]
NORMS = ["stem_norm.weight", "stem_norm.bias", "body_norm.weight", "body_norm.bias"]
HEAD = ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"name": "body*"}, [n for n in ALL if n.startswith("body")]),
        ({"name": ["*bias", "stem.*"]}, [n for n in ALL if n.endswith("bias")] + ["stem.weight"]),
        ({"layer": "norm"}, NORMS),
        ({"layer": "conv"}, ["stem.weight", "body.weight", "body.bias"]),
        ({"layer": "linear"}, HEAD),
        ({"layer": "embedding"}, ["table.weight"]),
        ({"layer": "GroupNorm"}, NORMS[2:]),
        ({"layer": ["BatchNorm2d", "Linear"]}, NORMS[:2] + HEAD),
        ({"ndim": 1}, [n for n, p in Net().named_parameters() if p.ndim == 1]),
        ({"ndim": [2, 4]}, [n for n, p in Net().named_parameters() if p.ndim > 1]),
        ({"depth": 0}, ["stem.weight", *NORMS[:2]]),
        ({"depth": -1}, HEAD),
        ({"depth": [0, 3]}, ["stem.weight", *NORMS[:2], *HEAD]),
        ({"depth": ":-1"}, [n for n in ALL if n not in HEAD]),
        ({"depth": "1:3"}, ["body.weight", "body.bias", *NORMS[2:], "table.weight"]),
        ({"hidden": True}, ["body.weight"]),
        ({"hidden": False}, [n for n in ALL if n != "body.weight"]),
        ({"layer": "conv", "ndim": 4, "depth": "1:"}, ["body.weight"]),
    ],
    ids=str,
)
def test_a_rule_matches_by_name_layer_dimensions_and_depth(match, expected):
    net = Net()
    names = {p: name for name, p in net.named_parameters()}
    groups = parameter_groups(net, rules=[Rule(match, settings={"lr": 0.5}, name="those")])
    by_name = {g["name"]: sorted(names[p] for p in g["params"]) for g in groups}
    assert by_name["those"] == sorted(expected)
    assert by_name["rest"] == sorted(set(ALL) - set(expected))
    assert [g.get("lr") for g in sorted(groups, key=lambda g: g["name"])] == [None, 0.5]


RULES = [
    Rule({"layer": "norm"}, settings={"weight_decay": 0.0}),
    Rule({"depth": -1}, SGD),
    Rule({"name": "body*"}, SGD, {"lr": 0.25, "weight_decay": 0.5}),
    Rule({"name": "*"}, settings={"lr_decay": 0.5}),
]


@pytest.mark.parametrize("n", range(len(RULES) + 1))
def test_every_parameter_is_in_one_group_whatever_the_rules(n):
    for rules in itertools.permutations(RULES, n):
        for short in (True, False):
            net = Net()
            groups = parameter_groups(net, short, short, rules=rules)
            found = [p for g in groups for p in g["params"]]
            assert len(found) == len(ALL)
            assert set(found) == set(net.parameters())
            names = [g.get("name") for g in groups]
            assert len(set(names)) == len(names)


def test_the_first_rule_counts_where_two_set_the_same():
    net = Net()
    first = Rule({"depth": -1}, partial(SGD, lr=0.1), {"weight_decay": 0.5}, name="first")
    second = Rule({"ndim": 1}, AdamW, {"weight_decay": 0.25, "lr": 1.0}, name="second")
    groups = parameter_groups(net, rules=[first, second])
    bias = next(g for g in groups if any(p is net.head.bias for p in g["params"]))
    assert (bias["weight_decay"], bias["lr"], bias["name"]) == (0.5, 1.0, "first_second")
    assert bias["optimizer"] is first.optimizer


def test_layers_far_from_the_head_learn_more_slowly():
    net = Net()
    decay = [Rule({"name": "*"}, settings={"lr_decay": 0.5})]
    groups = parameter_groups(net, rules=decay)
    factors = {p: g["lr_factor"] for g in groups for p in g["params"]}
    found = {name: factors[p] for name, p in net.named_parameters()}
    assert found["head.weight"] == found["head.bias"] == 1.0
    assert found["table.weight"] == 0.5
    assert found["body.weight"] == found["body_norm.bias"] == 0.25
    assert found["stem.weight"] == found["stem_norm.weight"] == 0.125


class Ruled(Tiny):
    """Three layers under rules."""

    def __init__(self, rules, optimizer=None, **kwargs) -> None:
        layers = (nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
        super().__init__(optimizer, net=nn.Sequential(*layers), **kwargs)
        self.rules = rules

    def configure_optimizers(self):
        return configure_optimizers(self, self.optimizer, self.schedule, rules=self.rules)


def test_optimizers_as_one_take_the_steps_that_each_takes_alone():
    torch.manual_seed(0)
    adam, sgd = partial(AdamW, lr=0.1, weight_decay=0.5), partial(SGD, lr=0.2, momentum=0.9)
    module = Ruled([Rule({"depth": 0}, adam), Rule({"depth": 1}, settings={"lr_factor": 0.5})], sgd)
    net = copy.deepcopy(module.net)
    fit(module, max_epochs=2)
    assert isinstance(module.optimizers().optimizer, JointOptimizer)
    mid = [{"params": net[2].parameters(), "lr": 0.1}, {"params": net[4].parameters()}]
    alone = [adam(net[0].parameters(), fused=True), sgd(mid, fused=True)]
    for batch in [*loader(8), *loader(8)]:
        net.zero_grad()
        net(batch[0]).square().mean().backward()
        for optimizer in alone:
            optimizer.step()
    for expected, found in zip(net.parameters(), module.net.parameters(), strict=True):
        assert torch.equal(expected, found)


def steps(net, optimizer, n):
    for seed in range(n):
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step(lambda: None)


def joint(net):
    rules = [
        Rule({"hidden": True}, partial(Muon, lr=0.1)),
        Rule({"ndim": 1}, KeepsInGroups),
    ]
    return build_optimizers(partial(AdamW, lr=0.1), parameter_groups(net, rules=rules))


def test_the_state_of_optimizers_as_one_goes_on_where_it_was(tmp_path):
    torch.manual_seed(0)
    net = Ruled([]).net
    again = copy.deepcopy(net)
    optimizer = joint(net)
    steps(net, optimizer, 3)
    again.load_state_dict(copy.deepcopy(net.state_dict()))
    torch.save(optimizer.state_dict(), tmp_path / "state")
    loaded = joint(again)
    loaded.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert [g["k"] for g in loaded.param_groups if "k" in g] == [3]
    for o, n in ((optimizer, net), (loaded, again)):
        steps(n, o, 4)
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    assert len(optimizer.state) == 3  # KeepsInGroups has none
    with pytest.raises(ValueError, match="parameter group"):
        AdamW(again.parameters()).load_state_dict(optimizer.state_dict())


def test_a_group_that_comes_later_is_the_last_optimizers():
    net = Ruled([]).net
    optimizer = joint(net)
    more = nn.Parameter(torch.ones(2))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.add_param_group({"params": [more], "lr": 0.5})
    assert isinstance(optimizer.optimizers[-1], AdamW)
    more.grad = torch.ones(2)
    optimizer.step(lambda: None)  # those without a gradient stay
    torch.testing.assert_close(more.detach(), torch.full((2,), 0.5 - 0.005))
    assert optimizer.param_groups[-1] is optimizer.optimizers[-1].param_groups[-1]


# ---- Muon


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_convolution_takes_the_steps_of_torchs_muon_on_its_matrix(layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, bias=False).to(memory_format=layout)
    matrix = nn.Parameter(conv.weight.detach().reshape(8, 27).clone())
    ours = Muon([conv.weight], lr=0.1)
    torchs = torch.optim.Muon([matrix], lr=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        x = torch.randn(4, 3, 8, 8)
        conv.zero_grad()
        conv(x).square().mean().backward()
        gradient = conv.weight.grad
        matrix.grad = gradient.reshape(8, 27).clone()
        ours.step()
        torchs.step()
        assert conv.weight.grad is gradient
    assert conv.weight.shape == gradient.shape == (8, 3, 3, 3)
    torch.testing.assert_close(conv.weight.detach().reshape(8, 27), matrix.detach())


def test_muon_takes_hidden_weights_of_a_resnet_and_adamw_the_rest():
    net = torchvision.models.resnet18(weights=None)
    optimizer, rules = with_muon(net, partial(torch.optim.Muon, lr=0.02, weight_decay=0.3), [])
    groups = parameter_groups(net, rules=rules)
    muon, adamw = build_optimizers(optimizer, groups).optimizers
    assert isinstance(muon, Muon)
    taken = {id(p) for p in muon.param_groups[0]["params"]}
    names = {name for name, p in net.named_parameters() if id(p) in taken}
    convs = {f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    assert names == convs - {"conv1.weight"}
    for group in (*muon.param_groups, *adamw.param_groups):
        assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"


def test_muon_of_a_transformer_leaves_embeddings_positions_and_head_alone():
    net = torchvision.models.vit_b_16(weights=None, num_classes=3)
    _, rules = with_muon(net, Muon, [])
    taken = {id(p) for p in parameter_groups(net, rules=rules)[0]["params"]}
    names = {name for name, p in net.named_parameters() if id(p) in taken}
    layer = "encoder.layers.encoder_layer_0"
    kinds = {n.replace(f"{layer}.", "") for n in names if layer in n}
    attention = {"self_attention.in_proj_weight", "self_attention.out_proj.weight"}
    assert kinds == {*attention, "mlp.0.weight", "mlp.3.weight"}
    assert len(names) == 12 * 4
    assert not {"class_token", "conv_proj.weight", "heads.head.weight"} & names


def trained(name):
    """The groups of a run."""
    with Path("runs", name, "groups.csv").open() as file:
        return list(csv.DictReader(file))


def test_muon_by_one_flag(run):
    fast = (
        "--model.schedule.warmup_epochs=0",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=2",
        "--trainer.log_every_n_steps=1",
    )
    settings = ("--model.optimizer.lr=0.01", "--model.optimizer.weight_decay=0.05")
    run(
        "fit",
        "--model=MNISTConvNet",
        "--data=MNISTDataModule",
        "--model.optimizer=Muon",
        *settings,
        *fast,
        "--run_name=muon",
    )
    rows = trained("muon")
    assert [(row["name"], row["optimizer"]) for row in rows] == [
        ("hidden", "Muon"),
        ("rest", "AdamW"),
    ]
    assert {(row["lr"], row["weight_decay"]) for row in rows} == {("0.01", "0.05")}
    assert sum(int(row["parameters"]) for row in rows) == 72_922
    assert {"lr/hidden", "lr/rest"} <= set(logged(Path("runs/muon"))[0])


def test_a_cycle_of_several_optimizers_leaves_their_momentum():
    cycle = Schedule(partial(OneCycleLR, max_lr=None, total_steps=None))
    module = Ruled(
        [Rule({"hidden": True}, partial(Muon, lr=0.1))], partial(AdamW, lr=0.1), schedule=cycle
    )
    lrs = fit(module, max_epochs=2)
    assert 0.09 < max(lrs) <= 0.1
    muon, adamw = module.optimizers().optimizer.param_groups
    assert (muon["momentum"], adamw["betas"]) == (0.95, (0.9, 0.999))


DATA = (
    "--model.schedule.warmup_epochs=0",
    "--data=MNISTDataModule",
    "--trainer.max_epochs=1",
    "--trainer.logger=false",
)


def rule(**given):
    return f"--model.rules+={given}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([rule(match={"layr": 1}, optimizer="SGD")], "no such key 'layr'; did you mean layer?"),
        ([rule(match={"layer": "Conv3d"}, optimizer="SGD")], "matches no parameter"),
        ([rule(match={"depth": 7}, optimizer="SGD")], "depths 0 to 2"),
        ([rule(match={"depth": "x"}, optimizer="SGD")], "depth=x: expected a number"),
        ([rule(match={"ndim": 1})], "needs a key, and an optimizer or settings"),
        ([rule(match={}, optimizer="SGD")], "needs a key, and an optimizer or settings"),
        ([rule(match={"ndim": 1}, settings={"beta": 1})], "AdamW has no setting beta: lr, betas"),
        ([rule(match={"ndim": 1}, settings={"weight_decay": -1})], "a number of at least 0"),
        ([rule(match={"ndim": 1}, settings={"lr": "fast"})], "lr=fast must be a number"),
        (["--model.rules=[{match: {ndim: 1}, settings: {lr: .inf}}]"], "lr=inf must be a number"),
        (["--model.optimizer=AdamW", "--model.optimizer.lr=.inf"], "lr=inf is no learning rate"),
        (["--model.optimizer=AdamW", "--model.optimizer.eps=.nan"], "must be a number, got nan"),
        ([rule(match={"ndim": 1}, settings={"betas": 3})], "AdamW refuses {'betas': 3}"),
        ([rule(match={"ndim": 1}, settings={"betas": [0.5]})], "AdamW refuses {'betas': [0.5]}"),
        ([rule(match={"ndim": 1}, settings={"eps": "a"})], "AdamW refuses {'eps': 'a'}"),
        ([rule(match={"ndim": 1}, settings={"name": "a"})], "settings: name is none"),
        ([rule(match={"layer": {"a": 1}}, optimizer="SGD")], "expected a number or a text"),
        ([rule(match={"hidden": "maybe"}, optimizer="SGD")], "expected true or false"),
        (["--model.rules=[{match: null, optimizer: SGD}]"], "match: expected a dict, got None"),
        (["--model.rules={match: {ndim: 1}, optimizer: SGD}"], "rules: expected a list, got {"),
        (["--model.rules=null"], "rules: expected a list, got None"),
        ([rule(match={"ndim": 1}, settings={"lr": 1}, name="rest")], "several groups are 'rest'"),
        (
            [rule(match={"ndim": n}, settings={"lr": n}, name="a") for n in (1, 2)],
            "several groups are 'a'",
        ),
        ([rule(match={"ndim": 1}, optimizer="Sdg")], "'Sdg' is no Optimizer"),
        ([rule(match={"ndim": 1}, optimizer="LBFGS")], "LBFGS computes the loss several times"),
        ([rule(setings={"lr": 1})], "did you mean --model.rules.settings"),
        (["--model=SoftmaxRegression", "--model.optimizer=Muon"], "Muon is for weights between"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_rule_that_makes_no_sense_is_one_line(run, capsys, words, line):
    with pytest.raises(SystemExit) as end:
        run("fit", "--model=MLP", *DATA, *words)
    assert end.value.code in (1, 2)
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not list(Path("runs").glob("*/checkpoints"))


def test_a_resumed_run_takes_other_settings_but_no_other_groups(run, capsys):
    shared = ("--model=MLP", *DATA, "--trainer.limit_train_batches=2", "--run_name=a")
    run("fit", *shared, rule(match={"ndim": 1}, optimizer="SGD", settings={"lr": 0.5}))
    more = ("fit", "--ckpt_path=last", "--run=a", "--trainer.max_epochs=2")
    with pytest.raises(SystemExit):
        run(*more, f"--model.rules={[{'match': {'ndim': 2}, 'optimizer': 'SGD'}]}")
    assert "the optimizer's state doesn't fit" in capsys.readouterr().err
    run(*more, rule(match={"ndim": 1}, optimizer="SGD", settings={"lr": 0.25}))
    assert [(row["optimizer"], row["lr"]) for row in trained("a")] == [
        ("SGD", "0.25"),
        ("AdamW", "0.01"),
    ]


# ---- optimizers by name


def test_torchs_optimizers_come_before_those_of_packages_of_the_same_name():
    package = type("SGD", (torch.optim.Optimizer,), {"__module__": "pytorch_optimizer.here"})
    assert resolve("SGD", OptimizerCallable) is SGD
    own = type("SGD", (torch.optim.Optimizer,), {"__module__": "my.own"})
    assert resolve("SGD", OptimizerCallable) is own
    del package, own
    gc.collect()


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("Prodigy", "prodigyopt.Prodigy"),
        ("AdamWScheduleFree", "schedulefree.AdamWScheduleFree"),
        ("Lion", "lion_pytorch.Lion"),
        ("SOAP", "pytorch_optimizer.SOAP"),
        ("Muon", "anneal.Muon"),
    ],
)
def test_an_optimizer_of_a_package_has_a_short_name_where_it_is_installed(name, path):
    pytest.importorskip(path.partition(".")[0])
    assert path_of(resolve(name, OptimizerCallable)) == path


def test_the_example_of_the_page_makes_the_groups_it_says(run, capsys):
    text = (ROOT / "docs/schedules.md").read_text()
    example = next(b for b in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "rules:" in b)
    Path("rules.yaml").write_text(f"{example}data: MNISTDataModule\ntrainer: {{max_epochs: 1}}\n")
    run("schedule", "--config=rules.yaml")
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if re.search(r" (AdamW|SGD) ", line)]
    assert {(row[1], row[3]) for row in rows if row[0].startswith("norm")} == {
        ("SGD", "0"),
        ("AdamW", "0"),
    }
    assert sum(int(row[-1].replace(",", "")) for row in rows) == 72_922
    run("schedule", "--model.optimizer=Muon", "--model.decay_norm=false")
    (table,) = re.findall(r"```\n(name .*?)```", text, re.DOTALL)
    assert table in capsys.readouterr().out
