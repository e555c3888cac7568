"""Make the site of docs/ in site/: `python scripts/site.py` or `make docs`.

The pages are those that GitHub shows. The site has a reference besides, made from docstrings and
type hints, and no links to files outside of docs/. Whatever is wrong with a page is an error.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "anneal"
PAGES = ROOT / "build" / "docs"


def main() -> None:
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    for path in PAGES.glob("*.md"):
        # Of a link that leads out of docs/, the text.
        text = re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", path.read_text())
        text = text.replace("\n`lab.html`", "\n[`lab.html`](lab.html)")  # which is made below
        path.write_text(text.replace("](README.md", "](index.md"))
    (PAGES / "README.md").rename(PAGES / "index.md")
    lab = [sys.executable, "train.py", "lab", "-o", str(PAGES / "lab.html")]
    subprocess.run(lab, cwd=ROOT, check=True)
    for name, modules in reference().items():
        path = PAGES / "reference" / f"{name}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n\n" + "".join(f"::: {module}\n\n" for module in modules))
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    print(done.stdout, end="")
    # A docstring that does not go with its signature: said by griffe, and no error to Zensical.
    sys.exit(done.returncode or "griffe: " in done.stdout)


def reference() -> dict[str, list[str]]:
    """Return modules by page: one for each folder, and one for what lies beside the folders."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if not parts[-1].startswith("__") and "clone" not in parts:  # scripts of make
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return found


if __name__ == "__main__":
    main()
