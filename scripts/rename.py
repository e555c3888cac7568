"""Gives the project a name of yours: `python scripts/rename.py NAME` or `make rename NAME=...`.

Renames the package, and writes the new name wherever a file in git has the old one. LICENSE keeps
it, as its terms ask. Can be run again.
"""

import argparse
import keyword
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]


def title(name: str) -> str:
    """A name as it stands in prose: My Project."""
    return name.replace("_", " ").title()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the package: small letters, digits and _")
    parser.add_argument("--dirty", action="store_true", help="also where changes are not committed")
    args = parser.parse_args()
    old = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"]
    try:
        files = [ROOT / name for name in git("ls-files", "-z").split("\0") if name]
        files = [path for path in files if path.is_file() and path.name != "LICENSE"]
        if reason := refusal(args.name, old, files):
            raise ValueError(f"{args.name}: {reason}")
        if git("status", "--porcelain") and not args.dirty:
            raise ValueError("some changes are not committed: commit them first, or say --dirty")
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    changed = sum(replace(path, old, args.name) for path in files)
    git("mv", f"src/{old}", f"src/{args.name}")
    for left in (ROOT / "src" / old, ROOT / "src" / f"{old}.egg-info"):  # what git ignores
        shutil.rmtree(left, ignore_errors=True)
    (ROOT / ".venv" / "installed").unlink(missing_ok=True)  # the next make installs it
    if find_spec("ruff"):  # imports are sorted by name, and lines have another length
        for command in (["check", "--fix", "--select=I", "--quiet"], ["format"], ["check"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, str(ROOT)])
    print(
        f"{old} is {args.name} now, in {changed} files; git diff shows them, make setup installs "
        f"it, make test tries it. Runs from before name classes of {old}, and can't be loaded.\n"
        "README.md, docs/ and the description in pyproject.toml still say what the template is: "
        "yours to write."
    )


def git(*args: str) -> str:
    """What git says; raises ValueError if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def refusal(name: str, old: str, files: list[Path]) -> str:
    """Why a project can't be called so, or an empty string."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        return "a package's name has small letters, digits and _, and is no word of Python's"
    if name == old:
        return "is its name already"
    if name in sys.stdlib_module_names or find_spec(name):
        return "there is a module of that name, which it would hide"
    used = [path for path in files if re.search(rf"\b{name}\b", text(path))]
    if used:
        return f"{used[0].relative_to(ROOT)} uses the word for something else"
    return ""


def replace(path: Path, old: str, new: str) -> bool:
    """Writes the new name into a file; returns whether that changed it."""
    before = text(path)
    after = re.sub(rf"\b{old}\b", new, before)
    after = re.sub(rf"\b{title(old)}\b", title(new), after)
    if after != before:
        path.write_text(after, encoding="utf-8")
    return after != before


def text(path: Path) -> str:
    """A file's text; of one that is no text, nothing."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


if __name__ == "__main__":
    main()
