"""Take a later version of the engine: `make upgrade VERSION=tag FROM=address-or-folder`.

Replaced are src/anneal and CHANGELOG.md, and tests/engine where the clone still has it. A file of
these that the clone has edited is merged three ways, against the version that the clone was made
from (src/anneal/VERSION). What is the clone's own is never touched: what changed in it upstream is
listed. This script is read as a whole before it starts, so it may replace itself.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FROM, VERSION = ROOT / ".upgrade-from", ROOT / "src/anneal/VERSION"
OWNED = ("src/anneal", "tests/engine", "CHANGELOG.md")
File = tuple[str, str]  # mode and hash


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="tag of the version to take")
    parser.add_argument("--from", dest="source", help="address or folder; kept for the next time")
    args = parser.parse_args()
    try:
        sys.exit(upgrade(args.version, args.source))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)


def upgrade(version: str, source: str | None) -> int:
    """Replace, merge and report; returns 1 if there were conflicts."""
    base = VERSION.read_text().strip()
    source = source or (FROM.read_text().strip() if FROM.is_file() else None)
    if not source:
        raise ValueError("say where the template lies: make upgrade VERSION=... FROM=...")
    if version == base:
        raise ValueError(f"the engine is {base} already")
    if git(ROOT, "status", "--porcelain"):
        raise ValueError("some changes are not committed: commit them first")
    owned = [path for path in OWNED if (ROOT / path).exists()]
    rest = ["--", ":/", *(f":(exclude){path}" for path in OWNED)]
    with fetched(source, base, version) as upstream:
        changelog = git(upstream, "show", f"{version}:CHANGELOG.md").decode()
        names = git(upstream, "diff", "--name-status", "--no-renames", base, version, *rest)
        patch = git(upstream, "diff", "--binary", base, version, *rest)
        old, new = files(upstream, base, owned), files(upstream, version, owned)
        said = merge(upstream, old, new, files(ROOT, "HEAD", owned))
    FROM.write_text(f"{source}\n")
    news = re.split(rf"^## {re.escape(base)}(?![\w.])", changelog, flags=re.MULTILINE)[0]
    print(news[news.find("\n## ") :].strip(), f"{base} -> {version}", *said, sep="\n")
    rows = [row.split("\t") for row in names.decode().splitlines()]
    # Not what the clone has removed, as examples/; the project's package may have another name.
    rows = [row for row in rows if row[1][:4] == "src/" or has(row[1], row[0] == "A")]
    if rows:
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / f"{version}.diff").write_bytes(patch)
        print(f"changed upstream and yours, so left as they are (build/{version}.diff has it):")
        print(*map("\t".join, rows), sep="\n")
    print("git diff shows what has changed, make test tries it")
    return any(line.startswith("conflict") for line in said)


def has(path: str, added: bool) -> bool:
    """Whether the clone has what changed upstream, or the folder of what was added."""
    return ((ROOT / path).parent if added else ROOT / path).exists()


@contextmanager
def fetched(source: str, *tags: str) -> Iterator[Path]:
    """Yield a repository that has the tags of another one, and nothing else."""
    address = str((ROOT / source).resolve()) if (ROOT / source).exists() else source
    refs = git(ROOT, "ls-remote", "--tags", "--refs", "--", address).decode()
    known = re.findall(r"refs/tags/(\S+)$", refs, re.MULTILINE)
    for tag in tags:
        if tag not in known:
            raise ValueError(f"{source} has no tag {tag}; it has {', '.join(known[-5:]) or 'none'}")
    with tempfile.TemporaryDirectory() as folder:
        git(Path(folder), "init", "--quiet")
        wanted = [f"refs/tags/{tag}:refs/tags/{tag}" for tag in tags]
        git(Path(folder), "fetch", "--quiet", "--depth=1", "--", address, *wanted)
        yield Path(folder)


def files(repository: Path, commit: str, paths: list[str]) -> dict[str, File]:
    """Return the files that a commit has under some paths."""
    rows = git(repository, "ls-tree", "-rz", commit, "--", *paths).decode().split("\0")
    split = [re.split(r"[ \t]", row, maxsplit=3) for row in rows if row]
    return {path: (mode, digest) for mode, _, digest, path in split}


def merge(
    upstream: Path, old: dict[str, File], new: dict[str, File], ours: dict[str, File]
) -> list[str]:
    """Bring what changed from old to new into the clone; returns what there is to say of it."""
    said, replaced = [], 0
    for path in sorted(old.keys() | new.keys()):
        was, now, mine, target = old.get(path), new.get(path), ours.get(path), ROOT / path
        if was == now or mine == now:
            continue
        if mine is None and target.exists():
            said.append(f"conflict: {path} is in the way, and git ignores it: left as it is")
        elif mine is None and was:
            said.append(f"conflict: {path} was removed here and changed upstream: left out")
        elif now is None and mine != was:
            said.append(f"conflict: {path} was edited here and removed upstream: kept")
        elif now is None:
            target.unlink()
            replaced += 1
        elif mine == was:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(git(upstream, "cat-file", "blob", now[1]))
            target.chmod(int(now[0][-3:], 8))
            replaced += 1
        else:
            base = git(upstream, "cat-file", "blob", was[1]) if was else b""
            said.append(merge_file(target, base, git(upstream, "cat-file", "blob", now[1])))
    for folder in sorted((ROOT / "src/anneal").rglob("*"), reverse=True):
        if folder.is_dir() and all(file.name == "__pycache__" for file in folder.iterdir()):
            shutil.rmtree(folder)  # what was in it is gone upstream
    return [f"{replaced} files of the engine replaced", *said]


def merge_file(target: Path, base: bytes, new: bytes) -> str:
    """Merge what changed from base to new into a file, and say so."""
    path = target.relative_to(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder, name) for name in ("base", "new")]
        for side, text in zip(sides, (base, new), strict=True):
            side.write_bytes(text)
        labels = ["-L", "yours", "-L", "base", "-L", "new"]
        command = ["git", "merge-file", *labels, str(target), *map(str, sides)]
        status = subprocess.run(command, capture_output=True).returncode
    if status >= 128:
        return f"conflict: {path} is no text, and was edited here and upstream: kept"
    return f"conflict: {path}: {status} marked in it" if status else f"merged: {path}"


def git(repository: Path, *args: str) -> bytes:
    """Return what git says; raises ValueError if it fails."""
    done = subprocess.run(["git", "-C", str(repository), *args], capture_output=True)
    if done.returncode:
        raise ValueError(done.stderr.decode().strip().splitlines()[-1])
    return done.stdout


if __name__ == "__main__":
    main()
