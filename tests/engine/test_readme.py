"""The commands of README.md and docs/ run, one after the other; links and pictures are there."""

import re
import subprocess
from importlib.util import find_spec

import pytest
from launch import train
from pages import PAGES, ROOT, commands

from anneal import testing as photos
from anneal.testing import main

WALKED_PAGES = (
    "any-optimizer",
    "compare",
    "devices",
    "export",
    "imagenette",
    "lab",
    "photos",
    "reports",
    "schedules",
    "upgrading",
)
WALKED = ["README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in WALKED_PAGES)]
# Whose commands are run by these tests.
ELSEWHERE = {
    "docs/data.md": "tests/engine/test_data_page.py",
    "docs/course.md": "examples/optimizers/tests/test_course.py",
    "docs/ladder.md": "examples/optimizers/tests/test_ladder.py",
    "docs/optimizers.md": "examples/optimizers/tests/test_figures.py",
    "docs/runs.md": "tests/engine/test_replay.py",
    "docs/your-own.md": "tests/engine/test_your_own.py",
    "docs/sharpness.md": "examples/optimizers/tests/test_real_networks.py",
    "docs/sweeps.md": "tests/engine/test_sweep.py",
    "docs/race.md": "tests/engine/test_race.py",
    "docs/tasks.md": "tests/engine/test_tasks.py",
}
TOOLS = {"report", "card", "sweep", "compare", "cooldown", "check", "shards"}
TOOLS |= {"figures", "gallery", "lab"}  # the optimizer lab's
ENDS_EARLY = r"--print_config|\.help="
STEPS = {"limit_train_batches": 4, "limit_val_batches": 2, "log_every_n_steps": 2}
SHORT = [f"--trainer.{key}={n}" for key, n in {"max_epochs": 3, **STEPS}.items()]
FEW_PHOTOS = ["--data.batch_size=4", "--data.num_workers=0", "--trainer.check_val_every_n_epoch=1"]
FEW_PHOTOS += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=2"]
NOT_OURS = ("pip", "wandb", "source", "pre-commit", "pytest")
ON_CLUSTERS = ("torchrun", "sbatch")  # run by test_scale.py
MAKEFILES = [ROOT / "Makefile", *(ROOT / "src/anneal").glob("*.mk")]
MAKE = {
    name
    for path in MAKEFILES
    for name in re.findall(r"^([a-z-]+):", path.read_text(), re.MULTILINE)
}


def shortened(words: list[str]) -> list[str]:
    """Return what goes to train.py: few and small steps where it starts a training."""
    if words[:1] == ["compare"] and "yaml" in words[1]:
        return [*words, "--seeds=2", *SHORT, "--trainer.max_epochs=1"]
    starts = not words or words[0] == "fit" or words[0].startswith("--")
    if not starts or any("ckpt_path" in word or ".help" in word for word in words):
        return [word.replace("max_epochs=30", "max_epochs=4") for word in words]
    few = FEW_PHOTOS if any("photos" in word or "imagenette" in word for word in words) else []
    return [*([] if words[:1] == ["fit"] else ["fit"]), *words, *SHORT, *few]


def test_every_page_with_commands_is_walked():
    assert {str(page.relative_to(ROOT)) for page in PAGES if commands(page)} == {
        *WALKED,
        *ELSEWHERE,
    }
    for name in ELSEWHERE.values():
        assert (ROOT / name).is_file()


@pytest.mark.filterwarnings("ignore:Precision bf16-mixed", "ignore:schedule. the warmup takes")
@pytest.mark.parametrize("name", WALKED)
def test_the_commands_of_a_page_run_one_after_the_other(name, run, tmp_path):
    for folder in ("configs", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    photos.image_folder(tmp_path / "data/photos")
    if name == "docs/imagenette.md":
        folder = tmp_path / "data/imagenette"
        photos.image_folder(folder)
        files = [path.relative_to(folder) for path in folder.rglob("*.*")]
        rows = [f"{path},{path.parts[1]},{path.parts[0] == 'val'}\n" for path in files]
        text = "".join(["path,noisy_labels_50,is_valid\n", *rows])
        (folder / "noisy_imagenette.csv").write_text(text)
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
        if "timm/" in " ".join(words) and not find_spec("timm"):
            continue
        if words[:2] == ["python", "train.py"]:
            if words[2:3] != ["schedule"] and any("devices=" in word for word in words):
                two = ("--trainer.accelerator=cpu", "--trainer.devices=2")  # of 2 cores
                train(tmp_path, *shortened(words[2:]), *two)
            elif words[2:3] and (words[2] in TOOLS or re.search(ENDS_EARLY, words[-1])):
                with pytest.raises(SystemExit) as e:
                    main(shortened(words[2:]))
                assert not e.value.code
            else:
                run(*shortened(words[2:]))
        elif words[0] == "torchrun" and "--nnodes=2" not in words:
            where = words.index("train.py")
            train(tmp_path, *shortened(words[where + 1 :]), torchrun=words[1:where])
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
    folders = "src|configs|tests|scripts|docs|benchmarks|examples"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", text):
        assert (ROOT / path).exists() or path in own, path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_are_there(page):
    tests = {path.name for folder in ("tests", "examples") for path in (ROOT / folder).rglob("*")}
    text = page.read_text()
    own = re.findall(r"```\w+\n# tests/\S*?(\w+\.py)", text)  # what the reader is told to write
    assert set(re.findall(r"\btest_\w+\.py\b", text)) <= tests.union(own)


def test_commands_are_of_one_family():
    heads = [*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("examples/*/configs/*.yaml")]
    for page in [*PAGES, *heads]:
        assert "python -m anneal" not in page.read_text(), page


def test_the_readme_is_short():
    lines = PAGES[0].read_text().splitlines()
    assert len(lines) <= 170
    first_screen = "\n".join(lines[:40])
    for needed in ("make train", "make test", "minutes", "GB", "test/acc"):
        assert needed in first_screen
    shown = set(re.findall(r"\]\(docs/(figures/[\w-]+\.(?:png|gif))\)", first_screen))
    assert shown
    of_optimizers = (ROOT / "docs/optimizers.md").read_text()
    assert all(f"]({name})" in of_optimizers for name in shown)


def test_no_page_tells_to_install_another_project_of_this_name():
    for page in PAGES:
        assert not re.search(r"pip install\s+(-U\s+)?anneal\b", page.read_text()), page


def test_nothing_points_at_the_repository_that_a_project_was_made_from():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    pattern = re.compile(r"(github|gitlab)\.(com|io)/[\w-]+/anneal|[\w-]+\.github\.io|shields\.io")
    for name in names.stdout.split("\0")[:-1]:
        if (ROOT / name).is_file() and name != "tests/engine/test_readme.py":
            assert not pattern.search((ROOT / name).read_text(errors="ignore")), name
