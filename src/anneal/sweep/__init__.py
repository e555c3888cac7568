"""Many trainings on this machine: W&B's sweep files by Optuna, comparisons, branches of one run."""
