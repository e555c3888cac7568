"""The ladder: the jump of the accuracy at each drop, in stored runs and in a short one."""

import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from anneal.runs.run import Run
from examples.optimizers.figure import looks_like
from examples.optimizers.figures import ROOT, commands, main
from examples.optimizers.views import curves_of, jumps

PAGE = ROOT / "docs" / "ladder.md"
SWEEP, *OTHERS = commands(PAGE)
STORED = Path(__file__).parent / "ladder"  # the runs of the page, without checkpoints
DRAWN = [words for words in OTHERS if words[0] == "figures"]
NAMES = "scheduler=ReduceLROnPlateau scheduler=StepLR", "imagenette-plateau imagenette-step"


@pytest.mark.parametrize(("words", "names"), [*zip(DRAWN, NAMES, strict=True)])
def test_the_accuracy_jumps_at_each_drop_as_drawn(words, names, tmp_path, monkeypatch):
    shutil.copytree(STORED, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    runs = curves_of(words[1 : words.index("--show=ladder")])
    assert [run.name for run in runs] == names.split()
    for run in runs:
        assert [round(drop.before / drop.after, 6) for drop in run.drops] == [10, 10]
        for (epoch, before, after), least in zip(jumps(run), (0.1, 0.01), strict=True):
            assert after > before + least
            accuracies = f"{100 * before:.1f} % | {100 * after:.1f} %"
            row = f"| {run.name.removeprefix('scheduler=')} | {epoch:.0f} | {accuracies} |"
            assert row in PAGE.read_text()
    assert main(words) == 0
    path = words[words.index("-o") + 1]
    assert looks_like(Image.open(path).convert("RGB"), ROOT / path)


def test_a_short_run_jumps_too(run):
    content = yaml.safe_load((ROOT / SWEEP[1]).read_text())
    base, *flags = content["command"][3:-1]
    first = content["parameters"]["model.schedule.scheduler"]["values"][0]
    assert first["class_path"] == "StepLR"
    base = base.replace("configs/", f"{ROOT}/configs/")
    step = ["--model.schedule.scheduler=StepLR", "--model.schedule.scheduler.step_size=3"]
    run("fit", base, *flags, *step, "--trainer.max_epochs=5", "--run_name=it")
    ((epoch, before, after),) = jumps(Run.read(Path("runs/it")))
    assert epoch == 3
    assert after > before + 0.1
