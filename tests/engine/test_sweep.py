"""Sweeps: W&B's files, Optuna's choices, a process for each trial, and what a kill leaves."""

import csv
import json
import math
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import numpy as np
import optuna
import pytest
import scipy.stats
import yaml
from helpers import SMALL, is_alive
from pages import ROOT, commands
from wandb_reader import read as read_wandb

from anneal.errors import UserError
from anneal.sweep.file import read
from anneal.sweep.main import main
from anneal.sweep.result import Row, plot
from anneal.sweep.space import parameter
from anneal.sweep.study import FAILED, FINISHED, Study
from anneal.testing import logged, wait_for
from anneal.testing import main as train

READY = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
SCRIPT = """
import json, os, sys, time
args = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
with open("calls.txt", "a") as file:
    print(json.dumps({**args, "pid": os.getpid(), "t": os.environ["OMP_NUM_THREADS"]}), file=file)
x = float(args["x"])
with open(os.environ["WANDB_DIR"] + "/metrics.csv", "w") as file:
    print("step,loss", file=file)
    for step in range(int(args.get("steps", 1))):
        while os.path.exists(f"hold-{args['x']}-{step}"):
            time.sleep(0.01)
        print(f"{step},{(x - 3) ** 2}", file=file, flush=True)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with a script for trials; a file hold-X-STEP holds one up."""
    monkeypatch.chdir(tmp_path)
    ensure_running()  # before one that has imported nothing is started for scripts
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path


def write(folder: Path, parameters: dict, **more) -> Path:
    content = {
        "program": "script.py",
        "method": "grid",
        "metric": {"name": "loss"},
        "parameters": parameters,
        **more,
    }
    path = folder / "try.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def calls(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "calls.txt").read_text().splitlines()]


def table(folder: Path, name: str = "try") -> list[dict]:
    with (folder / f"runs/sweeps/{name}/table.csv").open() as file:
        return list(csv.DictReader(file))


def tool(name: str, *args: str) -> list[str]:
    """The words that start a tool as a process of its own."""
    module = {"sweep": "anneal.sweep.main", "report": "anneal.report.page"}[name]
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *args]


def start(folder: Path, *args: str, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        tool("sweep", *args),
        cwd=folder,
        env={**os.environ, "HOME": str(folder), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# ---- sweep files


def test_the_words_of_a_command_are_those_of_wandbs_agent(folder, monkeypatch):
    monkeypatch.setenv("CARD", "3")
    macros = ("args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags", "args_json")
    command = ["${env}", "${interpreter}", "${program}", "--card=${envvar:CARD}", "--n", 5]
    parameters = {
        "b": {"parameters": {"c": {"values": [0.5]}, "d": {"value": False}}},
        "a.e": {"value": True},
    }
    tree = "{'c': 0.5, 'd': False}"
    expected = {
        "args": ["--a.e=True", f"--b={tree}"],
        "args_no_hyphens": ["a.e=True", f"b={tree}"],
        "args_no_equals": ["--a.e", "True", "--b", tree],
        "args_no_boolean_flags": ["--a.e", f"--b={tree}"],
        "args_json": ['{"a.e": true, "b": {"c": 0.5, "d": false}}'],
    }
    for macro in macros:
        sweep = read(write(folder, parameters, command=[*command, f"${{{macro}}}"]))
        words = sweep.words({"b.c": 0.5}, folder / "args.json")
        head = ["/usr/bin/env", sys.executable, "script.py", "--card=3", "--n", "5"]
        assert words == head + expected[macro]
    sweep = read(write(folder, parameters, command=["cat", "${args_json_file}"]))
    assert sweep.words({"b.c": 0.5}, folder / "args.json") == ["cat", str(folder / "args.json")]
    assert json.loads((folder / "args.json").read_text())["b"] == {"c": 0.5, "d": False}


MACROS = {
    "args": ["${args}"],
    "no_equals": ["${args_no_equals}"],
    "no_boolean_flags": ["${args_no_boolean_flags}"],
    "json": ["${args_json}"],
    "override_hydra": ["${args_override_hydra}"],
    "json_file": ["--config", "${args_json_file}"],
}


@pytest.mark.parametrize("macro", MACROS)
def test_a_trainings_configuration_is_what_the_table_says(folder, capsys, macro):
    optimizer = {"class_path": "SGD", "init_args": {"lr": 1e-5, "nesterov": False, "fused": None}}
    parameters = {
        "model.decay_bias": {"values": [True, False]},
        "model.optimizer": {"values": [optimizer]},
        "data": {"parameters": {"batch_size": {"value": 16}, "predict_path": {"value": None}}},
        "wandb.notes": {"value": "on"},
    }
    (folder / "small.yaml").write_text(SMALL)
    command = ["${env}", "${interpreter}", "${program}", "--config=small.yaml", *MACROS[macro]]
    program = str(ROOT / "train.py")
    sweep = read(write(folder, parameters, program=program, command=command))
    for point in sweep.grid():
        values = sweep.values(point)
        words = sweep.words(values, folder / "args.json")
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            train(["fit", *words[3:], "--print_config"])
        assert not e.value.code
        config = yaml.safe_load(capsys.readouterr().out)
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        assert model["decay_bias"] is values["model.decay_bias"]
        assert model["optimizer"]["class_path"] == "torch.optim.SGD"
        assert optimizer["init_args"].items() <= model["optimizer"]["init_args"].items()
        assert (data["batch_size"], data["predict_path"]) == (16, None)
        assert config["wandb"]["notes"] == "on"


LOG10 = math.log(10)
DISTRIBUTIONS = {
    "uniform": ({"min": -1.5, "max": 2.0}, scipy.stats.uniform(-1.5, 3.5)),
    "int_uniform": ({"min": 2, "max": 5}, scipy.stats.randint(2, 6)),
    "log_uniform_values": ({"min": 0.01, "max": 10}, scipy.stats.loguniform(0.01, 10)),
    "log_uniform": ({"min": -LOG10, "max": LOG10}, scipy.stats.loguniform(0.1, 10)),
    "inv_log_uniform": ({"min": -LOG10, "max": 2 * LOG10}, scipy.stats.loguniform(0.01, 10)),
    "inv_log_uniform_values": ({"min": 0.01, "max": 10}, scipy.stats.loguniform(0.01, 10)),
    "normal": ({"mu": 2.0, "sigma": 0.5}, scipy.stats.norm(2, 0.5)),
    "log_normal": ({"mu": 1.0, "sigma": 0.5}, scipy.stats.lognorm(0.5, scale=math.e)),
    "beta": ({"a": 2, "b": 5}, scipy.stats.beta(2, 5)),
    "q_uniform": ({"min": 0, "max": 10, "q": 0.5}, scipy.stats.uniform(0, 10)),
    "q_log_uniform_values": ({"min": 1, "max": 100, "q": 2}, scipy.stats.loguniform(1, 100)),
    "q_log_uniform": ({"min": 0, "max": 2 * LOG10, "q": 2}, scipy.stats.loguniform(1, 100)),
    "q_normal": ({"mu": 0, "sigma": 10}, scipy.stats.norm(0, 10)),
    "q_log_normal": ({"mu": 3, "sigma": 0.5}, scipy.stats.lognorm(0.5, scale=math.e**3)),
    "q_beta": ({"a": 2, "b": 5, "q": 0.1}, scipy.stats.beta(2, 5)),
}


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_a_parameter_is_distributed_as_wandb_says(kind):
    spec, expected = DISTRIBUTIONS[kind]
    p = parameter(("x",), {"distribution": kind, **spec})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = np.array([p.value(study.ask({"x": p.distribution}).params["x"]) for _ in range(500)])
    q = spec.get("q", 1) if kind.startswith("q_") else 0
    if q:
        assert np.allclose(values / q, np.round(values / q))
    places = np.unique(values) + q / 2  # all that is rounded to a value lies below this
    shares = [(values <= place).mean() for place in places]
    # Kolmogorov's bound at one in a thousand.
    assert np.abs(expected.cdf(places) - shares).max() < 1.95 / math.sqrt(500)


def test_plain_values_are_drawn_as_they_are_and_lists_as_text():
    p = parameter(("x",), {"values": ["a", 1, [2, 3], "a"]})
    assert p.grid == ["a", 1, "[2, 3]"]
    assert [p.value(drawn) for drawn in p.grid] == ["a", 1, [2, 3]]


def test_probabilities_of_values_are_kept():
    p = parameter(("x",), {"values": ["a", "b"], "probabilities": [0.2, 0.8]})
    assert [p.value(u) for u in (0.1, 0.19, 0.21, 0.99)] == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "custom"}, "method=custom: must be grid, random or bayes"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler: not supported"),
        ({"metric": {"name": "loss", "impute": "worst"}}, "metric.impute: not supported"),
        ({"metrics": []}, "metrics: not supported"),
        ({"methd": "grid"}, "methd: no such key; did you mean method?"),
        ({"program": "scirpt.py"}, "program=scirpt.py: no such file"),
        ({"command": ["${progam}"]}, "command: ${progam} is not supported; did you mean program?"),
        ({"parameters": {"x": {"distribution": "cauchy"}}}, "x.distribution=cauchy: not supported"),
        ({"parameters": {"x": {"min": 0.1, "max": 1.0}}}, "parameters.x: a grid needs values"),
        ({"parameters": {"x": 3}}, "parameters.x: write {value: 3} for a constant"),
        ({"parameters": {"x": {"min": "1e-4", "max": 1}}}, "write 1.0e-4"),
        ({"parameters": {"x": {"min": 1, "max": 3, "q": 1}}}, "x.q: int_uniform takes min, max"),
        *(
            ({"method": "random", "parameters": {"x": {"values": ["a", "b"], **shares}}}, "as many")
            for shares in ({"probabilities": [0.5, 0.4]}, {"probabilities": [1.0]})
        ),
        ({"early_terminate": {"type": "envelope"}}, "early_terminate.type=envelope"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 1.5}}, "eta=1.5: not sup"),
        ({"metric": None, "method": "bayes"}, "metric: bayes and early_terminate need"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_not_supported_is_refused_by_name(folder, capsys, change, message):
    parameters = change.pop("parameters", {"x": {"values": [1]}})
    assert main([str(write(folder, parameters, **change))]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"error: {folder}/try.yaml: ")
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_file_says_what_it_shows_and_its_command_is_accepted(path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    header = path.read_text().split("\n\n")[0]
    assert all(f"# {word}:" in header for word in ("Run", "Expect", "Time"))
    run = next(line for line in header.splitlines() if "Run:" in line)
    assert shlex.split(run)[2:6] == ["python", "train.py", "sweep", str(path.relative_to(ROOT))]
    sweep = read(path)
    first = {p.name: p.value(p.grid[0]) for p in sweep.parameters}
    words = sweep.words(first, Path(os.devnull))
    assert words[:3] == ["/usr/bin/env", sys.executable, "train.py"]
    with pytest.raises(SystemExit) as e:
        train([*words[3:], "--print_config"])
    assert not e.value.code


# ---- running them


def test_a_grid_runs_every_point_once_side_by_side_and_the_best_leads(folder, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # as OpenMP takes it: of nested regions
    file = write(folder, {"x": {"values": [1, 2, 3, 3]}, "y": {"min": 0, "max": 1}})
    assert main([str(file), "-j", "2"]) == 0
    points = [(c["x"], c["y"]) for c in calls(folder)]
    assert sorted(points) == [(x, y) for x in "123" for y in "01"]
    assert {c["t"] for c in calls(folder)} == {"2"}  # its share of the threads
    rows = table(folder)
    assert [float(r["loss"]) for r in rows] == [0, 0, 1, 1, 4, 4]
    assert {r["status"] for r in rows} == {"finished"}
    assert all((folder / r["folder"] / "metrics.csv").exists() for r in rows)
    assert (folder / "runs/sweeps/try/try.png").stat().st_size > 10_000
    assert "best" not in capsys.readouterr().out.splitlines()[1]
    assert main([str(file)]) == 0  # typed again
    assert len(calls(folder)) == 6


def test_failed_and_killed_trials_are_recorded_and_the_sweep_goes_on(folder):
    (folder / "script.py").write_text(
        "import os, sys, signal\n"
        f"{SCRIPT}\n"
        "if x == 0: raise ValueError('x is naught')\n"
        "if x == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if x == 2: os.remove(file.name)\n"
        "if x == 4: sys.exit('error: no luck')\n"
        "if x == 5: open(file.name, 'a').write('9,nan\\n')\n"
    )
    assert main([str(write(folder, {"x": {"min": 0, "max": 5}})), "-j", "2"]) == 0
    status = {int(r["x"]): r["status"] for r in table(folder)}
    assert status == {
        0: "failed: exit status 1: ValueError: x is naught",
        1: "failed: killed by SIGKILL",
        2: "failed: loss was not logged",
        3: "finished",
        4: "failed: exit status 1: error: no luck",
        5: "failed: loss is nan at the end",
    }
    log = next((folder / r["folder"] / "log.txt") for r in table(folder) if r["x"] == "0")
    assert "Traceback" in log.read_text()


def test_the_metric_of_a_script_that_logs_to_wandb_is_found(folder):
    (folder / "script.py").write_text(
        "import sys, wandb\n"
        "with wandb.init(mode='offline') as run:\n"
        "    for step in range(3):\n"
        "        run.log({'loss': step + float(sys.argv[1].partition('=')[2])})\n"
    )
    assert main([str(write(folder, {"x": {"values": [0.5]}}))]) == 0
    (row,) = table(folder)
    assert row["loss"] == "2.5"
    assert [r.run["run_group"] for r in read_wandb(folder / row["folder"])] == ["try"]


def half_of_it(folder: Path) -> tuple[subprocess.Popen, Path]:
    """A sweep of four trials, two of which are done and two held up."""
    file = write(folder, {"x": {"min": 0, "max": 3}})
    for x in (2, 3):
        (folder / f"hold-{x}-0").touch()
    sweep = start(folder, str(file), "-j", "2")
    wait_for(lambda: (folder / "calls.txt").exists() and len(calls(folder)) == 4)
    return sweep, file


def goes_on(folder: Path, file: Path) -> None:
    """The same command runs the two that were held up again, and nothing else."""
    for x in (2, 3):
        (folder / f"hold-{x}-0").unlink()
    assert main([str(file), "-j", "2"]) == 0
    status = [(r["x"], r["status"]) for r in table(folder)]
    again = [(x, "interrupted, run again") for x in "23"]
    assert sorted(status) == sorted([(x, "finished") for x in "0123"] + again)
    assert sorted(c["x"] for c in calls(folder)) == list("012233")


def test_a_sweep_that_is_killed_goes_on_where_it_was(folder):
    sweep, file = half_of_it(folder)
    sweep.send_signal(signal.SIGKILL)
    assert sweep.wait() == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(c["pid"]) for c in calls(folder)))
    goes_on(folder, file)


def test_hyperband_stops_the_worse_trials_early(folder, monkeypatch):
    """The best one is seen before the others begin, which take 8 of 12 steps by themselves."""
    held = [folder / f"hold-{trial}" for trial in ("3-11", "9-0", "8-0", "7-0")]
    for path in (*held, *(folder / f"hold-{x}-8" for x in (9, 8, 7))):
        path.touch()
    should_stop = Study.should_stop

    def watch(study, trial, values):
        stops = should_stop(study, trial, values)
        if trial.number == 0 and len(values) == 11:
            for path in held:
                path.unlink(missing_ok=True)
        return stops

    monkeypatch.setattr(Study, "should_stop", watch)
    parameters = {"x": {"values": [3, 9, 8, 7]}, "steps": {"value": 12}}
    early = {"type": "hyperband", "min_iter": 2, "eta": 2}
    assert main([str(write(folder, parameters, early_terminate=early)), "-j", "2"]) == 0
    rows = table(folder)
    assert {r["x"]: r["status"] for r in rows} == {
        "3": "finished",
        **dict.fromkeys("987", "stopped early"),
    }
    steps = {
        r["x"]: len((folder / r["folder"] / "metrics.csv").read_text().splitlines()) - 1
        for r in rows
    }
    assert steps["3"] == 12
    assert max(steps[x] for x in "987") < 9


# ---- trainings


def test_trainings_are_forked_and_like_those_of_the_command_line(folder):
    (folder / "small.yaml").write_text(SMALL.replace("logger: false", "logger: true"))
    arguments = ["fit", "--config=small.yaml", "--trainer.enable_model_summary=false"]
    arguments += ["--trainer.callbacks+=ranks.Told"]
    file = write(
        folder,
        {"model.optimizer.lr": {"values": [0.1, 0.2, 0.05]}, "seed_everything": {"value": 3}},
        program=str(ROOT / "train.py"),
        command=["${env}", "${interpreter}", "${program}", *arguments, "${args}"],
        metric={"name": "val/acc", "goal": "maximize"},
    )
    train([*arguments, "--model.optimizer.lr=0.1", "--seed_everything=3", "--run_name=typed"])
    env = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "2"}  # a thread for each of two trials
    output = start(folder, str(file), "-j", "2", **env).communicate(timeout=600)[0]
    rows = table(folder)
    assert [r["status"] for r in rows] == ["finished"] * 3, output
    assert all("forkserver" in (folder / r["folder"] / "log.txt").read_text() for r in rows)
    same = next(folder / r["folder"] for r in rows if r["model.optimizer.lr"] == "0.1")
    assert logged(same) == logged(folder / "runs/typed")
    assert "threads 1" in (same / "log.txt").read_text()
    assert f"workers by {multiprocessing.get_start_method()}" in (same / "log.txt").read_text()
    recorded = [read_wandb(folder / r["folder"])[0] for r in rows]
    assert len({r.run["run_id"] for r in recorded}) == 3
    assert {r.run["run_group"] for r in recorded} == {"try"}


def test_of_the_rates_in_the_ready_file_the_middle_is_the_best(folder):
    content = yaml.safe_load((ROOT / "configs/sweeps/mnist_lr.yaml").read_text())
    content["parameters"]["model.optimizer.lr"]["values"] = [0.0001, 0.03, 1]
    content["parameters"]["seed_everything"]["values"] = [0]
    content["name"] = "try"
    for name in ("program", "command"):  # as seen from here
        text = yaml.safe_dump(content[name])
        for path in ("train.py", "configs/"):
            text = text.replace(path, f"{ROOT}/{path}")
        content[name] = yaml.safe_load(text)
    (folder / "try.yaml").write_text(yaml.safe_dump(content))
    assert main(["try.yaml", "-j", "2"]) == 0
    best, small, large = table(folder)
    assert best["model.optimizer.lr"] == "0.03"
    assert float(best["val/acc"]) > 0.93
    assert small["model.optimizer.lr"] == "0.0001"
    assert float(small["val/acc"]) < 0.3
    assert large["status"].startswith("failed: exit status 1: error: the training loss")


@pytest.mark.parametrize(
    "words",
    [words for words in commands(ROOT / "docs" / "sweeps.md") if "--storage" not in words],
    ids=lambda words: words[3],
)
def test_a_command_of_the_page_runs_its_file(folder, words):
    """The first of its trials, of few steps on data that need no download."""
    content = yaml.safe_load((ROOT / words[3]).read_text())
    for values in content["parameters"].values():
        del values["values"][1:]
    short = {"data.dataset": "digits", "trainer.max_epochs": 1, "trainer.limit_train_batches": 4}
    content["command"][-1:-1] = [f"--{key}={value}" for key, value in short.items()]
    content["program"] = str(ROOT / content["program"])
    (folder / "configs").mkdir()
    for path in ROOT.glob("configs/*.yaml"):
        (folder / "configs" / path.name).symlink_to(path)
    (folder / words[3]).parent.mkdir()
    (folder / words[3]).write_text(yaml.safe_dump(content))
    assert words[:3] == ["python", "train.py", "sweep"]
    assert main(words[3:]) == 0
    (trial,) = table(folder, content["name"])
    assert trial["status"] == "finished"
    assert float(trial[content["metric"]["name"]]) > 0


# ---- what is run next


def finish_all(study: Study, loss) -> list[float]:
    """Runs a study with a function in place of processes; where it looked."""
    places = []
    while not study.is_over():
        if taken := study.ask():
            trial, values = taken
            places.append(values["x"])
            study.finish(trial, FINISHED, loss(values["x"]))
    return places


@pytest.fixture
def seeded(monkeypatch):
    """The draws of a sweep, which are other ones each time it runs."""
    for name in ("TPESampler", "RandomSampler"):
        sampler = getattr(optuna.samplers, name)
        monkeypatch.setattr(f"anneal.sweep.study.{name}", partial(sampler, seed=0))


def test_bayes_looks_where_it_was_good(folder, seeded):
    parameters = {"x": {"min": -10.0, "max": 10.0}}
    sweep = read(write(folder, parameters, method="bayes", run_cap=24))
    places = finish_all(Study(sweep, folder), lambda x: (x - 3) ** 2)
    assert len(places) == 24
    near = np.abs(np.array(places[10:]) - 3) < 1
    assert near.mean() > 0.25  # by chance it would be 0.1


def test_the_same_parameters_are_not_run_twice(folder, seeded):
    parameters = {"x": {"values": [1, 2]}, "y": {"values": ["a", "b"]}}
    sweep = read(write(folder, parameters, method="random", run_cap=16))
    assert sorted(finish_all(Study(sweep, folder), float)) == [1, 1, 2, 2]


def test_a_run_cap_counts_trials_with_different_parameters(folder, seeded):
    parameters = {"x": {"min": 1, "max": 9}}
    study = Study(read(write(folder, parameters, method="random", run_cap=7)), folder)
    places = finish_all(study, float)
    assert len(set(places)) == len(places) == study.ended() == 7


def test_a_run_cap_beyond_all_parameters_is_said(folder, capsys):
    file = write(folder, {"x": {"values": [1, 2]}}, method="random", run_cap=5)
    assert main([str(file)]) == 0
    assert len(calls(folder)) == 2
    assert "2 trials of run_cap=5: none is left" in capsys.readouterr().err


def test_a_target_ends_the_sweep(folder):
    metric = {"name": "loss", "goal": "minimize", "target": 1.0}
    sweep = read(write(folder, {"x": {"values": [4, 2, 1, 0]}}, metric=metric))
    assert finish_all(Study(sweep, folder), float) == [4, 2, 1]


def test_a_higher_run_cap_adds_trials(folder):
    parameters = {"x": {"min": 0.0, "max": 1.0}}
    for cap, more in ((3, 3), (5, 2)):
        study = Study(read(write(folder, parameters, method="random", run_cap=cap)), folder)
        assert len(finish_all(study, float)) == more
        study._lock.close()


def test_a_sweep_that_runs_or_was_changed_is_refused(folder):
    first = Study(read(write(folder, {"x": {"values": [1, 2]}})), folder)
    with pytest.raises(UserError, match="is running already"):
        Study(read(write(folder, {"x": {"values": [1, 2]}})), folder)
    first._lock.close()
    with pytest.raises(UserError, match="begun with other parameters"):
        Study(read(write(folder, {"x": {"values": [1, 3]}})), folder)


# ---- the picture


def test_the_picture_shows_means_over_seeds_and_marks_the_best(folder):
    parameters = {"lr": {"values": [0.01, 0.1, 1]}, "seed_everything": {"values": [0, 1]}}
    sweep = read(write(folder, parameters))
    losses = {0.01: (3, 5), 0.1: (1.5, 2.5), 1: (1, 9)}
    rows = [
        Row(0, loss, FINISHED, {"lr": lr, "seed_everything": seed}, 1.0, "")
        for lr, pair in losses.items()
        for seed, loss in enumerate(pair)
    ]
    rows.append(Row(9, math.nan, FAILED, {"lr": 1, "seed_everything": 2}, 1.0, ""))
    axes = plot(sweep, rows).axes[0]
    assert axes.get_xscale() == "log"
    means, single, *_ = axes.get_lines()
    assert means.get_xydata().tolist() == [[0.01, 4], [0.1, 2], [1, 5]]
    assert len(single.get_xydata()) == 6
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["best: 2 (mean of 2) at 0.1", "failed"]


def test_the_picture_of_several_numbers_has_lines_and_of_words_there_is_none(folder):
    optimizers = [{"class_path": "SGD", "init_args": {"momentum": 0.9}}, {"class_path": "Adam"}]
    sweep = read(write(folder, {"opt": {"values": optimizers}}))
    rows = [Row(i, float(i + 1), FINISHED, {"opt": o}, 1.0, "") for i, o in enumerate(optimizers)]
    assert plot(sweep, rows) is None

    sweep = read(write(folder, {"opt": {"values": optimizers}, "lr": {"values": [0.1, 1, 10]}}))
    rows = [
        Row(0, lr + i, FINISHED, {"opt": o, "lr": lr}, 1.0, "")
        for i, o in enumerate(optimizers)
        for lr in (0.1, 1, 10)
    ]
    axes = plot(sweep, rows).axes[0]
    assert axes.get_lines()[1].get_xydata().tolist() == [[0.1, 1.1], [1, 2], [10, 11]]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["SGD(momentum=0.9)", "Adam", "best: 0.1 at 0.1"]

    sweep = read(write(folder, {"a.seed": {"values": [0, 1]}, "lr": {"values": [1]}}))
    rows = [Row(i, 1.0, FINISHED, {"a.seed": i, "lr": 1}, 1.0, "") for i in (0, 1)]
    labels = [text.get_text() for text in plot(sweep, rows).axes[0].get_legend().get_texts()]
    assert labels[:2] == ["seed=0", "seed=1"]
