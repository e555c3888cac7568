"""Optimizer and learning-rate schedule of every LightningModule, from its configuration.

The idea is 30 lines: a schedule is a function of the optimizer steps taken, and of nothing else.
`RunSchedule.setup`, `_sync` and `_apply_warmup` in `run_schedule.py` are that function: after a
resume they work out the learning rate of the step from the step's number alone, so that a longer
run, another length of an epoch or another schedule simply counts from there.
"""
