"""Private names of other libraries stand in few files: they may change with any release."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Each says in which release its names were read.
ALLOWED = {
    "src/anneal/launch.py",
    "src/anneal/lightning_internals.py",
    "src/anneal/loggers/wandb.py",
}
# Documented in spite of their names.
DOCUMENTED = {"_replace", "_asdict", "_fields", "os._exit"}
LIMIT = 12


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(text: str) -> list[tuple[int, str]]:
    """Return the lines and names of attributes and imports that are private, but for one's own."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            name, owner = ast.unparse(node), ast.unparse(node.value)
            known = DOCUMENTED & {node.attr, name} or owner in ("self", "cls")
            if is_private(node.attr) and not known:
                found.append((node.lineno, name))
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [(node.lineno, name) for name in names if is_private(name)]
        elif isinstance(node, ast.Import):
            parts = [part for alias in node.names for part in alias.name.split(".")]
            found += [(node.lineno, part) for part in parts if is_private(part)]
    return found


def test_private_names_are_found():
    text = "from a._b import _c, d\nimport e._f\nx._y.z = self._own + w.__doc__\nos._exit(0)\n"
    assert [name for _, name in private_names(text)] == ["_b", "_c", "_f", "x._y"]


def test_private_names_of_other_libraries_are_few():
    found = []
    for folder in ("src", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in ALLOWED and "tests" not in path.parts:
                found += [f"{name}:{line} {what}" for line, what in private_names(path.read_text())]
    assert len(found) <= LIMIT, "\n".join(found)
