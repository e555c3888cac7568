"""Networks of torchvision and timm by name: built, given weights, made to need less memory."""

import importlib.util
import sys
from shutil import which

import pytest
import torch
from helpers import SMALL
from torch import nn
from yours import ImageClassifier

from anneal import UserError, build_network, checkpoint_gradients, head_of, load_weights, pixels_of
from anneal import testing as photos
from anneal.optim.groups import parameter_groups

needs_timm = pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm not installed")
# With one last layer and two, of convolutions with batch norms and of attention.
TINY = [
    "squeezenet1_1",
    *(
        pytest.param(f"timm/{name}", marks=needs_timm)
        for name in ("test_resnet", "test_vit", "efficientvit_m0", "levit_128s")
    ),
]
SIDE = {"timm/test_resnet": 64, "timm/test_vit": 160, "squeezenet1_1": 64}


def images(arch: str) -> torch.Tensor:
    side = SIDE.get(arch, 224)
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", TINY)
def test_the_last_layer_is_what_depends_on_the_number_of_classes(arch, tmp_path):
    three, five = build_network(arch, 3), build_network(arch, 5)
    pairs = list(zip(three.named_parameters(), five.parameters(), strict=True))
    differ = {name for (name, p), q in pairs if p.shape != q.shape}
    head = {id(p) for p in head_of(three).parameters()}
    assert differ <= {name for name, p in three.named_parameters() if id(p) in head}
    path = tmp_path / "five.pth"
    torch.save(five.state_dict(), path)
    load_weights(three, arch, str(path))
    assert all(torch.equal(p, q) for (name, p), q in pairs if name not in differ)
    module = ImageClassifier(arch, num_classes=3, body_lr_factor=0.1)
    (trained,) = [
        g["params"] for g in parameter_groups(module, rules=module.rules) if g["name"] == "head"
    ]
    shapes = [p.shape for (name, p), _ in pairs if name in differ]
    assert sorted(p.shape for p in trained if p.shape[0] == 3) == sorted(shapes)
    frozen = ImageClassifier(arch, num_classes=3, freeze_body=True).net
    assert differ <= {name for name, p in frozen.named_parameters() if p.requires_grad}
    assert sum(p.requires_grad for p in frozen.parameters()) <= 2 * len(differ)


def saved_bytes(net: nn.Module, pixels: torch.Tensor) -> int:
    """Return what autograd keeps for the backward pass, which is then made."""
    own = {t.untyped_storage().data_ptr() for t in (*net.parameters(), *net.buffers())}
    saved: dict[int, int] = {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = net(pixels)
    logits.square().sum().backward()
    return sum(n for place, n in saved.items() if place not in own)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small", *TINY[:3]])
def test_checkpointed_gradients_are_the_same_and_take_less_memory(arch):
    pixels = images(arch)
    plain = build_network(arch, 3)
    checkpointed = build_network(arch, 3)
    checkpointed.load_state_dict(plain.state_dict())
    checkpoint_gradients(checkpointed)
    for _ in range(2):  # the second step has what the first one leaves
        assert saved_bytes(checkpointed, pixels) < 0.8 * saved_bytes(plain, pixels)
        for p, q in zip(plain.parameters(), checkpointed.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad)
        for (name, b), c in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
            assert torch.equal(b, c) or "num_batches" in name
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    torch.testing.assert_close(plain.eval()(pixels), checkpointed.eval()(pixels), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [0.5, 0.0])
def test_resnets_leave_out_residual_branches_in_training(depth):
    net = ImageClassifier("resnet18", num_classes=3, width=8, stochastic_depth=depth).net
    blocks = [m for m in net.modules() if type(m).__name__ == "BasicBlock"]
    block = blocks[-1].train()
    pixels = torch.rand(4000, 64, 1, 1)
    left_out = (block(pixels) == pixels).flatten(1).all(1).float().mean()
    assert left_out == pytest.approx(depth, abs=0.03)
    first = blocks[0].train()
    pixels = torch.rand(4000, 8, 1, 1)
    left_out = (first(pixels) == pixels).flatten(1).all(1).float().mean()
    assert left_out == pytest.approx(depth / 8, abs=0.03)
    assert not (block.eval()(pixels.repeat(1, 8, 1, 1)[:9]) == 0).all()
    plain = ImageClassifier("resnet18", num_classes=3, width=8).eval()
    dropping = ImageClassifier("resnet18", num_classes=3, width=8, stochastic_depth=0.5).eval()
    dropping.load_state_dict(plain.state_dict())
    colours = torch.randint(0, 256, (2, 3, 32, 32))
    assert torch.equal(plain(colours), dropping(colours))


@pytest.mark.parametrize(
    ("arch", "kind", "name"),
    [
        ("convnext_tiny", "StochasticDepth", "p"),
        ("efficientnet_b0", "StochasticDepth", "p"),
        pytest.param("timm/test_vit", "DropPath", "drop_prob", marks=needs_timm),
    ],
)
def test_networks_with_an_option_for_stochastic_depth_are_given_it(arch, kind, name):
    net = ImageClassifier(arch, num_classes=3, stochastic_depth=0.3).net
    rates = [getattr(m, name) for m in net.modules() if type(m).__name__ == kind]
    assert max(rates) == pytest.approx(0.3)
    assert rates == sorted(rates)


@needs_timm
@pytest.mark.parametrize(
    ("arch", "options", "words"),
    [
        ("timm/convnxt_nano", {}, "no such network; did you mean timm/convnext_nano?"),
        ("convnext_nano", {}, "no such network; did you mean timm/convnext_nano?"),
        ("resnet19", {}, "no such network; did you mean resnet18?"),
        ("xyz", {}, "no such network; there are resnet18, "),
        (
            "timm/gemma4_vit_167m_enc",
            {},
            "model.arch=timm/gemma4_vit_167m_enc: it is no classifier",
        ),
        ("timm/vgg11", {"stochastic_depth": 0.1}, "model.arch=timm/vgg11: "),
        ("timm/test_resnet", {"width": 32}, "model.width=32 is for ResNets, not timm/test_resnet"),
    ],
)
def test_what_no_network_takes_is_one_line(arch, options, words):
    with pytest.raises(UserError) as e, torch.device("meta"):
        ImageClassifier(arch, num_classes=3, **options)
    assert words in str(e.value)


def test_without_timm_a_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"timm is not installed: pip install -e '.\[timm\]'"):
        ImageClassifier("timm/test_vit", num_classes=3)
    with pytest.raises(UserError, match="did you mean resnet18"):
        ImageClassifier("resnet19", num_classes=3)
    assert ImageClassifier("resnet18", num_classes=3).arch == "resnet18"


@needs_timm
@pytest.mark.parametrize(
    ("weights", "reason"), [("DEFAULT", "Hub"), ("nosuch", "Invalid pretrained tag")]
)
def test_weights_that_cannot_be_had_are_one_line(monkeypatch, weights, reason):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    net = build_network("timm/test_vit", 3)
    with pytest.raises(UserError) as e:
        load_weights(net, "timm/test_vit", weights)
    assert f"model.weights={weights}: no such file, and no weights of that name" in str(e.value)
    assert reason in str(e.value)
    assert str(e.value).endswith("for timm/test_vit there are DEFAULT, r160_in1k")
    assert "\n" not in str(e.value)


@needs_timm
def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    source = build_network("timm/test_resnet", 5)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    for classes in (5, 3):
        net = build_network("timm/test_resnet", classes)
        load_weights(net, "timm/test_resnet", str(tmp_path / "net.safetensors"))
        same = {k for k, v in source.state_dict().items() if torch.equal(v, net.state_dict()[k])}
        assert source.state_dict().keys() - same == (
            set() if classes == 5 else {"fc.weight", "fc.bias"}
        )
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.safetensors is damaged, cut or no checkpoint"):
        load_weights(net, "timm/test_resnet", str(tmp_path / "bad.safetensors"))


@needs_timm
def test_pixels_are_those_that_the_weights_were_trained_with(tmp_path):
    half = (0.5, 0.5, 0.5)
    assert pixels_of("timm/vit_tiny_patch16_224", "DEFAULT") == (half, half)
    assert pixels_of("timm/vit_tiny_patch16_224", None)[0] == (0.485, 0.456, 0.406)
    module = ImageClassifier("timm/vit_tiny_patch16_224", num_classes=3, weights="DEFAULT")
    assert module.mean.flatten().tolist() == [127.5] * 3
    module = ImageClassifier(
        "timm/vit_tiny_patch16_224", num_classes=3, weights="DEFAULT", mean=[0.1, 0.2, 0.3]
    )
    torch.testing.assert_close(module.mean.flatten(), torch.tensor([25.5, 51.0, 76.5]))


PHOTOS = """
trainer: {max_epochs: 1, accelerator: cpu, logger: false, log_every_n_steps: 1}
model:
  class_path: ImageClassifier
  init_args:
    arch: timm/test_resnet
    stochastic_depth: 0.1
    grad_checkpointing: true
    optimizer: {class_path: SGD, init_args: {lr: 0.05, momentum: 0.9}}
data:
  class_path: ImageFolderDataModule
  init_args:
    {root: data, batch_size: 8, num_workers: 0, train_size: 32, val_resize: 36, val_size: 32}
"""


@needs_timm
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_a_network_of_timm_is_trained_averaged_resumed_and_exported(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    photos.image_folder(tmp_path / "data")
    (tmp_path / "photos.yaml").write_text(PHOTOS)
    fit = ("fit", "--config=photos.yaml", "--trainer.callbacks=EMA")
    run(*fit, "--trainer.max_epochs=2", "--run_name=whole")
    run(*fit, "--run_name=parts")
    run("fit", "--ckpt_path=last", "--run=parts", "--trainer.max_epochs=2")
    folders = [tmp_path / "runs" / name / "checkpoints/last.ckpt" for name in ("whole", "parts")]
    whole, parts = (torch.load(path, weights_only=True) for path in folders)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(t, parts[key][name]) for name, t in whole[key].items())
    run("export", "--ckpt_path=last", "--format=torch_export", "--output=net.pt2")
    run("predict", "--ckpt_path=net.pt2", "--config=photos.yaml", "--data.predict_path=data/val")


@pytest.mark.skipif(not (which("c++") or which("g++")), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_trains_resumes_predicts_and_has_the_names_of_a_plain_one(run, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    fit = ("fit", "--config=small.yaml", "--run_name=compiled", "--trainer.callbacks=EMA")
    run(*fit, "--model.compile=true")
    run("fit", "--ckpt_path=last", "--trainer.max_epochs=3")
    run("test", "--ckpt_path=last")
    run("export", "--ckpt_path=last", "--format=torch_export", "--output=net.pt2")
    plain = run("fit", "--config=small.yaml", "--run_name=plain", "--trainer.callbacks=EMA")
    last = tmp_path / "runs/compiled/checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)["state_dict"]
    assert list(stored) == list(plain.model.state_dict())
    run("predict", f"--ckpt_path={last}", "--model.compile=false")
