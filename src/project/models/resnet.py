"""Classifier of photos: a ResNet or any other network of torchvision, new or pretrained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.transforms.v2.functional import center_crop

from anneal import Rule, UserError, read_checkpoint
from project.models.classifier import Classifier

BLUR = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
NARROW = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


class ImageClassifier(Classifier):
    """A network of torchvision.models by name, for colour photos.

    Args:
        arch: Name of the network: resnet18, resnet34, resnet50, resnet101, resnet152, or any other.
        num_classes: Number of classes; None: as many as the data has.
        width: Channels of the first stage of resnet18 and resnet34, 64 in the paper; each of the
            other stages has twice the channels of the one before.
        small_stem: Whether resnet18 and resnet34 begin with one 3x3 convolution of stride 2 instead
            of a 7x7 one and a pooling, for photos of about 100 pixels.
        zero_init_residual: Whether the last norm of each residual branch starts at zero (Goyal et
            al. 2017, arXiv 1706.02677, section 5.1); ResNets only.
        blurpool: Whether strided convolutions blur first (Zhang 2019, arXiv 1904.11486).
        weights: Weights to start from: a checkpoint, a file of the network's own weights as
            torchvision saves them, or torchvision's by name (`DEFAULT`, `IMAGENET1K_V1`). The last
            layer is initialised anew if the number of classes differs.
        freeze_body: Whether only the last layer is trained.
        body_lr_factor: Factor that scales the learning rate of all layers but the last.
        compile: Whether torch.compile runs the network.
        flip_tta: Whether evaluation averages the logits of a photo and of its mirror image.
        zoom_tta: Zoom of test-time augmentation, more than 1: evaluation averages the logits of the
            whole photo, scaled down by this factor, and of a crop of the same size from its middle
            (He et al. 2015, arXiv 1512.03385, section 3.4, take five scales). With val_size 176,
            1.375 makes both 128 pixels. None: only the whole photo, not scaled.
        mean: Mean of each channel, for pixels scaled to 0..1; the default is ImageNet's.
        std: Standard deviation of each channel, likewise.
        top_k: Number of classes of the third metric, as in `Classifier`.
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
        weights: str | None = None,
        freeze_body: bool = False,
        body_lr_factor: float = 1.0,
        compile: bool = False,
        flip_tta: bool = False,
        zoom_tta: float | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        top_k: int = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes=num_classes, mean=mean, std=std, top_k=top_k, **kwargs)
        self.arch = arch
        self.width = width
        self.small_stem = small_stem
        self.zero_init_residual = zero_init_residual
        self.blurpool = blurpool
        self.weights = weights
        self.freeze_body = freeze_body
        if body_lr_factor != 1:
            for depth, name, f in ((":-1", "body", body_lr_factor), (-1, "head", 1.0)):
                self.rules = [*self.rules, Rule({"depth": depth}, None, {"lr_factor": f}, name)]
        self.compile_net = compile
        self.flip_tta = flip_tta
        self.zoom_tta = zoom_tta
        self._check()
        if self.num_classes:
            self.build()

    def _check(self) -> None:
        arch = self.arch
        if arch not in models.list_models(module=models):
            resnets = ", ".join(models.list_models(module=models, include="resnet*"))
            raise UserError(f"model.arch={arch}: torchvision has none of that name; {resnets}, ...")
        if (self.width != 64 or self.small_stem) and arch not in NARROW:
            raise UserError(f"model.width and small_stem are for {', '.join(NARROW)}, not {arch}")
        if self.zero_init_residual and not arch.startswith(("resn", "wide_resnet")):
            raise UserError(f"model.zero_init_residual is for ResNets, not {arch}")
        if self.zoom_tta is not None and self.zoom_tta <= 1:
            raise UserError(f"model.zoom_tta={self.zoom_tta}: must be more than 1, such as 1.375")

    def build(self) -> None:
        """Build `self.net`; called when the number of classes is known."""
        options: dict[str, Any] = {"zero_init_residual": True} if self.zero_init_residual else {}
        if self.arch in ("googlenet", "inception_v3"):  # torchvision's weights take other pixels
            scaled = self.weights in models.get_model_weights(self.arch).__members__
            options = {"aux_logits": False, "init_weights": True, "transform_input": scaled}
        if self.width != 64 or self.small_stem:
            self.net = NarrowResNet(
                NARROW[self.arch], self.width, self.small_stem, self.num_classes, **options
            )
        else:
            self.net = models.get_model(
                self.arch, weights=None, num_classes=self.num_classes, **options
            )
        if self.blurpool:
            add_blurpool(self.net)
        if self.freeze_body:
            self.net.requires_grad_(False)
            self.head.requires_grad_(True)
            self.net.eval()  # its norms keep their statistics; Lightning does not change modes

    @property
    def head(self) -> nn.Module:
        """The last layer, which gives the logits."""
        return [m for m in self.net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]

    def configure_model(self) -> None:
        """Build the network, load `weights` if it is to be trained, and compile it."""
        super().configure_model()
        if self.weights and self.trainer.state.fn == "fit":
            self.load_weights(self.weights)
        if self.compile_net and self.num_classes:
            self.net.compile()  # in place: the names of the weights stay

    def load_weights(self, weights: str) -> None:
        """Load all weights but those of a last layer of another size.

        Raises:
            UserError: They can't be read, or belong to another network.
        """
        if Path(weights).is_file():
            state = read_checkpoint(Path(weights))["state_dict"]
            # Of a module of ours, of a network alone, or of one wrapped for several processes.
            prefix = next(
                (p for p in ("net.", "module.") if any(k.startswith(p) for k in state)), ""
            )
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        else:
            try:
                state = models.get_model_weights(self.arch)[weights].get_state_dict(progress=True)
            except (KeyError, OSError) as e:
                known = ", ".join(w.name for w in models.get_model_weights(self.arch))
                raise UserError(
                    f"model.weights={weights}: no such file, and torchvision's could not be had "
                    f"({e}); for {self.arch} it has {known}"
                ) from e
        own = self.net.state_dict()
        counts = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
        state = counts | state  # older files have none
        head = {id(t) for t in self.head.state_dict(keep_vars=True).values()}
        fresh = {
            k for k, t in self.net.state_dict(keep_vars=True).items()
            if id(t) in head and k in state and state[k].shape != t.shape
        }  # fmt: skip
        misfits = [
            k for k in own if k not in fresh and (k not in state or state[k].shape != own[k].shape)
        ]
        if misfits:
            raise UserError(
                f"model.weights={weights}: {len(misfits)} of {len(own)} tensors don't fit "
                f"{self.arch}, such as {misfits[0]}"
            )
        self.net.load_state_dict({k: state[k] for k in own if k not in fresh}, strict=False)

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


class BlurConv2d(nn.Module):
    """A strided convolution after a 3x3 binomial blur.

    Args:
        conv: The convolution.
    """

    kernel: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        kernel = BLUR.expand(conv.in_channels, 1, 3, 3).clone()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype)
        blurred = F.conv2d(x, kernel, padding=1, groups=self.conv.in_channels)
        out: Tensor = self.conv(blurred)
        return out


def add_blurpool(net: nn.Module) -> None:
    """Put a blur before every convolution with a stride above 1 and at least 16 input channels."""
    for name, child in net.named_children():
        if isinstance(child, nn.Conv2d) and max(child.stride) > 1 and child.in_channels >= 16:
            setattr(net, name, BlurConv2d(child))
        else:
            add_blurpool(child)
