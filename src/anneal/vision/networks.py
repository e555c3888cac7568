"""Networks of torchvision and timm by name: built, given weights, made to need less memory."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import StochasticDepth, stochastic_depth

from anneal.errors import UserError, did_you_mean, first_line
from anneal.runs.folder import read_checkpoint

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LISTS = (nn.Sequential, nn.ModuleList)


def pixels_of(arch: str, weights: str | None) -> tuple[Sequence[float], Sequence[float]]:
    """Return mean and standard deviation of what a network, with weights of a name, is made for.

    Raises:
        UserError: No network has this name, or it needs timm, which is not installed.
    """
    names = models.list_models(module=models)
    if arch in names:
        return IMAGENET
    try:
        import timm
    except ImportError as e:
        if arch.startswith("timm/"):
            what = "timm is not installed: pip install -e '.[timm]'"
            raise UserError(f"model.arch={arch}: {what}") from e
    else:
        names += [f"timm/{name}" for name in timm.list_models()]
        if arch in names:
            named = weights and not Path(weights).is_file()
            config = timm.get_pretrained_cfg(_tagged(arch, weights)) if named else None
            return (config.mean, config.std) if config else IMAGENET
    near = did_you_mean(arch, names) or "; there are resnet18, resnet50, timm/resnet10t, ..."
    raise UserError(f"model.arch={arch}: no such network{near}")


def build_network(arch: str, num_classes: int, drop: float | None, **options: Any) -> nn.Module:
    """Return a network with random weights, of timm if its name begins with `timm/`.

    `drop` is for `drop_residuals`; None: what the network has by itself.
    """
    if not arch.startswith("timm/"):
        net = models.get_model(arch, weights=None, num_classes=num_classes, **options)
        return net if drop is None else drop_residuals(net, drop)
    import timm

    options |= {} if drop is None else {"drop_path_rate": drop}
    try:
        net = timm.create_model(arch[5:], num_classes=num_classes, **options)
    except TypeError as e:  # of an option that it does not have
        raise UserError(f"model.arch={arch}: {first_line(e)}") from e
    if not net.pretrained_cfg.get("classifier"):
        raise UserError(f"model.arch={arch}: it is no classifier")
    return net


def drop_residuals(net: nn.Module, rate: float) -> nn.Module:
    """Have a network of torchvision leave out residual branches in training, for single images.

    The last one is left out with probability `rate`, the others less often, in proportion to their
    depth (stochastic depth; Huang et al. 2016, arXiv 1603.09382).
    """
    drops = [m for m in net.modules() if isinstance(m, StochasticDepth)]
    last = max((drop.p for drop in drops), default=0)
    for drop in drops:
        drop.p *= rate / last
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock | Bottleneck)]
    for i, block in enumerate(blocks, 1):
        norm = block.bn3 if isinstance(block, Bottleneck) else block.bn2
        norm.register_forward_hook(partial(_drop, rate * i / len(blocks)))
    if not drops and not blocks:
        raise UserError(f"model.stochastic_depth: {type(net).__name__} has no option for it")
    return net


def _drop(p: float, module: nn.Module, args: Any, out: Tensor) -> Tensor:
    dropped: Tensor = stochastic_depth(out, p, "row", module.training)
    return dropped


def head_of(net: nn.Module) -> nn.ModuleList:
    """Return the last layer, which gives the logits; some of timm's networks have several."""
    if config := getattr(net, "pretrained_cfg", None):
        names = config["classifier"]
        return nn.ModuleList(map(net.get_submodule, [names] if isinstance(names, str) else names))
    return nn.ModuleList([m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1:])


def checkpoint_gradients(net: nn.Module) -> None:
    """Have the backward pass compute the activations of each block again, to keep fewer of them."""
    try:
        if hasattr(net, "set_grad_checkpointing"):  # of timm
            net.set_grad_checkpointing()
        else:
            for block in (blocks := list(_blocks(net))):
                block.forward = partial(_recomputed, block.forward)
            assert blocks
    except AssertionError as e:
        raise UserError(f"model.grad_checkpointing: {type(net).__name__} has no blocks") from e
    # The statistics of norms follow from the forward pass of the whole network, and from no second.
    net.register_forward_pre_hook(partial(_track, True))
    net.register_forward_hook(partial(_track, False))


def _blocks(module: nn.Module, listed: bool = False) -> Iterator[nn.Module]:
    """Yield the outermost members of lists that have several weights: residual blocks, stages."""
    weights = sum(p.ndim > 1 for p in module.parameters())
    if listed and weights > 1 and not isinstance(module, LISTS):
        yield module
    else:
        for child in module.children():
            yield from _blocks(child, isinstance(module, LISTS))


def _recomputed(forward: Any, *args: Any) -> Any:
    return (
        checkpoint(forward, *args, use_reentrant=False)
        if torch.is_grad_enabled()
        else forward(*args)
    )


def _track(on: bool, net: nn.Module, *_: Any) -> None:
    for module in net.modules() if not torch.compiler.is_compiling() else ():
        if getattr(module, "running_mean", None) is not None:
            module.track_running_stats = on


def load_weights(net: nn.Module, arch: str, weights: str) -> None:
    """Load the weights of a file, or those of a name, but for a head of another size.

    Raises:
        UserError: They can't be read or had, or belong to another network.
    """
    state = _read(Path(weights)) if Path(weights).is_file() else _pretrained(arch, weights)
    own = net.state_dict(keep_vars=True)
    # Older files have no counts.
    state = {k: t for k, t in own.items() if k.endswith("num_batches_tracked")} | state
    fits = {k: state[k] for k, t in own.items() if k in state and state[k].shape == t.shape}
    head = {id(t) for t in head_of(net).state_dict(keep_vars=True).values()}
    misfits = [k for k, t in own.items() if k not in fits and (id(t) not in head or k not in state)]
    if misfits:
        raise UserError(
            f"model.weights={weights}: {len(misfits)} of {len(own)} tensors don't fit "
            f"{arch}, such as {misfits[0]}"
        )
    net.load_state_dict(fits, strict=False)


def _read(path: Path) -> dict[str, Any]:
    """Return the weights in a file: of a module of ours, a network alone, or one wrapped by DDP."""
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file

            state: dict[str, Any] = load_file(path)
        except Exception as e:  # of its own, or it is not installed
            raise UserError(f"model.weights={path}: can't be read ({first_line(e)})") from e
    else:
        state = read_checkpoint(path)["state_dict"]
    prefix = next((p for p in ("net.", "module.") if any(k.startswith(p) for k in state)), "")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _pretrained(arch: str, weights: str) -> dict[str, Any]:
    """Return the weights that torchvision or timm has by a name, `DEFAULT` or another."""
    known: list[str] = []
    try:
        if arch.startswith("timm/"):
            import timm

            known = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch[5:]}.*")]
            return timm.create_model(_tagged(arch, weights), pretrained=True).state_dict()
        known = [w.name for w in models.get_model_weights(arch)]
        return models.get_model_weights(arch)[weights].get_state_dict(progress=True)
    except (KeyError, OSError, RuntimeError) as e:
        raise UserError(
            f"model.weights={weights}: no such file, and no such weights could be had "
            f"({first_line(e)}); {arch} has {', '.join(['DEFAULT', *known])}"
        ) from e


def _tagged(arch: str, weights: str) -> str:
    """Return what timm calls a network with weights."""
    return arch[5:] if weights == "DEFAULT" else f"{arch[5:]}.{weights}"
