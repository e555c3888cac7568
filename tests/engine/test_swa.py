"""Lightning's StochasticWeightAveraging in a run that is resumed."""

from pathlib import Path

import pytest
import torch
from test_cli import FIT, weights

KEY = "--trainer.callbacks"
SWA = (f"{KEY}+=StochasticWeightAveraging", f"{KEY}.swa_lrs=0.01", f"{KEY}.swa_epoch_start=3")
MORE = ("--trainer.max_epochs=5", f"{KEY}.annealing_epochs=8", "--model.schedule.warmup_steps=2")


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_a_run_with_swa_resumes_bit_for_bit_before_and_after_it_has_begun(run):
    args = (*FIT, *SWA, *MORE)
    run(*args, "--run_name=whole")
    expected = weights(Path("runs/whole"))
    for step, asks in ((5, False), (13, False), (14, True)):  # 4 an epoch, SWA from 8
        name = f"stopped-{step}"
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run(
                *args,
                f"{KEY}+=odd_defaults.Stops",
                f"{KEY}.step={step}",
                f"{KEY}.asks={str(asks).lower()}",
                f"--run_name={name}",
            )
        run("fit", f"--run_name={name}", "--resume=auto", f"{KEY}.step=-1")
        found = weights(Path("runs", name))
        assert all(torch.equal(found[key], expected[key]) for key in expected), step
