"""Parameter groups: which rules apply to each parameter, and the groups that follow from them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.optim import Optimizer

from anneal.errors import UserError, did_you_mean

OptimizerCallable = Callable[[Iterable[Any]], Optimizer]

# The base of all batch and instance norms, those of other libraries too; its name is private.
BATCH_NORMS = set(nn.BatchNorm1d.__mro__) & set(nn.InstanceNorm1d.__mro__) - set(nn.Module.__mro__)
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVS = set(nn.Conv1d.__mro__) & set(nn.ConvTranspose1d.__mro__) - set(nn.Module.__mro__)
KINDS = {"norm": NORMS, "conv": tuple(CONVS), "linear": (nn.Linear,), "embedding": EMBEDDINGS}


class Place(NamedTuple):
    """Where a parameter stands in a network; one that is shared stands in several."""

    name: str
    layer: nn.Module
    depth: int  # of the layer: 0 is the first
    last: int  # the depth of the last


class Rule:
    """What applies to some of the parameters.

    A parameter takes from every rule that matches it; where two rules set the same, the first one
    counts.

    Args:
        match: Which parameters; they fit all that is given, and of a list one of its values.
            `name`: a pattern such as `net.layer4.*`. `layer`: `norm`, `conv`, `linear`,
            `embedding`, or the name of a class. `ndim`: number of dimensions. `depth`: number of
            the layer, 0 is the first, -1 the last, ':-1' all but the last; a norm belongs to the
            layer before it. `hidden`: whether it is a weight of two or more dimensions of a layer
            between the first and the last, embeddings aside.
        optimizer: The optimizer of these parameters; None: that of all others.
        settings: What their group has of its own: any argument of the optimizer, such as
            `weight_decay` or `lr`; `lr_factor`, which scales the learning rate; `lr_decay`, which
            scales it once for each layer that follows (layer-wise decay).
        name: Name of the group, as in `lr/NAME`. None: what is matched.
    """

    def __init__(
        self,
        match: dict[str, Any],
        optimizer: OptimizerCallable | None = None,
        settings: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        for key, value in match.items():
            if key not in TESTS:
                near, there = did_you_mean(key, TESTS), ", ".join(TESTS)
                raise UserError(f"rules: match: no such key '{key}'{near}; there are {there}")
            for v in value if isinstance(value, list) else [value]:
                if not isinstance(v, str | int) or isinstance(v, bool) != (key == "hidden"):
                    kind = "true or false" if key == "hidden" else "a number or a text"
                    raise UserError(f"rules: match: {key}={v}: expected {kind}")
        if not match or (optimizer is None and not settings):
            raise UserError(f"rules: match={match} needs a key, and an optimizer or settings")
        for key, value in (settings or {}).items():
            if key in ("name", "optimizer", "params"):
                raise UserError(f"rules: settings: {key} is none; a name stands beside them")
            expected = isinstance(value, int | float) or key in ("lr", "lr_decay", "lr_factor")
            if expected and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise UserError(f"rules: settings: {key}={value} must be a number of at least 0")
        self.match = match
        self.optimizer = optimizer
        self.settings = dict(settings or {})
        short = {"name": "", "layer": "", "hidden": "hidden_"}
        words = (f"{short.get(key, key)}{v}".replace("_True", "") for key, v in match.items())
        self.name = name or "_".join(words)
        self._tests = [(TESTS[key], v if isinstance(v, list) else [v]) for key, v in match.items()]

    def matches(self, p: nn.Parameter, place: Place) -> bool:
        """Return whether a parameter fits."""
        return all(any(test(p, place, v) for v in values) for test, values in self._tests)


def _layer(p: nn.Parameter, place: Place, kind: Any) -> bool:
    if kind in KINDS:
        return isinstance(place.layer, KINDS[kind])
    return str(kind) in {cls.__name__ for cls in type(place.layer).__mro__}


def _depth(p: nn.Parameter, place: Place, wanted: Any) -> bool:
    depths = range(place.last + 1)
    try:
        if isinstance(wanted, str) and ":" in wanted:
            return place.depth in depths[slice(*(int(n) if n else None for n in wanted.split(":")))]
        return place.depth == depths[int(wanted)]
    except IndexError:
        return False
    except (TypeError, ValueError) as e:
        expected = "expected a number, or two as in ':-1'"
        raise UserError(f"rules: match: depth={wanted}: {expected}") from e


def _hidden(p: nn.Parameter, place: Place, wanted: Any) -> bool:
    between = 0 < place.depth < place.last and not isinstance(place.layer, (*EMBEDDINGS, *NORMS))
    return (between and _is_weight(place.name, p)) is bool(wanted)


def _is_weight(name: str, p: nn.Parameter) -> bool:
    return p.ndim > 1 and "weight" in name.rpartition(".")[2]


TESTS: dict[str, Callable[[nn.Parameter, Place, Any], bool]] = {
    "name": lambda p, place, pattern: fnmatchcase(place.name, str(pattern)),
    "layer": _layer,
    "ndim": lambda p, place, ndim: bool(p.ndim == ndim),
    "depth": _depth,
    "hidden": _hidden,
}


def places(module: nn.Module) -> Iterator[tuple[nn.Parameter, Place]]:
    """Yield each trained parameter with each of its places, in the order of the layers."""
    found, depth = [], -1
    for prefix, layer in module.named_modules():
        own = list(layer.named_parameters(recurse=False))
        depth += any(_is_weight(name, p) for name, p in own) and not isinstance(layer, NORMS)
        names = ((f"{prefix}.{name}" if prefix else name, p) for name, p in own)
        found += [(p, name, layer, max(0, depth)) for name, p in names]
    for p, name, layer, at in found:
        if p.requires_grad:
            yield p, Place(name, layer, at, max(0, depth))


def parameter_groups(
    module: nn.Module, decay_norm: bool = True, decay_bias: bool = True, rules: Sequence[Rule] = ()
) -> list[dict[str, Any]]:
    """Return the trainable parameters in one group, or split by what applies to them.

    Every parameter stands in exactly one group; an empty group is left out. The groups are named
    by their rules, `rest` if none matches; `decay` and `no_decay` if some parameters are exempt
    from weight decay. Those of a rule's optimizer come first, and hold it under `optimizer`.

    Raises:
        UserError: Nothing is trained, or a rule matches nothing.
    """
    spots: dict[nn.Parameter, list[Place]] = {}
    for p, place in places(module):
        spots.setdefault(p, []).append(place)
    if not spots:
        raise UserError(f"{type(module).__name__} has no parameter to train")
    groups: dict[tuple[int, str, tuple[int, ...]], dict[str, Any]] = {}
    for p, at in spots.items():
        settings: dict[str, Any] = {}
        applies: tuple[int, ...] = ()
        words, which = [], len(rules)
        for i, rule in enumerate(rules):
            if any(rule.matches(p, place) for place in at):
                applies = (*applies, i)
                words.append(rule.name)
                settings = {**rule.settings, **settings}
                which = i if rule.optimizer and which == len(rules) else which
        if not (decay_norm and decay_bias):
            exempt = any(_is_exempt(place, decay_norm, decay_bias) for place in at)
            settings = {"weight_decay": 0.0, **settings} if exempt else settings
            words.append("no_decay" if exempt else "decay")
        if (decay := settings.pop("lr_decay", None)) is not None:
            follow = at[0].last - at[0].depth
            settings["lr_factor"] = settings.get("lr_factor", 1.0) * float(decay) ** follow
            words.append(f"{at[0].depth}")
        name = "_".join(words)
        group = groups.setdefault((which, name, applies), {"name": name, "params": [], **settings})
        group["params"].append(p)
        if which < len(rules):
            group["optimizer"] = rules[which].optimizer
    for i, rule in enumerate(rules):
        if not any(i in applies for *_, applies in groups):
            there = _there(module)
            raise UserError(f"rules: {rule.match} matches no parameter that is trained; {there}")
    found = [groups[key] for key in sorted(groups)]
    if len(found) == 1 and not found[0]["name"]:
        del found[0]["name"]  # a single one needs none
        return found
    names = [group["name"] or "rest" for group in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"rules: several groups are '{twice[0]}': give a rule another name")
    return [{**group, "name": name} for group, name in zip(found, names, strict=True)]


def _is_exempt(place: Place, decay_norm: bool, decay_bias: bool) -> bool:
    if isinstance(place.layer, NORMS):
        return not decay_norm
    return not decay_bias and place.name.endswith("bias")


def _there(module: nn.Module) -> str:
    """Say what a rule may match."""
    found = list(places(module))
    layers = ", ".join(sorted({type(place.layer).__name__ for _, place in found}))
    names = list(dict.fromkeys(place.name for _, place in found))
    return f"names are {names[0]} to {names[-1]}, layers {layers}, depths 0 to {found[0][1].last}"
