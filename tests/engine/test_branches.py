"""One stable run holds shorter ones: each decays from a checkpoint of its own, bit for bit."""

import pytest
import torch
from cells import BATCHES, Cell, batches, command, leg

from anneal.runs.drops import branch_steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("branches")


# A branch inside an epoch, at its end, after an accumulation, and where a validation is due.
@pytest.mark.parametrize(
    ("counts", "decay"),
    [("default", 0.25), ("default", 1 / 3), ("accumulate", 1 / 3), ("interval", 1 / 6)],
)
def test_a_branch_is_the_run_that_was_planned_at_its_length(folder, counts, decay):
    name = f"{counts}-{decay:.2f}"
    wsd = "--model.schedule.scheduler"
    shared = command(folder, Cell("steps", "inside", "same", counts))
    shared += [f"{wsd}=WSD", f"{wsd}.decay={decay}", "--model.schedule.warmup_steps=1"]
    assert leg(folder, *shared, f"{wsd}.branches=2", f"--run_name={name}")[0] == 0
    total = 3 * BATCHES // (4 if counts == "accumulate" else 1)
    budgets = branch_steps(total, decay, 2)
    kept = folder / "runs" / name / "checkpoints"
    assert {f.name for f in kept.glob("step=*")} == {f"step={first}.ckpt" for _, first in budgets}
    for budget, first in budgets:
        end = f"--trainer.max_steps={budget}"
        runs = [folder / "runs" / f"{name}-{kind}-{budget}" for kind in ("planned", "branch")]
        assert leg(folder, *shared, end, f"--run_name={runs[0].name}")[0] == 0
        checkpoint = f"--ckpt_path={kept / f'step={first}.ckpt'}"
        status, output = leg(folder, *shared, end, checkpoint, f"--run_name={runs[1].name}")
        assert status == 0, output
        a, b = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in runs)
        assert a["global_step"] == b["global_step"] == budget
        assert repr(a["optimizer_states"]) == repr(b["optimizer_states"])
        assert a["position"] | {"seconds": 0} == b["position"] | {"seconds": 0}
        assert all(torch.equal(t, b["state_dict"][k]) for k, t in a["state_dict"].items())
        planned, branch = (batches(run) for run in runs)
        assert branch == planned[-len(branch) :]
        assert len(branch) == (budget - first) * (len(planned) // budget)
    if counts == "default":  # and the whole run is one of them
        long = torch.load(kept / "last.ckpt", weights_only=True)["state_dict"]
        path = folder / "runs" / f"{name}-branch-{total}" / "checkpoints" / "last.ckpt"
        branch = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.equal(t, branch[k]) for k, t in long.items())
