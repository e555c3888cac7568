"""Classifier of photos: a ResNet or any other network of torchvision or timm, new or pretrained."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import StochasticDepth, stochastic_depth
from torchvision.transforms.v2.functional import center_crop

from anneal import (
    Rule,
    UserError,
    build_network,
    checkpoint_gradients,
    head_of,
    load_weights,
    pixels_of,
)
from project.models.classifier import Classifier

NARROW = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
# Options of some ResNets only, with their defaults.
ONLY = {"width": 64, "small_stem": False, "zero_init_residual": False}


class ImageClassifier(Classifier):
    """A network of torchvision or timm by name, for colour photos.

    Args:
        arch: Name of the network: resnet18, resnet50 or any other classifier of torchvision, or one
            of timm's about 1,300 (`pip install -e '.[timm]'`), such as timm/convnext_nano.
        num_classes: Number of classes; None: as many as the data has.
        width: Channels of the first stage of resnet18 and resnet34, 64 in the paper; each of the
            other stages has twice the channels of the one before.
        small_stem: Whether resnet18 and resnet34 begin with one 3x3 convolution of stride 2 instead
            of a 7x7 one and a pooling, for photos of about 100 pixels.
        zero_init_residual: Whether the last norm of each residual branch starts at zero (Goyal et
            al. 2017, arXiv 1706.02677, section 5.1); ResNets only.
        blurpool: Whether strided convolutions blur first (Zhang 2019, arXiv 1904.11486).
        stochastic_depth: Probability that the last residual branch is left out for an image in
            training, those before it less often (Huang et al. 2016, arXiv 1603.09382). None: the
            network's own, 0 for ResNets.
        grad_checkpointing: Whether the backward pass computes the activations within each block
            again, which takes a third more time and much less memory.
        weights: Weights to start from: a checkpoint, a file of the network's own weights (.pth,
            .safetensors), or by name those of torchvision (`DEFAULT`, `IMAGENET1K_V1`) or timm
            (`DEFAULT` or a tag). The last layer is new if the number of classes differs.
        freeze_body: Whether only the last layer is trained.
        body_lr_factor: Factor that scales the learning rate of all layers but the last.
        flip_tta: Whether evaluation averages the logits of a photo and of its mirror image.
        zoom_tta: Zoom of test-time augmentation, more than 1: evaluation averages the logits of the
            whole photo, scaled down by this factor, and of a crop of the same size from its middle
            (He et al. 2015, arXiv 1512.03385, section 3.4, take five scales). With val_size 176,
            1.375 makes both 128 pixels. None: only the whole photo, not scaled.
        mean: Mean of each channel, for pixels scaled to 0..1; None: ImageNet's, or that of the
            weights that timm has by this name.
        std: Standard deviation of each channel, likewise.
        top_k: `acc_top5` counts a photo as right if its class is among the 5 most likely.
        **kwargs: Further arguments of `Classifier`.
    """

    def __init__(
        self,
        arch: str = "resnet50",
        num_classes: int | None = None,
        width: int = 64,
        small_stem: bool = False,
        zero_init_residual: bool = False,
        blurpool: bool = False,
        stochastic_depth: float | None = None,
        grad_checkpointing: bool = False,
        weights: str | None = None,
        freeze_body: bool = False,
        body_lr_factor: float = 1.0,
        flip_tta: bool = False,
        zoom_tta: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        top_k: int = 5,
        **kwargs: Any,
    ) -> None:
        pixels = pixels_of(arch, weights)
        mean, std = pixels[0] if mean is None else mean, pixels[1] if std is None else std
        super().__init__(num_classes=num_classes, mean=mean, std=std, top_k=top_k, **kwargs)
        self.arch = arch
        self.width = width
        self.small_stem = small_stem
        self.zero_init_residual = zero_init_residual
        self.blurpool = blurpool
        self.stochastic_depth = stochastic_depth
        self.grad_checkpointing = grad_checkpointing
        self.weights = weights
        self.freeze_body = freeze_body
        self.body_lr_factor = body_lr_factor
        self.flip_tta = flip_tta
        self.zoom_tta = zoom_tta
        self._check()
        if self.num_classes:
            self.build()

    def _check(self) -> None:
        resnet = self.arch.startswith(("resn", "wide_resnet"))
        known = ONLY if self.arch in NARROW else ("zero_init_residual",) if resnet else ()
        wrong = {k: v for k, v in ONLY.items() if k not in known and getattr(self, k) != v}
        if wrong:
            typed = ", ".join(f"model.{k}={str(getattr(self, k)).lower()}" for k in wrong)
            flags = " ".join(f"--model.{k}={str(v).lower()}" for k, v in wrong.items())
            kind = " and ".join(NARROW) if resnet else "ResNets"
            are, them = ("are", "them") if len(wrong) > 1 else ("is", "it")
            raise UserError(f"{typed} {are} for {kind}, not {self.arch}: drop {them} with {flags}")
        if self.zoom_tta is not None and self.zoom_tta <= 1:
            raise UserError(f"model.zoom_tta={self.zoom_tta}: must be more than 1, such as 1.375")
        if not 0 <= (self.stochastic_depth or 0) < 1:
            raise UserError(f"model.stochastic_depth={self.stochastic_depth}: must be 0 to below 1")

    def build(self) -> None:
        """Build `self.net`; called when the number of classes is known."""
        classes, drop = self.num_classes, self.stochastic_depth
        options: dict[str, Any] = {"zero_init_residual": True} if self.zero_init_residual else {}
        if self.arch in ("googlenet", "inception_v3"):  # torchvision's weights take other pixels
            scaled = self.weights in models.get_model_weights(self.arch).__members__
            options = {"aux_logits": False, "init_weights": True, "transform_input": scaled}
        if drop is not None and self.arch.startswith("timm/"):
            options, drop = {"drop_path_rate": drop}, None
        if self.width != 64 or self.small_stem:
            layers = NARROW[self.arch]
            self.net = NarrowResNet(layers, self.width, self.small_stem, classes, **options)
        else:
            self.net = build_network(self.arch, classes, **options)
        if drop is not None:
            drop_residuals(self.net, drop)
        if self.blurpool:
            add_blurpool(self.net)
        if self.grad_checkpointing:
            checkpoint_gradients(self.net)
        if self.body_lr_factor != 1:
            n = len(head_of(self.net))
            groups = ((f":-{n}", "body", self.body_lr_factor), (f"-{n}:", "head", 1.0))
            rules = [Rule({"depth": d}, None, {"lr_factor": f}, name) for d, name, f in groups]
            self.rules = [*self.rules, *rules]
        if self.freeze_body:
            self.net.requires_grad_(False)
            head_of(self.net).requires_grad_(True)
            self.net.eval()  # its norms keep their statistics; Lightning does not change modes

    def configure_model(self) -> None:
        """Build the network, and load `weights` if it is to be trained."""
        super().configure_model()
        if self.weights and self.trainer.state.fn == "fit":
            load_weights(self.net, self.arch, self.weights)

    def predict_logits(self, images: Tensor) -> Tensor:
        """Return logits for validation, test and prediction, averaged over the augmented views."""
        views = [images]
        if self.zoom_tta is not None:
            size = [round(side / self.zoom_tta) for side in images.shape[-2:]]
            smaller = F.interpolate(images.float(), size, mode="bilinear")
            views = [smaller, center_crop(images, size)]
        if self.flip_tta:
            views += [view.flip(-1) for view in views]
        return torch.stack([self(view).float() for view in views]).mean(0)


class NarrowResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """A torchvision ResNet of basic blocks with another width or another stem.

    Args:
        layers: Number of blocks in each of the four stages.
        width: Channels of the first stage.
        small_stem: Whether it begins with one 3x3 convolution of stride 2 and no pooling.
        num_classes: Number of classes.
        **kwargs: Further arguments of torchvision's ResNet.
    """

    def __init__(
        self, layers: Sequence[int], width: int, small_stem: bool, num_classes: int, **kwargs: Any
    ) -> None:
        self.width = width
        super().__init__(BasicBlock, list(layers), num_classes, **kwargs)
        kernel = 3 if small_stem else 7
        self.conv1 = nn.Conv2d(3, width, kernel, stride=2, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.bn1 = nn.BatchNorm2d(width)
        if small_stem:
            self.maxpool = nn.Identity()
        self.fc = nn.Linear(8 * width, num_classes)

    # A private method, as it is in torchvision 0.29: no argument of ResNet scales basic blocks.
    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> nn.Sequential:
        if planes == 64:
            self.inplanes = self.width
        width = planes * self.width // 64
        layer: nn.Sequential = super()._make_layer(block, width, *args, **kwargs)
        return layer


def add_blurpool(net: nn.Module) -> None:
    """Blur the input of every convolution with a stride above 1 and at least 16 input channels.

    Two means of 2x2 pixels are the binomial kernel of 3x3.
    """
    for m in net.modules():
        if isinstance(m, nn.Conv2d) and max(m.stride) > 1 and m.in_channels >= 16:
            m.register_forward_pre_hook(
                lambda _, args: F.avg_pool2d(F.avg_pool2d(args[0], 2, 1, padding=1), 2, 1)
            )


def drop_residuals(net: nn.Module, rate: float) -> None:
    """Leave out residual branches in training, image by image: the last one with this probability.

    That of those before it grows with their depth, as in the paper.
    """
    drops = [m for m in net.modules() if isinstance(m, StochasticDepth)]  # of torchvision's own
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    if rate and not drops + blocks:
        raise UserError(f"model.stochastic_depth: {type(net).__name__} has no option for it")
    last = max((drop.p for drop in drops), default=1)
    for drop in drops:
        drop.p *= rate / last
    for i, block in enumerate(blocks, 1):
        norm = getattr(block, "bn3", block.bn2)
        norm.register_forward_hook(partial(_drop, rate * i / len(blocks)))


def _drop(p: float, module: nn.Module, args: Any, out: Tensor) -> Any:
    return stochastic_depth(out, p, "row", module.training)
