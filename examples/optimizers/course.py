"""Predict, then run: `python train.py course` marks answers to the questions of docs/course.md.

No answer is stored. `course.yaml` has what each question trains, and what is measured then: a
number, or one for each choice, of which the lowest is right.
"""

import argparse
import math
import re
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
import yaml
from lightning.pytorch import seed_everything
from torch import Tensor
from torch.optim import lr_scheduler

from anneal import Schedule, UserError, command
from anneal.errors import read_text, reading
from anneal.optim.torch_schedulers import WSD
from examples.optimizers import COMMANDS, curve
from examples.optimizers.figure import Steps, train_bare, written
from examples.optimizers.sharpness import DigitNet, Sharpness
from examples.optimizers.surface import Surface

PAGE = Path(__file__).parents[2] / "docs" / "course.md"
EXPERIMENTS: dict[int, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
ANSWERS = Path("answers.yaml")
HEAD = """\
# The questions of docs/course.md, which says what they are about. Write a number or a letter behind
# each colon, then: python train.py course
# It writes a mark behind the answer; an answer without one is marked again.
"""
LINE = re.compile(r"(\d+)\s*:\s*([^#]*?)\s*(#.*)?")
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
NETWORKS: dict[str, Any] = {cls.__name__: cls for cls in (Surface, curve.Curve, DigitNet)}


def flat(x: Tensor) -> Tensor:
    return 0 * x


def trained(
    network: str = "Surface",
    optimizer: str = "SGD",
    steps: int = 100,
    epochs: int = 1,
    warmup: int = 0,
    scheduler: str = "",
    schedule: Any = (),
    model: Any = (),
    **given: Any,
) -> dict[str, Any]:
    """Train, and return what a measurement may name."""
    make = partial(getattr(lr_scheduler, scheduler, WSD), **dict(schedule)) if scheduler else None
    rates = Schedule(make, "step" if scheduler and epochs == 1 else None, warmup_steps=warmup)
    data = curve.CurvePoints if network == "Curve" else Steps
    seed_everything(0, verbose=False)
    given = {"optimizer": partial(getattr(torch.optim, optimizer), **given), "schedule": rates}
    net = NETWORKS[network](**given, **dict(model))
    watch = Sharpness(max_share=math.inf)
    train_bare(net, data(steps), *[watch] * (network == "DigitNet"), epochs=epochs)
    names = {**vars(math), **vars(curve), "torch": torch, "net": net, "watch": watch}
    if network == "Surface":
        done = net.trajectory()
        names |= {"path": done.path[:, 0], "losses": done.losses, "lrs": done.lrs}
        names["x"] = done.path[:, 0, 0]
    return names


def experiment(number: int) -> dict[str, float]:
    """Return the `answer`, or a value for each choice and what else the explanation names."""
    spec = EXPERIMENTS[number]
    measures = spec["measure"] if isinstance(spec["measure"], dict) else {"answer": spec["measure"]}

    def values(**settings: Any) -> dict[str, float]:
        names = trained(**{**spec["train"], **settings})
        with torch.no_grad():
            found = {k: float(eval(text, names)) for k, text in measures.items()}
        return {name: v if math.isfinite(v) else math.inf for name, v in found.items()}

    if "between" in spec:  # the learning rate from which on a value is above a limit
        low, high = spec["between"]
        for _ in range(7):
            middle = math.sqrt(low * high)
            fails = values(lr=middle)["answer"] > spec["limit"]
            low, high = (low, middle) if fails else (middle, high)
        return {"answer": math.sqrt(low * high)}
    if "choices" in spec:
        return {name: values(**one)["answer"] for name, one in spec["choices"].items()}
    return values()


def questions() -> dict[int, str]:
    """Return the questions of the page by their numbers."""
    parts = re.split(r"^\*\*(\d+)\.\*\* ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return {int(number): text.partition("\n## ")[0].strip() for number, text in pairs}


def read_answer(line: str, asked: dict[int, str]) -> tuple[int, str, bool]:
    """Return number and answer of a line, and whether it is marked; a comment is number 0."""
    if not line.strip() or line.startswith("#"):
        return 0, "", True
    match = LINE.fullmatch(line)
    if not match or int(match[1]) not in asked:
        raise UserError(f"{line!r} is not NUMBER: ANSWER, as 7: 0.5, of 1 to {len(asked)}")
    number, answer = int(match[1]), match[2]
    choices = re.findall(r"^- ([a-d])\) ", asked[number], re.MULTILINE)
    if answer and not re.fullmatch("|".join(choices) or NUMBER, answer, re.IGNORECASE):
        takes = f"one of {', '.join(choices)}" if choices else "a number, such as 0.5"
        raise UserError(f"question {number} takes {takes}, not {answer!r}")
    return number, answer, bool(match[3])


def mark(number: int, question: str, answer: str) -> str:
    """Run an experiment, say what happened and why, and return `right` or `wrong`."""
    found = experiment(number)
    if "answer" in found:
        truth = f"{found['answer']:.4g}"
        tolerance = float(re.findall(r"within\s+([\d.]+)\s+%", question)[0]) / 100
        right = abs(float(answer) - found["answer"]) <= tolerance * abs(found["answer"])
    else:
        truth = min(found.keys() & set("abcd"), key=found.__getitem__)
        right = answer.lower() == truth
    verdict = "right" if right else "wrong"
    seen = "" if answer.lower() == truth else f": it is {truth}"
    print(f"\n{number}. {question}\n\n{answer} is {verdict}{seen}.")
    print(fill(EXPERIMENTS[number]["why"].format(**found), 100, break_on_hyphens=False))
    return verdict


@command
def main(args: list[str] | None = None) -> int:
    """Run the command `course` and return its exit status."""
    parser = argparse.ArgumentParser("python train.py course", description=COMMANDS["course"][1])
    parser.add_argument("question", nargs="?", type=int, help="by default all that have no mark")
    only = parser.parse_args(args).question
    asked = questions()
    if only not in (None, *asked):
        raise UserError(f"there is no question {only}: they are 1 to {len(asked)}")
    if not ANSWERS.exists():
        blocks = [f"# {n}. {q}".replace("\n", "\n# ") + f"\n{n}:\n" for n, q in asked.items()]
        with written(ANSWERS):
            ANSWERS.write_text("\n".join([HEAD, *blocks]), "utf-8")
        print(f"{ANSWERS} has {len(asked)} questions: write your answers behind the colons")
    with reading(ANSWERS):
        lines = read_text(ANSWERS).splitlines()
    answers = [read_answer(line, asked) for line in lines]
    if only and not any(number == only and answer for number, answer, _ in answers):
        raise UserError(f"question {only} has no answer: write one into {ANSWERS}, behind {only}:")
    for i, (number, answer, marked) in enumerate(answers):
        if answer and (number == only or (only is None and not marked)):
            lines[i] = f"{number}: {answer}  # {mark(number, asked[number], answer)}"
            with written(ANSWERS):
                ANSWERS.write_text("\n".join([*lines, ""]), "utf-8")
    right, wrong = (sum(line.endswith(f"  # {w}") for line in lines) for w in ("right", "wrong"))
    print(f"\n{right} right and {wrong} wrong of {len(asked)} questions")
    return 0
