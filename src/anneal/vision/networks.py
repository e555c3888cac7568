"""Networks of torchvision and timm by name: built, given weights, made to need less memory."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import models

from anneal.errors import UserError, did_you_mean, first_line
from anneal.runs.folder import read_checkpoint

IMAGENET: Any = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LISTS = (nn.Sequential, nn.ModuleList)


def pixels_of(arch: str, weights: str | None) -> Any:
    """Return mean and standard deviation of pixels for a network: its weights', or ImageNet's.

    Raises:
        UserError: No network has this name, or it needs timm, which is not installed.
    """
    names, pixels = models.list_models(module=models), IMAGENET
    try:
        if arch not in names:
            import timm

            names += [f"timm/{name}" for name in timm.list_models()]
            if arch in names and weights and not (Path(weights).suffix or Path(weights).is_file()):
                config = timm.get_pretrained_cfg(_tagged(arch, weights))
                pixels = (config.mean, config.std) if config else IMAGENET
    except ImportError as e:
        if arch.startswith("timm/"):
            how = "timm is not installed: pip install -e '.[timm]'"
            raise UserError(f"model.arch={arch}: {how}") from e
    if arch not in names:
        near = did_you_mean(arch, names) or "; there are resnet18, resnet50, timm/resnet10t, ..."
        raise UserError(f"model.arch={arch}: no such network{near}")
    return pixels


def build_network(arch: str, num_classes: int, **options: Any) -> nn.Module:
    """Return a network of torchvision or timm with random weights; the options are its own."""
    if not arch.startswith("timm/"):
        return cast(nn.Module, models.get_model(arch, num_classes=num_classes, **options))
    import timm

    try:
        net: Any = timm.create_model(arch[5:], num_classes=num_classes, **options)
    except TypeError as e:  # of an argument that it does not take
        raise UserError(f"model.arch={arch}: {first_line(e)}") from e
    if not hasattr(net, "get_classifier"):
        raise UserError(f"model.arch={arch}: it is no classifier")
    return cast(nn.Module, net)


def head_of(net: Any) -> nn.ModuleList:
    """Return the last layer, which gives the logits; some of timm's networks have several."""
    if config := getattr(net, "pretrained_cfg", None):
        names = config["classifier"]
        return nn.ModuleList(map(net.get_submodule, [names] if isinstance(names, str) else names))
    return nn.ModuleList([m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:])


def checkpoint_gradients(net: Any) -> None:
    """Have the backward pass compute the activations within each block again, to keep fewer."""
    blocks = [] if hasattr(net, "set_grad_checkpointing") else list(_blocks(net))
    try:
        for block in blocks:
            block.forward = partial(_recomputed, block.forward)
        if not blocks:
            net.set_grad_checkpointing()
    except (AssertionError, AttributeError) as e:  # timm's; torchvision's
        raise UserError(f"model.grad_checkpointing: {type(net).__name__} has no blocks") from e
    # Running statistics follow from the forward pass of the whole network, and from no second one.
    net.register_forward_pre_hook(partial(_set_momentum, True))
    net.register_forward_hook(partial(_set_momentum, False))


def _blocks(module: nn.Module, listed: bool = False) -> Iterator[Any]:
    """Yield the outermost members of lists that have several weights: residual blocks, stages."""
    weights = sum(p.ndim > 1 for p in module.parameters())
    if listed and weights > 1 and not isinstance(module, LISTS):
        yield module
    else:
        for child in module.children():
            yield from _blocks(child, isinstance(module, LISTS))


def _recomputed(forward: Any, *args: Any) -> Any:
    again = torch.is_grad_enabled()
    return checkpoint(forward, *args, use_reentrant=False) if again else forward(*args)


def _set_momentum(on: bool, net: nn.Module, *_: Any) -> None:
    norms = [m for m in net.modules() if getattr(m, "running_mean", None) is not None]
    for norm in norms if not torch.compiler.is_compiling() else ():  # which computes none twice
        held: Any = getattr(norm, "held", norm.momentum) if on else norm.momentum
        vars(norm).update(held=held, momentum=held if on else 0.0)


def load_weights(net: nn.Module, arch: str, weights: str) -> None:
    """Load the weights in a file or of a name, but those of a last layer of another size.

    Raises:
        UserError: They can't be read or had, or belong to another network.
    """
    if Path(weights).is_file():  # of a module of ours, of a network alone or wrapped by DDP
        state = read_checkpoint(Path(weights))["state_dict"]
        prefix = next((p for p in ("net.", "module.") if any(k.startswith(p) for k in state)), "")
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    else:
        state = _pretrained(arch, weights)
    own = net.state_dict(keep_vars=True)
    fits = {k: state[k] for k, t in own.items() if k in state and state[k].shape == t.shape}
    spare = {id(t) for t in head_of(net).state_dict(keep_vars=True).values()}
    spare |= {id(t) for k, t in own.items() if k.endswith("batches_tracked") and k not in state}
    if misfits := [k for k, t in own.items() if k not in fits and id(t) not in spare]:
        such = f"{len(misfits)} of {len(own)} tensors don't fit {arch}, such as {misfits[0]}"
        raise UserError(f"model.weights={weights}: {such}")
    with torch.no_grad():
        for name, t in fits.items():
            own[name].copy_(t)


def _pretrained(arch: str, weights: str) -> dict[str, Any]:
    """Return the weights that torchvision or timm has by a name."""
    names: Any = []
    try:
        if not arch.startswith("timm/"):
            names = models.get_model_weights(arch).__members__
            return models.get_model_weights(arch)[weights].get_state_dict(progress=True)  # type: ignore[no-any-return]
        import timm

        names = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch[5:]}.*")]
        net: nn.Module = timm.create_model(_tagged(arch, weights), pretrained=True)
        return net.state_dict()
    except (KeyError, OSError, RuntimeError) as e:
        raise UserError(
            f"model.weights={weights}: no such file, and no weights of that name could be had "
            f"({first_line(e)}); for {arch} there are {', '.join(['DEFAULT', *names])}"
        ) from e


def _tagged(arch: str, weights: str) -> str:
    return arch[5:] if weights == "DEFAULT" else f"{arch[5:]}.{weights}"
