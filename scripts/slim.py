"""Leave what a project of its own needs: `make slim`.

The examples, the benchmarks, the engine's tests and the pages about the template go, and with them
the lines that name them. The recipes, the project and its tests, the engine, docs/your-own.md and
CONTRIBUTING.md stay. Changes are left in git to look at.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GONE = ["examples", "benchmarks", "tests/engine", "mkdocs.yml", ".github/workflows/template.yml"]
GONE += ["scripts/site.py", "scripts/slim.py", ":(exclude)docs/your-own.md", "docs"]
EDITS = [  # file, pattern, replacement: each is found
    ("train.py", r"(?m)^.*\bexamples\..*\n", ""),
    ("pyproject.toml", r', "examples[^"]*"', ""),
    ("pyproject.toml", r'"tests/engine", ', ""),
    (".gitignore", r"/lab.html\n/answers.yaml\n", ""),
    ("Makefile", r"(?s)\n# ---- The template's own.*", ""),
    ("Makefile", r"(?m)^# make bench .*\n", ""),
]
LINK = re.compile(r"!?\[([^]]*)\]\(([^)#:]+)(?:#[^)]*)?\)")
README = """# {title}

```sh
make train                                            # digits, by configs/mnist.yaml
make train ARGS="--config=configs/photos_resnet18.yaml --data.root=FOLDER"
make test                                             # the project's tests
make upgrade VERSION=v2.2.0 FROM=address-or-folder    # a later version of the engine
```

`train.py`, `configs/`, `src/{name}/` and `tests/project/` are the project's, `src/anneal/` is the
engine. `python train.py --help` has the commands; [docs/your-own.md](docs/your-own.md) has an
example of each part that a project replaces; [CONTRIBUTING.md](CONTRIBUTING.md) is about tests
and style.

Made from a template, under its [license](LICENSE).
"""


def main() -> None:
    if git("status", "--porcelain"):
        sys.exit("error: some changes are not committed: commit them first")
    edited = {name: (ROOT / name).read_text() for name, _, _ in EDITS}
    for name, pattern, replacement in EDITS:
        edited[name], found = re.subn(pattern, replacement, edited[name])
        if not found:
            sys.exit(f"error: {name} has no {pattern!r} any more: correct scripts/slim.py")
    git("rm", "-rqf", "--", *GONE)
    for name, text in edited.items():
        (ROOT / name).write_text(text)
    readme = ROOT / "README.md"
    if readme.read_text().startswith("# Anneal\n"):  # the template's, not yet the project's
        name = tomllib.loads(edited["pyproject.toml"])["project"]["name"]
        readme.write_text(README.format(title=name.replace("_", " ").title(), name=name))
    for page in (readme, ROOT / "CONTRIBUTING.md", ROOT / "docs/your-own.md"):
        text = LINK.sub(lambda link, page=page: text_of(link, page), page.read_text())
        page.write_text(text)
    print("git diff HEAD shows what has changed, make test tries it")


def text_of(link: re.Match[str], page: Path) -> str:
    """Return a link as it is, or its text alone where what it leads to is gone."""
    if (page.parent / link[2]).exists():
        return link[0]
    return "" if link[0].startswith("!") else link[1]


def git(*args: str) -> str:
    """Return what git says."""
    command = ["git", "-C", str(ROOT), *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
