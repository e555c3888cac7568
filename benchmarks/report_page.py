"""Seconds in which a report's page opens in Chromium, and how often those of a page with one run.

Makes runs in which every metric is logged at every step, reports on all of them and on one, and
opens both pages some times: from the request until the curves are on the screen.

    python benchmarks/report_page.py
    python benchmarks/report_page.py --runs=20 --points=100000
"""

import argparse
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from playwright.sync_api import Browser, sync_playwright
from turns import Row, hand_over, in_turns, ratio

from anneal.report.curves import lines_of
from anneal.report.page import page, read

DRAWN = "() => new Promise(r => requestAnimationFrame(() => setTimeout(r)))"


def make_runs(root: Path, runs: int, points: int) -> None:
    """Folders that differ in their curves' height and in the learning rate."""
    steps = np.arange(points)
    noise = np.random.default_rng(0).normal(size=points) / 20
    for i in range(runs):
        lr = 10 ** (-4 + 4 * i / runs)
        metrics = pd.DataFrame({"step": steps, "epoch": steps // 100, "time": steps / 10})
        metrics["lr"] = lr * 0.1 ** (3 * steps // points)
        metrics["samples"] = 64 * (steps + 1)
        for stage in ("train", "val"):
            metrics[f"{stage}/loss"] = (1 + i / runs) / (1 + 10 * steps / points) + noise
            metrics[f"{stage}/acc"] = 1 - metrics[f"{stage}/loss"] / 3
        folder = root / f"run-{i:03}"
        folder.mkdir(parents=True)
        metrics.to_csv(folder / "metrics.csv", index=False)
        (folder / "config.yaml").write_text(f"model: {{optimizer: {{lr: {lr}}}}}\n")


def opening(browser: Browser, path: Path) -> float:
    tab = browser.new_page(viewport={"width": 1300, "height": 1000})
    start = time.perf_counter()
    tab.goto(path.as_uri(), timeout=300_000)
    tab.evaluate(DRAWN)
    spent = time.perf_counter() - start
    tab.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    )
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        make_runs(root / "runs", args.runs, args.points)
        pages = {}
        for name, words in {"all": ["runs"], "one": ["runs/run-000"]}.items():
            start = time.perf_counter()
            runs = read([str(root / word) for word in words])
            pages[name] = root / f"{name}.html"
            pages[name].write_text(page(runs, lines_of(runs)))
            size = pages[name].stat().st_size / 1e6
            print(f"{len(runs)} runs: {size:.1f} MB, made in {time.perf_counter() - start:.1f} s")
        browser = playwright.chromium.launch(executable_path=program)
        opening(browser, pages["one"])  # the first page pays for the browser's own start
        ways = {name: partial(opening, browser, path) for name, path in pages.items()}
        found = in_turns(ways, args.times)
        browser.close()
    value, text = ratio(found["all"], found["one"])
    here, peer = (f"{statistics.median(found[name]):.2f} s" for name in ("all", "one"))
    name = f"{args.runs} runs of {args.points:,} points"
    hand_over([Row(name, value, {"opens in": here, "one run": peer, "ratio": text})])


if __name__ == "__main__":
    main()
