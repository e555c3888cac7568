"""Clones that have a life of their own, upgraded over synthetic versions of the engine.

Each clone is renamed (3 to 25 letters), every second is slimmed, and has data, a network, an
optimizer, a callback, a recipe and a test of its own, changes of its own in the Makefile, and in
every third an edit of an engine file. It trains, takes two later versions one after the other, and
resumes its run after each. The versions change about a third of the engine's files. A line is lost
if the clone had written it and the file has it no longer; a file is touched if it is the clone's
alone and has changed. The project's whole tests run once in a slimmed clone and once in another.

    python benchmarks/upgrades.py
    python benchmarks/upgrades.py --clones=2 --quick
"""

import argparse
import os
import random
import re
import shutil
import string
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from turns import Row, hand_over

sys.path.append(str(Path(__file__).parents[1] / "tests/engine"))
from clones import commit, git, make_clone, python

VERSIONS = ("v90.0.0", "v91.0.0")
ENGINE = ("src/anneal/", "tests/engine/", "CHANGELOG.md", ".upgrade-from")
OWN = {
    "src/{name}/data/own.py": '''"""Data of its own."""

from {name}.data.digits import MNISTDataModule


class OwnData(MNISTDataModule):
    """Digits."""
''',
    "src/{name}/models/own.py": '''"""A network, an optimizer and a callback of its own."""

import torch
from lightning.pytorch import Callback

from {name}.models.digits import MLP


class OwnNet(MLP):
    """A perceptron."""


class OwnSGD(torch.optim.SGD):
    """Plain SGD."""


class OwnCallback(Callback):
    """Does nothing."""
''',
    "tests/project/test_own.py": '''"""Tests of its own."""

from {name}.data.own import OwnData
from {name}.models.own import OwnNet


def test_own_classes_are_there():
    assert OwnData.__mro__[1].__module__ == "{name}.data.digits"
    assert OwnNet.__mro__[1].__module__ == "{name}.models.digits"
''',
    "configs/own.yaml": """# A recipe of its own.
#
# Run:     python train.py --config=configs/own.yaml
# Expect:  test/acc 0.900
# Time:    1 s

trainer:
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  accelerator: cpu
  callbacks: {{class_path: {name}.models.own.OwnCallback}}
model:
  class_path: OwnNet
  init_args:
    width: 8
    depth: 1
    optimizer: {{class_path: {name}.models.own.OwnSGD, init_args: {{lr: 0.1}}}}
data: {{class_path: OwnData, init_args: {{batch_size: 32}}}}
""",
}
RESUME = """
import sys, pytest
from anneal.testing import main
quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
main(["fit", "--config=configs/own.yaml", "--run_name=own", "--resume=auto", *quiet,
      f"--trainer.max_epochs={sys.argv[1]}"])
quiet = ["-q", "-Wignore::pytest.PytestAssertRewriteWarning"]
sys.exit(len(sys.argv) > 2 and pytest.main([*quiet, *sys.argv[2:]]))
"""


@dataclass
class Outcome:
    """What became of a clone."""

    upgrades: int = 0
    clean: int = 0
    merged: int = 0
    lost: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)  # after each upgrade that was tried out
    failures: list[str] = field(default_factory=list)


def insert(path: Path, line: str, choose: random.Random) -> None:
    """Write a comment in front of a definition of a file, or at its end if it has none."""
    lines = path.read_text().splitlines()
    places = [i for i, text in enumerate(lines) if re.match(r"(def|class|@|    def) ?\w", text)]
    place = choose.choice(places) if places else len(lines)
    indent = " " * (len(lines[place]) - len(lines[place].lstrip())) if places else ""
    path.write_text("\n".join([*lines[:place], f"{indent}# {line}", *lines[place:]]) + "\n")


def make_template(folder: Path, choose: random.Random) -> str:
    """Make the template and its later versions, as tags; returns the tag of the first."""
    make_clone(folder)
    base = (folder / "src/anneal/VERSION").read_text().strip()
    git(folder, "tag", base)
    for version in VERSIONS:
        files = sorted(folder.glob("src/anneal/**/*.py"))
        for path in choose.sample(files, len(files) // 3):
            if path.stat().st_size:
                insert(path, f"Changed in {version}.", choose)
        for path in choose.sample(files, len(files) // 20):
            name = version.replace(".", "_")
            path.write_text(f"{path.read_text()}\n\ndef new_in_{name}() -> None:\n    pass\n")
        (folder / f"src/anneal/new_{version[1:3]}.py").write_text(f'"""New in {version}."""\n')
        for name in ("Makefile", "src/anneal/engine.mk", "train.py", "src/anneal/requirements.txt"):
            (folder / name).write_text(f"{(folder / name).read_text()}# {version}\n")
        (folder / "src/anneal/VERSION").write_text(f"{version}\n")
        changelog = (folder / "CHANGELOG.md").read_text()
        news = f"\n## {version}\n\n- New in {version}.\n"
        (folder / "CHANGELOG.md").write_text(changelog.replace("\n## ", f"{news}\n## ", 1))
        commit(folder, version)
        git(folder, "tag", version)
    return base


def make_own(folder: Path, number: int, count: int, choose: random.Random) -> str:
    """Rename a clone, slim every second, and give it files and edits of its own."""
    length = 3 + 22 * number // max(1, count - 1)
    name = "z" + "".join(choose.choices(string.ascii_lowercase, k=length - 1))
    commands = [["src/anneal/clone/rename.py", name], *([["scripts/slim.py"]] * (number % 2))]
    for command in commands:
        done = python(folder, *command)
        assert done.returncode == 0, done.stderr
        commit(folder, command[0])
    for path, text in OWN.items():
        (folder / path.format(name=name)).write_text(text.format(name=name))
    makefile = folder / "Makefile"
    makefile.write_text(f"{makefile.read_text()}\nown:\n\techo own\n")
    insert(folder / "train.py", "Own: what a run does.", choose)
    (folder / "src/anneal/own.py").write_text('"""A file of its own in the engine."""\n')
    if number % 3 == 0:
        files = [
            path for path in sorted(folder.glob("src/anneal/**/*.py")) if path.stat().st_size > 2000
        ]
        insert(choose.choice(files), f"Own edit of {name}.", choose)
    commit(folder, "Own")
    return name


def own_lines(folder: Path) -> dict[str, list[str]]:
    """Return the lines that a clone has written since it was made, by file."""
    lines: dict[str, list[str]] = {}
    for line in git(folder, "diff", "--unified=0", "--no-renames", "first", "HEAD").splitlines():
        if line.startswith("+++ b/"):
            path = line[6:]
        elif line.startswith("+") and line[1:].strip() and not line.startswith("+++"):
            lines.setdefault(path, []).append(line[1:])
    return lines


def live(folder: Path, template: Path, base: str, number: int, args: argparse.Namespace) -> Outcome:
    """Let a clone be made, train, be upgraded twice and resume."""
    choose, outcome = random.Random(number), Outcome()
    archive = subprocess.run(
        ["git", "-C", str(template), "archive", base], check=True, capture_output=True
    )
    folder.mkdir()
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive.stdout, check=True)
    git(folder, "init", "-q")
    commit(folder, "All")
    git(folder, "tag", "first")
    make_own(folder, number, args.clones, choose)
    trains = not args.quick or number == args.clones - 1
    if trains:
        train(folder, outcome, 1)
    own = own_lines(folder)
    for epochs, version in enumerate(VERSIONS, 2):
        done = python(folder, "src/anneal/clone/upgrade.py", version, f"--from={template}")
        outcome.upgrades += 1
        outcome.clean += done.returncode == 0
        outcome.merged += done.stdout.count("merged: ")
        if done.returncode == 2:
            outcome.failures.append(done.stderr)
        for path, lines in own.items():
            kept = (folder / path).read_text().splitlines() if (folder / path).exists() else []
            outcome.lost += [f"{path}: {line}" for line in lines if line not in kept]
        changed = git(folder, "status", "--porcelain", "-uall").splitlines()
        outcome.touched += [row for row in changed if not row[3:].startswith(ENGINE)]
        for row in changed:  # a person would look at it
            path = folder / row[3:]
            if path.is_file() and "<<<<<<< yours" in (text := path.read_text()):
                path.write_text(re.sub(r"(?m)^(<<<<<<<|=======|>>>>>>>).*\n", "", text))
        commit(folder, version)
        last = version == VERSIONS[-1]
        whole = last and number < 2 and not args.quick
        tests = ["tests/project" if whole else "tests/project/test_own.py"] if last else []
        if trains and (last or not args.quick):
            outcome.resumed.append(train(folder, outcome, epochs, *tests))
    shutil.rmtree(folder)
    return outcome


def train(folder: Path, outcome: Outcome, epochs: int, *tests: str) -> bool:
    """Start or resume the clone's run, then run its tests; returns whether all of it went well."""
    log = folder / "runs/own/metrics.csv"
    before = log.read_text() if log.exists() else ""
    done = python(folder, "-c", RESUME, str(epochs), *tests)
    after = log.read_text() if log.exists() else ""
    well = done.returncode == 0 and after.startswith(before) and after > before
    if not well:
        outcome.failures.append(done.stdout[-2000:] + done.stderr[-2000:])
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clones", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--quick", action="store_true", help="one clone resumes once, few tests")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.jobs) as pool:
        template = Path(name, "template")
        base = make_template(template, random.Random(0))
        folders = [Path(name, f"clone{number}") for number in range(args.clones)]
        every = range(args.clones)
        outcomes = list(pool.map(lambda n: live(folders[n], template, base, n, args), every))
    upgrades = sum(outcome.upgrades for outcome in outcomes)
    clean = sum(outcome.clean for outcome in outcomes) / upgrades
    lost = [line for outcome in outcomes for line in outcome.lost]
    touched = [row for outcome in outcomes for row in outcome.touched]
    failures = [text for outcome in outcomes for text in outcome.failures]
    tried = [well for outcome in outcomes for well in outcome.resumed]
    resumed = sum(tried) / len(tried)
    merged = sum(outcome.merged for outcome in outcomes)
    for text in [*lost, *touched, *failures]:
        print(text, file=sys.stderr)
    hand_over(
        [
            Row("without a conflict", clean, {"of": f"{upgrades} upgrades", "": f"{clean:.0%}"}),
            Row("own lines lost", len(lost), {"of": f"{merged} merged files", "": f"{len(lost)}"}),
            Row("own files touched", len(touched), {"": f"{len(touched)}"}),
            Row("resumed, own tests green", resumed, {"of": f"{len(tried)}", "": f"{resumed:.0%}"}),
        ]
    )
    few = upgrades < 20  # of which one conflict is more than 5 %
    sys.exit(bool((clean < 0.95 and not few) or lost or touched or failures or resumed < 1))


if __name__ == "__main__":
    main()
