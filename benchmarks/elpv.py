"""Macro-F1 on unbalanced classes: plain training, balanced sampling, weights.

The solar cells of the package elpv-dataset (`pip install elpv-dataset`; for trials only, as its
license is non-commercial): 1,508 without a defect, 295 and 106 in doubt, 715 with one. `elpv.yaml`
is trained in each way with the same seeds, by the command `compare`, which resumes what was
interrupted: with one class for each cell, and with a label for each grade of a defect, which is
said to be there from a probability of 0.5 on. The test is a quarter of the cells, the same for all.

    python benchmarks/elpv.py -j 2
    python benchmarks/elpv.py --seeds=2 --trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1
"""

import argparse
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
F1 = "test/f1_macro"


def write_table(package: Path, table: Path) -> list[float]:
    """Write the cells' paths and defects; return class weights by the root of the frequencies."""
    rows = pd.read_csv(
        package / "data/labels.csv", sep=r"\s+", names=["path", "probability", "type"]
    )
    near = [min(GRADES, key=lambda grade: abs(grade - value)) for value in rows["probability"]]
    rows["defect"] = [GRADES[grade] for grade in near]
    for name in [*GRADES.values()][1:]:
        rows[name[2:]] = (rows["defect"] == name).astype(int)
    table.parent.mkdir(parents=True, exist_ok=True)
    rows.drop(columns=["probability", "type"]).to_csv(table, index=False)
    counts = rows["defect"].value_counts().sort_index()
    return [round(float(w), 3) for w in np.sqrt(len(rows) / len(counts) / counts)]


def compare(ways: dict[str, str], words: list[str]) -> list[Row]:
    """Train in each way; return the metrics, and the gain over the first way."""
    sides = [f"{HERE / 'elpv.yaml'} {own}".strip() for own in ways.values()]
    command = [sys.executable, "train.py", "compare", *sides, f"--metric={F1}", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    done.check_returncode()
    runs = pd.read_csv(re.findall(r"(?m)^(.+/table\.csv)$", done.stdout)[-1])
    for metric in ("test/acc_macro", "test/acc", "test/map"):
        tables = [pd.read_csv(Path(run) / "metrics.csv") for run in runs["folder"]]
        if metric in tables[0]:
            runs[metric] = [table[metric].dropna().iloc[-1] for table in tables]
    metrics = [name for name in runs if name.startswith("test/")]
    rows, plain = [], None
    for name, label in zip(ways, dict.fromkeys(runs["configuration"]), strict=True):
        own = runs[runs["configuration"] == label].sort_values("seed")
        cells = {m: f"{own[m].mean():.3f} ± {own[m].std():.3f}" for m in metrics}
        gain, low, high, *_ = paired(list(own[F1] if plain is None else plain), list(own[F1]))
        if plain is None:
            plain = own[F1]
        else:
            cells["gain of f1_macro"] = (
                f"{100 * gain:.1f} points ({100 * low:.1f} to {100 * high:.1f})"
            )
        rows.append(Row(name, 100 * gain, cells))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-j", "--jobs", type=int, default=1)
    args, overrides = parser.parse_known_args()
    if (found := find_spec("elpv_dataset")) is None or found.origin is None:
        parser.error("pip install elpv-dataset")
    package, table = Path(found.origin).parent, Path("runs/elpv.csv")
    roots = write_table(package, table)
    words = [f"--seeds={args.seeds}", f"--jobs={args.jobs}"]
    words += [f"--data.root={package / 'data'}", f"--data.labels={table}", *overrides]
    balanced = "--data.sampler=balanced"
    classes = {
        "plain": "",
        "sampler: balanced": balanced,
        "class_weight: balanced": "--model.class_weight=balanced",
        f"class_weight: {roots}": f"--model.class_weight={roots}".replace(" ", ""),
    }
    labels = {
        "labels, plain": "",
        "labels, sampler: balanced": balanced,
        "labels, pos_weight: balanced": "--model.pos_weight=balanced",
    }
    grades = "[doubtful,likely,certain]"
    hand_over(
        [*compare(classes, words), *compare(labels, [*words, f"--data.label_column={grades}"])]
    )


if __name__ == "__main__":
    main()
