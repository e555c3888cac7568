"""The text of a model card: the page with its gaps, and the tables that fill them."""

from collections.abc import Iterable
from pathlib import Path

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

{pictures}## Use

With the code that it was trained with, and this folder as `runs/{name}`:

```sh
python train.py predict --run={name} --ckpt_path={which} --data.predict_path=FOLDER
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

All of it is in [config.yaml](config.yaml), and trains again with
`python train.py --config=runs/{name}/config.yaml`.

## Environment

{environment}
"""
TESTED = "The test had no part in the choice of weights."
UNTESTED = (
    "There was no test: the validation data chose the best weights, so they look better on it than "
    "on new data."
)
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


def exported(name: str) -> str:
    """How an exported file is used."""
    return EXPORTED.format(file=name, code=CODE[Path(name).suffix].format(file=name))


def results(measured: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
    """A row for each metric, a column for each checkpoint."""
    metrics = dict.fromkeys(metric for values in measured.values() for metric in values)
    rows = [
        (metric, *(value_of(metric, values.get(metric), counts) for values in measured.values()))
        for metric in metrics
    ]
    return table(("", *measured), rows)


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


def classes(names: list[str]) -> str:
    """How many there are, and the first of their names."""
    if not names:
        return ""
    shown = ", ".join(names[:MANY])
    more = f", and {len(names) - MANY:,} more" if len(names) > MANY else ""
    return f"{len(names):,} classes: {shown}{more}.\n\n"


def settings(config: dict[str, str], keys: Iterable[str]) -> str:
    """The keys that are set, with their values; of a path that is of one machine, the name."""
    values = {k: config[k] for k in keys if config.get(k, "null") not in ("null", "")}
    rows = [(f"`{k}`", Path(v).name if v.startswith("/") else v) for k, v in values.items()]
    return table(("key", "value"), rows)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    cells = (" | ".join(str(cell).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' '.join(line.split())} |" for line in cells)
