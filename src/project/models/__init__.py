"""LightningModules, found by class name: `--model=MLP`. A new file here needs no registration."""
