"""A later version of the engine in a clone that has a life of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from clones import ROOT, commit, git, make_clone, python

NOW = (ROOT / "src/anneal/VERSION").read_text().strip()

UPGRADE = "src/anneal/clone/upgrade.py"
FILE = "src/anneal/errors.py"


def release(folder: Path, version: str, news: str) -> None:
    """Commit what has changed as a version."""
    base = (folder / "src/anneal/VERSION").read_text().strip()
    (folder / "src/anneal/VERSION").write_text(f"{version}\n")
    changelog = folder / "CHANGELOG.md"
    text = changelog.read_text()
    changelog.write_text(text.replace(f"## {base}", f"## {version}\n\n- {news}\n\n## {base}", 1))
    commit(folder, version)
    git(folder, "tag", version)


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """The template in two versions: the last lines of files, a new one, one less, a Makefile."""
    folder = make_clone(tmp_path_factory.mktemp("template"))
    base = (folder / "src/anneal/VERSION").read_text().strip()
    git(folder, "tag", base)
    for name in (FILE, "tests/engine/pages.py", "Makefile", "benchmarks/turns.py", UPGRADE):
        (folder / name).write_text((folder / name).read_text() + "# Upstream.\n")
    (folder / "src/anneal/new").mkdir()
    (folder / "src/anneal/new/file.py").write_text('"""New."""\n')
    (folder / "src/anneal/image_grid.py").unlink()
    release(folder, "v90.0.0", "News of ninety.")
    (folder / FILE).write_text((folder / FILE).read_text() + "# Upstream again.\n")
    release(folder, "v91.0.0", "News of ninety-one.")
    return folder


@pytest.fixture(scope="module")
def first(template, tmp_path_factory) -> Path:
    """A clone of the first version, without the template's history."""
    folder = tmp_path_factory.mktemp("first") / "clone"
    base = git(template, "tag", "--list", "--sort=version:refname").split()[0]
    git(template, "worktree", "add", "--quiet", "--detach", str(folder), base)
    (folder / ".git").unlink()
    git(template, "worktree", "prune")
    git(folder, "init", "-q")
    commit(folder, "Mine")
    return folder


@pytest.fixture
def clone(first, tmp_path) -> Path:
    git(first, "clone", "--quiet", "--local", str(first), str(tmp_path / "clone"))
    return tmp_path / "clone"


def upgrade(clone: Path, *args: str) -> subprocess.CompletedProcess:
    return python(clone, UPGRADE, *args)


def edit(clone: Path, name: str, old: str, new: str) -> None:
    text = (clone / name).read_text()
    assert old in text
    (clone / name).write_text(text.replace(old, new, 1))
    commit(clone, f"Mine: {name}")


def test_the_engine_is_replaced_and_the_rest_is_listed(clone, template):
    mine = (clone / "Makefile").read_text()
    done = upgrade(clone, "v91.0.0", f"--from={template}")
    assert done.returncode == 0, done.stderr
    for name in ("src/anneal", "tests/engine", "CHANGELOG.md"):
        files = git(template, "ls-files", name).split()
        assert files
        assert all((clone / f).read_bytes() == (template / f).read_bytes() for f in files)
    assert not (clone / "src/anneal/image_grid.py").exists()
    assert (clone / "Makefile").read_text() == mine
    assert "M\tMakefile\n" in done.stdout
    assert done.stdout.index("News of ninety-one.") < done.stdout.index("News of ninety.")
    assert f"## {NOW}" not in done.stdout
    git(clone, "apply", "--check", "build/v91.0.0.diff")


def test_the_address_is_kept_for_the_next_time_and_a_slim_clone_stays_slim(clone, template):
    git(clone, "rm", "-rq", "tests/engine", "benchmarks")
    commit(clone, "Slim")
    address = os.path.relpath(template, clone)
    assert upgrade(clone, "v90.0.0", f"--from={address}").returncode == 0
    commit(clone, "v90")
    done = upgrade(clone, "v91.0.0")
    assert done.returncode == 0, done.stderr
    assert (clone / FILE).read_bytes() == (template / FILE).read_bytes()
    assert "benchmarks" not in done.stdout
    assert not (clone / "tests/engine").exists()


def test_an_edited_file_is_merged_and_what_the_clone_added_stays(clone, template):
    edit(clone, FILE, "import ", "import os  # mine\nimport ")
    (clone / "src/anneal/mine.py").write_text("MINE = 1\n")
    commit(clone, "Mine too")
    done = upgrade(clone, "v91.0.0", f"--from={template}")
    assert done.returncode == 0, done.stdout
    assert f"merged: {FILE}" in done.stdout
    text = (clone / FILE).read_text()
    assert "import os  # mine\n" in text
    assert text.endswith("# Upstream.\n# Upstream again.\n")
    assert (clone / "src/anneal/mine.py").read_text() == "MINE = 1\n"


def test_a_conflict_is_marked_and_named_and_loses_nothing(clone, template):
    (clone / FILE).write_text((clone / FILE).read_text() + "# Mine.\n")
    (clone / "src/anneal/new").mkdir()
    (clone / "src/anneal/new/file.py").write_text('"""Mine."""\n')
    (clone / "src/anneal/image_grid.py").write_text("# Mine alone.\n")
    (clone / "tests/engine/pages.py").unlink()
    commit(clone, "Mine")
    done = upgrade(clone, "v91.0.0", f"--from={template}")
    assert done.returncode == 1
    said = [line for line in done.stdout.splitlines() if line.startswith("conflict: ")]
    names = ["errors.py", "image_grid.py", "new/file.py", "pages.py"]
    assert all(name in line for name, line in zip(names, said, strict=True))
    text = (clone / FILE).read_text()
    assert "<<<<<<< yours\n# Mine.\n" in text
    assert "# Upstream.\n# Upstream again.\n>>>>>>> new\n" in text
    assert '"""Mine."""' in (clone / "src/anneal/new/file.py").read_text()
    assert (clone / "src/anneal/image_grid.py").read_text() == "# Mine alone.\n"
    assert not (clone / "tests/engine/pages.py").exists()


def test_a_file_that_git_ignores_is_not_overwritten(clone, template):
    (clone / ".gitignore").write_text("/src/anneal/new/\n")
    commit(clone, "Ignored")
    (clone / "src/anneal/new").mkdir()
    (clone / "src/anneal/new/file.py").write_text("MINE = 1\n")
    done = upgrade(clone, "v90.0.0", f"--from={template}")
    assert done.returncode == 1
    assert "conflict: src/anneal/new/file.py is in the way" in done.stdout
    assert (clone / "src/anneal/new/file.py").read_text() == "MINE = 1\n"


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["v91.0.0"], "say where the template lies"),
        (["v7", "--from={template}"], "has no tag v7; it has v2"),
        ([NOW, "--from={template}"], f"the engine is {NOW} already"),
        (["v91.0.0", "--from=nowhere"], ""),
        (["--from", "{template}", "v91.0.0", "dirty"], "commit them first"),
        (["v91.0.0", "--from={template}", "based on v1"], "has no tag v1"),
        (["v91.0.0", "--from={template}", "based on nothing"], "VERSION"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_line(clone, template, args, reason):
    words = [word.format(template=template) for word in args if " " not in word]
    if "dirty" in words:
        words.remove("dirty")
        (clone / "train.py").write_text("# Mine, not committed.\n")
    if args[-1] == "based on v1":
        edit(clone, "src/anneal/VERSION", NOW, "v1")
    if args[-1] == "based on nothing":
        git(clone, "rm", "-q", "src/anneal/VERSION")
        commit(clone, "None")
    before = git(clone, "status", "--porcelain")
    done = upgrade(clone, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    assert git(clone, "status", "--porcelain") == before


def test_two_clones_of_the_benchmark_are_upgraded_twice():
    command = [sys.executable, str(ROOT / "benchmarks/upgrades.py"), "--clones=2", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
