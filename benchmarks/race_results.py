"""What the stored trainings of a race say: tests, the tables of docs/race.md and its figures."""

import io
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from race_rules import (
    HERE,
    OPTIMIZERS,
    POINTS,
    REFERENCE,
    RULES,
    STEPS,
    UNTUNED,
    Line,
    curve_of,
    read,
)

from anneal.sweep import paired

PAGE = HERE.parent / "docs/race.md"
BEFORE, END = 6, 9  # of the validations of a training: the last before the decay, the last of all
BETTER, WORSE, SAME = "#0072b2", "#d55e00", "#8c8c8c"  # told apart by the colour-blind
LOWEST = -6.0  # points below AdamW that still have room in the figure


def p_value(differences: Any) -> float:
    """Exact two-sided permutation test of pairs: of all choices of signs, how many are as far off.

    The differences are of accuracies with four places, so that they are compared as integers. The
    sums of all choices are those of one half of the pairs plus those of the other half.
    """
    whole = np.rint(10_000 * np.asarray(differences)).astype(int)
    far = abs(whole.sum())
    one, other = (np.zeros(1, int), np.zeros(1, int))
    for i, difference in enumerate(whole):
        if i % 2:
            one = np.concatenate([one + difference, one - difference])
        else:
            other = np.concatenate([other + difference, other - difference])
    above = len(other) - np.searchsorted(np.sort(other), far - one)
    return min(1.0, 2 * float(above.sum()) / 2 ** len(whole))


def holm(p_values: dict[Any, float]) -> dict[Any, float]:
    """The p-values, corrected for how many there are (Holm 1979)."""
    return dict(zip(p_values, paired.holm([*p_values.values()]), strict=True))


@dataclass
class Standing:
    """An optimizer in a task: what its final trainings came to.

    Attributes:
        lr: As the search has found it; empty: as the class has it.
        weight_decay: Likewise.
        test: Test accuracy of each seed.
        curves: Validation accuracies, (seeds, POINTS).
        ms_step: Processor time of a step, the least of the turns.
        difference: Mean test accuracy above that of AdamW from the same seeds.
        interval: Half of the 95 % interval of this mean (Student's t).
        p: Of that difference, corrected for the number of optimizers.
        steps: Median of the steps to the target; infinite if half of the seeds don't get there.
    """

    name: str
    lr: str
    weight_decay: str
    test: Any
    curves: Any
    ms_step: float
    difference: float = 0.0
    interval: float = 0.0
    p: float = 1.0
    steps: float = np.inf


@cache
def standings(task: str) -> dict[str, Standing]:
    """All that have run a task with all seeds, by name, the best first."""
    kinds: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in sorted(read(task), key=lambda line: line["seed"]):
        kinds[line["kind"], line["optimizer"]].append(line)
    found = {}
    for (kind, name), lines in kinds.items():
        if kind == "final" and len(lines) == len(RULES["seeds"]):
            times = kinds.get(("time", REFERENCE if name == UNTUNED else name), [])
            found[name] = Standing(
                name,
                lines[0]["lr"],
                lines[0]["weight_decay"],
                np.array([float(line["test_acc"]) for line in lines]),
                np.array([curve_of(line) for line in lines]),
                min((float(line["ms_step"]) for line in times), default=np.nan),
            )
    if not {REFERENCE, UNTUNED} <= found.keys():
        return {}
    goal, reference = target(found), found[REFERENCE].test
    for s in found.values():
        each = s.test - reference
        s.difference = float(each.mean())
        low, high = paired.interval(each)
        s.interval = (high - low) / 2
        steps = [STEPS[task] / POINTS * reach(curve, goal) for curve in s.curves]
        s.steps = STEPS[task] if s.name == UNTUNED else float(np.median(steps))
    others = {n: p_value(s.test - reference) for n, s in found.items() if n != REFERENCE}
    for name, p in holm(others).items():
        found[name].p = p
    return dict(sorted(found.items(), key=lambda item: -item[1].difference))


def target(found: dict[str, Standing]) -> float:
    """The validation accuracy that the steps are counted to: where untuned AdamW ends."""
    return float(found[UNTUNED].curves[:, END].mean())


def reach(curve: Any, goal: float) -> float:
    """After how many validations a curve reaches a goal, between two of them on a line."""
    above = np.flatnonzero(curve >= goal)
    if not len(above):
        return float("inf")
    i = int(above[0])
    if i == 0:
        return 1.0
    return i + float((goal - curve[i - 1]) / (curve[i] - curve[i - 1]))


def flips(task: str) -> list[tuple[str, str, float, float]]:
    """Pairs whose order turns round in the decay: who is ahead at the end, who before, and by what.

    Ahead by the mean validation accuracy, both times by the same permutation test with p below 0.05
    after Holm's correction for all pairs and both times.
    """
    found = standings(task)
    pairs = list(combinations(found, 2))
    means, p_values = {}, {}
    for at in (BEFORE, END):
        for a, b in pairs:
            each = found[a].curves[:, at] - found[b].curves[:, at]
            means[a, b, at] = float(each.mean())
            p_values[a, b, at] = p_value(each)
    p_values = holm(p_values)
    turned = []
    for a, b in pairs:
        before, end = means[a, b, BEFORE], means[a, b, END]
        sure = max(p_values[a, b, BEFORE], p_values[a, b, END]) < 0.05
        if sure and before * end < 0:
            turned.append((a, b, before, end) if end > 0 else (b, a, -before, -end))
    return sorted(turned, key=lambda x: x[2] - x[3])


def best(number: int = 5) -> list[str]:
    """Whose test accuracy above AdamW's is highest in the mean of digits and fashion."""
    one, two = standings("digits"), standings("fashion")
    both = [name for name in one if name in two and name not in (REFERENCE, UNTUNED)]
    return sorted(both, key=lambda name: -one[name].difference - two[name].difference)[:number]


# ---- the page


def table(task: str) -> str:
    """The table of a task, as docs/race.md has it."""
    found = standings(task)
    head = ["optimizer", "test accuracy, % (lowest)", "above AdamW, points", "p (Holm)"]
    head += [f"steps to {100 * target(found):.1f} %", "seconds", "ms a step", "lr", "weight decay"]
    rows = [head, ["---"] * len(head)]
    for name, s in found.items():
        gap = f"{100 * s.difference:+.2f} ± {100 * s.interval:.2f}"
        p = "< 0.001" if s.p < 0.001 else f"{s.p:.3f}"
        steps, seconds = f"{s.steps:.0f}", f"{s.steps * s.ms_step / 1000:.2f}"
        rows.append([
            f"**{name}**" if name in (REFERENCE, UNTUNED) else name,
            f"{100 * s.test.mean():.2f} ({100 * s.test.min():.1f})",
            *(["", ""] if name == REFERENCE else [gap, p]),
            *([steps, seconds] if np.isfinite(s.steps) else ["never", ""]),
            f"{s.ms_step:.1f}",
            s.lr or "0.001",
            s.weight_decay or "0.01",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def page() -> str:
    """docs/race.md with its tables written again, between the comments that mark them."""
    text = PAGE.read_text()
    for task in STEPS:
        start, end = f"<!-- {task} -->\n", f"<!-- end of {task} -->"
        if standings(task) and start in text:
            before, _, rest = text.partition(start)
            text = f"{before}{start}\n{table(task)}\n\n{end}{rest.partition(end)[2]}"
    return text


def draw_differences() -> Figure:
    """Each optimizer's test accuracy above AdamW's with its interval, a panel for each task."""
    tasks = [task for task in STEPS if standings(task)]
    names = [*best(len(OPTIMIZERS)), UNTUNED][::-1]
    figure = Figure(figsize=(10, 1.6 + 0.25 * len(names)), layout="constrained")
    for axes, task in zip(
        figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True
    ):
        found = {name: s for name, s in standings(task).items() if name in names}
        for name, s in found.items():
            y, value, half = names.index(name), 100 * s.difference, 100 * s.interval
            colour = SAME if s.p >= 0.05 else BETTER if value > 0 else WORSE
            if value - half < LOWEST:
                arrow = {"arrowstyle": "->", "color": colour}
                text = axes.annotate(f"{value:.1f}", (LOWEST, y), (LOWEST + 0.7, y), color=colour)
                text.set(va="center", fontsize=9)
                axes.annotate("", (LOWEST, y), (LOWEST + 0.6, y), arrowprops=arrow)
                continue
            mark = {SAME: "o", BETTER: "^", WORSE: "v"}[colour]
            fill = "white" if colour == SAME else colour
            axes.errorbar(value, y, xerr=half, fmt=mark, color=colour, mfc=fill, capsize=2)
        axes.axvline(0, color="black", linewidth=1)
        axes.set(title=task, xlim=(LOWEST, None), ylim=(-0.7, len(names) - 0.3))
        axes.set_yticks(range(len(names)), names)
        axes.grid(alpha=0.3)
    figure.supxlabel("test accuracy above tuned AdamW, points: mean of 20 seeds, 95 % interval")
    return figure


def draw_decay() -> Figure:
    """The order by validation accuracy before the decay and at the end, a panel for each task."""
    tasks = [task for task in list(STEPS)[:2] if standings(task)]
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        found = standings(task)
        orders = [
            sorted(found, key=lambda n, at=at: -found[n].curves[:, at].mean())
            for at in (BEFORE, END)
        ]
        for name in found:
            a, b = (order.index(name) for order in orders)
            colour = SAME if abs(a - b) < 6 else BETTER if b < a else WORSE
            wide = 2 if colour != SAME else 0.8
            axes.plot([0, 1], [a, b], color=colour, linewidth=wide, marker="o", markersize=4)
            for x, y, at, side in ((0, a, BEFORE, "right"), (1, b, END, "left")):
                text = f"{name}  {100 * found[name].curves[:, at].mean():.1f}"
                if side == "left":
                    text = f"{100 * found[name].curves[:, at].mean():.1f}  {name}"
                tone = "#444444" if colour == SAME else colour
                axes.text(x + (x - 0.5) * 0.08, y, text, ha=side, va="center", color=tone,
                          fontsize=8)  # fmt: skip
        axes.set(title=task, xlim=(-0.9, 1.9), ylim=(len(found) - 0.4, -0.6), yticks=[])
        axes.set_xticks([0, 1], ["before the decay", "at the end"])
        for side in axes.spines.values():
            side.set_visible(False)
    figure.suptitle("Order by validation accuracy, %: mean of 20 seeds")
    return figure


def draw() -> None:
    """Write tables and figures of docs/race.md again."""
    for name, figure in (("race", draw_differences()), ("race-decay", draw_decay())):
        file = io.BytesIO()
        figure.savefig(file, dpi=100)
        few = Image.open(file).convert("RGB").quantize(64)  # colours: a third as large
        few.save(PAGE.parent / f"figures/{name}.png", optimize=True)
    PAGE.write_text(page())
