"""The words of a command line: a command, files and flags; what other tools' words mean."""

from collections.abc import Collection
from typing import NamedTuple

from anneal.errors import did_you_mean, nearest

PROG = "python train.py"
OPTIONS = "[--config FILE ...] [--key=value ...]"
HELP = ("-h", "--help")
BESIDE = {"config", "print_config", "help"}  # options about the others

# What other tools call it: Hydra, timm, Ultralytics, fastai, Keras, torchvision's references.
ELSEWHERE = """
fit: train run
validate: eval evaluate val
predict: infer inference
sweep: tune
lr_find: find_lr
config: cfg config_name config_path config_file
run_name: name exp_name experiment project
ckpt_path: checkpoint ckpt load resume_from
seed_everything: seed random_seed manual_seed
trainer.max_epochs: epochs epoch num_epochs n_epochs n_epoch
trainer.fast_dev_run=true: dry_run fast_dev_run debug
trainer.devices: gpus gpu nproc num_gpus devices
trainer.accelerator: device accelerator
trainer.precision: amp fp16 bf16 precision half
trainer.gradient_clip_val: clip_grad grad_clip clip_grad_norm
trainer.default_root_dir: output output_dir outdir save_dir
data.batch_size: batch bs b batch_size batchsize
data.num_workers: workers num_workers j
data.root: data_dir data_path root dataset_dir
data.train_size: imgsz
model.arch: arch
model.optimizer: opt optim optimizer optimiser
model.optimizer.lr: lr lr0 learning_rate base_lr
model.optimizer.momentum: momentum
model.optimizer.weight_decay: wd weight_decay
model.schedule.scheduler: sched scheduler lr_scheduler
model.schedule.warmup_epochs: warmup warmup_epochs
"""
MEANT = {
    word: line.partition(": ")[0]
    for line in ELSEWHERE.strip().splitlines()
    for word in line.partition(": ")[2].split()
}
SWEEPS = ("multirun", "m", "sweep", "hparams_search")


class Words(NamedTuple):
    """A command line, taken apart."""

    command: str
    files: list[str]
    flags: list[tuple[str, str | None]]  # in their order; None: no value stands there
    others: list[str]  # words that are no flags

    def last(self, key: str) -> str | None:
        """Return the value that was typed last for a key."""
        return next((v for k, v in reversed(self.flags) if k == key), None)

    def all(self, key: str) -> list[str]:
        """Return all values that were typed for a key."""
        return [v for k, v in self.flags if k == key and v is not None]


def read_words(words: list[str]) -> Words:
    """Take a command line apart; without a command it is `fit`."""
    has_command = bool(words) and not words[0].startswith("-")
    files: list[str] = []
    flags: list[tuple[str, str | None]] = []
    others: list[str] = []
    rest = list(words[1:] if has_command else words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if word in HELP:
            flags.append(("help", None))
        elif not word.startswith("--") and key != "-c":
            others.append(word)
        else:
            text: str | None = value if equals else None
            if not equals and rest and not rest[0].startswith("--") and key != "--print_config":
                text = rest.pop(0)
            if key in ("-c", "--config"):
                files.append(text or "")
            else:
                flags.append((key[2:], text))
    if has_command and words[0] == "replay":  # the file of a step, as a word
        flags, others = [*(("file", word) for word in others), *flags], []
    return Words(words[0] if has_command else "fit", files, flags, others)


def meant(key: str, names: Collection[str]) -> str:
    """Return the option that was meant by one that does not exist, or ""."""
    return MEANT.get(key.replace("-", "_").lower(), "") or nearest(key, names)


def no_option(key: str, names: Collection[str]) -> str:
    """Say that an option does not exist, and which one was meant."""
    if key.replace("-", "_") in SWEEPS:
        return f"no such option; several runs are a sweep: {PROG} sweep FILE"
    near = meant(key, names)
    return f"no such option{f'; did you mean --{near}?' if near else ''}"


def no_command(word: str, commands: Collection[str]) -> str:
    """Say what is wrong with a word that stands where a command may."""
    near = MEANT.get(word, "")
    hint = f"; did you mean {near}?" if near in commands else did_you_mean(word, commands)
    return f"'{word}' is neither a command ({', '.join(commands)}) nor an option{hint}"


def stray(word: str, names: Collection[str], commands: Collection[str]) -> str:
    """Say what is wrong with a word that is no flag and stands behind the command."""
    name = word.lstrip("-").partition("=")[0]
    if name in commands and word == name:
        return f"'{name}' is a command, and a command stands first"
    if "=" in word or "." in name or word.startswith("-"):
        near = name if name in names else meant(name, names)
        hint = f"; did you mean --{near}?" if near else ""
        return f"'{word}': options begin with two dashes{hint}"
    return no_command(word, commands)
