"""Whether a network can take the images of its data, found out before a training."""

from traceback import extract_tb
from typing import Any

import torch

from anneal.errors import UserError, first_line
from anneal.system import SITE_PACKAGES

LATE = 10**9  # an epoch in which images have their last size


def try_images(module: Any, data: Any) -> None:
    """Raise UserError if torch says that the network can't take images as the data has them.

    What goes wrong in code of the user's shows itself in the training, with a traceback.
    """
    shape = getattr(data, "image_shape", (0, 0, 0))
    sides = {data.size_of(epoch) for epoch in (0, LATE)} if hasattr(data, "size_of") else set()
    shapes = [(shape[0], side, side) for side in sides] + [shape] * any(shape)
    modes = {part: part.training for part in module.modules()}
    try:
        eager = torch.compiler.set_stance("force_eager")
        with eager, torch.no_grad(), torch.random.fork_rng(devices=[]):
            for shape in shapes:
                images = torch.zeros(2, *shape, dtype=torch.uint8, device=module.device)
                (module.eval().predict_logits if shape == data.image_shape else module)(images)
    except Exception as e:  # of torch's, or of the user's
        raised_in = extract_tb(e.__traceback__)[-1].filename
        if raised_in.startswith(SITE_PACKAGES) or "must match the size of tensor" in str(e):
            owner, size = type(module).__name__, " x ".join(map(str, shape))
            raise UserError(f"{owner} can't take images of {size}: {first_line(e)}") from e
    finally:
        for part, training in modes.items():
            part.training = training
