"""Augmentation of a whole batch of images at once, on its device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_shift(images: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Move each image by a random number of whole pixels; what is uncovered becomes black.

    Args:
        images: (N, C, H, W), of any type.
        shift: Largest move along each axis, in pixels.
        generator: Source of the random numbers, on the CPU, so that all devices draw the same.

    Returns:
        Images of the same shape and type.
    """
    n, _, height, width = images.shape
    offset = torch.randint(0, 2 * shift + 1, (2, n, 1), generator=generator).to(images.device)
    rows = (offset[0] + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (offset[1] + torch.arange(width, device=images.device))[:, None, None, :]
    sample = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return F.pad(images, (shift,) * 4)[sample, channel, rows, columns]


def random_affine(
    images: Tensor, shift: float, rotation: float, scale: float, generator: torch.Generator
) -> Tensor:
    """Rotate, scale and move each image by uniform random amounts; what is uncovered becomes black.

    Args:
        images: (N, C, H, W), of any type.
        shift: Largest move along each axis, in pixels.
        rotation: Largest angle, in degrees.
        scale: Largest change of size, as a fraction.
        generator: Source of the random numbers, on the CPU, so that all devices draw the same.

    Returns:
        Float images of the same shape and range.
    """
    n, _, height, width = images.shape
    turn, grow, dx, dy = torch.empty(4, n).uniform_(-1, 1, generator=generator).to(images.device)
    angle = turn * math.radians(rotation)
    cos, sin = angle.cos() / (1 + grow * scale), angle.sin() / (1 + grow * scale)
    # affine_grid maps the output back to the input, in units of half an image.
    dx, dy = dx * 2 * shift / width, dy * 2 * shift / height
    theta = torch.stack([cos, -sin * height / width, dx, sin * width / height, cos, dy], 1)
    grid = F.affine_grid(theta.view(n, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)
