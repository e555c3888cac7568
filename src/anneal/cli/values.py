"""A value of a configuration: whether it fits its type, and what is said if it does not."""

import math
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from warnings import catch_warnings

import yaml
from jsonargparse import ArgumentParser, set_dumper

from anneal.cli.files import no_file, read_file
from anneal.cli.schema import Parameter, base_classes, group_of, in_words, members, takes_list
from anneal.errors import UserError, did_you_mean

AS_IT_IS = "as it is"  # a format of jsonargparse's: plain values, and what it can't write as text
set_dumper(AS_IT_IS, lambda tree: tree)
QUOTES = " (YAML takes off, no, on and yes for booleans: put quotes around it)"
# Numbers that make no sense, by an argument's name. Torch, torchvision and Lightning take some of
# them without a word, and trip over others in the middle of a training.
NAMES = {
    (-1, False): "num_sanity_val_steps",
    (0, False): "backbone_initial_lr backbone_initial_ratio_lr base_lr cooldown copy_epochs "
    "end_factor eta_min factor gamma gradient_clip_val log_every_n_steps lr_decay max_lr "
    "milestones min_epochs min_lr min_steps patience power refresh_rate start_factor swa_lrs "
    "threshold unfreeze_backbone_at_epoch update_starting_at_epoch update_starting_at_step",
    (0, True): "div_factor final_div_factor val_check_interval",
    (1, False): "T_0 T_max T_mult accumulate_grad_batches annealing_epochs "
    "check_val_every_n_epoch flush_logs_every_n_steps history_size init_val max_iter max_trials "
    "num_training_steps step_size step_size_down step_size_up steps_per_trial total_iters "
    "total_steps update_every_n_steps window",
}
LEAST = {name: least for least, names in NAMES.items() for name in names.split()}
SHARES = {"base_momentum", "decay", "max_momentum", "p", "pct_start"}  # from 0 to 1


class Text(str):
    """The value of a flag, as typed."""


def takes_dict(hint: Any) -> bool:
    """Whether a type takes a dictionary of values."""
    return hint is Any or dict in {get_origin(k) or k for k in members(hint)}


def untyped(value: Any) -> Any:
    """Return the value of a flag whose type is not known."""
    if not isinstance(value, Text):
        return value
    with suppress(yaml.YAMLError):
        return yaml.safe_load(value)
    return str(value)


def tree_of(text: Text) -> Any:
    """Return what a flag holds where a class or a group is wanted: a tree, or a name."""
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise UserError(no_file(Path(text)))
        return read_file(Path(text))
    is_tree = text[:1] in ("{", "[") or text in ("null", "true", "false")
    return untyped(text) if is_tree else str(text)


def choices(hint: Any) -> list[str]:
    """Return the values that a type names."""
    return [str(v) for k in members(hint) if get_origin(k) is Literal for v in get_args(k)]


def checked(value: Any, hint: Any) -> Any:
    """Return a value as plain data; raise UserError if jsonargparse says that it doesn't fit."""
    if hint is Any:
        return untyped(value)
    parser = _parser(hint, str(hint))
    try:
        if not isinstance(value, Text):
            parser.parse_object({"x": value})
            return value
        found = parser.parse_args([f"--x={value}"])
        with catch_warnings(action="ignore"):  # of what can't be written
            written: Any = parser.dump(found, format=AS_IT_IS, skip_unset=False)
        return written["x"] if reads_back(written["x"], found.x, hint) else untyped(value)
    except Exception as e:  # of a dozen types
        raise UserError(wrong_value(value, hint)) from e


@cache
def _parser(hint: Any, in_order: str) -> ArgumentParser:  # int | float equals float | int
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--x", type=hint)
    return parser


def standing(old: Any, of: Parameter) -> list[Any]:
    """Return what `+=` adds to: what an option holds by now, or its default."""
    if old is None or old is True:
        old = of.default if isinstance(of.default, list) else []
    return old if isinstance(old, list) else [old] if old else []


def option(name: str, value: Any, of: Parameter, old: Any) -> Any:
    """Return what an option holds after it was set, or, by a name that ends in +, added to."""
    plain, before = name.rstrip("+"), []
    if name != plain:
        if not takes_list(of.hint):
            raise UserError(f"+= adds to a list, and this is {in_words(of.hint)}")
        before = standing(old, of)
        if isinstance(value, Text):
            value = value if value[:1] == "[" else Text(f"[{value}]")
    optional = of.default is None or of.hint is Any or NoneType in get_args(of.hint)
    if value is None and not optional:
        raise UserError(wrong_value(value, of.hint))
    found = checked(value, of.hint)
    found = [*before, *found] if name != plain else found
    return check_range(plain, found) if of.has_range else found


def reads_back(written: Any, value: Any, hint: Any) -> bool:
    """Whether what is written of a value, once in YAML, is read as that value."""
    texts = [str] if members(hint) == [str] else []
    if type(written) is type(value) and type(value) in (bool, int, float, NoneType, *texts):
        return True
    with suppress(Exception):  # of a dozen types
        read = yaml.safe_load(yaml.safe_dump(written))
        again = _parser(hint, str(hint)).parse_object({"x": read}).x
        return type(again) is type(value) and repr(again) == repr(value)
    return False


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that another class took fits a type; classes are looked at later."""
    if isinstance(value, dict | list):
        return bool(base_classes(hint)) or group_of(hint) is not None or takes_list(hint)
    with suppress(UserError):
        checked(value, hint)
        return True
    return False


def wrong_value(value: Any, hint: Any) -> str:
    """Say what is wrong with a value that its type refused."""
    kinds, bases = members(hint), base_classes(hint)
    named = choices(hint)
    quotes = QUOTES if isinstance(value, bool) and (named or str in kinds) else ""
    near = did_you_mean(str(value), named) if not bases else ""
    return f"expected {in_words(hint)}, got {shown(value)}{quotes}{near}"


def shown(value: Any) -> str:
    """Return a value as a message shows it: texts in quotes, numbers and lists as they are."""
    text = str(value)
    plain = re.fullmatch(r"True|False|None|[-+.\d]+|[\[{(].*", text)
    return text if plain else f"'{text}'"


def check_range(name: str, value: Any, place: str = "") -> Any:
    """Return a library's argument; raise UserError if it is or lists a number out of range."""
    least, above = LEAST.get(name, (0 if name in SHARES else -math.inf, False))
    most, end = (1, " and at most 1") if name in SHARES else (math.inf, "")
    for n in value if isinstance(value, list) else [value]:
        if isinstance(n, int | float) and not (least <= n <= most and (n > least or not above)):
            words = f"{'more than' if above else 'at least'} {least}{end}"
            raise UserError(f"{place}must be {words if n == n else 'a number'}, got {n}")
    return value
