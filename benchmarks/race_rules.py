"""The rules of race.yaml as trainings, and the files in which these are stored."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import qmc

HERE = Path(__file__).resolve().parent
RULES: dict[str, Any] = yaml.safe_load((HERE / "race.yaml").read_text())
OPTIMIZERS: dict[str, dict[str, Any]] = RULES["optimizers"]
REFERENCE, UNTUNED = "AdamW", "AdamW, untuned"
COLUMNS = ["kind", "optimizer", "seed", "lr", "weight_decay", "val_loss"]
COLUMNS += ["test_acc", "ms_step", "curve"]
STEPS = {"digits": 200, "fashion": 200, "photos": 150}  # of the tasks, in their order
POINTS = 10  # validations of a final training, evenly spread
Line = dict[str, Any]  # of a file of results, by COLUMNS


def read(task: str) -> list[Line]:
    """The stored lines of a task."""
    path = HERE / f"race-{task}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row | {"seed": int(row["seed"])} for row in csv.DictReader(file)]


def key_of(line: Line) -> tuple[str, str, int]:
    """What tells a training from all others of its task."""
    return line["kind"], line["optimizer"], line["seed"]


def curve_of(line: Line) -> list[float]:
    """Validation accuracies of a training: after each tenth of a final one, else at its end."""
    return [float(word) for word in line["curve"].split()]


def winner(optimizer: str, lines: list[Line]) -> Line:
    """The trial with the best validation accuracy, among equals the one with the lowest loss."""
    mine = [x for x in lines if x["kind"] == "trial" and x["optimizer"] == optimizer]
    return max(mine, key=lambda x: (curve_of(x)[-1], -float(x["val_loss"])))


def trials(optimizer: str) -> list[Line]:
    """The trainings of the search, still without results."""
    rules = OPTIMIZERS[optimizer]
    lr = RULES["free" if rules.get("free") else "lr"]
    ranges = np.log([[rules["default"] * end for end in lr], RULES[rules["decay"]]])
    places = qmc.Sobol(2, rng=RULES["search_seed"]).random(RULES["trials"])
    points = np.exp(ranges[:, 0] + places * (ranges[:, 1] - ranges[:, 0]))
    seeds = range(RULES["trial_seed"], RULES["trial_seed"] + RULES["trials"])
    return [to_do("trial", optimizer, s, *p) for s, p in zip(seeds, points, strict=True)]


def finals(optimizer: str, lines: list[Line]) -> list[Line]:
    """The trainings with what the search has found, still without results."""
    found: list[Any] = ["", ""]
    if optimizer != UNTUNED:
        trial = winner(optimizer, lines)
        found = [trial["lr"], trial["weight_decay"]]
    return [to_do("final", optimizer, seed, *found) for seed in RULES["seeds"]]


def to_do(kind: str, optimizer: str, seed: int, lr: Any, weight_decay: Any) -> Line:
    """A line without results."""
    lr, weight_decay = (x if isinstance(x, str) else f"{x:.4g}" for x in (lr, weight_decay))
    return dict(zip(COLUMNS, (kind, optimizer, seed, lr, weight_decay), strict=False))
