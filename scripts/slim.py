"""Leaves what a new project on images needs: `python scripts/slim.py` or `make slim`.

MNIST, surfaces and curves go, with their recipes and tests, and so do the benchmarks and the pages
about this project. What stays is one recipe, configs/photos_resnet18.yaml, with ImageClassifier and
ImageFolderDataModule, and everything that trains them. Changes are left in git to look at.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anneal"
RECIPE = "photos_resnet18.yaml"

GONE = [
    "PACKAGE/data/mnist.py",
    "PACKAGE/data/idx.py",
    "PACKAGE/data/augment.py",
    "PACKAGE/data/points.py",
    "PACKAGE/modules/mnist.py",
    "PACKAGE/modules/surface.py",
    "PACKAGE/modules/curve.py",
    "PACKAGE/functions.py",
    "PACKAGE/figures/__main__.py",
    "PACKAGE/figures/fits.py",
    "PACKAGE/figures/gallery.py",
    "PACKAGE/figures/walks.py",
    "benchmarks",
    "docs",
    "mkdocs.yml",
    "CONTRIBUTING.md",
    "scripts/site.py",
    "scripts/slim.py",
]
# Of the tests, those that need none of that.
KEPT = [
    "conftest.py",
    "launch.py",
    "photos.py",
    "tiny.py",
    "ranks.py",
    "__init__.py",
    "wandb_reader.py",
    "wandb_server.py",
    "data/test_decode.py",
    "data/test_folder.py",
    "data/test_imagenet.py",
    "data/test_shards.py",
    "modules/test_imagenet.py",
    "test_makefile.py",
    "test_optim.py",
    "test_schedule.py",
]
SMALL = """model:
  class_path: ImageClassifier
  init_args: {arch: resnet18, width: 8, optimizer: {class_path: SGD, init_args: {lr: 0.1}}}
data:
  class_path: ImageFolderDataModule
  init_args:
    {root: data, batch_size: 4, num_workers: 0, train_size: 32, val_resize: 40, val_size: 32}
\"\"\"
"""
README = f"""# {PACKAGE.name.replace("_", " ").title()}

```sh
make train ARGS="--data.root=FOLDER"    # with train/CLASS/picture.jpg and val/CLASS/picture.jpg
make test
```

`configs/{RECIPE}` is the recipe; `python train.py --help` has the commands,
`python train.py --model.help=ImageClassifier` what a class can be given. A run's configuration,
metrics and checkpoints lie in `runs/`. Own data go into `src/{PACKAGE.name}/data`, own networks
into `src/{PACKAGE.name}/modules`, own recipes into `configs`.

Made from a template, under its license: LICENSE.
"""
# File, pattern, replacement: each must be found.
EDITS = [
    ("PACKAGE/entry.py", r'CONFIGS / "mnist.yaml"', f'CONFIGS / "{RECIPE}"'),
    ("PACKAGE/entry.py", r"train by configs/mnist\.yaml", f"train by configs/{RECIPE}"),
    ("PACKAGE/entry.py", r"  .*configs/mnist_adam\.yaml.*\n", ""),
    ("PACKAGE/entry.py", "MNISTConvNet   ", "ImageClassifier"),
    ("tests/conftest.py", r'(?s)model:\n  class_path: MLP.*?\n"""\n', SMALL),
    ("tests/tiny.py", r"from \w+\.data\.mnist import .*\n", ""),
    ("tests/tiny.py", r"(?s)\n\nclass Mirrored.*?(?=\n\n\nclass |\Z)", ""),
    ("pyproject.toml", r'    "mlxtend.*\n', ""),
    ("Makefile", r"(?m)^# make (figures|bench|docs|slim) .*\n", ""),
    ("Makefile", r"(?m)^(figures|bench|docs|slim):.*\n(\t.*\n)+\n?", ""),
    ("Makefile", r" figures bench lint docs lock rename slim", " lint lock rename"),
    (".github/workflows/ci.yml", r"(?m)(^  #.*\n)*^  (windows|docs):\n(    .*\n|\n)+", ""),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dirty", action="store_true", help="also where changes are not committed")
    args = parser.parse_args()
    if git("status", "--porcelain") and not args.dirty:
        sys.exit("error: some changes are not committed: commit them first, or say --dirty")
    configs = [f"configs/{path.name}" for path in ROOT.glob("configs/*") if path.name != RECIPE]
    tests = [
        path.relative_to(ROOT).as_posix()
        for path in ROOT.glob("tests/**/*.py")
        if path.relative_to(ROOT / "tests").as_posix() not in KEPT and path.name != "__init__.py"
    ]
    git("rm", "-rqf", "--ignore-unmatch", *map(here, GONE), *configs, *tests)
    for name, pattern, replacement in EDITS:
        path = ROOT / here(name)
        text, found = re.subn(pattern, lambda _, new=replacement: new, path.read_text())
        if not found:
            sys.exit(f"error: {path}: has no {pattern!r} any more: mend scripts/slim.py")
        path.write_text(text.rstrip("\n") + "\n")
    (ROOT / "README.md").write_text(README)
    for words in (["check", "--fix"], ["format"]):  # imports that nothing needs any more
        subprocess.run([sys.executable, "-m", "ruff", *words, "--quiet", str(ROOT / "tests")])
    print("git status shows what has changed, make test tries it")


def here(name: str) -> str:
    """A path with the package's own name."""
    return name.replace("PACKAGE", f"src/{PACKAGE.name}")


def git(*args: str) -> str:
    """What git says."""
    command = ["git", "-C", str(ROOT), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
