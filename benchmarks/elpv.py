"""Macro-F1 on unbalanced classes: plain training, balanced sampling, class weights.

The solar cells of the package elpv-dataset (`pip install elpv-dataset`; for trials only, as its
license is non-commercial): 1,508 without a defect, 295 and 106 in doubt, 715 with one. `elpv.yaml`
is trained in each way with the same seeds, by the command `compare`, which resumes what was
interrupted. The test is a quarter of the cells, the same for all.

    python benchmarks/elpv.py
    python benchmarks/elpv.py --seeds=2 --trainer.max_epochs=1
"""

import argparse
import csv
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
from turns import Row, hand_over

from anneal.sweep.paired import paired

HERE = Path(__file__).parent
GRADES = {0.0: "a none", 1 / 3: "b doubtful", 2 / 3: "c likely", 1.0: "d certain"}
METRICS = ("test/f1_macro", "test/acc_macro", "test/acc")


def write_table(package: Path, table: Path) -> list[float]:
    """Write the cells' paths and defects; return class weights by the root of the frequencies."""
    lines = [line.split() for line in (package / "data/labels.csv").read_text().splitlines()]
    grades = np.array([min(GRADES, key=lambda g: abs(g - float(words[1]))) for words in lines])
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        rows = [(words[0], GRADES[grade]) for words, grade in zip(lines, grades, strict=True)]
        csv.writer(file).writerows([("path", "defect"), *rows])
    counts = np.unique(grades, return_counts=True)[1]
    return [round(float(w), 3) for w in np.sqrt(len(grades) / len(counts) / counts)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    args, overrides = parser.parse_known_args()
    if (found := find_spec("elpv_dataset")) is None or found.origin is None:
        parser.error("pip install elpv-dataset")
    package, table = Path(found.origin).parent, Path("runs/elpv.csv")
    roots = write_table(package, table)
    ways = {
        "plain": "",
        "sampler: balanced": "--data.sampler=balanced",
        "class_weight: balanced": "--model.class_weight=balanced",
        f"class_weight: {roots}": f"--model.class_weight={roots}".replace(" ", ""),
    }
    sides = [f"{HERE / 'elpv.yaml'} {own}".strip() for own in ways.values()]
    where = [f"--data.root={package / 'data'}", f"--data.labels={table}"]
    command = ["train.py", "compare", *sides, f"--seeds={args.seeds}", f"--metric={METRICS[0]}"]
    done = subprocess.run(
        [sys.executable, *command, *where, *overrides], stdout=subprocess.PIPE, text=True
    )
    print(done.stdout)
    done.check_returncode()
    folder = Path(re.findall(r"(?m)^(.+)/table\.csv$", done.stdout)[-1])
    runs = pd.read_csv(folder / "table.csv")
    labels = list(dict.fromkeys(runs["configuration"]))
    for metric in METRICS[1:]:
        tables = (pd.read_csv(Path(run) / "metrics.csv") for run in runs["folder"])
        runs[metric] = [table[metric].dropna().iloc[-1] for table in tables]
    by_way = {m: runs.pivot(index="seed", columns="configuration", values=m) for m in METRICS}
    rows = []
    for name, label in zip(ways, labels, strict=True):
        cells = {m: f"{v[label].mean():.3f} ± {v[label].std():.3f}" for m, v in by_way.items()}
        f1 = by_way[METRICS[0]]
        gain = 0.0
        if label != labels[0]:
            gain, low, high, *_ = paired(list(f1[labels[0]]), list(f1[label]))
            cells["gain of f1_macro"] = (
                f"{100 * gain:.1f} points ({100 * low:.1f} to {100 * high:.1f})"
            )
        rows.append(Row(name, 100 * gain, cells))
    hand_over(rows)


if __name__ == "__main__":
    main()
