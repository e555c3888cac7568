"""Networks for 28x28 grey images: softmax regression, a multilayer perceptron, a small ConvNet."""

from typing import Any, Literal

from torch import nn

from anneal import UserError
from project.models.classifier import Classifier

PIXELS = 28 * 28


class SoftmaxRegression(Classifier):
    """Softmax regression: one linear map from pixels to logits, 7,850 parameters."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, self.num_classes))


class MLP(Classifier):
    """A multilayer perceptron, 269,322 parameters by default.

    Args:
        depth: Number of hidden layers.
        width: Units in each hidden layer.
        activation: Non-linearity after each hidden layer.
    """

    def __init__(
        self,
        depth: int = 2,
        width: int = 256,
        activation: Literal["ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh", "Sigmoid"] = "ReLU",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if width < 1 or depth < 0:
            raise UserError(f"model: width={width} must be at least 1, depth={depth} at least 0")
        layers: list[nn.Module] = [nn.Flatten()]
        units = PIXELS
        for _ in range(depth):
            layers += [nn.Linear(units, width), getattr(nn, activation)()]
            units = width
        self.net = nn.Sequential(*layers, nn.Linear(units, self.num_classes))


class MNISTConvNet(Classifier):
    """A small convolutional network with batch norm, 72,922 parameters by default.

    Three stages of convolutions, each with twice the channels of the one before; the first
    convolution is 5x5, the others are 3x3. A 2x2 max pooling follows the first and the second
    stage, a global one the third. One linear layer gives the logits.

    Args:
        width: Channels of the first stage (24: 162,946 parameters).
        depth: Convolutions in each stage (1: 24,314 parameters; with width 12: 13,918).
        stride: Stride of the first convolution; 2 replaces the first pooling and halves the time
            of a step.
    """

    def __init__(
        self, width: int = 16, depth: int = 2, stride: Literal[1, 2] = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if width < 1 or depth < 1:
            raise UserError(f"model: width={width} and depth={depth} must be at least 1")
        self.net = nn.Sequential(
            *_stage(1, width, depth, kernel=5, stride=stride),  # 28x28 -> 24x24 pixels
            *([nn.MaxPool2d(2)] if stride == 1 else []),
            *_stage(width, 2 * width, depth),  # 12x12 -> 10x10
            nn.MaxPool2d(2),
            *_stage(2 * width, 4 * width, depth),  # 5x5 -> 3x3
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, self.num_classes),
        )


def _stage(
    channels_in: int, channels: int, depth: int, kernel: int = 3, stride: int = 1
) -> list[nn.Module]:
    """Return `depth` times convolution, batch norm and ReLU; only the first has no padding."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [
            # Batch norm subtracts the mean, so a bias would have no effect.
            nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
            if i
            else nn.Conv2d(channels_in, channels, kernel, stride, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        channels_in = channels
    return layers
