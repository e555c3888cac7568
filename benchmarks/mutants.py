"""Changes the engine's core in places drawn at random, and counts what its fast tests notice.

mutmut makes the changes (an operator, a number, a text, an argument, a name ...), one at a time,
and runs the tests that reach the changed function. `mutants.toml` says which files are the core and
which tests judge, `mutants.txt` lists the changes that change nothing. Of each file the same share
of changes is drawn, with a fixed seed. Ends with status 1 if fewer than 90 % are noticed.

    pip install mutmut==3.8.1
    python benchmarks/mutants.py               # one in 18: 330 changes, 40 minutes of one core
    python benchmarks/mutants.py --one-in=100
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
MUTMUT = Path(sys.executable).with_name("mutmut")
STATUS = {0: "survived", 1: "noticed", 3: "noticed", 33: "no test", 36: "timeout", -24: "timeout"}


def change_of(name: str, folder: Path) -> str:
    """The lines that a mutant changes, as one line."""
    command = [MUTMUT, "show", name]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    lines = [x for x in shown.splitlines() if x[:1] in "+-" and x[:3] not in ("+++", "---")]
    return " ".join(" ".join(lines).split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one-in", type=int, default=18, help="of so many changes one is tried")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=HERE.parent, text=True).split("\0")[:-1]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE.parent / name, folder / name)
    with (folder / "pyproject.toml").open("a") as file:
        file.write((HERE / "mutants.toml").read_text())
    mutmut = [MUTMUT, "run", "--max-children=1"]
    # There is no such mutant: it makes them all, finds which tests reach which, and ends.
    subprocess.run([*mutmut, "nothing"], cwd=folder, stderr=subprocess.DEVNULL)
    files = sorted((folder / "mutants").rglob("*.meta"))
    drawn = []
    for file in files:
        names = sorted(json.loads(file.read_text())["exit_code_by_key"])
        draw = random.Random(file.name).sample
        drawn += draw(names, -(-len(names) // args.one_in))
    subprocess.run([*mutmut, *drawn], cwd=folder, check=True)
    codes = {k: v for f in files for k, v in json.loads(f.read_text())["exit_code_by_key"].items()}
    equivalent = {x.rpartition(" | ")[0] for x in (HERE / "mutants.txt").read_text().splitlines()}
    counts: Counter[str] = Counter()
    for name in drawn:
        status = STATUS.get(codes[name], f"status {codes[name]}")
        if status in ("survived", "no test"):
            module = name.partition(".x")[0]
            change = f"{module} | {change_of(name, folder)}"
            status = "changes nothing" if change in equivalent else status
            print(f"{status}: {name}\n    {change}")
        counts[status] += 1
    noticed = counts["noticed"] + counts["timeout"]
    share = noticed / (len(drawn) - counts["changes nothing"])
    print(f"{folder}: {len(drawn)} of {len(codes)}: {dict(counts)}: {share:.1%} noticed")
    sys.exit(share < 0.9)


if __name__ == "__main__":
    main()
