"""Runs the benchmarks of claims.yaml, keeps their figures in results.json and writes README.md.

    python benchmarks                                # all that need no data set and no peer
    python benchmarks --mnist=data --template=../lightning-hydra-template
    python benchmarks raw_loop startup               # these alone
    python benchmarks --list                         # what would run; README.md is written again

What a claim can't run without is an option here: the path of a data set or of a peer's checkout.
Claims that are not run keep their last figures, each with its date and versions.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from string import Formatter
from typing import Any

import yaml

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
PACKAGES = ("torch", "torchvision", "lightning")
INTRO = """# Benchmarks

Each is one command that prints its figures beside a named peer's: medians, and in brackets the
extremes of the ratio over turns that ran one after the other on the same machine and data. This
page is written by `make bench` from `claims.yaml`, which has the goals, and `results.json`."""
Claim = dict[str, Any]


def needs(claim: Claim) -> list[str]:
    """Names of the paths in a claim's command."""
    return [name for _, name, _, _ in Formatter().parse(claim["command"]) if name]


def stem(claim: Claim) -> str:
    """Name of its script, without the ending."""
    return Path(claim["command"].split()[0]).stem


def machine() -> str:
    """Processor, cores, versions and today's date."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    python = platform.python_version()
    return f"{date.today()}: {os.cpu_count()} cores of {cpu}, Python {python}, {versions}"


def run(claim: Claim, paths: dict[str, str]) -> list[dict[str, Any]] | None:
    """The rows that a claim's script hands over; None if it fails."""
    script, *words = (word.format(**paths) for word in shlex.split(claim["command"]))
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder, "figures.json")
        env = {**os.environ, "FIGURES": str(figures)}
        if subprocess.run([sys.executable, str(HERE / script), *words], env=env).returncode:
            return None
        return json.loads(figures.read_text())


def is_met(goal: dict[str, float], value: float) -> bool:
    return value <= goal.get("at most", value) and value >= goal.get("at least", value)


def section(claim: Claim, result: dict[str, Any] | None) -> str:
    """A claim's part of README.md."""
    command = claim["command"].format(**{name: name.upper() for name in needs(claim)})
    parts = [f"## `python benchmarks/{command}`", claim["says"].strip()]
    if result is None:
        return "\n\n".join([*parts, claim.get("elsewhere", "Not run yet.")])
    goals, reasons = claim.get("goals", {}), claim.get("missed", {})
    columns = list(dict.fromkeys(column for row in result["rows"] for column in row["cells"]))
    table = [["", *columns, "goal"], ["---"] * (len(columns) + 2)]
    notes = []
    for row in result["rows"]:
        text = ""
        if goal := goals.get(row["name"]):
            wanted = " and ".join(f"{word} {number:g}" for word, number in goal.items())
            met = is_met(goal, row["value"])
            text = f"{wanted}: {'met' if met else 'missed'}"
            if not met:
                reason = reasons.get(row["name"], "no profile yet.")
                notes.append(f"Missed, {row['name']}: {reason}")
        table.append([row["name"], *(row["cells"].get(c, "") for c in columns), text])
    if not goals:
        table = [line[:-1] for line in table]
    lines = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return "\n\n".join([*parts, lines, *notes, result["machine"]])


def readme(claims: list[Claim], results: dict[str, Any]) -> str:
    """All of README.md."""
    return "\n\n".join([INTRO, *(section(c, results.get(stem(c))) for c in claims)]) + "\n"


def main(words: list[str] | None = None) -> None:
    claims: list[Claim] = yaml.safe_load((HERE / "claims.yaml").read_text())
    parser = argparse.ArgumentParser(prog="python benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="of scripts; all if unset")
    parser.add_argument("--list", action="store_true", help="run nothing, write README.md again")
    for name in dict.fromkeys(name for claim in claims for name in needs(claim)):
        parser.add_argument(f"--{name}", metavar="PATH")
    paths = vars(parser.parse_args(words))
    names, only_list = paths.pop("names"), paths.pop("list")
    if unknown := set(names) - {stem(claim) for claim in claims}:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    failed = []
    for claim in claims:
        name = stem(claim)
        missing = [f"--{need}" for need in needs(claim) if not paths[need]]
        if names and name not in names:
            continue
        if "elsewhere" in claim:
            print(f"{name}: not run, a command of its own", flush=True)
        elif missing:
            print(f"{name}: not run, needs {' '.join(missing)}", flush=True)
        elif only_list:
            print(f"{name}: ready", flush=True)
        else:
            print(f"{name}:", flush=True)
            if rows := run(claim, paths):
                results[name] = {"machine": machine(), "rows": rows}
                RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
            else:
                failed.append(name)
    README.write_text(readme(claims, results))
    if failed:
        sys.exit(f"error: no figures from {', '.join(failed)}: see above")


if __name__ == "__main__":
    main()
