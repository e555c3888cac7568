"""The loggers of a run: `metrics.csv`, and Weights & Biases with or without an account.

Both record the `step` that Lightning passes: the index of the optimizer step (0 for the first), the
same with and without gradient accumulation. What is measured after k steps, in a validation or at
the end of an epoch, stands at k - 1. So a checkpoint taken at `global_step` s holds what led to the
rows with step < s, and a training resumed from it writes the rows with step >= s again.
"""
