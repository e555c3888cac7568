"""python -m anneal.card RUN: a model card for a hub, as README.md in the run's folder."""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from anneal.curves import Run
from anneal.errors import UserError
from anneal.exported import is_exported
from anneal.report import find
from anneal.report_plots import lines_of, still
from anneal.runs import find_checkpoint, read_checkpoint

CURVES = "curves.png"
TRAINER = (
    *("max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy", "precision"),
    *("accumulate_grad_batches", "gradient_clip_val"),
)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no parameters
MANY = 30  # class names
PAGE = """\
---
{head}\
# license: yours to choose, such as mit or apache-2.0
---

# {name}

{sentence}

## Results

{results}

Counts are samples. {tested}

{curves}{confusion}## Use

With the code that it was trained with, and this folder as `runs/{name}`:

```sh
python train.py predict --run={name} --ckpt_path={which} --data.predict_path='new/*.png'
```

```python
from {module} import {cls}

model = {cls}.load_from_checkpoint("checkpoints/{checkpoint}", map_location="cpu").eval()
probabilities = model.evaluate(pixels).softmax(1)  # (N, C, H, W), 0 to 255; of model.class_names
```

{exported}## Data

{data}

{classes}## Recipe

{recipe}

All of it is in [config.yaml](config.yaml): `python train.py --config=config.yaml` trains again.

## Environment

{environment}
"""
EXPORTED = """\
`{file}` needs no code of ours. It takes pixels (N, C, H, W) in uint8, 0 to 255:

```python
{code}```

"""
CODE = {
    ".onnx": """\
import json, onnxruntime

session = onnxruntime.InferenceSession("{file}")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
(probabilities,) = session.run(None, {{"pixels": pixels}})
""",
    ".pt2": """\
import json, torch

about = {{"class_names": ""}}
compute = torch.export.load("{file}", extra_files=about).module()
class_names = json.loads(about["class_names"])
probabilities = compute(pixels)
""",
}


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
    config = run.config
    module, _, cls = yaml.safe_load(checkpoint["config"])["model"]["class_path"].rpartition(".")
    names = checkpoint.get("class_names") or []
    weights = checkpoint["state_dict"].items()
    parameters = sum(t.numel() for key, t in weights if not key.endswith(BUFFERS))
    tests = any(metric.startswith("test/") for values in measured.values() for metric in values)
    pictures = sorted(folder.glob("test-confusion*.png"), key=lambda p: p.stat().st_mtime)
    files = [p for p in sorted(folder.glob("model*")) if is_exported(p)]
    recipe = [k for k in config if k.partition(".")[0] in ("model", "seed_everything")]
    environment = {"lightning": checkpoint["pytorch-lightning_version"]}
    environment |= checkpoint.get("environment", {})
    return PAGE.format(
        head=yaml.safe_dump(_head(run, measured), sort_keys=False),
        name=run.name,
        sentence=f"`{cls}` with {parameters:,} parameters, trained on {_dataset(config)} with "
        f"{config.get('model.optimizer', 'AdamW')}.",
        results=_results(measured, counts),
        tested="The test had no part in the choice of weights."
        if tests
        else "There was no test: the validation data chose the best weights, so they look better "
        "on it than on new data.",
        curves=f"![loss, accuracy and learning rate over optimizer steps]({CURVES})\n\n"
        if (folder / CURVES).is_file()
        else "",
        confusion=f"![confusion matrix of the test]({pictures[-1].name})\n\n" if pictures else "",
        which=which,
        module=module,
        cls=cls,
        checkpoint=paths[which].name,
        exported="".join(
            EXPORTED.format(file=p.name, code=CODE[p.suffix].format(file=p.name)) for p in files
        ),
        data=_table(
            ("key", "value"), _settings(config, [k for k in config if k.startswith("data")])
        ),
        classes=_classes(names),
        recipe=_table(
            ("key", "value"), _settings(config, [*recipe, *(f"trainer.{key}" for key in TRAINER)])
        ),
        environment=_table(("", "trained with"), environment.items()),
    )


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


def _results(measured: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
    """A row for each metric, a column for each checkpoint."""
    metrics = dict.fromkeys(metric for values in measured.values() for metric in values)
    rows = [
        (metric, *(value_of(metric, values.get(metric), counts) for values in measured.values()))
        for metric in metrics
    ]
    return _table(("", *measured), rows)


def value_of(metric: str, value: float | None, counts: dict[str, int]) -> str:
    """A value as text, with the number of samples it stands for if it is such a share."""
    if value is None:
        return "not measured"
    if metric == "optimizer steps":
        return f"{value:,.0f}"
    split, _, what = metric.partition("/")
    if not what.startswith("acc"):
        return f"{value:.4g}"
    n = counts.get(split, 0)
    right = round(value * n)
    is_share = n and what != "acc_macro" and abs(right / n - value) < 1e-6
    return f"{value:.4f}" + (f" ({right:,} of {n:,})" if is_share else "")


def _classes(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:MANY])
    more = f", and {len(names) - MANY:,} more" if len(names) > MANY else ""
    return f"{len(names):,} classes: {shown}{more}.\n\n"


def _settings(config: dict[str, str], keys: Iterable[str]) -> list[tuple[str, str]]:
    return [(f"`{k}`", config[k]) for k in keys if config.get(k, "null") not in ("null", "")]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = (" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' '.join(line.split())} |" for line in cells)


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


def main(args: list[str] | None = None) -> int:
    """Prints the path of the card."""
    parser = argparse.ArgumentParser(prog="python -m anneal.card", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    options = parser.parse_args(args)
    try:
        folders, wrong = find([options.run])
        if wrong:
            raise UserError(wrong[0])
        if len(folders) > 1:
            raise UserError(f"{options.run}: {len(folders)} runs; a card is about one")
        print(write(folders[0]))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
