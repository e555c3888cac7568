"""Every optimizer of optimizers.yaml: does it train, resume exactly, and do what its package does?

    python benchmarks/optimizers.py -j 2          # what has no result yet, then the table
    python benchmarks/optimizers.py --steps       # only the short checks, not the trainings
    python benchmarks/optimizers.py Adam schedulefree.AdamWScheduleFree --again
    python benchmarks/optimizers.py --draw        # the table from the stored results

Three checks each, on one thread of a CPU:

- `loop`: 50 steps of a small network, in Lightning with `anneal.configure_optimizers` and in a
  plain loop of torch as the package's README writes it; the largest difference of a weight.
- `resume`: a run of the command line that crashes in the middle of its second epoch and resumes;
  its last checkpoint, weights and all of the optimizer's state, is that of a run that did not.
- `accuracy`: test accuracy of a short form of configs/mnist.yaml: 6 epochs instead of 20, and one
  convolution in each stage instead of two.
"""

import argparse
import contextlib
import io
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from functools import partial
from importlib import import_module
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
LIST, RESULTS, PAGE = HERE / "optimizers.yaml", HERE / "optimizers.json", "docs/any-optimizer.md"
EPOCHS, STEPS, CHUNK = 6, 50, 40
LEAST, ATOL = 0.95, 1e-6  # of the accuracy, and of the difference to the plain loop
MARK = "<!-- written by `python benchmarks/optimizers.py` -->"
Entry = dict[str, Any]

os.environ |= {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
sys.path += [str(HERE.parent), str(HERE.parent / "tests/engine")]

import lightning.pytorch as pl  # noqa: E402
import pytorch_optimizer  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


def entries() -> dict[str, Entry]:
    """The list: import path to what a class needs."""
    packages = yaml.safe_load(LIST.read_text())
    return {f"{p}.{name}": e for p, of in packages.items() for name, e in of["listed"].items()}


def spec(path: str, entry: Entry) -> dict[str, Any]:
    """An optimizer as a configuration names it."""
    args = {k: v for k, v in entry.items() if k not in ("rate", "kind", "class", "note")}
    return {"class_path": entry.get("class", path), "init_args": args}


def load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


# ---- as the package does it


def network() -> nn.Module:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(1, 6, 5, stride=3, bias=False), nn.BatchNorm2d(6)
    hidden, head = nn.Linear(6 * 8 * 8, 16), nn.Linear(16, 10)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), hidden, nn.ReLU(), head)


def batches() -> list[tuple[Tensor, Tensor]]:
    import yours

    with contextlib.redirect_stdout(io.StringIO()):
        data = yours.MNISTDataModule()
        data.prepare_data()
        data.setup("fit")
    images, labels = data.splits["train"]
    images = images.float() / 255
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return [(images[i], labels[i]) for i in order.split(64)[:STEPS]]


def flagged(model: nn.Module) -> list[dict[str, Any]]:
    """Groups as Muon's own page makes them: the hidden matrix, and the rest."""
    hidden = [model.get_parameter("4.weight")]
    rest = [p for p in model.parameters() if p is not hidden[0]]
    return [{"params": hidden, "use_muon": True}, {"params": rest, "use_muon": False}]


def muon_and_adamw(groups: list[dict[str, Any]]) -> Any:
    """torch's Muon and its AdamW, at Muon's learning rate and weight decay."""
    hidden, rest = (group["params"] for group in groups)
    muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.1, fused=True)  # as here
    return SimpleNamespace(
        zero_grad=lambda: (muon.zero_grad(), adamw.zero_grad()),
        step=lambda: (muon.step(), adamw.step()),
    )


def plain_loop(path: str, entry: Entry) -> nn.Module:
    """A network trained as the package's README says."""
    model, kind, args = network(), entry.get("kind", ""), spec(path, entry)["init_args"]
    params: Any = list(model.parameters())
    make = load(entry.get("class", path))
    if kind == "flags":
        params = flagged(model)
    if kind == "torch's Muon and AdamW":
        make, params = muon_and_adamw, flagged(model)
    optimizer = make(params, **args)
    for i, (images, labels) in enumerate(batches()):
        torch.manual_seed(i)
        if kind == "modes":
            optimizer.train()

        def closure(images: Tensor = images, labels: Tensor = labels) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            loss.backward(create_graph=kind == "graph")
            return loss

        if kind == "closure":
            optimizer.step(closure)
        else:
            loss = closure().detach()
            calls = {"gradient and closure": [closure], "loss": [lambda loss=loss: loss]}
            optimizer.step(*calls.get(kind, []))
    if kind == "modes":
        optimizer.eval()
    return model


class Module(pl.LightningModule):
    """The same network in Lightning."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.net, self.make = network(), make

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        torch.manual_seed(batch_idx)
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        from anneal import configure_optimizers

        return configure_optimizers(self, self.make)


def difference(path: str, entry: Entry) -> float:
    """Largest difference of a weight after 50 steps, the engine's against a plain loop's."""
    named = spec(path, entry)
    module = Module(partial(load(named["class_path"]), **named["init_args"]))
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, **quiet)
    trainer.fit(module, DataLoader(batches(), batch_size=None))
    theirs = plain_loop(path, entry)
    pairs = zip(module.net.parameters(), theirs.parameters(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


# ---- as the command line does it


class SAM(pytorch_optimizer.SAM):
    """An optimizer around another: a class of one's own says which."""

    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9) -> None:
        super().__init__(params, torch.optim.SGD, lr=lr, momentum=momentum)


class LookSAM(pytorch_optimizer.LookSAM):
    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9) -> None:
        super().__init__(params, torch.optim.SGD, lr=lr, momentum=momentum)


class FriendlySAM(pytorch_optimizer.FriendlySAM):
    def __init__(self, params: Any, lr: float = 0.05, momentum: float = 0.9) -> None:
        super().__init__(params, torch.optim.SGD, lr=lr, momentum=momentum)


class Crash(pl.Callback):
    """Ends a training without warning, once.

    Args:
        step: Optimizer steps that are still taken.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and not trainer.ckpt_path:
            raise OSError("crash")


def fit(command: str, config: dict[str, Any], *words: str) -> str:
    """A command of the command line in this process; returns what it has printed."""
    import train
    from anneal.cli.entry import main

    said = io.StringIO()
    Path("config.yaml").write_text(yaml.safe_dump(config))
    quiet = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(train.fit, train.PACKAGES, [command, "--config=config.yaml", *words, *quiet])
        except SystemExit as e:
            lines = [line for line in said.getvalue().splitlines() if line.startswith("error")]
            raise RuntimeError("; ".join(lines)) from e
    return said.getvalue()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        yield Path(name)


def resumes(path: str, entry: Entry) -> str:
    """What is not the same in a run that was interrupted; empty: nothing."""
    net = {"width": 4, "depth": 1, "optimizer": spec(path, entry)}
    schedule = {"scheduler": "CosineAnnealingLR", "warmup_steps": 4}
    config = {
        "trainer": {"max_epochs": 2, "limit_train_batches": 12, "limit_val_batches": 1},
        "model": {"class_path": "MNISTConvNet", "init_args": {**net, "schedule": schedule}},
        "data": {"class_path": "MNISTDataModule", "init_args": {"batch_size": 32}},
        "checkpoint": {"every_n_train_steps": 5},
    }
    config["trainer"] |= {"val_check_interval": 7, "limit_test_batches": 0, "accelerator": "cpu"}
    with folder():
        fit("fit", config, "--run_name=whole")
        with contextlib.suppress(OSError):
            crash = "--trainer.callbacks+=optimizers.Crash"
            fit("fit", config, "--run_name=half", crash, "--trainer.callbacks.step=17")
        fit("fit", config, "--run_name=half", "--resume=auto")
        saved = [Path("runs", name, "checkpoints/last.ckpt") for name in ("whole", "half")]
        whole, half = (torch.load(file, weights_only=True) for file in saved)
    keys = ("global_step", "state_dict", "optimizer_states")
    return next(filter(None, (unlike(whole[k], half[k], k) for k in keys)), "")


def unlike(a: Any, b: Any, where: str) -> str:
    """Where two states differ in a bit or a type; empty: nowhere."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__}, then {type(b).__name__}"
    if isinstance(a, Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
        return "" if same or ((a.isnan() == b.isnan()).all() and a.isnan().any()) else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))[:3]}"
        return next(filter(None, (unlike(a[k], b[k], f"{where}.{k}") for k in a)), "")
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} values, then {len(b)}"
        both = enumerate(zip(a, b, strict=True))
        return next(filter(None, (unlike(x, y, f"{where}.{i}") for i, (x, y) in both)), "")
    return "" if a == b or a != a else f"{where}: {a}, then {b}"


def short_recipe(path: str, entry: Entry) -> dict[str, Any]:
    """A short form of the default recipe, with an optimizer."""
    config: dict[str, Any] = yaml.safe_load((HERE.parent / "configs/mnist.yaml").read_text())
    config["model"]["init_args"] |= {"optimizer": spec(path, entry), "depth": 1}
    config["trainer"] |= {"max_epochs": EPOCHS, "accelerator": "cpu"}
    return config


def accuracy(path: str, entry: Entry) -> float:
    """Test accuracy of the short recipe."""
    with folder():
        said = fit("fit", short_recipe(path, entry), "--checkpoint.save_top_k=0")
    (line,) = [line for line in said.splitlines() if line.startswith("test/acc")]
    return float(line.split()[1])


def found_lr(path: str, entry: Entry) -> float:
    """The learning rate that `lr_find` suggests for the short recipe."""
    with folder():
        said = fit("lr_find", short_recipe(path, entry))
    (line,) = [line for line in said.splitlines() if line.startswith("--model.optimizer.lr=")]
    return float(line.partition("=")[2])


# ---- all of them


def default_lr(path: str, entry: Entry) -> float | None:
    """The learning rate of the list, or of the class; None: it has none."""
    parameter = signature(load(spec(path, entry)["class_path"])).parameters.get("lr")
    lr = entry.get("lr", parameter and parameter.default)
    return lr if isinstance(lr, float | int) else None


def checked(path: str, entry: Entry, checks: list[str]) -> tuple[str, Entry]:
    """The results of some checks of an optimizer, each with its seconds.

    If it does not train at its package's learning rate it is trained at that of `lr_find`.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found: Entry = {}
    lr = default_lr(path, entry)
    for name in checks:
        start = time.perf_counter()
        check: Callable[[str, Entry], Any] = globals()[CHECKS[name]]
        try:
            found[name] = check(path, entry)
            if name == "accuracy" and found[name] <= LEAST and lr and "lr" not in entry:
                lr = found_lr(path, entry)
                found |= {"accuracy": check(path, {**entry, "lr": lr}), "rate": "lr_find"}
        except Exception as e:
            found[name] = f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        found[f"{name}_s"] = round(time.perf_counter() - start, 1)
    return path, {**found, "lr": lr}


CHECKS = {"loop": "difference", "resume": "resumes", "accuracy": "accuracy"}


def is_met(result: Entry) -> bool:
    """Whether an optimizer does all that the list asks for."""
    numbers = [result.get(name) for name in ("loop", "accuracy")]
    if not all(isinstance(n, float) for n in numbers) or result.get("resume") != "":
        return False
    loop, reached = numbers
    return bool(loop <= ATOL and reached > LEAST)


def draw() -> None:
    """Write the table into the page."""
    listed, results = entries(), json.loads(RESULTS.read_text())
    rows = []
    for name, entry in listed.items():
        found = results.get(name, {})
        lr = found.get("lr", default_lr(name, entry))
        rate = found.get("rate", entry.get("rate", "default"))
        loop, resume, reached = (found.get(check, "") for check in CHECKS)
        cells = [
            f"`{name}`",
            entry.get("kind", "").replace("gradient and closure", "closure"),
            "" if lr is None else f"{lr:g}, {rate}",
            f"{reached:.3f}" if isinstance(reached, float) else "no",
            "yes" if resume == "" else "no",
            f"{loop:.0e}".replace("0e+00", "0") if isinstance(loop, float) else "no",
            f"{found.get('accuracy_s', 0):.0f} s",
            entry.get("note", ""),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    met = sum(is_met(results.get(name, {})) for name in listed)
    head = ("optimizer", "kind", "learning rate", "test/acc", "exact resume", "difference", "time")
    text = "\n".join(
        [
            f"{met} of {len(listed)} do all three: a test accuracy above {LEAST:.0%} after "
            f"{EPOCHS} epochs, a resume within an epoch that is exact to the bit, and the weights "
            f"of the package's own loop after {STEPS} steps to {ATOL:g}. {results['machine']}.",
            "",
            f"| {' | '.join(head)} | |",
            "|---" * (len(head) + 1) + "|",
            *rows,
        ]
    )
    page = HERE.parent / PAGE
    start, rest = page.read_text().split(MARK + "\n")
    page.write_text(f"{start}{MARK}\n\n{text}\n\n<!-- end -->" + rest.split("<!-- end -->")[1])


def machine() -> str:
    """Date, and versions of what was run."""
    packages = ("torch", "pytorch_optimizer", "schedulefree", "prodigyopt", "lion-pytorch")
    return f"{date.today()}: " + ", ".join(f"{name} {version(name)}" for name in packages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of the list; none: all")
    parser.add_argument("-j", type=int, default=1, help="processes")
    parser.add_argument("--steps", action="store_true", help="only the short checks")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--draw", action="store_true", help="only write the page")
    args = parser.parse_args()
    listed = entries()
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    chosen = {name for name in listed if {name, name.rpartition(".")[2]} & {*args.names}}
    names = [] if args.draw else [name for name in listed if not args.names or name in chosen]
    checks = [name for name in CHECKS if not args.steps or name != "accuracy"]
    missing = {n: [c for c in checks if args.again or c not in results.get(n, {})] for n in names}
    todo = [(name, listed[name], of) for name, of in missing.items() if of]
    context = multiprocessing.get_context("forkserver")
    for i in range(0, len(todo), CHUNK):  # a run leaves something behind in its process
        with ProcessPoolExecutor(args.j, context) as pool:
            for job in as_completed(pool.submit(checked, *each) for each in todo[i : i + CHUNK]):
                name, found = job.result()
                results |= {name: {**results.get(name, {}), **found}, "machine": machine()}
                print(name, found, flush=True)
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    draw()


if __name__ == "__main__":
    main()
