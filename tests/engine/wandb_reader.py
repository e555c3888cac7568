"""Reads back what wandb recorded in a run's folder, with wandb's own reader."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Recording:
    """What one process recorded: a run that was resumed has several."""

    folder: Path
    run: dict[str, Any] = field(default_factory=dict)  # run_id, project, display_name, tags ...
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)  # as defined, with their x axis
    files: set[str] = field(default_factory=set)
    exit_code: int | None = None


def read(run_dir: str | Path) -> list[Recording]:
    """The recordings in `run_dir`/wandb, oldest first."""
    files = Path(run_dir).glob("wandb/*run-*/run-*.wandb")
    return [_read(file) for file in sorted(files, key=lambda f: f.parent.name.split("run-")[1])]


def _read(file: Path) -> Recording:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(file), "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    recording = Recording(file.parent)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        content = record.get(record["type"], {})
        match record["type"]:
            case "run":
                recording.run |= content
            case "config":
                recording.config |= content.get("update", {})
            case "history":
                recording.history.append(content["item"])
            case "metric":
                recording.metrics.append(content)
            case "files":
                recording.files |= {entry["path"] for entry in content["files"]}
            case "exit":
                recording.exit_code = content.get("exit_code", 0)
    return recording
