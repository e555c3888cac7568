"""Changes the engine's core in places drawn at random, and counts what its fast tests notice.

mutmut makes the changes (an operator, a number, a text, an argument), one at a time, and runs tests
that reach the changed function. `mutants.toml` has the files and the tests, `mutants.txt` what
changes nothing, with the reason. Of each file the same share is drawn, always the same ones.
Ends with status 1 if fewer than 90 % are noticed.

    pip install mutmut==3.8.1
    python benchmarks/mutants.py        # one change in 18: about 330, half an hour of one core
    python benchmarks/mutants.py 100    # one in 100
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MUTMUT = Path(sys.executable).with_name("mutmut")
NOTICED = {1: "noticed", 3: "noticed", 36: "timeout", -24: "timeout"}


def shorter(stats: dict[str, Any]) -> dict[str, Any]:
    """Leave the fastest of the tests that reach a function: 10 seconds of them, or one."""
    seconds = stats["duration_by_test"]
    for tests in stats["tests_by_mangled_function_name"].values():
        tests.sort(key=seconds.get)
        ends = accumulate(seconds[test] + 0.02 for test in tests)  # it has a setup too
        del tests[max(1, sum(end < 10 for end in ends)) :]
    return stats


def main() -> None:
    one_in = int((sys.argv[1:] or ["18"])[0])
    folder = Path(tempfile.mkdtemp(prefix="mutants-"))
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=HERE.parent, text=True).splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(HERE.parent / name, folder / name)
    with (folder / "pyproject.toml").open("a") as file:
        file.write((HERE / "mutants.toml").read_text())
    run = [MUTMUT, "run", "--max-children=1"]
    # Of that name there is none: this makes all of them, finds what tests reach, and ends.
    subprocess.run([*run, "nothing"], cwd=folder, stderr=subprocess.DEVNULL)
    if not (stats := folder / "mutants/mutmut-stats.json").exists():
        sys.exit(f"error: the tests fail in {folder} before anything is changed")
    stats.write_text(json.dumps(shorter(json.loads(stats.read_text()))))
    drawn, codes = [], {}
    for file in (files := sorted(folder.glob("mutants/**/*.meta"))):
        names = sorted(json.loads(file.read_text())["exit_code_by_key"])
        drawn += random.Random(file.name).sample(names, -(-len(names) // one_in))
    subprocess.run([*run, *drawn], cwd=folder, check=True)
    for file in files:
        codes |= json.loads(file.read_text())["exit_code_by_key"]
    same = {line.rpartition(" # ")[0] for line in (HERE / "mutants.txt").read_text().splitlines()}
    counts: Counter[str] = Counter()
    for name in drawn:
        status = NOTICED.get(codes[name], "survived")
        if status == "survived":
            show = subprocess.check_output([MUTMUT, "show", name], cwd=folder, text=True)
            lines = [x for x in show.splitlines() if x[:1] in ("+", "-") and x[1:3] not in "++--"]
            change = " ".join([name.partition(".x")[0] + ":", *" ".join(lines).split()])
            status = "changes nothing" if change in same else status
            print(f"{status}: {name}\n{change}")
        counts[status] += 1
    share = (counts["noticed"] + counts["timeout"]) / (len(drawn) - counts["changes nothing"])
    print(f"{len(drawn)} of {len(codes)} in {folder}: {dict(counts)}, {share:.1%} noticed")
    sys.exit(share < 0.9)


if __name__ == "__main__":
    main()
