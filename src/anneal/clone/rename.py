"""Give the project's package a name of yours: `make rename NAME=...`, as often as you like.

Where a file in git names the package (imports, `src/NAME`, `NAME.models...`, the distribution in
pyproject.toml), it has the new name afterwards. The engine and its tests never name it. The word
itself stays where it is an ordinary one.
"""

import argparse
import keyword
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NOT_OURS = ("src/anneal/", "tests/engine/", "LICENSE", "CHANGELOG.md", "requirements.lock")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the package: small letters, digits and _")
    parser.add_argument("--dirty", action="store_true", help="also where changes are not committed")
    args = parser.parse_args()
    try:
        old = current_name()
        files = [n for n in git("ls-files", "-z").split("\0") if n and not n.startswith(NOT_OURS)]
        texts = {ROOT / n: text for n in files if (text := read(ROOT / n))}
        submodules = {path.stem for path in (ROOT / "src" / old).iterdir()}
        # Files that a page tells to write there, too.
        submodules |= set(re.findall(rf"\bsrc/{old}/(\w+)", "\n".join(texts.values())))
        if reason := refusal(args.name, old, texts, submodules):
            raise ValueError(f"{args.name}: {reason}")
        if git("status", "--porcelain") and not args.dirty:
            raise ValueError("some changes are not committed: commit them first")
    except (ValueError, OSError) as e:
        sys.exit(f"error: {e}")
    changed = {path: pattern(old, submodules).sub(args.name, text) for path, text in texts.items()}
    for path in [path for path, text in changed.items() if text != texts[path]]:
        path.write_text(changed[path], encoding="utf-8")
    git("mv", f"src/{old}", f"src/{args.name}")
    for left in (ROOT / "src" / old, ROOT / "src" / f"{old}.egg-info"):  # what git ignores
        shutil.rmtree(left, ignore_errors=True)
    (ROOT / ".venv" / "installed").unlink(missing_ok=True)  # the next make installs it
    for command in (["check", "--fix", "--select=I", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(ROOT)])
    print(f"{old} is {args.name} now: git diff shows where, make test tries it")


def current_name() -> str:
    """Return the package that train.py names first."""
    found = re.search(r"^PACKAGES = \[\s*[\"'](\w+)", read(ROOT / "train.py"), re.MULTILINE)
    if not found or not (ROOT / "src" / found[1]).is_dir():
        raise ValueError("train.py has no line PACKAGES = [...] that begins with a package of src/")
    return found[1]


def pattern(name: str, submodules: set[str]) -> re.Pattern[str]:
    """Return what finds a package's name, and not the same word meaning something else."""
    below = "|".join(sorted(submodules))
    return re.compile(
        rf"(?<=src/){name}\b"
        rf"|(?<![\w.-]){name}(?=\.({below})\b)"
        rf"|(?<=\bfrom ){name}(?=(?:\.\w+)* import\b)"
        rf"|(?<=\bimport ){name}(?=\.\w|$| as )"
        rf"|(?<=^name = \"){name}(?=\")|(?<=forbidden_modules = \[\"){name}(?=\")",
        re.MULTILINE,
    )


def refusal(name: str, old: str, texts: dict[Path, str], submodules: set[str]) -> str:
    """Return why the package can't be called so, or an empty string."""
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        return "a package's name has small letters, digits and _, and is no word of Python's"
    if name == old:
        return "is its name already"
    files = [path.relative_to(ROOT) for path in [*texts, *(ROOT / "tests/engine").glob("*.py")]]
    here = {path.parts[0].removesuffix(".py") for path in files}
    here |= {path.stem for path in files if path.suffix == ".py" and path.parts[0] != "src"}
    if name in sys.stdlib_module_names or find_spec(name) or name in here:
        return "there is a module of that name, which it would hide"
    used = [path for path, text in texts.items() if pattern(name, submodules).search(text)]
    return f"{used[0].relative_to(ROOT)} uses the word for something else" if used else ""


def git(*args: str) -> str:
    """Return what git says; raises ValueError if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return done.stdout


def read(path: Path) -> str:
    """Return a file's text; of one that has none, or is gone, nothing."""
    with suppress(UnicodeDecodeError):
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    return ""


if __name__ == "__main__":
    main()
