"""Every command of README.md and docs/ is accepted; those on a checkpoint and of some pages run."""

import re
import shlex
import subprocess
from importlib import import_module
from pathlib import Path

import photos
import pytest

from anneal.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Their commands are run by the tests of these names.
ELSEWHERE = {"optimizers.md": "test_figures.py", "your-own.md": "test_your_own.py"}
WALKED = ("photos.md", "reports.md", "export.md")
STEPS = {"limit_train_batches": 4, "limit_val_batches": 2, "log_every_n_steps": 2}
SHORT = [f"--trainer.{key}={n}" for key, n in {"max_epochs": 3, **STEPS}.items()]
FEW_PHOTOS = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.check_val_every_n_epoch=1"]
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(page: Path) -> list[list[str]]:
    """Words of each line of a page's shell blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def trainings(page: Path) -> list[list[str]]:
    """What goes to train.py, also by torchrun and SLURM."""
    starts = ("train.py", "scripts/slurm.sbatch")
    return [
        words[next(i for i, word in enumerate(words) if word in starts) + 1 :]
        for words in commands(page)
        if any(word in starts for word in words)
    ]


ALL = [(page, words) for page in PAGES if page.name not in ELSEWHERE for words in commands(page)]
TRAININGS = [words for page in PAGES if page.name not in ELSEWHERE for words in trainings(page)]
ON_CHECKPOINTS = [
    words for words in trainings(PAGES[0]) if any("ckpt_path" in word for word in words)
]
MODULES = [words[2:] for _, words in ALL if words[:2] == ["python", "-m"] and words[2] != "pytest"]


def test_the_readme_has_commands():
    assert len(trainings(PAGES[0])) > 10
    assert len(ON_CHECKPOINTS) > 3


@pytest.mark.parametrize(
    "words",
    [words for words in TRAININGS if not any("ckpt_path" in word for word in words)],
    ids=lambda c: " ".join(c),
)
def test_command_is_accepted(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    asks_for_help = any(".help" in word for word in words)
    with pytest.raises(SystemExit) as e:
        main(words if asks_for_help else [*words, "--print_config"])
    assert not e.value.code


def test_commands_on_checkpoints_run_one_after_the_other(run):
    run("fit", "--config=small.yaml")
    for words in ON_CHECKPOINTS:
        run(*words)


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed")
@pytest.mark.parametrize("name", WALKED)
def test_the_commands_of_a_page_run_one_after_the_other(name, run, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    photos.folder(tmp_path / "data/photos")
    if name == "export.md":
        run("fit", "--config=small.yaml", "--run_name=RUN", "--trainer.logger=null")
        photos.save(
            photos.picture(size=(28, 28)).convert("L"), tmp_path / "new/a.png", format="PNG"
        )
    else:
        photos.save(photos.picture(), tmp_path / "new/a.jpg")
    for words in commands(ROOT / "docs" / name):
        if words[1] == "train.py":
            fits = words[2].startswith("--")
            of_photos = any("photos" in word for word in words)
            more = [*SHORT, *(FEW_PHOTOS if of_photos else [])] if fits else []
            run(*(["fit"] if fits else []), *words[2:], *more)
        elif words[:2] == ["python", "-m"]:
            assert import_module(words[2]).main(words[3:]) == 0, words
        else:
            assert words[0] in ("pip", "wandb"), words


@pytest.mark.parametrize("words", MODULES, ids=lambda c: " ".join(c))
def test_a_module_has_the_options_that_a_page_gives_it(words, capsys):
    name, *rest = words
    try:
        module = import_module(f"{name}.__main__")
    except ModuleNotFoundError:
        module = import_module(name)
    with pytest.raises(SystemExit):
        module.main(["--help"])
    known = capsys.readouterr().out
    for option in (word.partition("=")[0] for word in rest if word.startswith("-")):
        assert re.search(rf"{option}\b", known)


def test_every_other_command_is_one_that_is_there():
    starts = {"source", "pip", "wandb", "optuna-dashboard", "git", "pre-commit", "ls", "pytest"}
    for page, words in ALL:
        if "train.py" in words or words[:2] == ["python", "-m"] or words[0] in starts:
            continue
        if words[0] == "make":
            assert words[1] in MAKE, page
        else:
            script = next(word for word in words if "/" in word or word == "benchmarks")
            assert (ROOT / script).exists(), (page, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_of_a_page_are_there(page):
    text = page.read_text()
    own = "\n".join(re.findall(r"```\w+\n# (\S+)", text))  # what the reader is told to write
    for path, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", text):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            titles = re.findall(r"^#+ (.+)", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles]
    for path in re.findall(r"`((?:src|configs|tests|scripts|docs|benchmarks)/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or path in own, path


def test_the_readme_is_short():
    lines = PAGES[0].read_text().splitlines()
    assert len(lines) <= 200
    first_screen = "\n".join(lines[:35])
    assert "make train" in first_screen
    assert "make test" in first_screen
    assert "](docs/figures/" in first_screen


def test_nothing_points_at_the_repository_that_a_project_was_made_from():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    pattern = re.compile(r"(github|gitlab)\.(com|io)/[\w-]+/anneal|[\w-]+\.github\.io|shields\.io")
    for name in names.stdout.split("\0")[:-1]:
        if (ROOT / name).is_file() and name != "tests/test_readme.py":
            assert not pattern.search((ROOT / name).read_text(errors="ignore")), name
