"""What make slim leaves."""

import re
from pathlib import Path

import pytest
from clones import commit, git, lint, make_clone, python
from yours import PACKAGE

from anneal import testing as photos

# In one process, as the imports take most of the time: all tests are collected, some are run.
TRAIN = """
import sys, pytest, train
from anneal.testing import main
for recipe in sys.argv[1].split():
    words = ["fit", f"--config=configs/{recipe}.yaml", f"--run_name={recipe}"]
    words += ["--trainer.fast_dev_run=true" if recipe.startswith("mnist") else "--model.width=8"]
    main(words + ["--trainer.accelerator=cpu", "--trainer.precision=32-true"]
         + (sys.argv[2:] if recipe.startswith("imagenet") else []))
quiet = ["-q", "-Wignore::pytest.PytestAssertRewriteWarning"]
sys.exit(pytest.main([*quiet, "tests/project", "-k", "test_digits_nets and not overfits"]))
"""


@pytest.fixture(scope="module")
def slim(tmp_path_factory) -> Path:
    folder = make_clone(tmp_path_factory.mktemp("clone"))
    (folder / "not-committed").touch()
    assert "commit them first" in python(folder, "scripts/slim.py").stderr
    (folder / "not-committed").unlink()
    done = python(folder, "scripts/slim.py")
    assert done.returncode == 0, done.stderr
    commit(folder, "Slim")
    return folder


def test_it_leaves_the_project_the_engine_and_one_page(slim):
    files = git(slim, "ls-files").split()
    gone = ("examples/", "benchmarks/", "tests/engine/")
    assert not [name for name in files if name.startswith(gone)]
    assert [name for name in files if name.startswith("docs/")] == ["docs/your-own.md"]
    assert {"CONTRIBUTING.md", "README.md", "src/anneal/VERSION", "configs/mnist.yaml"} <= {*files}
    assert [name for name in files if name.startswith("tests/project/")]
    for name in ("train.py", "Makefile", "pyproject.toml"):
        kept = "examples" if name == "train.py" else "benchmarks"
        assert kept not in (slim / name).read_text()
    assert "lab.html" not in (slim / ".gitignore").read_text()


def test_no_link_leads_to_what_is_gone(slim):
    for page in [*slim.glob("*.md"), *slim.glob("docs/*.md")]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)[)#]", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_a_readme_of_ones_own_stays(tmp_path):
    folder = make_clone(tmp_path)
    (folder / "README.md").write_text("# Mine\n\n[a](docs/devices.md) [b](docs/your-own.md)\n")
    commit(folder)
    assert python(folder, "scripts/slim.py").returncode == 0
    assert (folder / "README.md").read_text() == "# Mine\n\na [b](docs/your-own.md)\n"


def test_what_is_left_passes_lint(slim):
    lint(slim)
    assert f"src/{PACKAGE}" in (slim / "README.md").read_text()


def test_step_and_plateau_recipes_train_and_its_own_tests_pass(slim):
    photos.image_folder(slim / "data/photos")
    sizes = {"batch_size": 4, "num_workers": 0, "train_size": 32, "val_resize": 40, "val_size": 32}
    flags = [f"--data.{name}={value}" for name, value in sizes.items()]
    flags += ["--data.root=data/photos", "--model.arch=resnet18", "--trainer.max_epochs=1"]
    recipes = "mnist_step mnist_plateau imagenet_resnet18_2015 imagenet_resnet50_plateau"
    done = python(slim, "-c", TRAIN, recipes, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(slim.glob("runs/imagenet_*/checkpoints/last.ckpt"))) == 2
