"""Optimizer and learning-rate schedule of every LightningModule, from its configuration.

The idea is 30 lines: a schedule is a function of the optimizer steps taken, and of nothing else.
`RunSchedule.setup`, `_sync` and `_apply_warmup` in `run_schedule.py` are that function: after a
resume they work out the learning rate of the step from the step's number alone, so that a longer
run, another length of an epoch or another schedule simply counts from there.

- `configure.py`: what a module calls
- `groups.py`: rules for parameters, and the groups that follow
- `joint.py`: several optimizers that act as one; `muon.py`: Muon, with AdamW for the rest
- `kinds.py`, `evaluation_weights.py`, `exact_state.py`: what optimizers of all kinds need
- `schedule.py`: the options of a schedule, and the torch scheduler that they name
- `torch_schedulers.py`: torch's schedulers with lengths that follow from the run
- `run_schedule.py`: the schedule in a run
- `callback.py`: tells it the length of the run and the validations' metric
"""
