"""The commands of README.md and docs/ run, one after the other; links and pictures are there."""

import re
import subprocess
from importlib import import_module

import pytest
from launch import TRAIN, train
from pages import PAGES, ROOT, commands

from anneal import testing as photos
from anneal.testing import main

WALKED = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("photos", "reports", "export", "devices")),
]
# Whose commands are run by the tests of these names.
ELSEWHERE = {
    "docs/optimizers.md": "test_figures.py",
    "docs/your-own.md": "test_your_own.py",
    "docs/sweeps.md": "test_sweep.py",
}
STEPS = {"limit_train_batches": 4, "limit_val_batches": 2, "log_every_n_steps": 2}
SHORT = [f"--trainer.{key}={n}" for key, n in {"max_epochs": 3, **STEPS}.items()]
FEW_PHOTOS = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.check_val_every_n_epoch=1"]
NOT_OURS = ("pip", "wandb", "source", "pre-commit", "pytest")
ON_CLUSTERS = ("torchrun", "sbatch")  # run by test_scale.py
MAKE = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shortened(words: list[str]) -> list[str]:
    """What goes to train.py, of few and small steps where it starts a training."""
    starts = not words or words[0] == "fit" or words[0].startswith("--")
    if not starts or any("ckpt_path" in word or ".help" in word for word in words):
        return words
    few = FEW_PHOTOS if any("photos" in word for word in words) else []
    return [*([] if words[:1] == ["fit"] else ["fit"]), *words, *SHORT, *few]


def test_every_page_with_commands_is_walked():
    assert {str(page.relative_to(ROOT)) for page in PAGES if commands(page)} == {
        *WALKED,
        *ELSEWHERE,
    }
    for name in ELSEWHERE.values():
        assert (ROOT / "tests" / name).is_file()


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed", "ignore:schedule. the warmup takes")
@pytest.mark.parametrize("name", WALKED)
def test_the_commands_of_a_page_run_one_after_the_other(name, run, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    photos.image_folder(tmp_path / "data/photos")
    if name == "docs/export.md":  # on a model of digits
        photos.save(
            photos.picture(size=(28, 28)).convert("L"), tmp_path / "new/a.png", format="PNG"
        )
    else:
        photos.save(photos.picture(), tmp_path / "new/a.jpg")
    written = commands(ROOT / name)
    if name == "README.md":  # the rest is run where there is more of its kind
        elsewhere = [words for page in WALKED[1:] for words in commands(ROOT / page)]
        written = [words for words in written if words not in elsewhere]
    if any("RUN" in words for words in written):
        run("fit", "--config=small.yaml", "--run_name=RUN", "--trainer.logger=null")
    for words in written:
        if words[:2] == ["python", "train.py"]:
            if words[2:3] != ["schedule"] and any("devices=" in word for word in words):
                two = ("--trainer.accelerator=cpu", "--trainer.devices=2")  # of 2 cores
                train(tmp_path, *shortened(words[2:]), *two)
            elif re.search(r"--print_config|\.help=", words[-1]):
                with pytest.raises(SystemExit) as e:
                    main(words[2:])
                assert not e.value.code
            else:
                run(*shortened(words[2:]))
        elif words[:2] == ["python", "-m"]:
            assert import_module(words[2]).main(words[3:]) == 0, words
        elif words[0] == "torchrun" and "--nnodes=2" not in words:
            where = words.index("train.py")
            command = [*words[:where], str(TRAIN), *shortened(words[where + 1 :])]
            subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
        elif words[0] == "make":
            assert words[1] in MAKE
        else:
            assert words[0] in NOT_OURS or words[0] in ON_CLUSTERS, words


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
