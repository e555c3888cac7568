"""The ladder: the jump of the accuracy at each drop, in stored runs and in a short one."""

import re
import shlex
import shutil
from pathlib import Path

import yaml
from PIL import Image

from anneal.runs.run import Run
from examples.optimizers import gallery, lab
from examples.optimizers.figure import looks_like
from examples.optimizers.figures import ROOT, commands, main
from examples.optimizers.views import curves_of, jumps

PAGE = ROOT / "docs" / "ladder.md"
SWEEP, FIGURE = commands(PAGE)
STORED = Path(__file__).parent / "ladder"  # both runs of the sweep, without checkpoints


def test_the_accuracy_jumps_at_each_drop():
    runs = curves_of([str(STORED)])
    assert [run.name for run in runs] == ["scheduler=ReduceLROnPlateau", "scheduler=StepLR"]
    for run in runs:
        first, second = jumps(run)
        assert [round(drop.before / drop.after, 6) for drop in run.drops] == [10, 10]
        assert first.after > first.before + 0.1
        assert second.after > second.before + 0.01
        for jump in (first, second):
            accuracies = f"{100 * jump.before:.1f} % | {100 * jump.after:.1f} %"
            row = f"| {run.name.partition('=')[2]} | {jump.epoch:.0f} | {accuracies} |"
            assert row in PAGE.read_text()


def test_the_figure_of_the_page_is_drawn_by_its_command(tmp_path, monkeypatch):
    shutil.copytree(STORED, tmp_path / FIGURE[1])
    monkeypatch.chdir(tmp_path)
    assert main(FIGURE[1:]) == 0
    path = FIGURE[FIGURE.index("-o") + 1]
    assert looks_like(Image.open(path).convert("RGB"), ROOT / path)
    assert f"]({Path(path).relative_to('docs')})" in PAGE.read_text()


def test_what_can_not_be_drawn_is_one_line(tmp_path, capsys):
    shutil.copytree(STORED / "ladder-000", tmp_path / "it")
    (tmp_path / "it/metrics.csv").write_text("step,epoch,val/loss\n0,0,1\n1,1,0.5\n")
    ladder = [str(tmp_path / "it"), "--show=ladder"]
    blocked = ["-o", str(tmp_path / "it/config.yaml/new.png")]
    for words in ladder, ["--show=ladder"], [str(STORED), "--show=ladder", *blocked]:
        assert main(words) == 2
    assert lab.main(blocked) == gallery.main(["saddle", *blocked]) == 2
    no_metric, no_run, *no_file = capsys.readouterr().err.splitlines()
    assert no_metric == "error: --show=ladder: it has no lr or no val/acc in its metrics"
    assert no_run.startswith("error: figures: options are of a figure of runs")
    assert all(line.startswith("error: can't write ") for line in no_file)
    assert len(no_file) == 3


def test_a_short_run_jumps_too(run):
    content = yaml.safe_load((ROOT / SWEEP[1]).read_text())
    base, *flags = content["command"][3:-1]
    first = content["parameters"]["model.schedule.scheduler"]["values"][0]
    assert first["class_path"] == "StepLR"
    base = base.replace("configs/", f"{ROOT}/configs/")
    step = ["--model.schedule.scheduler=StepLR", "--model.schedule.scheduler.step_size=3"]
    run("fit", base, *flags, *step, "--trainer.max_epochs=5", "--run_name=it")
    (jump,) = jumps(Run.read(Path("runs/it")))
    assert jump.epoch == 3
    assert jump.after > jump.before + 0.1


def test_the_file_says_what_it_shows():
    header = (ROOT / SWEEP[1]).read_text().split("\n\n")[0]
    (words,) = re.findall("Run: +(.*)", header)
    assert shlex.split(words)[2:] == SWEEP
    assert all(f"# {word}:" in header for word in ("Expect", "Time"))
