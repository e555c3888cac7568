"""The command `card`: write a model card for a hub, as README.md in the run's folder."""

import argparse
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anneal.errors import UserError, command, in_a_line
from anneal.runs.config import parse
from anneal.runs.folder import find_checkpoint, find_runs, newest, read_checkpoint
from anneal.runs.metrics import family

if TYPE_CHECKING:
    from anneal.runs.run import Run

TEMPLATE = Path(__file__).with_name("card.md")
# By task: what its outputs are called, and what the hub calls it.
OUTPUTS = {"classification": "classes", "multilabel": "labels", "regression": "targets"}
TASKS = {"classification": "image-classification", "multilabel": "image-classification"}
TASKS |= {"regression": "image-regression", "": "other"}
ON_HUB = {"acc": "accuracy", "f1_macro": "f1", "auroc": "roc_auc", "r2": "r_squared"}  # metrics
TRAINER = ["max_epochs", "max_steps", "accelerator", "devices", "num_nodes", "strategy"]
TRAINER += ["precision", "accumulate_grad_batches", "gradient_clip_val"]
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")  # of norms: no parameters


def card(folder: Path, run: "Run") -> str:
    """Return the card's text; raise UserError if there is no checkpoint."""
    from huggingface_hub import ModelCard

    from anneal.report.curves import CURVES
    from anneal.runs.exported import is_exported

    paths = {}
    for which in ("best", "last"):
        with suppress(UserError):  # the other one will do
            paths[which] = find_checkpoint(folder.parent, which, folder.name)
    if not paths:
        raise UserError(f"{folder} has no checkpoint: a card is about trained weights")
    checkpoints = {path.name: read_checkpoint(path) for path in paths.values()}
    name, checkpoint = next(iter(checkpoints.items()))
    task = checkpoint.get("task", "classification" if "class_names" in checkpoint else "")
    measured = {name: _measured(run, c) for name, c in checkpoints.items()}
    counts = {"val": checkpoint.get("counts", {}).get("val", 0), "test": _tested(folder)}
    own = [key for key in run.config if key.partition(".")[0] in ("model", "seed_everything")]
    drawn = newest(folder.glob("test-*.png"))[::-1]
    figures = {re.sub(r"-\d+$", "", path.stem): path.name for path in drawn}
    figures.pop("test-top-losses", "")  # images of the test, which may be nobody else's business
    path = checkpoint.get("model_class")
    path = path or parse(checkpoint["config"], folder)["model"]["class_path"]
    module, _, class_name = path.rpartition(".")
    written = ModelCard.from_template(
        _head(run, list(measured.values()), task),
        template_path=str(TEMPLATE),
        name=run.name,
        module=module,
        class_name=class_name,
        trained=_trained(run, checkpoint),
        which=next(iter(paths)),
        checkpoint=name,
        measured=measured,
        metrics=dict.fromkeys(metric for values in measured.values() for metric in values),
        shown=lambda metric, values: value_of(metric, values.get(metric), counts),
        tested=any(family(metric)[0] == "test" for found in measured.values() for metric in found),
        figures=[name for name in (CURVES, *figures.values()) if (folder / name).is_file()],
        task=task,
        predicts=bool(task) and checkpoint.get("predicts", True),
        predict_path="data.predict_path" in run.config,
        exported=[p.name for p in sorted(folder.glob("model*")) if is_exported(p)],
        data=_settings(run.config, [key for key in run.config if key.startswith("data")]),
        classes=checkpoint.get("class_names") or [],
        outputs=OUTPUTS.get(task, "outputs"),
        recipe=_settings(run.config, [*own, *(f"trainer.{key}" for key in TRAINER)]),
        environment={"lightning": checkpoint["pytorch-lightning_version"]}
        | checkpoint.get("environment", {}),
    )
    return str(written).rstrip("\n") + "\n"


def _head(run: "Run", measured: list[dict[str, float]], task: str) -> Any:
    """Return the front matter that Hugging Face's hub reads, with the best weights' metrics."""
    from huggingface_hub import EvalResult, ModelCardData

    name = _dataset(run.config)
    in_folder = "data.root" in run.config and "data.dataset" not in run.config
    kind = "imagefolder" if in_folder else name.lower()
    found = {metric: value for values in measured[::-1] for metric, value in values.items()}
    results = []
    for metric, value in found.items():
        stage, what = family(metric)
        if stage and what != "loss":
            result = EvalResult(TASKS[task], kind, name, ON_HUB.get(what, what), round(value, 6))
            result.dataset_split, result.metric_name = stage, metric
            results.append(result)
    return ModelCardData(
        library_name="pytorch",
        tags=["pytorch", "lightning", *[task] * bool(task)],
        pipeline_tag=TASKS[task] if task in ("classification", "multilabel") else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)),
        model_name=run.name,
        eval_results=results or None,
    )


def _trained(run: "Run", checkpoint: dict[str, Any]) -> str:
    """Return what was trained in half a sentence; how long, as far as `metrics.csv` says it."""
    weights = checkpoint["state_dict"].items()
    parameters = sum(t.numel() for key, t in weights if not key.endswith(BUFFERS))
    optimizer = run.config.get("model.optimizer", "AdamW")
    text = f"{parameters:,} parameters, trained on {_dataset(run.config)} with {optimizer}"
    end = run.reached()
    if epochs := round(end.get("epoch", 0)):
        text += f", {epochs:,} {'epoch' if epochs == 1 else 'epochs'}"
        text += f" of {end['samples'] / epochs:,.0f} samples" if "samples" in end else ""
        text += f" in {end['time']:,.0f} s, with validation" if "time" in end else ""
    return text


def _dataset(config: dict[str, str]) -> str:
    root = Path(config.get("data.root", config.get("data", "its data"))).name
    return config.get("data.dataset", root)


def _measured(run: "Run", checkpoint: dict[str, Any]) -> dict[str, float]:
    """Return what validations and tests have measured of a checkpoint's weights."""
    rows = run.metrics[run.metrics["step"] == checkpoint["global_step"] - 1]
    found = {"optimizer steps": float(checkpoint["global_step"])}
    for metric in rows:
        values = rows[metric].dropna()
        if family(metric)[0] not in ("", "train") and len(values):
            found[metric] = float(values.iloc[-1])
    return found


def value_of(metric: str, value: float | None, counts: dict[str, int]) -> str:
    """Return a value as text, with the number of samples it stands for if it is such a share."""
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


def _tested(folder: Path) -> int:
    """Return how many samples the newest test had; 0: not known."""
    import pandas as pd

    tables = newest(folder.glob("test-confusion*.csv"))
    return int(pd.read_csv(tables[0], index_col=0).to_numpy().sum()) if tables else 0


def _settings(config: dict[str, str], keys: Iterable[str]) -> dict[str, str]:
    """Return the keys that are set, with their values; of one machine's path, its last part."""
    values = {k: config[k] for k in keys if config.get(k, "null") not in ("null", "")}
    return {f"`{k}`": Path(v).name if v.startswith("/") else v for k, v in values.items()}


def write(folder: Path) -> Path:
    """Write the card and the figure of the curves into the run's folder; return the card's path."""
    from anneal.report.curves import draw_curves
    from anneal.runs.run import Run

    path = folder / "README.md"
    if path.exists():
        raise UserError(f"{path} is there already: rename or remove it first")
    run = Run.read(folder)
    with in_a_line(f"can't write {path}"):
        draw_curves(folder)
        path.write_text(card(folder, run), "utf-8", "backslashreplace")
    return path


@command
def main(args: list[str] | None = None) -> int:
    """Write the card of a run, and print its path."""
    about = "Writes a model card for a hub, as README.md in the run's folder."
    parser = argparse.ArgumentParser(prog="python train.py card", description=about)
    parser.add_argument("run", metavar="RUN", help="a run's folder, or its name in runs/")
    options = parser.parse_args(args)
    folders, wrong = find_runs([options.run])
    if wrong:
        raise UserError(wrong[0])
    if len(folders) > 1:
        raise UserError(f"{options.run}: {len(folders)} runs; a card is about one")
    print(write(folders[0]))
    return 0
