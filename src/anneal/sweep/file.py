"""W&B's sweep files: what they ask for, and by name what of it is not supported."""

import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from anneal.errors import UserError, did_you_mean, in_a_line, read_text
from anneal.runs.config import read_yaml
from anneal.runs.folder import check_name
from anneal.sweep.process import training_words
from anneal.sweep.space import Parameter, parameter

# What W&B's schema knows; False: not supported here.
SUPPORTED = "program method parameters metric early_terminate command name description run_cap "
SUPPORTED += "project entity apiVersion kind controller"  # the last three are not about what is run
KEYS = dict.fromkeys(SUPPORTED.split(), True)
KEYS |= dict.fromkeys(("job", "image_uri", "scheduler", "metrics"), False)
METRIC = dict.fromkeys(("name", "goal", "target"), True)
METRIC |= dict.fromkeys(("impute", "impute_while_running"), False)
HYPERBAND = dict.fromkeys(("type", "min_iter", "max_iter", "s", "eta", "strict"), True)
MACRO = re.compile(r"\$\{(\w+)\}")
ARGS = ("", "_no_equals", "_no_hyphens", "_no_boolean_flags", "_json", "_json_file")
ARGS_HYDRA = ("_append_hydra", "_override_hydra")
MACROS = ("env", "interpreter", "program", *(f"args{kind}" for kind in ARGS + ARGS_HYDRA))


@dataclass(frozen=True)
class Metric:
    """Metric that a sweep optimises, by the last value that a run logs of it."""

    name: str
    maximize: bool = False
    target: float | None = None  # the sweep ends when a run reaches it


@dataclass(frozen=True)
class Hyperband:
    """Early stopping as W&B has it: one bracket of Hyperband (Li et al. 2018, arXiv 1603.06560).

    After `first`, `first` x `eta`, `first` x `eta`² ... values of the metric, only trials among
    the best 1/`eta` that came so far go on.
    """

    first: int
    eta: int = 3
    end: int | None = None  # from this many values on no trial is stopped any more


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked."""

    name: str
    method: str
    parameters: list[Parameter]
    constants: dict[tuple[str, ...], Any]
    command: list[Any]
    program: str | None = None
    metric: Metric | None = None
    early: Hyperband | None = None
    run_cap: int | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        """Number of trials, each with other parameters; None: endlessly many."""
        ends = [] if self.run_cap is None else [self.run_cap]
        grids = [p.grid for p in self.parameters if p.grid is not None]
        if len(grids) == len(self.parameters):
            ends.append(math.prod(map(len, grids)))
        return min(ends, default=None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield what Optuna would draw for each point of the grid, the last parameter fastest."""
        for point in product(*(p.grid or [] for p in self.parameters)):
            yield {p.name: drawn for p, drawn in zip(self.parameters, point, strict=True)}

    def values(self, drawn: dict[str, Any]) -> dict[str, Any]:
        """Return the parameters that vary, by dotted name, from what Optuna has drawn."""
        return {p.name: p.value(drawn[p.name]) for p in self.parameters}

    @property
    def trains(self) -> bool:
        """Whether the command is a training of ours."""
        return training_words(self.head) is not None

    @property
    def head(self) -> list[str]:
        """Command without what differs between the trials."""
        fixed = {"${env}": "/usr/bin/env", "${interpreter}": sys.executable}
        fixed["${program}"] = str(self.program)
        return [str(fixed.get(word, word)) for word in self.command]

    def words(self, values: dict[str, Any], json_file: Path) -> list[str]:
        """Return the command line of one trial, word by word what W&B's agent would run.

        A training of ours gets --key=value whatever the macro, with the value as YAML has it: the
        agent writes None for null, and leaves out what is false.
        """
        tree: dict[str, Any] = {}
        settings = {**self.constants, **{p.path: values[p.name] for p in self.parameters}}
        nested = self.trains and "${args_json_file}" in self.command  # a file of --config
        for path, value in sorted(settings.items(), key=lambda item: item[0]):
            *above, last = ".".join(path).split(".") if nested else path
            node = tree
            for key in above:
                node = node.setdefault(key, {})
            node[last] = value
        if "${args_json_file}" in self.command:
            json_file.write_text(json.dumps(tree))
        from wandb.sdk.launch.sweeps import utils  # takes half a second, as all of wandb

        macros = utils.create_sweep_command_args({"args": {k: {"value": tree[k]} for k in tree}})
        if self.trains:
            flags = [f"--{k}={_in_yaml(v)}" for k, v in tree.items()]
            macros = {macro: flags for macro in macros}
        macros |= {"args_json_file": [str(json_file)]}
        words: list[str] = []
        for word in utils.create_sweep_command(self.head):
            macro = MACRO.fullmatch(word)
            words += macros[macro[1]] if macro else [word]
        return words


def _in_yaml(value: Any) -> str:
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def read(path: Path) -> Sweep:
    """Read a sweep file; raise UserError if it asks for something that is not supported."""
    with in_a_line(path):
        content = read_yaml(read_text(path), path)
    try:
        return _sweep(path, content)
    except UserError as e:
        raise UserError(f"{path}: {e}") from e


def _sweep(path: Path, content: Any) -> Sweep:
    _check_keys("", content, KEYS)
    method = content.get("method")
    if method not in ("grid", "random", "bayes"):
        raise UserError(f"method={method}: must be grid, random or bayes")
    varied, constants = _parameters(content)
    if method == "grid":
        for p in varied:
            if p.grid is None:
                raise UserError(
                    f"parameters.{p.name}: a grid needs values, or whole numbers or multiples "
                    "(q_uniform) between min and max"
                )
    cap = content.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise UserError(f"run_cap={cap}: must be a whole number above 0")
    metric = _metric(content)
    if metric is None and (method == "bayes" or content.get("early_terminate")):
        raise UserError("metric: bayes and early_terminate need its name")
    name = re.sub(r"[^\w.=-]+", "-", str(content.get("name") or path.stem)).strip("-.")
    check_name(name, "name")
    return Sweep(
        name=name,
        method=method,
        parameters=varied,
        constants=constants,
        command=_command(content),
        program=content.get("program"),
        metric=metric,
        early=_early(content),
        run_cap=cap,
        env={f"WANDB_{k.upper()}": content[k] for k in ("project", "entity") if k in content},
    )


def _check_keys(where: str, node: Any, known: dict[str, bool]) -> None:
    if not isinstance(node, dict):
        raise UserError(f"{where.rstrip('.') or 'the file'} must hold keys and values")
    for key in node:
        if key not in known:
            raise UserError(f"{where}{key}: no such key{did_you_mean(str(key), known)}")
        if not known[key]:
            raise UserError(f"{where}{key}: not supported, only W&B itself does it")


def _parameters(content: dict[str, Any]) -> tuple[list[Parameter], dict[tuple[str, ...], Any]]:
    varied: list[Parameter] = []
    constants: dict[tuple[str, ...], Any] = {}

    def collect(node: Any, path: tuple[str, ...]) -> None:
        if not isinstance(node, dict) or not node:
            raise UserError(f"{'.'.join(('parameters', *path))} must hold keys and values")
        for key, spec in node.items():
            here = (*path, str(key))
            name = ".".join(("parameters", *here))
            if not isinstance(spec, dict):
                raise UserError(f"{name}: write {{value: {spec}}} for a constant")
            if "parameters" in spec:
                _check_keys(f"{name}.", spec, {"parameters": True})
                collect(spec["parameters"], here)
            elif "value" in spec and len(spec.keys() - {"distribution"}) == 1:
                constants[here] = spec["value"]
            else:
                varied.append(parameter(here, spec))

    collect(content.get("parameters"), ())
    return varied, constants


def _metric(content: dict[str, Any]) -> Metric | None:
    if (node := content.get("metric")) is None:
        return None
    _check_keys("metric.", node, METRIC)
    goal = node.get("goal", "minimize")
    if goal not in ("minimize", "maximize"):
        raise UserError(f"metric.goal={goal}: must be minimize or maximize")
    if not isinstance(node.get("name"), str):
        raise UserError("metric.name: which metric is it?")
    return Metric(node["name"], goal == "maximize", node.get("target"))


def _early(content: dict[str, Any]) -> Hyperband | None:
    if (node := content.get("early_terminate")) is None:
        return None
    where = "early_terminate."
    _check_keys(where, node, HYPERBAND)
    if node.get("type") != "hyperband":
        raise UserError(f"{where}type={node.get('type')}: must be hyperband")
    if node.get("strict") is False:
        raise UserError(f"{where}strict=false: not supported, trials compare by their last value")
    eta = node.get("eta", 3)
    if not isinstance(eta, int) or eta < 2:
        raise UserError(f"{where}eta={eta}: not supported, must be a whole number above 1")
    for key in ("min_iter", "max_iter", "s"):
        if key in node and (not isinstance(node[key], int) or node[key] < 1):
            raise UserError(f"{where}{key}={node[key]}: must be a whole number above 0")
    if "max_iter" in node and "s" in node:
        end = node["max_iter"]
        return Hyperband(max(1, int(end / eta ** node["s"])), eta, end)
    if "min_iter" in node:
        return Hyperband(node["min_iter"], eta, node.get("max_iter"))
    raise UserError("early_terminate: give min_iter, or max_iter and s")


def _command(content: dict[str, Any]) -> list[Any]:
    command = content.get("command", ["${env}", "${interpreter}", "${program}", "${args}"])
    if not isinstance(command, list) or not command:
        raise UserError("command must be a list of words")
    for word in command:
        macro = MACRO.fullmatch(str(word))
        if macro and macro[1] not in MACROS:
            raise UserError(f"command: {word} is not supported{did_you_mean(macro[1], MACROS)}")
    if "${program}" in command and not Path(str(content.get("program"))).is_file():
        raise UserError(f"program={content.get('program')}: no such file, seen from {Path.cwd()}")
    return command
