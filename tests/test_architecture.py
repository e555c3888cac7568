"""The diagram of docs/architecture.md has the imports that there are, and no others."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text()
SOURCE = next(ROOT.glob("src/*/cli.py")).parent
REST = "commands"
UNDRAWN = "base"


def groups() -> dict[str, str]:
    """The group of each file and folder that the page's table names."""
    rows = re.findall(r"^\| (\w+) \| (.+) \|$", PAGE, re.MULTILINE)
    return {
        name: group
        for group, text in rows
        if group != REST
        for name in re.findall(r"`(\w+)(?:\.py|/)`", text)
    }


def imported(path: Path) -> set[str]:
    """The first names below the package that a file imports, at its top or in a function."""
    package = SOURCE.name
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == package:
            found |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.split(".")[1] for name in found if name.startswith(f"{package}.")}


def arrows() -> set[tuple[str, str]]:
    group_of = groups()
    found = set()
    for path in SOURCE.rglob("*.py"):
        top = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        here = group_of.get(top, REST)
        found |= {(here, group_of.get(name, REST)) for name in imported(path)}
    return {(a, b) for a, b in found if a != b and UNDRAWN not in (a, b)}


def test_every_arrow_is_an_import_and_every_import_an_arrow():
    (diagram,) = re.findall(r"```mermaid\n(.*?)```", PAGE, re.DOTALL)
    drawn = set(re.findall(r"(\w+) --> (\w+)", diagram))
    assert drawn == arrows()


def test_every_name_in_the_table_is_a_file():
    for name in groups():
        assert (SOURCE / name).is_dir() or (SOURCE / f"{name}.py").is_file(), name


def test_what_a_clone_changes_knows_nothing_of_the_commands():
    low = {"data", "modules", "callbacks", "optim", "loggers"}
    assert not [arrow for arrow in arrows() if arrow[0] in low and arrow[1] == REST]
