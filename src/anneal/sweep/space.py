"""One parameter of a sweep: from a W&B distribution to what Optuna draws, and back to a value."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from optuna import distributions as dist
from scipy.special import betaincinv, ndtri

from anneal.errors import UserError, did_you_mean

# What each distribution takes; `?` marks what may be left out.
TAKES = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "log_uniform": ("min", "max"),  # its limits are exponents of e
    "log_uniform_values": ("min", "max"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu?", "sigma?"),
    "log_normal": ("mu?", "sigma?"),
    "beta": ("a?", "b?"),
    "q_uniform": ("min", "max", "q?"),
    "q_log_uniform": ("min", "max", "q?"),
    "q_log_uniform_values": ("min", "max", "q?"),
    "q_normal": ("mu?", "sigma?", "q?"),
    "q_log_normal": ("mu?", "sigma?", "q?"),
    "q_beta": ("a?", "b?", "q?"),
}
DEFAULTS = {"mu": 0.0, "sigma": 1.0, "a": 1.0, "b": 1.0, "q": 1.0}
SHARE = dist.FloatDistribution(1e-9, 1 - 1e-9)  # of the probability below the value


@dataclass(frozen=True)
class Parameter:
    """A parameter that varies."""

    name: str  # with dots
    path: tuple[str, ...]  # the keys it stands under; a key may have dots in it
    distribution: dist.BaseDistribution  # what Optuna draws
    value: Callable[[Any], Any]  # from what is drawn to what the training gets
    grid: list[Any] | None = None  # everything that can be drawn; None: endlessly many
    log: bool = False  # whether its values spread over a logarithmic scale


def parameter(path: tuple[str, ...], spec: dict[str, Any]) -> Parameter:
    """Return what an entry of a sweep file says of one parameter, as W&B reads it."""
    name = ".".join(path)
    kind = spec.get("distribution") or _implied(name, spec)
    _check(name, kind, spec)
    given = {**DEFAULTS, **spec}
    if kind == "categorical":
        # Optuna takes plain values only. The same value twice would be the same run twice.
        drawn = list(dict.fromkeys(_as_choice(v) for v in spec["values"]))
        values = {_as_choice(v): v for v in spec["values"]}
        return Parameter(name, path, dist.CategoricalDistribution(drawn), values.__getitem__, drawn)
    if kind == "int_uniform":
        low, high = spec["min"], spec["max"]
        grid = list(range(low, high + 1)) if high - low < 10_000 else None
        return Parameter(name, path, dist.IntDistribution(low, high), int, grid)

    quantised = kind.startswith("q_")
    round_off = _multiples(given["q"]) if quantised else float
    base = kind.removeprefix("q_")
    if base in ("normal", "log_normal", "beta", "categorical_w_probabilities"):
        quantile = _quantile(base, given)
        if base == "categorical_w_probabilities":
            return Parameter(name, path, SHARE, quantile)
        log = base == "log_normal"
        return Parameter(name, path, SHARE, lambda u: round_off(quantile(u)), log=log)

    low, high = float(spec["min"]), float(spec["max"])
    if base == "log_uniform":
        low, high = math.exp(low), math.exp(high)
    elif base == "inv_log_uniform":
        low, high = math.exp(-high), math.exp(-low)
    log = base != "uniform"
    grid = None
    if quantised and not log and (high - low) / given["q"] < 10_000:
        grid = np.arange(low, high, given["q"]).tolist()  # as W&B does, without the upper limit
    return Parameter(name, path, dist.FloatDistribution(low, high, log=log), round_off, grid, log)


def _implied(name: str, spec: dict[str, Any]) -> str:
    """Return the distribution of an entry that names none."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        whole = isinstance(spec["min"], int) and isinstance(spec["max"], int)
        return "int_uniform" if whole else "uniform"
    wanted = "value, values, min and max, or a distribution"
    raise UserError(f"parameters.{name}: give {wanted}, not {', '.join(spec) or 'nothing'}")


def _check(name: str, kind: str, spec: dict[str, Any]) -> None:
    """Raise UserError for what the distribution does not take."""
    where = f"parameters.{name}"
    if kind not in TAKES:
        hint = did_you_mean(str(kind), TAKES) or f"; there are {', '.join(TAKES)}"
        raise UserError(f"{where}.distribution={kind}: not supported{hint}")
    takes = [key.rstrip("?") for key in TAKES[kind]]
    for key in spec.keys() - {"distribution"}:
        if key not in takes:
            raise UserError(f"{where}.{key}: {kind} takes {', '.join(takes)} only")
    for key in TAKES[kind]:
        if key not in spec and not key.endswith("?"):
            raise UserError(f"{where}.{key}: {kind} needs it")
    for key in spec.keys() & {"min", "max", "mu", "sigma", "a", "b", "q"}:
        value = spec[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            hint = " (YAML takes 1e-4 for text: write 1.0e-4)" if isinstance(value, str) else ""
            raise UserError(f"{where}.{key}={value!r}: must be a number{hint}")
        if key not in ("min", "max", "mu") and value <= 0:
            raise UserError(f"{where}.{key}={value}: must be above 0")
    if "values" in spec and (not isinstance(spec["values"], list) or not spec["values"]):
        raise UserError(f"{where}.values: must be a list with something in it")
    if "min" in takes:
        if spec["min"] >= spec["max"]:
            raise UserError(f"{where}: min={spec['min']} must be below max={spec['max']}")
        if kind.endswith("log_uniform_values") and spec["min"] <= 0:
            raise UserError(f"{where}.min={spec['min']}: {kind} needs it above 0")
        if kind == "int_uniform" and not all(isinstance(spec[k], int) for k in ("min", "max")):
            raise UserError(f"{where}: int_uniform needs whole numbers for min and max")


def _quantile(kind: str, given: dict[str, Any]) -> Callable[[float], Any]:
    """Return the function from a share of the probability to the value below which it lies."""
    if kind == "beta":
        return lambda u: float(betaincinv(given["a"], given["b"], u))
    if kind == "normal":
        return lambda u: float(given["mu"] + given["sigma"] * ndtri(u))
    if kind == "log_normal":
        return lambda u: float(math.exp(given["mu"] + given["sigma"] * ndtri(u)))
    values, shares = given["values"], given["probabilities"]
    if len(shares) != len(values) or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise UserError("parameters: probabilities must be as many as values, and sum up to 1")
    ends = list(accumulate(shares))
    return lambda u: next((v for v, end in zip(values, ends, strict=True) if u < end), values[-1])


def _multiples(q: float) -> Callable[[float], float]:
    """Return the function that rounds to the nearest multiple of q, to an int if q is one."""
    if isinstance(q, int):
        return lambda x: round(x / q) * q
    return lambda x: round(round(x / q) * q, 12)  # 3 x 0.1 is 0.3


def _as_choice(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)
