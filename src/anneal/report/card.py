"""python -m anneal.report.card RUN: a model card for a hub, as README.md in the run's folder."""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import yaml

from anneal.errors import UserError, command
from anneal.report.card_text import (
    PAGE,
    TESTED,
    UNTESTED,
    classes,
    exported,
    results,
    settings,
    table,
)
from anneal.report.page import find
from anneal.report.plots import lines_of, still
from anneal.runs.exported import is_exported
from anneal.runs.folder import find_checkpoint, read_checkpoint
from anneal.runs.metrics import Run

CURVES = "curves.png"
TRAINER = (
    *("max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    *("accumulate_grad_batches", "gradient_clip_val"),
)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no parameters


def card(folder: Path, run: Run) -> str:
    """The card's text.

    Args:
        folder: The run's, with the picture of its curves.
        run: What was read from it.

    Raises:
        UserError: It has no checkpoint, or none of a `Classifier`.
    """
    paths = {}
    for which in ("best", "last"):
        try:
            paths[which] = find_checkpoint(folder.parent, which, str(folder.name))
        except UserError:
            continue  # the other one will do
    if not paths:
        raise UserError(f"{folder} has no checkpoint: a card is about trained weights")
    checkpoints = {which: read_checkpoint(path) for which, path in paths.items()}
    which, checkpoint = next(iter(checkpoints.items()))
    if "class_names" not in checkpoint:
        raise UserError(f"{folder} has trained no classifier: a card is about one")
    measured = {paths[which].name: _measured(run, c) for which, c in checkpoints.items()}
    counts = {"val": checkpoint.get("counts", {}).get("val", 0), "test": _tested(folder)}
    return PAGE.format(
        head=yaml.safe_dump(_head(run, measured), sort_keys=False),
        name=run.name,
        results=results(measured, counts),
        tested=TESTED if any("test/acc" in m for m in measured.values()) else UNTESTED,
        pictures=_pictures(folder),
        which=which,
        checkpoint=paths[which].name,
        exported="".join(exported(p.name) for p in sorted(folder.glob("model*")) if is_exported(p)),
        data=settings(run.config, [key for key in run.config if key.startswith("data")]),
        classes=classes(checkpoint["class_names"] or []),
        recipe=settings(run.config, _recipe(run.config)),
        environment=table(("", "trained with"), _environment(checkpoint)),
        **_network(run, checkpoint),
    )


def _network(run: Run, checkpoint: dict[str, Any]) -> dict[str, str]:
    """Where its class is, and what was trained in a sentence."""
    module, _, cls = yaml.safe_load(checkpoint["config"])["model"]["class_path"].rpartition(".")
    weights = checkpoint["state_dict"].items()
    parameters = sum(t.numel() for key, t in weights if not key.endswith(BUFFERS))
    sentence = (
        f"`{cls}` with {parameters:,} parameters, trained on {_dataset(run.config)} with "
        f"{run.config.get('model.optimizer', 'AdamW')}{_length(run)}."
    )
    return {"module": module, "cls": cls, "sentence": sentence}


def _pictures(folder: Path) -> str:
    """The run's pictures that are there."""
    matrices = sorted(folder.glob("test-confusion*.png"), key=lambda p: p.stat().st_mtime)
    shown = {
        "loss, accuracy and learning rate over optimizer steps": [folder / CURVES],
        "confusion matrix of the test": matrices[-1:],
    }
    return "".join(
        f"![{about}]({path.name})\n\n"
        for about, paths in shown.items()
        for path in paths
        if path.is_file()
    )


def _recipe(config: dict[str, str]) -> list[str]:
    own = [key for key in config if key.partition(".")[0] in ("model", "seed_everything")]
    return [*own, *(f"trainer.{key}" for key in TRAINER)]


def _environment(checkpoint: dict[str, Any]) -> list[tuple[str, str]]:
    found = {"lightning": checkpoint["pytorch-lightning_version"]}
    return list((found | checkpoint.get("environment", {})).items())


def _measured(run: Run, checkpoint: dict[str, Any]) -> dict[str, float]:
    """What validations and tests have measured of a checkpoint's weights."""
    rows = run.metrics[run.metrics["step"] == checkpoint["global_step"] - 1]
    found = {"optimizer steps": float(checkpoint["global_step"])}
    for metric in rows:
        values = rows[metric].dropna()
        if metric.startswith(("val/", "test/")) and len(values):
            found[metric] = float(values.iloc[-1])
    return found


def _tested(folder: Path) -> int:
    """Samples of the newest test; 0: not known."""
    files = sorted(folder.glob("test-confusion*.csv"), key=lambda p: p.stat().st_mtime)
    if not files:
        return 0
    with files[-1].open(newline="") as file:
        return sum(int(n) for row in list(csv.reader(file))[1:] for n in row[1:])


def _head(run: Run, measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The front matter, by the keys that Hugging Face's hub reads."""
    results = []
    for split in ("test", "val"):
        values = [m[f"{split}/acc"] for m in measured.values() if f"{split}/acc" in m]
        if values:
            name = _dataset(run.config)
            kind = name.lower() if "data.dataset" in run.config else "imagefolder"
            results.append(
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"name": name, "type": kind, "split": split},
                    "metrics": [{"type": "accuracy", "value": round(values[0], 6)}],
                }
            )
    return {
        "library_name": "pytorch",
        "tags": ["pytorch", "lightning"],
        "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
        "model-index": [{"name": run.name, "results": results}],
    }


def _dataset(config: dict[str, str]) -> str:
    root = Path(config.get("data.root", config.get("data", "its data"))).name
    return config.get("data.dataset", root)


def _length(run: Run) -> str:
    """How long it was trained, as far as `metrics.csv` says it."""
    end = run.reached()
    if not (epochs := round(end.get("epoch", 0))):
        return ""
    samples = f" of {end['samples'] / epochs:,.0f} samples" if "samples" in end else ""
    time = f" in {end['time']:,.0f} s, with validation" if "time" in end else ""
    return f", {epochs:,} {'epoch' if epochs == 1 else 'epochs'}{samples}{time}"


def write(folder: Path) -> Path:
    """Writes the card and the picture of the curves into the run's folder; returns its path.

    Raises:
        UserError: There is a README.md, which may be a person's, or something can't be read.
    """
    path = folder / "README.md"
    if path.exists():
        raise UserError(f"{path} is there already: rename or remove it first")
    run = Run.read(folder)
    try:
        if lines := lines_of([run]):
            still([run], lines).savefig(folder / CURVES, dpi=120)
        path.write_text(card(folder, run), encoding="utf-8")
    except OSError as e:
        raise UserError(f"can't write {e.filename or path}: {e.strerror}") from e
    return path


@command
def main(args: list[str] | None = None) -> int:
    """Prints the path of the card."""
    parser = argparse.ArgumentParser(prog="python -m anneal.report.card", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    options = parser.parse_args(args)
    folders, wrong = find([options.run])
    if wrong:
        raise UserError(wrong[0])
    if len(folders) > 1:
        raise UserError(f"{options.run}: {len(folders)} runs; a card is about one")
    print(write(folders[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
