"""Check that `import anneal` finds the engine of this checkout: `make setup`.

PyPI has an unrelated project of the same name, which hides this one where it is installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[1]


def main() -> None:
    spec = find_spec("anneal")
    found = Path(spec.origin).resolve().parent if spec and spec.origin else None
    if found != ENGINE:
        print(
            f"error: `import anneal` finds {found or 'nothing'}, not {ENGINE}: remove the other "
            "one (.venv/bin/pip uninstall anneal, or PYTHONPATH) and run make setup again",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
