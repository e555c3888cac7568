"""The project under another name."""

import re
from pathlib import Path

import pytest
from clones import ROOT, commit, git, lint, make_clone, python
from helpers import SMALL
from yours import PACKAGE

from anneal.testing import QUIET, main

RENAME = "src/anneal/clone/rename.py"
# Command lines in one process, as the imports take most of the time; without this checkout's own
# packages, among which is one of the old name.
ALONE = """
import os, shlex, sys, pytest
here = os.path.join(os.getcwd(), "src")
sys.path = [path for path in sys.path if not path.endswith(os.sep + "src") or path == here]
import anneal, train
for line in sys.argv[1:]:
    anneal.main(train.fit, train.PACKAGES, shlex.split(line))
quiet = ["-q", "-Wignore::pytest.PytestAssertRewriteWarning"]
sys.exit(pytest.main([*quiet, *"TESTS".split(), "-knot overfits"]))
""".replace("TESTS", "tests/project/test_digits_nets.py tests/engine/test_optim.py")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


def naming(folder: Path, name: str) -> list[str]:
    """The files that name a package: in an import, a path or a dotted name."""
    pattern = re.compile(rf"src/{name}\b|\b{name}\.(models|data)\b|^(from|import) {name}\b", re.M)
    files = [n for n in git(folder, "ls-files", "-z").split("\0") if n and n != "CHANGELOG.md"]
    texts = {n: (folder / n).read_text(errors="ignore") for n in files}
    return [n for n, text in texts.items() if pattern.search(text) or pattern.search(n)]


def test_the_engine_and_its_tests_do_not_know_the_projects_name():
    files = git(ROOT, "ls-files", "-co", "--exclude-standard", "src/anneal", "tests/engine").split()
    texts = {n: (ROOT / n).read_text() for n in files if (ROOT / n).is_file()}
    named = re.compile(rf"\b(from|import) {PACKAGE}\b|src/{PACKAGE}\b|{PACKAGE}\.(models|data)\b")
    assert [n for n, text in texts.items() if named.search(text)] == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("my-project", "a package's name has small letters"),
        ("class", "a package's name has small letters"),
        ("MyProject", "a package's name has small letters"),
        ("json", "there is a module of that name"),
        ("torch", "there is a module of that name"),
        ("anneal", "there is a module of that name"),
        ("examples", "there is a module of that name"),
        ("used", "uses the word for something else"),
        (PACKAGE, "is its name already"),
    ],
)
def test_a_name_that_does_not_do_is_refused_in_a_line(clone, name, reason):
    (clone / "CONTRIBUTING.md").write_text("What used.models are.\n")
    commit(clone)
    done = python(clone, RENAME, name)
    git(clone, "reset", "--hard", "-q", "HEAD~1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {name}: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert not git(clone, "status", "--porcelain")


def test_it_trains_and_passes_its_tests_under_two_names_in_turn(clone, monkeypatch):
    """A name of 25 letters, which is wider than any line expects, and one of 3.

    A run from before is resumed and tested.
    """
    (clone / "small.yaml").write_text(SMALL)
    assert "some changes are not committed" in python(clone, RENAME, "net").stderr
    commit(clone, "A recipe")
    monkeypatch.chdir(clone)
    main(["fit", "--config=small.yaml", "--run_name=before", *QUIET])  # the same in this checkout
    old = PACKAGE
    for name in ("a_name_of_25_letters_which", "net"):
        name = name[:25]
        done = python(clone, RENAME, name)
        assert done.returncode == 0, done.stderr
        assert naming(clone, old) == []
        assert len(naming(clone, name)) > 10
        changed = git(clone, "status", "--porcelain", "-uall").splitlines()
        assert len(changed) <= 25
        assert not [line for line in changed if "src/anneal" in line or "tests/engine" in line]
        lint(clone)
        commit(clone, name)
        old = name
    assert f'name = "{old}"' in (clone / "pyproject.toml").read_text()
    lines = [
        "fit --config=small.yaml --run_name=after",
        "fit --run=before --ckpt_path=last --trainer.max_epochs=3",
        "test --run=before --ckpt_path=best",
    ]
    done = python(clone, "-c", ALONE, *lines)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in (clone / "runs").iterdir()) == ["after", "before"]
